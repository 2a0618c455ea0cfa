"""Flow `train`: one arm, one seed. Warm start, epochs of steps, a checkpoint and an evaluation each epoch, the test."""

import time
from functools import partial
from typing import IO, Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows.parameters import Arm, Preset, Seed
from flows.prepare_data import versions_of
from flows.specification import AblationSpecification, load_specification
from tasks import planning
from tasks.home import home, open_home, warm_start_folder
from tasks.interruption import leave_checkpoint
from tasks.locks import locked
from tasks.mlflow_runs import dataset_of
from tasks.outbox import About, read_about
from tasks.prefect_runs import RunPage, flow_run_url, run_log
from tasks.processors import joined, processor
from tasks.runs import Say, bring_up_to_date, identify
from tasks.secrets import require_judge
from tasks.source import source_tags
from tasks.together import Meeting, train_together
from tasks.tracking import flatten
from tasks.training import Job, OnStep, start_trainer, test_and_publish, train_epoch, train_to_end
from tasks.warm_starts import device, ensure_warm_start, warm_start_key


def run_name() -> str:
    """What the run's page and MLflow call it."""
    given = flow_run.parameters
    return " ".join(filter(None, [given.get("arm", "warm start"), f"seed {given['seed']}", given.get("cell", "")]))


@flow(name="warm-start", flow_run_name=run_name, validate_parameters=True)
def warm_start(preset: Preset, seed: Seed, cell: str = "") -> str:
    """Make, or find, the policy that every arm of this seed starts from. Returns its folder.

    Args:
        seed: Run seed of the arms that start from it.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
    """
    from tasks.data import prepare

    open_home()
    specification = load_specification(preset)
    experiment, say = specification.experiment(specification.baseline, seed, cell), run_log()
    data = prepare(experiment.data, home())
    found = warm_start_folder(warm_start_key(experiment, data.version)).exists()
    started = time.perf_counter()
    folder = ensure_warm_start(experiment, data, home(), say)
    sweep = specification.sweep(versions_of(specification))
    alone = experiment.training.world == 1  # this process could not hold what several share
    if alone and planning.read_timing(home(), sweep) is None:  # the sweep's plan tells what it will take
        took = None if found else time.perf_counter() - started
        arms = [specification.experiment(arm, seed, cell) for arm in specification.arms]
        costly = next((arm for arm in arms if arm.reward.needs_beliefs), experiment)
        nobody = identify(costly, data.version, "timing", home())
        job = Job(costly, nobody, data.folder, folder, home(), specification.name, "timing", "")
        planning.keep_timing(home(), sweep, planning.time_a_step(job, took, say))
    return str(folder)


@flow(name="train", flow_run_name=run_name, validate_parameters=True)
def train(
    preset: Preset,
    arm: Arm,
    seed: Seed = 0,
    cell: str = "",
) -> dict[str, Any]:
    """Train one arm with one seed, or find it finished. Returns its result.

    Args:
        seed: Run seed: weights, warm start, question order, sampling.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
    """
    from tasks.data import prepare

    open_home()
    say = run_log()
    specification = load_specification(preset)
    experiment = specification.experiment(arm, seed, cell)
    require_judge(experiment)
    data = prepare(experiment.data, home())
    sweep = specification.sweep(versions_of(specification))
    run = identify(experiment, data.version, sweep, home())
    with locked(home(), run.run_key, say) as lock:
        finished = run.result()
        if finished is not None:
            say(f"finished before (run key {run.run_key}): reused. {bring_up_to_date(run)}")
            return finished
        warm = ensure_warm_start(experiment, data, home(), say)
        job = Job(experiment, run, data.folder, warm, home(), specification.name, arm, cell)
        return train_run(job, _tags(specification, arm, seed, cell, sweep, data.version), lock, say)


def train_run(job: Job, tags: dict[str, str], lock: IO[str], say: Say) -> dict[str, Any]:
    """From the newest checkpoint, or the warm start, to the result. Terminated on the way, it leaves a checkpoint."""
    from tasks.sending import Tracker

    experiment, run = job.experiment, job.run
    name = " ".join(filter(None, [job.arm, f"seed {experiment.seed}", job.cell]))
    page = RunPage(name, experiment.training.steps, say)
    settings = experiment.model_dump(mode="json")
    before = read_about(run.folder)
    known = before.tags.get("processor") if before else None
    tags = tags | {"processor": joined(known, processor(device(experiment)))}
    about = About(job.study, name, run.run_key, tags, settings, dataset=dataset_of(experiment.data, job.data))
    tracker = Tracker(run.folder, about, say, page.link)
    several = experiment.training.world > 1
    try:
        result = _together(job, lock, say, page) if several else _alone(job, tracker, say, page)
    except (TerminationSignal, KeyboardInterrupt):
        tracker.finish("KILLED", patience=10)
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
    page.close()
    return result


def _alone(job: Job, tracker: Any, say: Say, page: RunPage) -> dict[str, Any]:
    trainer = start_trainer(job, say)
    try:
        return train_to_end(trainer, job, tracker, say, page.report, _epoch, _test)
    except (TerminationSignal, KeyboardInterrupt):
        leave_checkpoint(trainer, job.run, tracker, say)
        raise


@task(cache_policy=NO_CACHE, persist_result=False)
def _epoch_task(trainer: Any, number: int, job: Job, outbox: Any, say: Any, on_step: Any, saving: float) -> float:
    return train_epoch(trainer, number, job, outbox, say, on_step, saving)


def _epoch(trainer: Any, number: int, job: Job, outbox: Any, say: Say, on_step: OnStep, saving: float) -> float:
    named = _epoch_task.with_options(task_run_name=f"epoch {number + 1}")
    return named(trainer, number, job, outbox, say, on_step, saving)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="test and publish")
def _test(trainer: Any, job: Job, outbox: Any) -> dict[str, Any]:
    return test_and_publish(trainer, job, outbox)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="train together")
def _together(job: Job, lock: IO[str], say: Say, page: RunPage) -> dict[str, Any]:
    return train_together(job, lock, say, page.report, partial(_call_others, job))


def _call_others(job: Job, meeting: Meeting) -> None:
    """The other machines' workers take these runs; they fail with this one, whose processes they wait for."""
    from prefect.deployments import run_deployment

    for node in range(1, job.experiment.training.nodes):
        told = {"folder": str(job.run.folder.resolve()), "node": node, "address": meeting.address, "port": meeting.port}
        run_deployment("join/nodes", parameters=told, timeout=0)


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


def _tags(
    specification: AblationSpecification, arm: str, seed: int, cell: str, sweep: str, data_version: str
) -> dict[str, str]:
    return {
        "kind": "train",
        "cell": cell,
        "mlflow.runColor": COLOURS[list(specification.arms).index(arm) % len(COLOURS)],
        "sweep": sweep,
        "arm": arm,
        "seed": str(seed),
        "data_version": data_version,
        **{f"arm.{name}": value for name, value in flatten(specification.arms[arm]).items()},
        **source_tags("flows/train.py"),
        "mlflow.note.content": f"[This run in Prefect]({flow_run_url(str(flow_run.id))})",  # the page shows it first
    }
