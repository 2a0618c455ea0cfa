"""Flow `train`: one arm, one seed. Warm start, epochs of steps, a checkpoint and an evaluation each epoch, the test."""

import time
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from pydantic import Field

from flows.prepare_data import versions_of
from flows.specification import AblationSpecification, load_specification
from igpo_core.checkpoints import checkpoint_folder
from igpo_core.folders import write_json
from tasks import planning
from tasks.evaluation import evaluate_all, evaluate_best, evaluate_if_missing, judge, keep_best
from tasks.home import home, warm_start_folder
from tasks.interruption import leave_checkpoint
from tasks.locks import locked
from tasks.outbox import About
from tasks.prefect_runs import RunPage, flow_run_url
from tasks.runs import RunIdentity, Say, bring_up_to_date, identify, save_checkpoint, write_result
from tasks.secrets import require_judge
from tasks.training import start_trainer, train_steps
from tasks.warm_starts import ensure_warm_start, warm_start_key

if TYPE_CHECKING:
    from igpo_core.config import ExperimentConfig
    from tasks.data import PublishedData


def run_name() -> str:
    """What the run's page and MLflow call it."""
    given = flow_run.parameters
    return " ".join(filter(None, [given.get("arm", "warm start"), f"seed {given['seed']}", given.get("cell", "")]))


@flow(name="warm-start", flow_run_name=run_name, validate_parameters=True)
def warm_start(preset: str, seed: Annotated[int, Field(ge=0)], cell: str = "") -> str:
    """Make, or find, the policy that every arm of this seed starts from. Returns its folder.

    Args:
        preset: Preset name in deployments/presets, or path of a specification.
        seed: Run seed of the arms that start from it.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
    """
    from tasks.data import prepare

    specification = load_specification(preset)
    experiment, say = specification.experiment(specification.baseline, seed, cell), get_run_logger().info
    data = prepare(experiment.data, home())
    found = warm_start_folder(warm_start_key(experiment, data.version)).exists()
    started = time.perf_counter()
    folder = ensure_warm_start(experiment, data, home(), say)
    sweep = specification.sweep(versions_of(specification))
    if planning.read_timing(home(), sweep) is None:  # the sweep's plan tells what it will take
        took = None if found else time.perf_counter() - started
        arms = [specification.experiment(arm, seed, cell) for arm in specification.arms]
        costly = next((arm for arm in arms if arm.reward.needs_beliefs), experiment)
        nobody = identify(costly, data.version, "timing", home())
        planning.keep_timing(home(), sweep, planning.time_a_step(costly, data, folder, nobody, took, say))
    return str(folder)


@flow(name="train", flow_run_name=run_name, validate_parameters=True)
def train(
    preset: str,
    arm: str,
    seed: Annotated[int, Field(ge=0)] = 0,
    cell: str = "",
) -> dict[str, Any]:
    """Train one arm with one seed, or find it finished. Returns its result.

    Args:
        preset: Preset name in deployments/presets, or path of a specification.
        arm: An arm of the preset.
        seed: Run seed: weights, warm start, question order, sampling.
        cell: A combination of the preset's factors, as "group=8,gamma=0.9". Empty where it has none.
    """
    from tasks.data import prepare

    say = get_run_logger().info
    specification = load_specification(preset)
    experiment = specification.experiment(arm, seed, cell)
    require_judge(experiment)
    data = prepare(experiment.data, home())
    sweep = specification.sweep(versions_of(specification))
    run = identify(experiment, data.version, sweep, home())
    with locked(home(), run.run_key, say):
        finished = run.result()
        if finished is not None:
            say(f"finished before (run key {run.run_key}): reused. {bring_up_to_date(run)}")
            return finished
        tags = _tags(specification, arm, seed, cell, sweep, data.version)
        return train_run(specification, experiment, arm, data, run, tags, say)


