"""Flow `train`: one arm, one seed. Warm start, epochs of steps, a checkpoint and an evaluation each epoch, the test."""

import time
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from prefect import Flow, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote

from flows.parameters import Arm, Changes, Preset, Seed
from flows.prepare_data import versions_of
from flows.presets import load_specification
from igpo_core.config import RunSpec, plan_run
from igpo_core.config.specification import spell_changes
from tasks.data.published import mark_whole, provide_data
from tasks.home import home, open_home, run_folder
from tasks.prefect_runs import RunPage, flow_run_url, run_log
from tasks.runs import planning
from tasks.runs.devices import device
from tasks.runs.interruption import leave_checkpoint
from tasks.runs.locks import locked
from tasks.runs.models import with_its_model
from tasks.runs.planned import Run, Say, bring_up_to_date, drop_moments, open_run, told_name, write_plan
from tasks.runs.processors import joined, processor
from tasks.runs.together import Meeting, train_together
from tasks.runs.warm_starts import ensure_warm_start
from tasks.secrets import require_judge
from tasks.source import source_tags
from tasks.tracking.mlflow_runs import dataset_of
from tasks.tracking.outbox import About, read_about
from tasks.tracking.server import flatten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from igpo_core.run import Event, TrainingRun
    from tasks.runs.training import Recorder


def run_name() -> str:
    """Return the title of a planned run's page."""
    return told_name(run_folder(flow_run.parameters["run_key"]))


def start_name() -> str:
    """Return the title of a warm start's page."""
    return f"warm start of {told_name(run_folder(flow_run.parameters['run_key']))}"


def asked_name() -> str:
    """Return the title of the page of a run that somebody asked for by its arm."""
    given = flow_run.parameters
    return " ".join(filter(None, [given["arm"], f"seed {given['seed']}", given["cell"]]))


@flow(name="train", flow_run_name=asked_name, validate_parameters=True)
def train(
    preset: Preset,
    arm: Arm,
    seed: Seed = 0,
    cell: str = "",
    set: Changes | None = None,
) -> dict[str, Any]:
    """Plan one arm with one seed, and train it, or find it finished. Returns its result.

    Args:
        seed: Run seed: weights, warm start, question order, sampling.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
        set: Other settings in the preset's base.
    """
    open_home()
    specification = load_specification(preset, set)
    versions = versions_of(specification)
    sweep = specification.sweep(versions)
    run = Run(plan_run(specification, arm, seed, cell, versions.get(cell, ""), sweep), home())
    mark_whole(run.data, sweep)
    write_plan(run)
    return train_run(run.spec.run_key)


def train_run(run_key: str) -> dict[str, Any]:
    """Train a planned run, or find it finished. Returns its result.

    Args:
        run_key: Of the run, whose run.json in IGPO_HOME/runs says all that it needs.
    """
    open_home()
    say = run_log()
    run = with_its_model(open_run(run_folder(run_key)), say)
    require_judge(run.spec.experiment)
    with locked(run.home, run_key, say) as lock:
        finished = run.result()
        if finished is not None:
            say(f"finished before (run key {run_key}): reused. {bring_up_to_date(run)}")
            return finished
        provide_data(run.spec.experiment.data, run.data, run.spec.sweep)
        ensure_warm_start(run, say)
        return _train(run, lock, say)


@flow(name="warm-start", flow_run_name=start_name, validate_parameters=True)
def warm_start(run_key: str) -> str:
    """Make, or find, the policy that a planned run starts from, with every other arm of its seed. Returns its folder.

    Args:
        run_key: Of the run, whose run.json in IGPO_HOME/runs says all that it needs.
    """
    open_home()
    say = run_log()
    run = with_its_model(open_run(run_folder(run_key)), say)
    provide_data(run.spec.experiment.data, run.data, run.spec.sweep)
    found = run.start.exists()
    started = time.perf_counter()
    folder = ensure_warm_start(run, say)
    alone = run.spec.experiment.training.world == 1  # this process could not hold what several share
    if alone and planning.read_timing(run.home, run.spec.sweep) is None:  # the sweep tells from it what it will take
        took = None if found else time.perf_counter() - started
        planning.keep_timing(run.home, run.spec.sweep, planning.time_a_step(run, took, say))
    return str(folder)


@flow(name="train-run", flow_run_name=run_name, validate_parameters=True)
def train_planned(run_key: str) -> dict[str, Any]:
    """Train a planned run, or find it finished: what sweeps start. Returns its result.

    Args:
        run_key: Of the run, whose run.json in IGPO_HOME/runs says all that it needs.
    """
    return train_run(run_key)


