"""An arm's whole way from rewards to advantages, put together from the functions of igpo_core/advantages.py.

Order, the same for every arm: normalise within pools; then gate, scale and weigh the gains (before a z-score a weight
would be inert); then accumulate. With the defaults this is turn_advantages(normalization="separate") to the bit.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from igpo_core.advantages import (
    Standardiser,
    accumulate,
    discounted_returns,
    in_pools,
    normalise_gains,
    normalise_together,
    require_finite,
    share_below,
    standardiser,
)
from igpo_core.config.reward import GainOnly, Gigpo, OutcomeAndGain, OutcomeOnly, Reward, TurnGains
from igpo_core.config.variants import LinearWeight, MatchOutcome, OutcomeSpreadGate, SignGate, TurnGroup, Window
from igpo_core.seeds import python_rng

Rows = list[list[float]]


@dataclass(frozen=True)
class TurnRewards:
    """What one trajectory of T turns earned. gains: g_1..g_{T-1}, empty where the arm has none. outcome: score of the answer,
    0 without one. answered: whether there is a well-formed one. states: for each turn, what had been seen before it."""

    turns: int
    gains: tuple[float, ...]
    outcome: float
    answered: bool
    states: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class Credit:
    """turns[i][t]: the advantage of every token sampled in turn t. queries[i][t]: what the tokens of its query share
    besides (credit=query), else None. outcome, gain: the parts that add up to them, for diagnostics. fallback_share: of
    gains that turn_group normalised in the question's pool. gain_factor: what normalised gains were multiplied by, mean.
    below_floor: the share of groups whose gains have a spread below the floor; None where none is added to it."""

    turns: Rows
    queries: Rows | None
    outcome: Rows
    gain: Rows
    fallback_share: float
    gain_factor: float
    below_floor: float | None = None


def assign_credit(
    rewards: Sequence[TurnRewards], groups: Sequence[Hashable], config: Reward, *, seed: int, step: int
) -> Credit:
    """Advantages of a batch. groups[i]: the question's key. step counts from 0.

    Raises ValueError on NaN and inf, and where gains and turns do not fit together.
    """
    _check(rewards, groups, config)
    pools: list[Hashable] = ["batch"] * len(rewards) if config.baseline == "batch_mean" else list(groups)
    centre = "leave_one_out" if config.baseline == "leave_one_out" else "mean"
    standard = standardiser(scale=config.scale, eps=config.eps, centre=centre)
    outcomes = _outcomes(rewards, pools, standard, config)
    charges = [_charge(item, config) for item in rewards]
    if isinstance(config, OutcomeOnly):
        spread = [[z] * item.turns for z, item in zip(outcomes, rewards, strict=True)]
        return _finish(spread, [[0.0] * item.turns for item in rewards], charges, None, 0.0, 0.0)
    assert isinstance(config, Gigpo | TurnGains)
    weight = weight_at(config.gain_weight, step)
    if isinstance(config, Gigpo):
        spread = [[z] * item.turns for z, item in zip(outcomes, rewards, strict=True)]
        values = [_outcome_value(item, config) for item in rewards]
        anchored = [[weight * z for z in row] for row in same_state(rewards, values, groups, standard, config.gamma)]
        return _finish(spread, anchored, charges, None, 0.0, weight)

    gains = [list(item.gains) for item in rewards]
    if config.shuffle != "none":
        within = groups if config.shuffle == "group" else range(len(gains))
        gains = shuffled(gains, within, seed=seed, step=step)
    if config.credit.kind == "trajectory":
        gains = [[math.fsum(row)] for row in gains]
    fallback, floor = 0.0, config.floor
    if config.normalization.kind == "joint":
        raw = [_outcome_value(item, config) for item in rewards]
        rows = normalise_together([[*row, o] for row, o in zip(gains, raw, strict=True)], pools, standard)
        normalised, outcomes = [row[:-1] for row in rows], [row[-1] for row in rows]
    else:
        normalised, fallback = normalise_gains(
            gains,
            pools,
            standardiser(scale=config.scale, eps=floor or config.eps, centre=centre),
            config.normalization.kind,
            floor=floor or config.eps,
            smallest=config.normalization.smallest if isinstance(config.normalization, TurnGroup) else 2,
        )
    factors = [weight] * len(rewards)
    if isinstance(config.gate, SignGate):
        normalised = sign_gate(normalised, gains)
    elif isinstance(config.gate, OutcomeSpreadGate):
        raw = [_outcome_value(item, config) for item in rewards]
        gates = outcome_gates(raw, groups, config.gate.temperature)
        factors = [weight * gate for gate in gates]
    if isinstance(config, OutcomeAndGain) and isinstance(config.gain_scale, MatchOutcome):
        match = matched_scale(normalised, outcomes, config.gain_scale)
        factors = [factor * match for factor in factors]
    weighted = [[factor * z for z in row] for factor, row in zip(factors, normalised, strict=True)]
    credit = _accumulated(rewards, weighted, outcomes, charges, config, fallback, math.fsum(factors) / len(factors))
    if floor is None:
        return credit
    about_zero = config.normalization.kind == "root_mean_square"
    return replace(credit, below_floor=share_below(gains, pools, floor, about_zero=about_zero))


def _accumulated(
    rewards: Sequence[TurnRewards],
    gains: Rows,
    outcomes: Sequence[float],
    charges: Sequence[float],
    config: TurnGains,
    fallback: float,
    factor: float,
) -> Credit:
    if config.credit.kind == "trajectory":
        spread = [[z] * item.turns for z, item in zip(outcomes, rewards, strict=True)]
        total = [row * item.turns for row, item in zip(gains, rewards, strict=True)]
        return _finish(spread, total, charges, None, fallback, factor)
    if config.credit.kind == "query":
        spread = [[z] * item.turns for z, item in zip(outcomes, rewards, strict=True)]
        return _finish(spread, [[*row, 0.0] for row in gains], charges, gains, fallback, factor)
    if isinstance(config, OutcomeAndGain) and config.outcome_credit == "broadcast":
        spread = [[z] * item.turns for z, item in zip(outcomes, rewards, strict=True)]
        ahead = config.accumulation.gains if isinstance(config.accumulation, Window) else 1
        summed = [[*accumulate(row, config.gamma, config.accumulation.kind, ahead), 0.0] for row in gains]
        return _finish(spread, summed, charges, None, fallback, factor)
    together = [discounted_returns([*row, z], config.gamma) for row, z in zip(gains, outcomes, strict=True)]
    apart = [discounted_returns([0.0] * len(row) + [z], config.gamma) for row, z in zip(gains, outcomes, strict=True)]
    own = [discounted_returns([*row, 0.0], config.gamma) for row in gains]
    charged = _charged(together, charges)
    return Credit(charged, None, _charged(apart, charges), own, fallback, factor)


def _finish(
    outcome: Rows, gain: Rows, charges: Sequence[float], queries: Rows | None, fallback: float, factor: float
) -> Credit:
    outcome = _charged(outcome, charges)
    turns = outcome if queries is not None else [_add(a, b) for a, b in zip(outcome, gain, strict=True)]
    return Credit(turns, queries, outcome, gain, fallback, factor)


# ------------------------------------------------------------------------------------------- the choices, one by one


def weight_at(weight: float | LinearWeight, step: int) -> float:
    """Return the weight at a step: constant, or linear from its start to its end within its steps."""
    if not isinstance(weight, LinearWeight):
        return weight
    gone = min(1.0, step / weight.steps)
    return weight.start + gone * (weight.end - weight.start)


def shuffled(gains: Sequence[Sequence[float]], groups: Sequence[Hashable], *, seed: int, step: int) -> Rows:
    """The same gains, permuted among all turns of a group: variance without credit. Keyed by (seed, step, group). With each
    trajectory a group of its own, its total stays and the turn it belongs to is lost."""
    rows: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        rows.setdefault(group, []).append(i)
    result: Rows = [[] for _ in gains]
    for group, members in rows.items():
        pool = [value for i in members for value in gains[i]]
        python_rng(seed, "shuffled gain", step, str(group)).shuffle(pool)
        left = iter(pool)
        for i in members:
            result[i] = [next(left) for _ in gains[i]]
    return result


def sign_gate(normalised: Sequence[Sequence[float]], gains: Sequence[Sequence[float]]) -> Rows:
    """z_t where it has the sign of g_t, else 0: subtracting the mean pays no turn for what it did not do (LOTAPO)."""
    return [
        [z if z * g > 0 else 0.0 for z, g in zip(*rows, strict=True)] for rows in zip(normalised, gains, strict=True)
    ]


def outcome_gates(outcomes: Sequence[float], groups: Sequence[Hashable], temperature: float) -> list[float]:
    """sigmoid(-std of the group's outcomes / temperature): gains count where outcomes do not differ (InfoPO,
    arXiv 2603.00656). 0.5 at most, for equal outcomes."""
    values: dict[Hashable, list[float]] = {}
    for outcome, group in zip(outcomes, groups, strict=True):
        values.setdefault(group, []).append(outcome)
    gates = {}
    for group, row in values.items():
        mean = math.fsum(row) / len(row)
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in row) / len(row))
        faded = math.exp(-std / temperature)
        gates[group] = faded / (1 + faded)
    return [gates[group] for group in groups]


def matched_scale(gains: Sequence[Sequence[float]], outcomes: Sequence[float], scale: MatchOutcome) -> float:
    """Return min(max(mean |z^O|, least_outcome) / (mean |z^IG| + 1e-8), most) over the batch (DR-Venus's IG-Scale, arXiv
    2604.19859, with 0.3 and 10)."""
    flat = [abs(value) for row in gains for value in row]
    if not flat:
        return 1.0
    outcome = math.fsum(map(abs, outcomes)) / len(outcomes)
    return min(max(outcome, scale.least_outcome) / (math.fsum(flat) / len(flat) + 1e-8), scale.most)


def same_state(
    rewards: Sequence[TurnRewards],
    outcomes: Sequence[float],
    groups: Sequence[Hashable],
    standard: Standardiser,
    gamma: float,
) -> Rows:
    """GiGPO's step advantage: gamma^(T-t) * outcome, standardised among the turns of the group that had seen the same
    (arXiv 2505.10978). A state that nobody shares gives 0."""
    flat: list[float] = []
    pools: list[Hashable] = []
    for item, outcome, group in zip(rewards, outcomes, groups, strict=True):
        flat += [gamma ** (item.turns - 1 - t) * outcome for t in range(item.turns)]
        pools += [(group, state) for state in item.states]
    values = iter(in_pools(flat, pools, standard))
    return [[next(values) for _ in range(item.turns)] for item in rewards]


def _outcome_value(item: TurnRewards, config: Reward) -> float:
    """What stands in the outcomes' pool."""
    if isinstance(config, GainOnly):
        return 0.0
    return config.format_penalty if not item.answered and config.penalty_on == "trajectory" else item.outcome


