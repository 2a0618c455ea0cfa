"""Flow `train`: one arm, one seed. Warm start, epochs of steps, a checkpoint and an evaluation each epoch, the test."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.specification import AblationSpecification, load_specification
from igpo_core.checkpoints import checkpoint_folder
from tasks import training
from tasks.background import Background
from tasks.home import home

if TYPE_CHECKING:
    from igpo_core.config import ExperimentConfig
    from tasks.data import PublishedData
    from tasks.tracking import Tracker


@flow(name="warm-start", flow_run_name="warm start seed {seed}", validate_parameters=True)
def warm_start(preset: str, seed: Annotated[int, Field(ge=0)]) -> str:
    """Make, or find, the policy that every arm of this seed starts from. Returns its folder."""
    from tasks.data import prepare

    specification = load_specification(preset)
    experiment = specification.experiment(specification.baseline, seed)
    data = prepare(experiment.data, home())
    return str(training.ensure_warm_start(experiment, data, home(), get_run_logger().info))


@flow(name="train", flow_run_name="{arm} seed {seed}", validate_parameters=True)
def train(
    preset: Annotated[str, Field(description="Preset name in deployments/presets, or path of a specification.")],
    arm: Annotated[str, Field(description="An arm of the preset.")],
    seed: Annotated[int, Field(ge=0, description="Run seed: weights, warm start, question order, sampling.")] = 0,
) -> dict[str, Any]:
    """Train one arm with one seed, or find it finished. Returns its result."""
    from tasks.data import prepare
    from tasks.tracking import Tracker, is_finished

    say = get_run_logger().info
    specification = load_specification(preset)
    experiment = specification.experiment(arm, seed)
    data = prepare(experiment.data, home())
    sweep = specification.sweep(data.version)
    run = training.identify(experiment, data.version, sweep, home())

    def track() -> Tracker:
        return Tracker.open(
            run.folder,
            experiment=specification.name,
            run_name=f"{arm} seed {seed}",
            run_key=run.run_key,
            tags=_tags(specification, arm, seed, sweep, data.version),
            params=experiment.model_dump(mode="json"),
        )

    with training.locked(home(), run.run_key, say):
        finished = run.result()
        if finished is not None:
            if not is_finished(specification.name, run.run_key):
                track().finish("FINISHED")
                say("MLflow did not have this run: its metrics were sent again, without checkpoint and traces")
            say(f"finished before (run key {run.run_key}): reused")
            return finished
        return train_run(specification, experiment, arm, data, run, track, say)


def train_run(
    specification: AblationSpecification,
    experiment: "ExperimentConfig",
    arm: str,
    data: "PublishedData",
    run: training.RunIdentity,
    track: "Callable[[], Tracker]",
    say: training.Say,
) -> dict[str, Any]:
    """From the newest checkpoint, or the warm start, to the result."""
    seed = experiment.seed
    warm = training.ensure_warm_start(experiment, data, home(), say)
    trainer = training.start_trainer(experiment, data, run, warm, say)
    tracker = track()
    training.write_json(run.folder / "config.json", experiment.model_dump(mode="json"))
    progress = _Progress(f"{arm} seed {seed}", experiment.training.steps, tracker.url)
    try:
        for epoch in range(trainer.step // experiment.training.steps_per_epoch, experiment.training.epochs):
            run_epoch.with_options(task_run_name=f"epoch {epoch + 1}")(trainer, epoch, run, tracker, progress, say)
        result = finish(trainer, specification, arm, run, tracker)
    except BaseException:
        tracker.finish("FAILED")
        raise
    tracker.finish("FINISHED")
    training.write_result(run, result)
    progress.report(experiment.training.steps)
    progress.background.wait()
    return result


@task(cache_policy=NO_CACHE, persist_result=False)
def run_epoch(trainer: Any, epoch: int, run: Any, tracker: Any, progress: "_Progress", say: Any) -> None:
    """The steps of one epoch, then its checkpoint: metrics are owed to MLflow before the checkpoint claims the steps.

    time/logging of a step is what the line of the step before took, which nobody knows earlier.
    """
    spent = 0.0

    def log(step: int, metrics: dict[str, float]) -> None:
        nonlocal spent
        started = time.perf_counter()
        tracker.log(step, {**metrics, "time/logging": spent})
        progress.report(step)
        spent = time.perf_counter() - started

    training.train_steps(trainer, (epoch + 1) * trainer.config.training.steps_per_epoch, log, say)
    _, seconds = training.save_checkpoint(trainer, run)
    tracker.log(trainer.step, {"time/checkpoint": seconds})


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="test and publish")
def finish(trainer: Any, specification: AblationSpecification, arm: str, run: Any, tracker: Any) -> dict[str, Any]:
    """The one evaluation on test, a sample of its trajectories as traces, the last checkpoint as a logged model.

    The checkpoint is sent while the first decoding is evaluated, and the traces while the others are.
    """
    from tasks.traces import log_traces
    from tasks.tracking import log_model_checkpoint, log_model_metrics
    from tasks.trajectories import trace_records

    config, sending = trainer.config, Background()
    checkpoint = checkpoint_folder(run.folder, trainer.step)
    model = sending.submit(lambda: log_model_checkpoint(tracker.run_id, checkpoint, trainer.step))

    def send_traces(result: Any) -> None:
        records = trace_records(trainer.policy, result.scored, config, arm)
        sending.submit(lambda: log_traces(tracker.run_id, tracker.experiment_id, records))

    questions = config.evaluation.test_questions
    metrics, _ = training.evaluate_all(
        trainer.policy, trainer.environment, config, "test", questions, trainer.step, send_traces
    )
    metrics = {f"test{name}": value for name, value in metrics.items()}
    tracker.log(trainer.step, metrics)
    tracker.flush()
    headline = {name: metrics[name] for name in ("test/all/f1", "test/all/em")}
    log_model_metrics(tracker.run_id, model.result(), trainer.step, headline)
    sending.wait()
    return {
        "run_key": run.run_key,
        "run_id": tracker.run_id,
        "url": tracker.url,
        "study": specification.name,
        "arm": arm,
        "seed": config.seed,
        "steps": trainer.step,
        "counters": trainer.counters,
        "metrics": metrics,
        "checkpoint": str(checkpoint.relative_to(home())),
    }


# One colour an arm in MLflow's charts, in the order of the specification; seeds share it.
COLOURS = ("#7f7f7f", "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#bcbd22", "#17becf")


def _tags(specification: AblationSpecification, arm: str, seed: int, sweep: str, data_version: str) -> dict[str, str]:
    return {
        "kind": "train",
        "mlflow.runColor": COLOURS[list(specification.arms).index(arm) % len(COLOURS)],
        "sweep": sweep,
        "arm": arm,
        "seed": str(seed),
        "data_version": data_version,
    }


class _Progress:
    """A progress bar on the Prefect run page, which training does not wait for, with a link to the MLflow run."""

    def __init__(self, name: str, steps: int, url: str) -> None:
        from prefect.artifacts import create_link_artifact, create_progress_artifact

        self.steps, self.shown, self.background = steps, -1, Background()
        create_link_artifact(link=url, link_text=f"MLflow run: {name}", description="Curves, parameters, traces.")
        self.artifact: Any = create_progress_artifact(0.0, description=f"{name}: steps done of {steps}")

    def report(self, step: int) -> None:
        from prefect.artifacts import update_progress_artifact

        share = int(100 * step / self.steps)
        if share // 5 > self.shown // 5 or share == 100:
            self.background.submit(lambda: update_progress_artifact(self.artifact, float(share)))
            self.shown = share
