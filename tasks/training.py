"""A training run as observable steps: from the newest checkpoint, or the warm start, through its epochs."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from igpo_core.checkpoints import newest_checkpoint
from igpo_core.config import ExperimentConfig
from tasks.evaluation import Keep, evaluate_dev, evaluation_is_due, look_into
from tasks.interruption import whole_steps
from tasks.runs import RunIdentity, Say
from tasks.warm_starts import set_up

if TYPE_CHECKING:
    from igpo_core.training import Trainer
    from tasks.data import PublishedData


def start_trainer(
    experiment: ExperimentConfig, data: "PublishedData", run: RunIdentity, warm: Path, say: Say
) -> "Trainer":
    """A trainer at the newest whole checkpoint of the run, or at the warm start."""
    from igpo_core.checkpoints import load_weights
    from igpo_core.training import Trainer

    environment, policy = set_up(experiment, data)
    load_weights(warm, policy.model)
    trainer = Trainer(experiment, environment, policy)
    if trainer.left_out:
        say(f"{trainer.left_out} train questions do not fit rollout.max_tokens and are left out")
    checkpoint = newest_checkpoint(run.folder, lambda damage: say(f"warning: {damage}"))
    if checkpoint is not None:
        trainer.restore(checkpoint)
        say(f"resumed at step {trainer.step} from {checkpoint.name}")
    return trainer


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