def _outcomes(
    rewards: Sequence[TurnRewards], pools: Sequence[Hashable], standard: Standardiser, config: Reward
) -> list[float]:
    """Normalised outcomes. penalty_on=apart: of well-formed answers among themselves; the others get the penalty as it is."""
    values = [_outcome_value(item, config) for item in rewards]
    if config.penalty_on != "apart":
        return in_pools(values, pools, standard)
    answered = [i for i, item in enumerate(rewards) if item.answered]
    result = [config.format_penalty] * len(rewards)
    for i, z in zip(
        answered, in_pools([values[i] for i in answered], [pools[i] for i in answered], standard), strict=True
    ):
        result[i] = z
    return result


def _charge(item: TurnRewards, config: Reward) -> float:
    """What the last turn alone is charged: malformed, cut off or one call too many, it is the turn at fault (DR-Venus)."""
    return config.format_penalty if config.penalty_on == "turn" and not item.answered else 0.0


def _charged(rows: Rows, charges: Sequence[float]) -> Rows:
    return [[*row[:-1], row[-1] + charge] if charge else row for row, charge in zip(rows, charges, strict=True)]


def _add(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]


def _check(rewards: Sequence[TurnRewards], groups: Sequence[Hashable], config: Reward) -> None:
    require_finite([[*item.gains, item.outcome] for item in rewards], groups)
    for i, item in enumerate(rewards):
        if config.needs_gain and len(item.gains) != item.turns - 1:
            raise ValueError(
                f"trajectory {i} has {item.turns} turns but {len(item.gains)} gains: it needs {item.turns - 1}"
            )
        if isinstance(config, Gigpo) and len(item.states) != item.turns:
            raise ValueError(f"trajectory {i} has {item.turns} turns but {len(item.states)} states")