FLOWS: dict[str, Flow[Any, Any]] = {"train": train_planned, "warm_start": warm_start}  # what a sweep starts


def _train(run: Run, lock: IO[str], say: Say) -> dict[str, Any]:
    """From the newest checkpoint, or the warm start, to the result. Terminated on the way, it leaves a checkpoint."""
    from tasks.tracking.sending import Tracker

    spec = run.spec
    page = RunPage(spec.name, spec.experiment.training.steps, say)
    before = read_about(run.folder)
    known = before.tags.get("processor") if before else None
    tags = tags_of(spec) | {"processor": joined(known, processor(device(spec.experiment, say)))}
    settings = spec.experiment.model_dump(mode="json")
    about = About(
        spec.study, title_of(spec), spec.run_key, tags, settings, dataset=dataset_of(spec.experiment.data, run.data)
    )
    tracker = Tracker(run.folder, about, say, page.link)
    several = spec.experiment.training.world > 1
    try:
        result = _together(run, lock, say, page) if several else _alone(run, tracker, say, page)
    except (TerminationSignal, KeyboardInterrupt):
        tracker.finish("KILLED", patience=10)
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    drop_moments(run.folder)
    tracker.finish("FINISHED")
    page.close()
    return result


def _alone(run: Run, tracker: Any, say: Say, page: RunPage) -> dict[str, Any]:
    from tasks.runs.training import open_training, train_to_end

    training = open_training(run, say)
    try:
        return train_to_end(run, training, tracker, say, page.report, _part)
    except (TerminationSignal, KeyboardInterrupt):
        leave_checkpoint(training, tracker, say)
        raise


@task(cache_policy=NO_CACHE, persist_result=False)
def _part_task(told: Any) -> Any:
    from tasks.runs.training import train_part

    return train_part(*told)


def _part(training: "TrainingRun", events: "Iterator[Event]", recorder: "Recorder") -> "Event":
    """A part of a run, up to its next checkpoint or its result, as a task of its own."""
    trainer = training.trainer
    number = trainer.step // trainer.config.training.steps_per_epoch + 1
    name = "test and publish" if trainer.done else f"epoch {number}"
    named: Any = _part_task.with_options(task_run_name=name)
    event: Event = named(quote((training, events, recorder)))
    return event


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="train together")
def _together(run: Run, lock: IO[str], say: Say, page: RunPage) -> dict[str, Any]:
    return train_together(run, lock, say, page.report, partial(_call_others, run))


def _call_others(run: Run, meeting: Meeting) -> None:
    """The other machines' workers take these runs; they fail with this one, whose processes they wait for."""
    from prefect.deployments import run_deployment

    for node in range(1, run.spec.experiment.training.nodes):
        told = {"folder": str(run.folder.resolve()), "node": node, "address": meeting.address, "port": meeting.port}
        run_deployment("join/nodes", parameters=told, timeout=0)


LONGEST_NAME = 250  # of a run: a column of MLflow's database; the tag `set` has it whole
# One colour an arm in MLflow's charts, in the order of the specification; seeds share it.
COLOURS = (
    "#7f7f7f",
    "#1f77b4",
    "#d62728",
    "#2ca02c",
    "#9467bd",
    "#ff7f0e",
    "#8c564b",
    "#e377c2",
    "#bcbd22",
    "#17becf",
    "#000000",
    "#aec7e8",
    "#98df8a",
    "#ffbb78",
)


def title_of(spec: RunSpec) -> str:
    """Return what MLflow calls the run: its name, and what the start of its sweep set."""
    return " · ".join(filter(None, [spec.name, spell_changes(spec.changes)]))[:LONGEST_NAME]


def tags_of(spec: RunSpec) -> dict[str, str]:
    """Return MLflow's tags of a run."""
    return {
        "kind": "train",
        "cell": spec.cell,
        "mlflow.runColor": COLOURS[spec.arm_number % len(COLOURS)],
        "sweep": spec.sweep,
        "arm": spec.arm,
        "seed": str(spec.seed),
        "data_version": spec.data_version,
        **({"set": spell_changes(spec.changes)} if spec.changes else {}),
        **{f"arm.{name}": value for name, value in flatten(spec.arm_settings).items()},
        **source_tags("flows/train.py"),
        "mlflow.note.content": f"[This run in Prefect]({flow_run_url(str(flow_run.id))})",  # the page shows it first
    }
