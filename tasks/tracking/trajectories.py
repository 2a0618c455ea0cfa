"""Scored trajectories as records for people: text by turn, with beliefs, gains and advantages."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from igpo_core.config import ExperimentConfig
from igpo_core.diagnostics import fits_window
from igpo_core.rewards.contrast import Contrast
from igpo_core.rewards.scoring import explain_trajectories
from igpo_core.trajectory import Final, ToolCall
from tasks.tracking.traces import TraceRecord, TurnRecord


def records_of(
    policy: Any,
    explained: Sequence[Any],
    config: ExperimentConfig,
    arm: str,
    *,
    split: str,
    step: int,
    advantages: Sequence[Sequence[float]] | None = None,
) -> list[TraceRecord]:
    """One record a trajectory; explained: from explain_trajectories. advantages: of its turns, None outside training."""
    records = []
    for i, item in enumerate(explained):
        trajectory, seen, gains = item.trajectory, item.beliefs, item.gains
        turns = []
        for t, turn in enumerate(trajectory.turns):
            last = t == len(trajectory.turns) - 1
            turns.append(
                TurnRecord(
                    text=policy.protocol.decode(trajectory.token_ids[turn.start : turn.end]),
                    action=_kind(turn.action),
                    content=_content(turn.action),
                    observation=None if last else trajectory.observations[t],
                    belief_before=seen[t] if seen else None,
                    belief_after=seen[t + 1] if seen and not last else None,
                    gain=gains[t] if gains and not last else None,
                    advantage=None if advantages is None else advantages[i][t],
                )
            )
        records.append(
            TraceRecord(
                question_id=trajectory.question.id,
                question=trajectory.question.text,
                answers=trajectory.question.answers,
                turns=tuple(turns),
                status=str(trajectory.status),
                scores=dict(item.scores),
                arm=arm,
                seed=config.seed,
                split=split,
                step=step,
            )
        )
    return records


def traced_records(
    policy: Any,
    environment: Any,
    scored: Sequence[Any],
    config: ExperimentConfig,
    arm: str,
    step: int,
    contrast: Contrast | None = None,
) -> list[TraceRecord]:
    """The first config.evaluation.traces of `scored` whose answers fit behind their history.

    Beliefs are scored here for the sample alone, so that outcome_only shows them too and pays for no other.
    """
    sample = list(
        islice(
            (item for item in scored if fits_window(policy, environment, item, config.reward, contrast)),
            config.evaluation.traces,
        )
    )
    if not sample:
        return []
    explained = explain_trajectories(
        policy,
        environment,
        [item.trajectory for item in sample],
        config.reward,
        key=(config.seed, step),
        contrast=contrast,
    )
    return records_of(policy, explained, config, arm, split="test", step=step)


def _kind(action: Any) -> str:
    return action.name if isinstance(action, ToolCall) else "answer" if isinstance(action, Final) else "malformed"


def _content(action: Any) -> str | None:
    return action.text if isinstance(action, ToolCall | Final) else None
