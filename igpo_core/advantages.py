"""From rewards to turn advantages: normalise within the group, then discount (paper Eq. 5 and 6).

Pure functions on lists of float64: a step has a few thousand turns, and exactness matters more than speed here.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Literal, get_args

Normalization = Literal["separate", "joint", "outcome_only"]
Scale = Literal["std", "none"]


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
    division out. Pools, one set for each group: "separate" has gains and outcomes apart, "joint" has one pool. A pool of
    one value, or without spread, gives 0. Then A_t = z_t + gamma * A_{t+1}. "outcome_only" is GRPO: the outcome's z for
    every turn, whatever gamma and the gains.

    Returns lists of the lengths of `rewards`. Raises ValueError on NaN or inf, on lengths that differ, on an empty
    trajectory, on unknown names, on gamma outside [0, 1] and on eps that is not positive.
    """
    _check(rewards, groups, normalization, gamma, scale, eps)
    members: dict[Hashable, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    normalised: list[list[float]] = [[0.0] * len(row) for row in rewards]
    for rows in members.values():
        gains = [(i, t) for i in rows for t in range(len(rewards[i]) - 1)]
        outcomes = [(i, len(rewards[i]) - 1) for i in rows]
        if normalization == "joint":
            pools = [gains + outcomes]
        elif normalization == "separate":
            pools = [gains, outcomes]
        else:
            pools = [outcomes]
        for pool in pools:
            for (i, t), z in zip(pool, standardise([rewards[i][t] for i, t in pool], scale, eps), strict=True):
                normalised[i][t] = z
    if normalization == "outcome_only":
        return [[row[-1]] * len(row) for row in normalised]
    return [discounted_returns(row, gamma) for row in normalised]


def standardise(values: Sequence[float], scale: str, eps: float) -> list[float]:
    """(r - mean) / (std + eps) with population std; all 0 for a pool of one value or without spread.

    "Without spread" means max == min: a std of rounding errors must not be blown up to unit rewards.
    """
    if len(values) < 2 or max(values) == min(values):
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    if scale == "none":
        return [value - mean for value in values]
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / (std + eps) for value in values]


def discounted_returns(values: Sequence[float], gamma: float) -> list[float]:
    """A_t = z_t + gamma * A_{t+1} (paper Eq. 6)."""
    returns, following = [0.0] * len(values), 0.0
    for t in reversed(range(len(values))):
        following = values[t] + gamma * following
        returns[t] = following
    return returns


def _check(
    rewards: Sequence[Sequence[float]],
    groups: Sequence[Hashable],
    normalization: str,
    gamma: float,
    scale: str,
    eps: float,
) -> None:
    for name, chosen, choices in (
        ("normalization", normalization, get_args(Normalization)),
        ("scale", scale, get_args(Scale)),
    ):
        if chosen not in choices:
            raise ValueError(f"unknown {name} {chosen!r}: valid are {', '.join(choices)}")
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not eps > 0:
        raise ValueError(f"eps must be positive, got {eps}")
    if len(rewards) != len(groups):
        raise ValueError(f"{len(rewards)} trajectories but {len(groups)} group keys")
    for i, row in enumerate(rewards):
        if not row:
            raise ValueError(f"trajectory {i} has no rewards: every trajectory has at least its outcome")
        for t, value in enumerate(row):
            if not math.isfinite(value):
                raise ValueError(f"reward {t} of trajectory {i} is {value}: a belief or outcome upstream is broken")
