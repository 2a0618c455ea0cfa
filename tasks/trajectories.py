"""Scored trajectories as records for people: text by turn, with beliefs and gains."""

import itertools
from collections.abc import Sequence
from typing import Any

from igpo_core.config import ExperimentConfig
from igpo_core.trajectory import Answer, Search
from tasks.traces import TraceRecord, TurnRecord


def trace_records(policy: Any, scored: Sequence[Any], config: ExperimentConfig, arm: str) -> list[TraceRecord]:
    """The first config.evaluation.traces of `scored` whose answers fit behind their history.

    Beliefs are scored here for the sample alone, so that outcome_only shows them too and pays for no other.
    """
    from igpo_core.rewards.information_gain import information_gains
    from igpo_core.rewards.scoring import longest_probe, score_trajectories

    def fits(item: Any) -> bool:
        trajectory = item.trajectory
        room: int = policy.window - len(trajectory.token_ids)
        return room >= longest_probe(policy, trajectory.question, config.reward)

    scored = list(itertools.islice(filter(fits, scored), config.evaluation.traces))
    beliefs = score_trajectories(policy, [item.trajectory for item in scored], config.reward)
    records = []
    for item, seen in zip(scored, beliefs, strict=True):
        gains = information_gains(seen, config.reward.gain)
        trajectory = item.trajectory
        turns = []
        for t, turn in enumerate(trajectory.turns):
            last = t == len(trajectory.turns) - 1
            turns.append(
                TurnRecord(
                    text=policy.protocol.decode(trajectory.token_ids[turn.start : turn.end]),
                    action=_kind(turn.action),
                    query_or_answer=_content(turn.action),
                    observation=None if last else trajectory.observations[t],
                    belief_before=seen[t],
                    belief_after=None if last else seen[t + 1],
                    gain=None if last else gains[t],
                )
            )
        records.append(
            TraceRecord(
                question_id=trajectory.question.id,
                question=trajectory.question.text,
                answers=trajectory.question.answers,
                turns=tuple(turns),
                status=str(trajectory.status),
                f1=item.f1,
                em=item.em,
                arm=arm,
                seed=config.seed,
            )
        )
    return records


def _kind(action: Any) -> Any:
    return "search" if isinstance(action, Search) else "answer" if isinstance(action, Answer) else "malformed"


def _content(action: Any) -> str | None:
    return action.query if isinstance(action, Search) else action.text if isinstance(action, Answer) else None
