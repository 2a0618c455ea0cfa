"""Flow `train`: one arm, one seed. Warm start, epochs of steps, a checkpoint and an evaluation each epoch, the test."""

import time
from contextlib import closing
from typing import IO, Any

from prefect import Flow, flow
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from flows.parameters import Arm, Changes, Preset, Seed
from flows.prepare_data import versions_of
from igpo_core.config import plan_run
from tasks.data.published import mark_whole, provide_data
from tasks.lab.home import home, open_home
from tasks.lab.prefect_runs import RunPage, flow_run_url, run_log
from tasks.lab.secrets import require_judge
from tasks.runs import planning
from tasks.runs.devices import device
from tasks.runs.expectations import tell_expectations
from tasks.runs.locks import locked
from tasks.runs.models import with_its_model
from tasks.runs.planned import Run, Say, drop_moments, open_run, open_training, told_name, write_run
from tasks.runs.processors import processor, unsuited
from tasks.specification.presets import load_specification
from tasks.tracking.mlflow_runs import about_run
from tasks.tracking.outbox import Status
from tasks.tracking.owed import bring_up_to_date
from tasks.tracking.sending import Tracker
from tasks.tracking.system import monitor
from tasks.train import train_in_processes, train_part


def run_name() -> str:
    """Return the title of a planned run's page."""
    return told_name(home(), flow_run.parameters["run_key"])


def start_name() -> str:
    """Return the title of a warm start's page."""
    return f"warm start of {told_name(home(), flow_run.parameters['run_key'])}"


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
    set: Changes = None,
) -> dict[str, Any]:
    """Plan one arm with one seed, and train it, or find it finished. Returns its result.

    Args:
        seed: Run seed: weights, warm start, question order, sampling.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
    """
    igpo_home = open_home()
    specification = load_specification(preset, set)
    versions = versions_of(specification)
    sweep = specification.sweep(versions)
    run = Run(plan_run(specification, arm, seed, cell, versions.get(cell, ""), sweep), igpo_home)
    mark_whole(run.data, sweep)
    write_run(run)
    return train_run(run.spec.run_key)


def train_run(run_key: str) -> dict[str, Any]:
    """Train a planned run, or find it finished. Returns its result.

    Args:
        run_key: Of the run, whose run.json in IGPO_HOME/runs says all that it needs.
    """
    from tasks.runs.warm_starts import ensure_warm_start  # torch takes seconds

    say = run_log()
    run = with_its_model(open_run(open_home(), run_key), say)
    require_judge(run.spec.experiment)
    for line in unsuited(run.spec.experiment):
        say(line)
    with locked(run.home, run.spec.run_key, say) as lock:
        finished = run.result()
        if finished is not None:
            say(f"finished before (run key {run.spec.run_key}): reused. {bring_up_to_date(run.folder)}")
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
    from tasks.runs.training import time_a_step
    from tasks.runs.warm_starts import ensure_warm_start

    say = run_log()
    run = with_its_model(open_run(open_home(), run_key), say)
    provide_data(run.spec.experiment.data, run.data, run.spec.sweep)
    found = run.start.exists()
    started = time.perf_counter()
    ensure_warm_start(run, say)
    experiment = run.spec.experiment
    alone = experiment.training.world == 1  # this process could not hold what several share
    # the sweep tells from it what it will take
    if alone and planning.read_timing(run.home, run.spec.sweep, experiment) is None:
        took = None if found else time.perf_counter() - started
        planning.keep_timing(run.home, run.spec.sweep, time_a_step(run, took, say))
    return str(run.start)


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
    page = RunPage(run.spec.name, run.spec.experiment.training.steps, say)
    about = about_run(run, processor(device(run.spec.experiment, say)), flow_run_url(str(flow_run.id)))
    tracker = Tracker(run.folder, about, say, page.link)
    several = run.spec.experiment.training.world > 1
    try:
        result = train_in_processes(run, lock, say, page) if several else _alone(run, tracker, say, page)
    except (TerminationSignal, KeyboardInterrupt):
        tracker.finish("KILLED", patience=10)
        raise
    except BaseException:
        _end(run, tracker, "FAILED", say)
        raise
    drop_moments(run.folder)
    _end(run, tracker, "FINISHED", say)
    page.close()
    return result


def _end(run: Run, tracker: Tracker, status: Status, say: Say) -> None:
    """Data Docs come first, for MLflow gets a run's files as it ends."""
    try:
        tell_expectations(run, say)
    finally:
        tracker.finish(status)


def _alone(run: Run, tracker: Tracker, say: Say, page: RunPage) -> dict[str, Any]:
    from tasks.runs.interruption import leave_checkpoint
    from tasks.runs.training import Recorder

    training = open_training(run, say)
    with monitor(run.spec.experiment, str(training.trainer.policy.model.device), say) as system:
        recorder = Recorder(run, training, tracker, say, page.report, system.taken)
        try:
            with closing(recorder.events()) as events:
                while recorder.result is None:
                    train_part.with_options(task_run_name=recorder.next_part)(events, recorder)
        except (TerminationSignal, KeyboardInterrupt):
            leave_checkpoint(training, tracker, say)
            raise
        return recorder.result
