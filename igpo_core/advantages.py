"""From rewards to turn advantages: normalise within the group, then discount (paper Eq. 5 and 6).

Pure functions on lists of float64: a step has a few thousand turns, and exactness matters more than speed here. What an
arm chooses besides (docs/arms.md) is put together in igpo_core/credit.py from the same functions.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Literal, get_args

Normalization = Literal["separate", "joint", "raw", "root_mean_square", "turn_group", "none"]
Baseline = Literal["group_mean", "leave_one_out", "batch_mean"]
Scale = Literal["std", "none"]
Accumulation = Literal["sum", "root", "window"]


def turn_advantages(
    rewards: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    *,
    normalization: str = "separate",
    gamma: float = 1.0,
    scale: str = "std",
    eps: float = 1e-6,
) -> list[list[float]]:
    """One advantage for each turn of each trajectory.

    rewards[i] = [g_1, ..., g_{T-1}, outcome] of trajectory i (a list of one float: no gains); groups[i]: the key of its
    question. Every value r becomes z = (r - mean) / (std + eps) over its pool, population std; scale="none" leaves the
    division out. Pools, one set for each group: "separate" has gains and outcomes apart, "joint" has one pool; for
    "raw", "root_mean_square", "turn_group" and "none" see normalise_gains, whose floor is eps here. A pool of one value,
    or without spread, gives 0, except with "root_mean_square". Then A_t = z_t + gamma * A_{t+1}. "outcome_only" is
    GRPO: the outcome's z for every turn, whatever gamma and the gains.

    Returns lists of the lengths of `rewards`. Raises ValueError on NaN or inf, on lengths that differ, on an empty
    trajectory, on unknown names, on gamma outside [0, 1] and on eps that is not positive.
    """
    require_finite(rewards, groups)
    _one_of("normalization", normalization, (*get_args(Normalization), "outcome_only"))
    _one_of("scale", scale, get_args(Scale))
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    standard = standardiser(scale=scale, eps=eps)
    outcomes = [row[-1] for row in rewards]
    if normalization == "outcome_only":
        return [[z] * len(row) for z, row in zip(in_pools(outcomes, groups, standard), rewards, strict=True)]
    if normalization == "joint":
        rows = normalise_together(rewards, groups, standard)
    else:
        gains, _ = normalise_gains([row[:-1] for row in rewards], groups, standard, normalization, floor=eps)
        rows = [[*row, z] for row, z in zip(gains, in_pools(outcomes, groups, standard), strict=True)]
    return [discounted_returns(row, gamma) for row in rows]


# ------------------------------------------------------------------------------------------------- normalisation

Standardiser = Callable[[Sequence[float]], list[float]]


def standardise(values: Sequence[float], scale: str, eps: float, centre: str = "mean") -> list[float]:
    """(r - centre) / (std + eps) with population std; all 0 for a pool of one value or without spread.

    centre: "mean" (GRPO), "leave_one_out" the mean of the other values (RLOO, Ahmadian et al. 2024, Eq. 8), or "none": the
    mean is kept (DR-Venus's raw gains). scale="none": no division (Dr. GRPO, Liu et al. 2025). "Without spread" means
    max == min: a std of rounding errors must not be blown up to unit rewards.
    """
    if len(values) < 2 or max(values) == min(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    stretch = len(values) / (len(values) - 1) if centre == "leave_one_out" else 1.0
    centred = list(values) if centre == "none" else [(value - mean) * stretch for value in values]
    if scale == "none":
        return centred
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [value / (std + eps) for value in centred]


def standardiser(*, scale: str, eps: float, centre: str = "mean") -> Standardiser:
    """standardise with its choices made."""
    return lambda values: standardise(values, scale, eps, centre)


def over_root_mean_square(values: Sequence[float], floor: float) -> list[float]:
    """Return r / (root mean square + floor): the mean is kept, and with it the sign of every value.

    The root mean square is the spread about zero, and it is at least |r| / sqrt(n) for a pool of n values. So no result
    exceeds sqrt(n), however alike the values are, and n equal values r give r / (|r| + floor). A pool of zeros gives 0.
    floor: in the unit of the values, > 0.
    """
    root = math.sqrt(math.fsum(value * value for value in values) / len(values))
    return [value / (root + floor) for value in values]


def in_pools(values: Sequence[float], pools: Sequence[Hashable], standard: Standardiser) -> list[float]:
    """Each value standardised among those of its pool."""
    members: dict[Hashable, list[int]] = {}
    for i, pool in enumerate(pools):
        members.setdefault(pool, []).append(i)
    result = [0.0] * len(values)
    for rows in members.values():
        for i, z in zip(rows, standard([values[i] for i in rows]), strict=True):
            result[i] = z
    return result


def normalise_together(
    rewards: Sequence[Sequence[float]], groups: Sequence[Hashable], standard: Standardiser
) -> list[list[float]]:
    """ "joint" (first version of the paper): gains and outcomes of a group in one pool."""
    return _by_row(rewards, [group for group, row in zip(groups, rewards, strict=True) for _ in row], standard)


def normalise_gains(
    gains: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    standard: Standardiser,
    normalization: str,
    *,
    floor: float,
    smallest: int = 2,
) -> tuple[list[list[float]], float]:
    """Gains normalised among gains, and the share of them that "turn_group" had to normalise in the question's pool.

    standard: what normalises a pool of gains for "separate" and "turn_group".
    separate: all turns of all trajectories of the group in one pool (paper Eq. 5). raw: divided by that pool's std, the
    mean kept (DR-Venus's raw_ig: subtracting the mean pays or charges for the number of turns); the quotient has no
    bound where gains are alike. root_mean_square: divided by that pool's root mean square, the mean kept: at most the
    square root of the pool's size. turn_group: statistics of the turns with the same index (A2TGPO); where fewer than
    `smallest` trajectories got so far, those of the question. none: as they are (TIPS, potential-based shaping).
    floor: added to the spread that raw and root_mean_square divide by, in the gain's unit.
    """
    if normalization == "none":
        return [list(row) for row in gains], 0.0
    if normalization == "raw":
        standard = standardiser(scale="std", eps=floor, centre="none")
    elif normalization == "root_mean_square":
        standard = partial(over_root_mean_square, floor=floor)
    question = [group for group, row in zip(groups, gains, strict=True) for _ in row]
    whole = _by_row(gains, question, standard)
    if normalization != "turn_group":
        return whole, 0.0
    turns = [(group, t) for group, row in zip(groups, gains, strict=True) for t in range(len(row))]
    sizes = {turn: turns.count(turn) for turn in set(turns)}
    apart = _by_row(gains, turns, standard)
    small = 0
    for group, row, fallback in zip(groups, apart, whole, strict=True):
        for t in range(len(row)):
            if sizes[group, t] < smallest:
                row[t], small = fallback[t], small + 1
    return apart, small / len(turns) if turns else 0.0


def share_below(
    gains: Sequence[Sequence[float]], groups: Sequence[Hashable], floor: float, *, about_zero: bool
) -> float:
    """Return the share of groups whose gains have a spread below the floor: their gains are damped as noise.

    about_zero: the spread is the root mean square, otherwise the population std. Groups without a gain do not count;
    0 where no group has one.
    """
    pools: dict[Hashable, list[float]] = {}
    for group, row in zip(groups, gains, strict=True):
        pools.setdefault(group, []).extend(row)
    spreads = []
    for values in filter(None, pools.values()):
        centre = 0.0 if about_zero else math.fsum(values) / len(values)
        spreads.append(math.sqrt(math.fsum((value - centre) ** 2 for value in values) / len(values)))
    return sum(spread < floor for spread in spreads) / len(spreads) if spreads else 0.0


def _by_row(rows: Sequence[Sequence[float]], pools: Sequence[Hashable], standard: Standardiser) -> list[list[float]]:
    """in_pools over the values of all rows one after another."""
    flat = iter(in_pools([value for row in rows for value in row], pools, standard))
    return [[next(flat) for _ in row] for row in rows]


# -------------------------------------------------------------------------------------------------- accumulation


def discounted_returns(values: Sequence[float], gamma: float) -> list[float]:
    """A_t = z_t + gamma * A_{t+1} (paper Eq. 6)."""
    returns, following = [0.0] * len(values), 0.0
    for t in reversed(range(len(values))):
        following = values[t] + gamma * following
        returns[t] = following
    return returns


def accumulate(values: Sequence[float], gamma: float, accumulation: str, window: int = 3) -> list[float]:
    """What the gains from a turn on are worth to it; D_t = sum over k >= t of gamma^(k-t) z_k, n_t: how many they are.

    sum: D_t. root: D_t / sqrt(n_t), which keeps its spread from growing with what is left (A2TGPO). window: the mean of
    the next `window` gains weighted by gamma^(k-t) (TRACE, K-step credit).
    """
    if accumulation == "window":
        means = []
        for t in range(len(values)):
            ahead = values[t : t + window]
            weights = [gamma**k for k in range(len(ahead))]
            means.append(math.fsum(w * z for w, z in zip(weights, ahead, strict=True)) / math.fsum(weights))
        return means
    returns = discounted_returns(values, gamma)
    if accumulation == "sum":
        return returns
    return [value / math.sqrt(len(values) - t) for t, value in enumerate(returns)]


def require_finite(rewards: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> None:
    """Raise ValueError on NaN or inf, on an empty trajectory, and where groups and trajectories differ in number."""
    if len(rewards) != len(groups):
        raise ValueError(f"{len(rewards)} trajectories but {len(groups)} group keys")
    for i, row in enumerate(rewards):
        if not row:
            raise ValueError(f"trajectory {i} has no rewards: every trajectory has at least its outcome")
        for t, value in enumerate(row):
            if not math.isfinite(value):
                raise ValueError(f"reward {t} of trajectory {i} is {value}: a belief or outcome upstream is broken")


def _one_of(name: str, chosen: str, choices: Sequence[str]) -> None:
    if chosen not in choices:
        raise ValueError(f"unknown {name} {chosen!r}: valid are {', '.join(choices)}")
