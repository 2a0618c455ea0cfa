"""Statistics of a paired comparison over seeds. Pure functions.

The interval is the expanded percentile bootstrap of the mean of paired differences (Hesterberg, "What Teachers Should Know
About the Bootstrap", The American Statistician 69(4), 2015): the plain percentile interval is too narrow for few seeds; its
percentiles alpha/2 are replaced by Phi(-sqrt(n / (n - 1)) * t_{1 - alpha/2, n - 1}).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ENUMERATED = 50_000  # all resamples are enumerated up to this many
RESAMPLES = 20_000

Verdict = Literal["better", "worse", "no difference shown", "too few seeds"]


@dataclass(frozen=True)
class Interval:
    """low <= high, in the unit of the score."""

    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Paired:
    """An arm against the baseline, over the seeds that both have."""

    arm: str
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    mean: float
    interval: Interval | None
    verdict: Verdict


def resample_means(values: Sequence[float]) -> list[float]:
    """Sorted means of bootstrap resamples: all n^n of them while that is few, else RESAMPLES drawn with a fixed seed."""
    import numpy as np

    data, n = np.asarray(values, dtype=float), len(values)
    if n**n <= ENUMERATED:
        index = np.indices((n,) * n).reshape(n, -1).T
    else:
        index = np.random.default_rng(0).integers(0, n, size=(RESAMPLES, n))
    means: list[float] = np.sort(data[index].mean(axis=1)).tolist()
    return means


def interval(values: Sequence[float], level: float = 0.95, *, expanded: bool = True) -> Interval | None:
    """Bootstrap interval of the mean; None for fewer than two values. expanded=False: the plain percentile interval."""
    from statistics import NormalDist

    from scipy.stats import t

    n = len(values)
    if n < 2:
        return None
    tail = (1 - level) / 2
    if expanded:
        tail = NormalDist().cdf(math.sqrt(n / (n - 1)) * float(t.ppf(tail, n - 1)))
    means = resample_means(values)
    rank = max(0, math.floor(tail * len(means) + 1e-9))
    return Interval(means[rank], means[len(means) - 1 - rank])


def paired(scores: Mapping[str, Mapping[int, float]], baseline: str, level: float = 0.95) -> dict[str, Paired]:
    """Every other arm against the baseline, seed by seed. scores[arm][seed].

    The interval has the level asked for. The verdict uses Bonferroni's: with k arms compared, the interval of level
    1 - (1 - level) / k must exclude zero. Seeds that one side lacks are left out and listed.
    """
    others = [arm for arm in scores if arm != baseline]
    every = sorted({seed for by_seed in scores.values() for seed in by_seed})
    results = {}
    for arm in others:
        seeds = [seed for seed in every if seed in scores[arm] and seed in scores.get(baseline, {})]
        differences = [scores[arm][seed] - scores[baseline][seed] for seed in seeds]
        strict = interval(differences, 1 - (1 - level) / len(others))
        if strict is None:
            verdict: Verdict = "too few seeds"
        elif strict.excludes_zero():
            verdict = "better" if strict.low > 0 else "worse"
        else:
            verdict = "no difference shown"
        results[arm] = Paired(
            arm=arm,
            seeds=tuple(seeds),
            missing=tuple(seed for seed in every if seed not in seeds),
            mean=math.fsum(differences) / len(differences) if differences else math.nan,
            interval=interval(differences, level),
            verdict=verdict,
        )
    return results


def first_at(curve: Mapping[int, float], threshold: float) -> int | None:
    """The first step whose value is at or above the threshold; None: not within the run (censored)."""
    return next((step for step in sorted(curve) if curve[step] >= threshold), None)


@dataclass(frozen=True)
class Reached:
    """Seeds that reached a threshold, and the median cost; the median is None when half of them or more did not."""

    reached: int
    runs: int
    median: float | None


def summarise_reached(costs: Sequence[float | None]) -> Reached:
    """costs: one a run, None for a censored run, which counts as later than any other; nothing is imputed."""
    import statistics

    ordered = sorted(math.inf if cost is None else cost for cost in costs)
    median = statistics.median(ordered) if ordered else math.inf
    return Reached(sum(cost is not None for cost in costs), len(costs), None if math.isinf(median) else median)


@dataclass(frozen=True)
class Band:
    """Mean and interval over seeds at each step that every curve has."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


def curve_band(curves: Sequence[Mapping[int, float]], level: float = 0.95) -> Band:
    """With one curve the band has no width."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    columns = [[curve[step] for curve in curves] for step in steps]
    means = [math.fsum(column) / len(column) for column in columns]
    bounds = [interval(column, level) or Interval(column[0], column[0]) for column in columns]
    return Band(tuple(steps), tuple(means), tuple(b.low for b in bounds), tuple(b.high for b in bounds))
