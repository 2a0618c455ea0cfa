"""A training run from its newest checkpoint, or the warm start, through its epochs to its result.

The flow `train` goes through it in its own process, with epochs as Prefect's task runs; several processes that train
together (tasks/together.py) each go through it, and the first of them writes what is written.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from igpo_core.config import ExperimentConfig
from igpo_core.folders import write_json
from tasks.evaluation import (
    Keep,
    evaluate_all,
    evaluate_best,
    evaluate_dev,
    evaluate_if_missing,
    evaluation_is_due,
    judge,
    keep_best,
    look_into,
)
from tasks.interruption import whole_steps
from tasks.outbox import Writing
from tasks.runs import RunIdentity, Say, save_checkpoint, write_result
from tasks.warm_starts import set_up

if TYPE_CHECKING:
    from igpo_core.training import Trainer

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Job:
    """What is to be trained. data: published folder; warm: the folder of the policy to start from."""

    experiment: ExperimentConfig
    run: RunIdentity
    data: Path
    warm: Path
    home: Path
    study: str
    arm: str
    cell: str


def start_trainer(job: Job, say: Say) -> "Trainer":
    """A trainer at the newest whole checkpoint of the run, or at the warm start."""
    from igpo_core.checkpoints import load_weights, newest_checkpoint
    from igpo_core.rollout.rows import unsaid_answers
    from igpo_core.training import Trainer

    environment, policy = set_up(job.experiment, job.data)
    load_weights(job.warm, policy.model)
    trainer = Trainer(job.experiment, environment, policy)
    if trainer.left_out:
        say(f"{trainer.left_out} train questions do not fit rollout.max_tokens and are left out")
    unsaid = unsaid_answers(policy, job.experiment.rollout, trainer.questions)
    if unsaid:
        say(f"warning: {unsaid}")
    checkpoint = newest_checkpoint(job.run.folder, lambda damage: say(f"warning: {damage}"))
    if checkpoint is not None:
        trainer.restore(checkpoint)
        say(f"resumed at step {trainer.step} from {checkpoint.name}")
    return trainer


class Epoch(Protocol):
    def __call__(
        self, trainer: "Trainer", number: int, job: Job, outbox: Writing, say: Say, on_step: OnStep, saving: float
    ) -> float: ...


class Test(Protocol):
    def __call__(self, trainer: "Trainer", job: Job, outbox: Writing) -> dict[str, Any]: ...


def train_epoch(
    trainer: "Trainer", number: int, job: Job, outbox: Writing, say: Say, on_step: OnStep, saving: float
) -> float:
    """The steps of one epoch, then its checkpoint: metrics are on disk before the checkpoint claims their steps. Returns the
    checkpoint's seconds.

    time/logging of a step is what the line of the step before took, time/checkpoint what a checkpoint just before it took
    (saving: of the epoch before): nobody knows earlier, and a kill right after a checkpoint must leave no hole.
    """
    spent = 0.0

    def log(step: int, metrics: dict[str, float]) -> None:
        nonlocal spent, saving
        started = time.perf_counter()
        outbox.log(step, {**metrics, "time/logging": spent, "time/checkpoint": saving})
        on_step(step)
        spent, saving = time.perf_counter() - started, 0.0

    def keep(step: int, explained: list[Any], advantages: list[list[float]]) -> None:
        from tasks.trajectories import records_of

        few = slice(trainer.config.evaluation.kept)
        records = records_of(
            trainer.policy,
            explained[few],
            trainer.config,
            job.arm,
            split="train",
            step=step,
            advantages=advantages[few],
        )
        outbox.keep(records)

    def best(f1: float) -> None:
        keep_best(trainer, job.run, f1)

    train_steps(trainer, (number + 1) * trainer.config.training.steps_per_epoch, log, say, keep, best)
    outbox.sync()
    return save_checkpoint(trainer, job.run)


def test_and_publish(trainer: "Trainer", job: Job, outbox: Writing) -> dict[str, Any]:
    """The one evaluation on test, a sample of its trajectories as traces, the last checkpoint as a logged model.

    Checkpoint and traces are sent while the evaluation goes on.
    """
    from igpo_core.checkpoints import checkpoint_folder
    from tasks.trajectories import traced_records

    config = trainer.config
    checkpoint = checkpoint_folder(job.run.folder, trainer.step)
    outbox.set_model(checkpoint, trainer.step, [])
    judged: dict[str, float] = {}

    def set_traces(result: Any) -> None:
        if trainer.ranks.first:
            traced = traced_records(
                trainer.policy, result.scored, config, job.arm, trainer.step, trainer.contrast(trainer.step)
            )
            outbox.keep(traced)
            outbox.set_traces(traced)
            judged.update(judge(result, config, job.home))

    metrics, _ = evaluate_all(trainer, config, "test", config.evaluation.test_questions, trainer.step, set_traces)
    metrics = {
        **{f"test{name}": value for name, value in metrics.items()},
        **judged,
        **evaluate_best(trainer, job.run, metrics),
    }
    outbox.log(trainer.step, metrics)
    outbox.set_model(checkpoint, trainer.step, ["test/all/f1", "test/all/em"])
    return {
        "run_key": job.run.run_key,
        "study": job.study,
        "arm": job.arm,
        "seed": config.seed,
        "cell": job.cell,
        "steps": trainer.step,
        "counters": trainer.counters,
        "metrics": metrics,
        "checkpoint": str(checkpoint.relative_to(job.home)),
    }


def train_to_end(
    trainer: "Trainer",
    job: Job,
    outbox: Writing,
    say: Say,
    on_step: OnStep,
    epoch: Epoch = train_epoch,
    test: Test = test_and_publish,
) -> dict[str, Any]:
    """All that is left of the run; returns its result, which is on disk then."""
    training = trainer.config.training
    if trainer.ranks.first:
        write_json(job.run.folder / "config.json", trainer.config.model_dump(mode="json"))
    evaluate_if_missing(trainer, job.run, outbox)
    saving = 0.0
    for number in range(trainer.step // training.steps_per_epoch, training.epochs):
        if trainer.done:
            break
        saving = epoch(trainer, number, job, outbox, say, on_step, saving)
    result = test(trainer, job, outbox)
    if trainer.ranks.first:
        write_result(job.run, result)
    return result


def train_steps(
    trainer: "Trainer",
    until: int,
    log: Callable[[int, dict[str, float]], None],
    say: Say,
    keep: "Keep" = lambda step, explained, advantages: None,
    best: Callable[[float], None] = lambda f1: None,
) -> None:
    """Steps up to `until` or the end of the budget, with an evaluation on dev every config.evaluation.every steps.

    keep(step, explained, advantages) is given the sample of training trajectories that diagnostics look at; best the dev F1
    of each evaluation.
    """
    total = trainer.config.training.steps
    while trainer.step < until and not trainer.done:
        with whole_steps(trainer):
            result = trainer.run_step()
            metrics, due = result.metrics, evaluation_is_due(trainer)
            if due:  # with the step's own line: whoever goes on from this step has its weights but not its rollouts
                metrics = {**metrics, **look_into(trainer, result, keep)}
            log(trainer.step, metrics)
        if due:
            dev = evaluate_dev(trainer)
            best(dev["eval/all/f1"])  # before its line: a run that finds the line does not evaluate again
            log(trainer.step, dev)
            say(
                f"step {trainer.step}/{total}: dev F1 {dev['eval/all/f1']:.3f}, train F1 {metrics['train/f1']:.3f}, turns "
                f"{metrics['train/turns']:.1f}, dead groups {metrics['advantage/dead_groups']:.2f}, "
                f"{metrics['progress/seconds']:.0f} s"
            )
