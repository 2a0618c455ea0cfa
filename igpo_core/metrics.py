"""Numbers that describe a batch of scored trajectories; names are those that MLflow shows."""

import itertools
import math
from collections.abc import Hashable, Sequence

from igpo_core.rewards.scoring import Scored
from igpo_core.trajectory import RolloutStatus


def rollout_metrics(
    scored: Sequence[Scored], advantages: Sequence[Sequence[float]], groups: Sequence[Hashable]
) -> dict[str, float]:
    """train/, reward/ and advantage/ metrics of one step."""
    turns = [len(item.trajectory.turns) for item in scored]
    metrics = {f"train/{name}": value for name, value in behaviour(scored).items()}
    tokens = [p for item in scored for turn in item.trajectory.turns for p in turn.logprobs]
    metrics["train/entropy"] = -mean(tokens)  # E[-log pi] over what was sampled: an unbiased estimate of the entropy
    metrics["reward/outcome_mean"] = mean([item.outcome for item in scored])
    metrics["reward/outcome_std"] = std([item.outcome for item in scored])
    metrics.update(_gain_metrics(scored))
    dead: dict[Hashable, bool] = {}
    for group, row in zip(groups, advantages, strict=True):
        dead[group] = dead.get(group, True) and all(abs(value) < 1e-6 for value in row)
    metrics["advantage/dead_groups"] = mean([float(value) for value in dead.values()])
    metrics["advantage/std"] = std([value for row in advantages for value in row])
    # mean-centred gains pay or charge for the number of turns: always looked at
    metrics["advantage/first_turn_by_turns"] = correlation([row[0] for row in advantages], [float(t) for t in turns])
    return metrics


def behaviour(scored: Sequence[Scored]) -> dict[str, float]:
    """What the policy did and how well: the same names in training and evaluation."""
    trajectories = [item.trajectory for item in scored]
    values = {
        "f1": mean([item.f1 for item in scored]),
        "em": mean([item.em for item in scored]),
        "format_rate": mean([float(item.status is RolloutStatus.ANSWERED) for item in trajectories]),
        "turns": mean([float(len(item.turns)) for item in trajectories]),
        "searches": mean([float(len(item.turns) - 1) for item in trajectories]),
        "tokens": mean([float(len(item.token_ids)) for item in trajectories]),
    }
    for status in RolloutStatus:
        values[f"status_{status}"] = mean([float(item.status is status) for item in trajectories])
    hops = max((item.question.hops or 0 for item in trajectories), default=0)
    if any(item.question.facts is not None for item in trajectories):
        for hop in range(hops):  # reach, hop by hop: EM alone hides lucky guesses
            values[f"reached_hop_{hop + 1}"] = mean(
                [float(any(turn.hop == hop for turn in item.turns)) for item in trajectories]
            )
    return values


def _gain_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """Gains in both units, whatever the reward uses; nothing where no belief was scored."""
    beliefs = [item.beliefs for item in scored if item.beliefs is not None]
    if not beliefs:
        return {}
    steps = [b - a for row in beliefs for a, b in itertools.pairwise(row)]
    jumps = [math.exp(b) - math.exp(a) for row in beliefs for a, b in itertools.pairwise(row)]
    metrics = {
        "reward/belief_start": mean([math.exp(row[0]) for row in beliefs]),
        "reward/belief_end": mean([math.exp(row[-1]) for row in beliefs]),
    }
    if steps:
        metrics["reward/gain_log_mean"], metrics["reward/gain_log_std"] = (mean(steps), std(steps))
        metrics["reward/gain_prob_mean"], metrics["reward/gain_prob_std"] = (mean(jumps), std(jumps))
        metrics["reward/gain_positive_share"] = mean([float(value > 0) for value in jumps])
    return metrics


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def std(values: Sequence[float]) -> float:
    """Population standard deviation; 0 of nothing."""
    centre = mean(values)
    return math.sqrt(mean([(value - centre) ** 2 for value in values]))


def correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Pearson's correlation; 0 where one side has no spread."""
    scale = std(first) * std(second)
    if scale < 1e-12:
        return 0.0
    a, b = mean(first), mean(second)
    return mean([(x - a) * (y - b) for x, y in zip(first, second, strict=True)]) / scale