def train_run(
    specification: AblationSpecification,
    experiment: "ExperimentConfig",
    arm: str,
    data: "PublishedData",
    run: RunIdentity,
    tags: dict[str, str],
    say: Say,
) -> dict[str, Any]:
    """From the newest checkpoint, or the warm start, to the result. Terminated on the way, it leaves a checkpoint."""
    from tasks.sending import Tracker

    name = " ".join(filter(None, [arm, f"seed {experiment.seed}", tags["cell"]]))
    warm = ensure_warm_start(experiment, data, home(), say)
    trainer = start_trainer(experiment, data, run, warm, say)
    settings = experiment.model_dump(mode="json")
    page = RunPage(name, experiment.training.steps, say)
    tracker = Tracker(run.folder, About(specification.name, name, run.run_key, tags, settings), say, page.link)
    try:
        write_json(run.folder / "config.json", settings)
        evaluate_if_missing(trainer, run, tracker)
        saving = 0.0
        for epoch in range(trainer.step // experiment.training.steps_per_epoch, experiment.training.epochs):
            if trainer.done:
                break
            of_this_epoch = run_epoch.with_options(task_run_name=f"epoch {epoch + 1}")
            saving = of_this_epoch(trainer, epoch, arm, run, tracker, page, say, saving)
        result = finish(trainer, specification, arm, tags["cell"], run, tracker)
        write_result(run, result)
    except (TerminationSignal, KeyboardInterrupt):
        leave_checkpoint(trainer, run, tracker, say)
        raise
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
    page.close()
    return result


@task(cache_policy=NO_CACHE, persist_result=False)
def run_epoch(trainer: Any, epoch: int, arm: str, run: Any, tracker: Any, page: Any, say: Any, saving: float) -> float:
    """The steps of one epoch, then its checkpoint: metrics are on disk before the checkpoint claims their steps. Returns the
    checkpoint's seconds.

    time/logging of a step is what the line of the step before took, time/checkpoint what a checkpoint just before it took
    (saving: of the epoch before): nobody knows earlier, and a kill right after a checkpoint must leave no hole.
    """
    spent = 0.0

    def log(step: int, metrics: dict[str, float]) -> None:
        nonlocal spent, saving
        started = time.perf_counter()
        tracker.log(step, {**metrics, "time/logging": spent, "time/checkpoint": saving})
        page.report(step)
        spent, saving = time.perf_counter() - started, 0.0

    def keep(step: int, explained: list[Any], advantages: list[list[float]]) -> None:
        from tasks.trajectories import records_of

        few = slice(trainer.config.evaluation.kept)
        records = records_of(
            trainer.policy, explained[few], trainer.config, arm, split="train", step=step, advantages=advantages[few]
        )
        tracker.keep(records)

    def best(f1: float) -> None:
        keep_best(trainer, run, f1)

    train_steps(trainer, (epoch + 1) * trainer.config.training.steps_per_epoch, log, say, keep, best)
    tracker.sync()
    _, seconds = save_checkpoint(trainer, run)
    return seconds


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="test and publish")
def finish(
    trainer: Any, specification: AblationSpecification, arm: str, cell: str, run: Any, tracker: Any
) -> dict[str, Any]:
    """The one evaluation on test, a sample of its trajectories as traces, the last checkpoint as a logged model.

    Checkpoint and traces are sent while the evaluation goes on.
    """
    from tasks.trajectories import test_records

    config = trainer.config
    checkpoint = checkpoint_folder(run.folder, trainer.step)
    tracker.set_model(checkpoint, trainer.step, [])

    judged: dict[str, float] = {}

    def set_traces(result: Any) -> None:
        tracker.set_traces(test_records(trainer.policy, result.scored, config, arm, trainer.step))
        judged.update(judge(result, config, home()))

    metrics, _ = evaluate_all(
        trainer.policy,
        trainer.environment,
        config,
        "test",
        config.evaluation.test_questions,
        trainer.step,
        set_traces,
    )
    metrics = {
        **{f"test{name}": value for name, value in metrics.items()},
        **judged,
        **evaluate_best(trainer, run, metrics),
    }
    tracker.log(trainer.step, metrics)
    tracker.set_model(checkpoint, trainer.step, ["test/all/f1", "test/all/em"])
    return {
        "run_key": run.run_key,
        "study": specification.name,
        "arm": arm,
        "seed": config.seed,
        "cell": cell,
        "steps": trainer.step,
        "counters": trainer.counters,
        "metrics": metrics,
        "checkpoint": str(checkpoint.relative_to(home())),
    }


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
        "mlflow.note.content": f"[This run in Prefect]({flow_run_url(str(flow_run.id))})",  # the page shows it first
    }
