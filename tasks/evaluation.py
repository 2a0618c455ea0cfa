"""Evaluations of a run: on dev as it trains, on test at its end, of the last checkpoint and of the best by dev."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import ExperimentConfig
from igpo_core.folders import write_json
from igpo_core.ranks import ALONE, Ranks
from tasks.outbox import Writing
from tasks.runs import RunIdentity

if TYPE_CHECKING:
    from igpo_core.environments.base import Environment
    from igpo_core.evaluation import EvaluationResult
    from igpo_core.policies import Policy
    from igpo_core.rollout.rows import Engine
    from igpo_core.training import StepResult, Trainer

Keep = Callable[[int, "list[Any]", "list[list[float]]"], None]


def evaluation_is_due(trainer: "Trainer") -> bool:
    config = trainer.config
    return trainer.step % config.evaluation.every == 0 or trainer.done


def evaluate_if_missing(trainer: "Trainer", run: RunIdentity, outbox: Writing) -> None:
    """Dev before the first step, and where a run was ended between a step and the evaluation that was due after it."""
    if evaluation_is_due(trainer) and not trainer.ranks.agreed(outbox.has("eval/all/f1", trainer.step)):
        dev = evaluate_dev(trainer)
        keep_best(trainer, run, dev["eval/all/f1"])
        outbox.log(trainer.step, dev)


BEST = "best.json"


def keep_best(trainer: "Trainer", run: RunIdentity, f1: float) -> None:
    """Keep the weights of this step when dev F1 is higher than at any step before (the first of equals).

    A run that is killed and goes on from an earlier step meets the same values again and ends with the same best.
    """
    known = trainer.ranks.agreed(read_best(run))
    if known is not None and f1 <= known["f1"]:
        return
    folder = run.folder / "best" / f"step-{trainer.step:06d}"
    if not trainer.ranks.agreed(folder.exists()):
        trainer.save_policy(folder)
    if not trainer.ranks.first:
        return
    write_json(run.folder / BEST, {"step": trainer.step, "f1": f1})
    for other in folder.parent.glob("step-*"):
        if other != folder:
            shutil.rmtree(other)


def read_best(run: RunIdentity) -> dict[str, Any] | None:
    """{"step", "f1"} of the best dev evaluation so far; None before the first."""
    path = run.folder / BEST
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def evaluate_best(trainer: "Trainer", run: RunIdentity, last: dict[str, float]) -> dict[str, float]:
    """test_best/ metrics: the one evaluation on test of the checkpoint that was best on dev. last: test metrics of the last
    checkpoint, "/all/f1" and so on, which serve where it is the best. Changes the trainer's weights: call it last."""
    from igpo_core.checkpoints import verify_folder

    best = trainer.ranks.agreed(read_best(run))
    assert best is not None  # dev is evaluated before the first step
    metrics = last
    if best["step"] != trainer.step:
        folder = run.folder / "best" / f"step-{best['step']:06d}"
        verify_folder(folder)
        trainer.load_policy(folder)
        config = _first_decoding(trainer.config)
        metrics, _ = evaluate_all(trainer, config, "test", config.evaluation.test_questions, best["step"])
    return {
        "test_best/all/f1": metrics["/all/f1"],
        "test_best/all/em": metrics["/all/em"],
        "test_best/step": float(best["step"]),
    }


