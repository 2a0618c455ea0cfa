"""A policy and a question set in, a table of metrics out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from igpo_core.config import Decoding, ExperimentConfig
from igpo_core.environments.base import Environment
from igpo_core.errors import DataError
from igpo_core.memory import within_memory
from igpo_core.metrics import behaviour
from igpo_core.policies import Policy
from igpo_core.ranks import ALONE, Ranks
from igpo_core.rewards.scoring import Scored, score_outcomes
from igpo_core.rollout.rows import Engine, RolloutTimes, prompt_fits
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Question


@dataclass(frozen=True)
class EvaluationResult:
    """What a policy did on a set of questions."""

    metrics: dict[str, float]
    """"all/turns", "<source>/turns", "<source>/hops_3/turns", and so on; scores likewise."""
    records: list[dict[str, Any]]
    """One row a question."""
    scored: list[Scored]
    """The same with tokens, without beliefs."""
    left_out: int
    """Questions whose prompt does not fit the window."""


def evaluate(
    policy: Policy,
    environment: Environment,
    config: ExperimentConfig,
    *,
    split: str,
    limit: int,
    decoding: Decoding,
    step: int,
    ranks: Ranks = ALONE,
    engine: Engine = rollout,
) -> EvaluationResult:
    """One trajectory for each of `limit` questions of the split, as `of_each_source` chooses them: the same questions and, for
    `sampled`, the same random numbers at every step and in every arm. Makes no scoring pass."""
    questions = of_each_source(environment.tasks(split), limit)
    return evaluate_questions(
        policy, environment, config,
        questions=questions, split=split, decoding=decoding, step=step, ranks=ranks, engine=engine,
    )  # fmt: skip


def of_each_source(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """Return so many questions in table order, the first ones of each source and of each alike, as long as it has some: tables as
    a rule have one source behind another. None: all."""
    seen: dict[str, int] = {}
    ranks = []
    for question in questions:
        ranks.append(seen.get(question.source, 0))
        seen[question.source] = ranks[-1] + 1
    in_turn = sorted(range(len(questions)), key=lambda place: (ranks[place], place))
    return [questions[place] for place in sorted(in_turn[:limit])]


def evaluate_questions(
    policy: Policy,
    environment: Environment,
    config: ExperimentConfig,
    *,
    questions: Sequence[Question],
    split: str,
    decoding: Decoding,
    step: int = 0,
    ranks: Ranks = ALONE,
    engine: Engine = rollout,
) -> EvaluationResult:
    """One trajectory for each of these questions of a split. For `sampled`, the random numbers follow from config.seed, the split
    and a question's place in the list. Raises DataError where no question fits the window."""
    fitting = [question for question in questions if prompt_fits(policy, config.rollout, question)]
    if not fitting:
        raise DataError(
            f"none of the {len(questions)} {split} questions leaves room for a turn within rollout.max_tokens="
            f"{config.rollout.max_tokens}: raise it, or give shorter questions"
        )
    times = RolloutTimes()
    asked = ranks.share(fitting)
    with within_memory("evaluation", config):
        own = engine(
            policy,
            environment,
            [question for _, question in asked],
            config.rollout,
            members=1,
            key=(config.seed, f"evaluation/{split}", 0),
            decoding=decoding,
            times=times,
            places=[place for place, _ in asked],
        )
    trajectories = ranks.all_gather([(place, item) for (place, _), item in zip(asked, own, strict=True)])
    scored = score_outcomes(environment, trajectories, config.reward)
    metrics = {
        f"{name}/{key}": value
        for name, members in _slices(fitting, scored)
        for key, value in behaviour(members).items()
    }
    metrics["all/questions"] = float(len(fitting))
    metrics["all/left_out"] = float(len(questions) - len(fitting))
    metrics["all/seconds"] = times.total
    metrics["all/tool_seconds"] = times.tools
    return EvaluationResult(
        metrics, [_record(item, step, decoding) for item in scored], scored, len(questions) - len(fitting)
    )


def decode_each(
    policy: Policy,
    environment: Environment,
    config: ExperimentConfig,
    split: str,
    limit: int,
    step: int,
    ranks: Ranks = ALONE,
    engine: Engine = rollout,
) -> Iterator[tuple[str, EvaluationResult]]:
    """Evaluate a policy with every decoding of config.evaluation.

    Yields (prefix of metric names, result): "/" of the first decoding and "_<decoding>/" of the others.
    """
    for place, decoding in enumerate(config.evaluation.decoding):
        yield (
            "/" if place == 0 else f"_{decoding}/",
            evaluate(
                policy, environment, config,
                split=split, limit=limit, decoding=decoding, step=step, ranks=ranks, engine=engine,
            ),
        )  # fmt: skip


def first_decoding(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration with the first decoding of its evaluation alone."""
    evaluation = config.evaluation.model_copy(update={"decoding": config.evaluation.decoding[:1]})
    return config.model_copy(update={"evaluation": evaluation})


def _slices(questions: Sequence[Question], scored: Sequence[Scored]) -> list[tuple[str, list[Scored]]]:
    """Return all, each source, and each hop count of a source that has several."""
    counts: dict[str, set[int | None]] = {}
    for question in questions:
        counts.setdefault(question.source, set()).add(question.hops)
    slices: dict[str, list[Scored]] = {"all": list(scored)}
    for question, item in zip(questions, scored, strict=True):
        slices.setdefault(question.source, []).append(item)
        if question.hops is not None and len(counts[question.source]) > 1:
            slices.setdefault(f"{question.source}/hops_{question.hops}", []).append(item)
    return sorted(slices.items())


def _record(item: Scored, step: int, decoding: Decoding) -> dict[str, Any]:
    trajectory = item.trajectory
    return {
        "step": step,
        "decoding": decoding,
        "id": trajectory.question.id,
        "source": trajectory.question.source,
        "hops": trajectory.question.hops,
        "status": str(trajectory.status),
        "answer": trajectory.answer,
        "answers": list(trajectory.question.answers),
        **item.scores,
        "turns": len(trajectory.turns),
        "tokens": len(trajectory.token_ids),
    }
