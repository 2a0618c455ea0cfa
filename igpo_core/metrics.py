"""Numbers that describe a batch of scored trajectories; names are those that MLflow shows."""

import itertools
import math
from collections.abc import Hashable, Sequence

from igpo_core.credit import Credit
from igpo_core.rewards.scoring import Scored
from igpo_core.trajectory import TURNS_TOLD, RolloutStatus, ToolCall

SOLVED = 0.5  # headline score from which an answer counts as right


def rollout_metrics(scored: Sequence[Scored], credit: Credit, groups: Sequence[Hashable]) -> dict[str, float]:
    """train/, reward/ and advantage/ metrics of one step."""
    metrics = {f"train/{name}": value for name, value in behaviour(scored).items()}
    tokens = [p for item in scored for turn in item.trajectory.turns for p in turn.logprobs]
    metrics["train/entropy"] = -mean(tokens)  # E[-log pi] over what was sampled: an unbiased estimate of the entropy
    metrics["reward/outcome_mean"] = mean([item.outcome for item in scored])
    metrics["reward/outcome_std"] = std([item.outcome for item in scored])
    return {**metrics, **_gain_metrics(scored), **_advantage_metrics(scored, credit, groups)}


def _advantage_metrics(scored: Sequence[Scored], credit: Credit, groups: Sequence[Hashable]) -> dict[str, float]:
    """Who learns from what: dead groups of the whole advantage and of its parts, and what the number of turns does to it."""
    turns = [len(item.trajectory.turns) for item in scored]
    metrics = {
        "advantage/dead_groups": dead_share(_whole(credit), groups),
        "advantage/dead_groups_outcome": dead_share(credit.outcome, groups),
        "advantage/std": std([value for row in credit.turns for value in row]),
        # mean-centred gains pay or charge for the number of turns: always looked at
        "advantage/first_turn_by_turns": correlation([row[0] for row in credit.turns], [float(t) for t in turns]),
    }
    for t in range(min(max(turns), TURNS_TOLD)):
        metrics[f"advantage/std_turn_{t + 1}"] = std([row[t] for row in credit.turns if len(row) > t])
    if any(map(any, credit.gain)) or any(item.gains for item in scored):
        metrics["advantage/dead_groups_gain"] = dead_share(credit.gain, groups)
        metrics["advantage/gain_factor"] = credit.gain_factor
        metrics["advantage/fallback_share"] = credit.fallback_share
        if credit.below_floor is not None:
            metrics["advantage/groups_below_floor"] = credit.below_floor
        outcome = mean([abs(value) for row in credit.outcome for value in row])
        if outcome > 0:
            metrics["advantage/gain_to_outcome"] = mean([abs(v) for row in credit.gain for v in row]) / outcome
    return metrics


def _whole(credit: Credit) -> list[list[float]]:
    """Advantages with those that only a query's tokens have."""
    if credit.queries is None:
        return credit.turns
    return [[*row, *query] for row, query in zip(credit.turns, credit.queries, strict=True)]


def dead_share(rows: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> float:
    """The share of groups in which no value reaches 1e-6: nothing is learned from them."""
    dead: dict[Hashable, bool] = {}
    for group, row in zip(groups, rows, strict=True):
        dead[group] = dead.get(group, True) and all(abs(value) < 1e-6 for value in row)
    return mean([float(value) for value in dead.values()])


def behaviour(scored: Sequence[Scored]) -> dict[str, float]:
    """What the policy did and how well: the same names in training and evaluation."""
    trajectories = [item.trajectory for item in scored]
    values = {name: mean([item.scores[name] for item in scored]) for name in (scored[0].scores if scored else ())}
    values |= {
        "format_rate": mean([float(item.status is RolloutStatus.ANSWERED) for item in trajectories]),
        "turns": mean([float(len(item.turns)) for item in trajectories]),
        "tool_calls": mean([float(len(item.turns) - 1) for item in trajectories]),
        "tokens": mean([float(len(item.token_ids)) for item in trajectories]),
    }
    for status in RolloutStatus:
        values[f"status_{status}"] = mean([float(item.status is status) for item in trajectories])
    for name, kept in (("solved", True), ("unsolved", False)):
        some = [item.trajectory for item in scored if (item.score >= SOLVED) is kept]
        if some:
            values[f"turns_{name}"] = mean([float(len(item.turns)) for item in some])
            values[f"tokens_{name}"] = mean([float(len(item.token_ids)) for item in some])
    calls = [
        [(turn.action.name, turn.action.text) for turn in item.turns if isinstance(turn.action, ToolCall)]
        for item in trajectories
    ]
    values["repeated_calls"] = mean([1 - len(set(row)) / len(row) for row in calls if row])
    values["failed_calls"] = mean([float(turn.failed) for item in trajectories for turn in item.turns[:-1]])
    told: dict[str, list[float]] = {}
    for item in scored:
        for name, value in item.metrics.items():
            told.setdefault(name, []).append(value)
    return values | {name: mean(several) for name, several in sorted(told.items())}


def _gain_metrics(scored: Sequence[Scored]) -> dict[str, float]:
    """What turns earned, in the arm's own unit, and beliefs in both units; nothing where the arm has neither."""
    metrics: dict[str, float] = {}
    earned = [(item, item.gains) for item in scored if item.gains is not None]
    flat = [value for _, row in earned for value in row]
    if flat:
        headline = next(iter(scored[0].scores))
        metrics |= {
            "reward/gain_mean": mean(flat),
            "reward/gain_std": std(flat),
            "reward/gain_share_positive": mean([float(value > 0) for value in flat]),
            f"reward/gain_by_{headline}": correlation(
                [math.fsum(row) for _, row in earned], [item.score for item, _ in earned]
            ),
            # a gain in all, and a wrong answer; no gain in all, and a right one
            "reward/gain_up_answer_wrong": mean(
                [float(math.fsum(row) > 0 and item.score == 0) for item, row in earned if row]
            ),
            "reward/gain_down_answer_right": mean(
                [float(math.fsum(row) <= 0 and item.score > 0) for item, row in earned if row]
            ),
        }
        for t in range(min(max(len(row) for _, row in earned), TURNS_TOLD)):
            metrics[f"reward/gain_turn_{t + 1}"] = mean([row[t] for _, row in earned if len(row) > t])
        by_label: dict[str, list[float]] = {}
        for item, row in earned:
            for turn, value in zip(item.trajectory.turns[:-1], row, strict=True):
                if turn.label is not None:
                    by_label.setdefault(turn.label, []).append(value)
        metrics |= {f"reward/gain_at_{label}": mean(values) for label, values in sorted(by_label.items())}
    alone = [item.without_contrast for item in scored if item.without_contrast is not None]
    if alone and flat:
        metrics["reward/gains_without_contrast"] = sum(alone) / len(flat)
    beliefs = [item.beliefs for item in scored if item.beliefs is not None]
    if not beliefs:
        return metrics
    steps = [b - a for row in beliefs for a, b in itertools.pairwise(row)]
    jumps = [math.exp(b) - math.exp(a) for row in beliefs for a, b in itertools.pairwise(row)]
    metrics["reward/belief_start"] = mean([math.exp(row[0]) for row in beliefs])
    metrics["reward/belief_end"] = mean([math.exp(row[-1]) for row in beliefs])
    if steps:
        metrics["reward/gain_log_mean"], metrics["reward/gain_log_std"] = (mean(steps), std(steps))
        metrics["reward/gain_prob_mean"], metrics["reward/gain_prob_std"] = (mean(jumps), std(jumps))
        metrics["reward/gain_prob_share_positive"] = mean([float(value > 0) for value in jumps])
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