def look_into(trainer: "Trainer", result: "StepResult", keep: "Keep") -> dict[str, float]:
    """diagnostics/ metrics of the step's first config.evaluation.diagnostics trajectories, the same ones in every arm; {} in
    other processes than the first. What is kept for people to look at has the beliefs and gains that the step trained on,
    where the arm has any."""
    from dataclasses import replace
    from itertools import islice

    from igpo_core.diagnostics import belief_metrics, fits_window
    from igpo_core.rewards.scoring import explain_trajectories

    config, policy = trainer.config, trainer.policy
    started = time.perf_counter()
    with trainer.whole_weights():
        if not trainer.ranks.first:
            return {}
        contrast = trainer.contrast(trainer.step)
        numbers = (i for i, item in enumerate(result.scored) if fits_window(policy, item, config.reward, contrast))
        sample = list(islice(numbers, config.evaluation.diagnostics))
        if not sample:
            return {}
        trajectories = [result.scored[i].trajectory for i in sample]
        key = (config.seed, trainer.step)
        explained = explain_trajectories(policy, trajectories, config.reward, key=key, contrast=contrast)
        metrics = belief_metrics(policy, explained, config.reward)
        trained_on = [result.scored[i] for i in sample]
        shown = [
            item if own.beliefs is None else replace(item, beliefs=own.beliefs, gains=own.gains)
            for item, own in zip(explained, trained_on, strict=True)
        ]
        keep(trainer.step, shown, [result.credit.turns[i] for i in sample])
        return {**metrics, "time/diagnostics": time.perf_counter() - started}


def evaluate_dev(trainer: "Trainer") -> dict[str, float]:
    """eval/ metrics of the first decoding, which alone decides which checkpoint is the best."""
    started, config = time.perf_counter(), _first_decoding(trainer.config)
    metrics, _ = evaluate_all(trainer, config, "dev", config.evaluation.dev_questions, trainer.step)
    return {
        **{f"eval{name}": value for name, value in metrics.items()},
        "time/evaluation": time.perf_counter() - started,
    }


def _first_decoding(config: ExperimentConfig) -> ExperimentConfig:
    evaluation = config.evaluation.model_copy(update={"decoding": config.evaluation.decoding[:1]})
    return config.model_copy(update={"evaluation": evaluation})


def evaluate_all(
    trainer: "Trainer",
    config: ExperimentConfig,
    split: str,
    limit: int,
    step: int,
    after_first: "Callable[[EvaluationResult], None]" = lambda result: None,
) -> "tuple[dict[str, float], dict[str, EvaluationResult]]":
    """evaluate_policy of what the trainer trains, by all its processes."""
    engine = trainer.engine()
    with trainer.whole_weights():
        return evaluate_policy(
            trainer.policy, trainer.environment, config, split, limit, step, after_first, trainer.ranks, engine
        )


def evaluate_policy(
    policy: "Policy",
    environment: "Environment",
    config: ExperimentConfig,
    split: str,
    limit: int,
    step: int,
    after_first: "Callable[[EvaluationResult], None]" = lambda result: None,
    ranks: Ranks = ALONE,
    engine: "Engine | None" = None,
) -> "tuple[dict[str, float], dict[str, EvaluationResult]]":
    """Every decoding of config.evaluation; names start with "/" for the first and "_<decoding>/" for the others.

    after_first is called with the result of the first decoding, before the others are made. engine: None is the policy
    itself.
    """
    from igpo_core.evaluation import evaluate
    from igpo_core.rollout.transformers_engine import rollout

    metrics: dict[str, float] = {}
    results: dict[str, EvaluationResult] = {}
    for place, decoding in enumerate(config.evaluation.decoding):
        result = evaluate(
            policy,
            environment,
            config,
            split=split,
            limit=limit,
            decoding=decoding,
            step=step,
            ranks=ranks,
            engine=engine or rollout,
        )
        prefix = "/" if place == 0 else f"_{decoding}/"
        metrics |= {prefix + name: value for name, value in result.metrics.items()}
        results[decoding] = result
        if place == 0:
            after_first(result)
    return metrics, results


def judge(result: "EvaluationResult", experiment: ExperimentConfig, home: Path) -> dict[str, float]:
    """test/all/judged and its agreement with EM, where a judge is asked for; its verdicts stay in <home>/judge.sqlite."""
    if experiment.evaluation.judge is None:
        return {}
    from igpo_core.judge import Judge, judged_metrics

    found = judged_metrics(Judge(experiment.evaluation.judge, home / "judge.sqlite"), result.scored)
    return {f"test/all/{name}": value for name, value in found.items()}
