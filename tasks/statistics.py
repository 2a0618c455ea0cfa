"""Statistics of a paired comparison over seeds. Pure functions.

The interval is the expanded percentile bootstrap of a mean (Hesterberg, "What Teachers Should Know About the Bootstrap",
The American Statistician 69(4), 2015): the plain percentile interval is too narrow for few values, so its tails alpha/2
are replaced by Phi(-sqrt(n / (n - 1)) * t_{1 - alpha/2, n - 1}).

What it cannot do: no bootstrap of n values reaches beyond their range, and the range of n values from a symmetric law
holds the centre with probability 1 - 2^(1-n) only: 0.50, 0.75, 0.875, 0.938 for n = 2 .. 5. With fewer than MIN_SEEDS
paired seeds the interval is shown but carries no verdict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

ENUMERATED = 50_000  # all n^n resamples are enumerated up to this many
RESAMPLES = 20_000
MIN_SEEDS = 5

Verdict = Literal["better", "worse", "equal", "no difference shown", "too few seeds"]


@dataclass(frozen=True)
class Interval:
    """low <= high, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """An arm against the baseline, over the n seeds that both have. mean is None when they share none."""

    n: int
    mean: float | None
    interval: Interval | None
    missing_seeds: tuple[int, ...]
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


def expanded_tail(n: int, level: float) -> float:
    """Phi(-sqrt(n / (n - 1)) * t_{1 - alpha/2, n - 1}) with alpha = 1 - level."""
    from statistics import NormalDist

    from scipy.special import stdtrit  # quantile of Student's t; scipy.stats costs a second of import

    return NormalDist().cdf(math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, (1 - level) / 2)))


def interval(differences: Sequence[float], level: float = 0.95) -> Interval | None:
    """Expanded percentile bootstrap interval of the mean; None for fewer than two values."""
    if len(differences) < 2:
        return None
    return percentiles(resample_means(differences), expanded_tail(len(differences), level))


def percentiles(ordered: Sequence[float], tail: float) -> Interval:
    """The values that leave the share `tail` of `ordered` below and above, rounded outwards."""
    rank = math.floor(tail * len(ordered) + 1e-9)
    return Interval(ordered[rank], ordered[len(ordered) - 1 - rank])


def paired(scores: Mapping[str, Mapping[int, float]], baseline: str, margin: float = 0.0) -> dict[str, Paired]:
    """Every other arm against the baseline, seed by seed: scores[arm][seed].

    `interval` is the 95% one. The verdict is stricter: with k arms compared, the interval of level 1 - 0.05 / k must
    exclude zero (Bonferroni). An arm whose whole stricter interval lies within -margin .. margin is "equal", on whichever
    side of zero it lies: a difference that does not matter is no reason to choose an arm. With few seeds the stricter
    interval is their whole range, so that a verdict means that all seeds agree, and its level is 2^(1-n) at best (0.06
    for five): the report says so. missing_seeds: seeds that some arm of the sweep has and this arm or the baseline lacks.
    """
    others = [arm for arm in scores if arm != baseline]
    reference = scores.get(baseline, {})
    every = sorted({seed for by_seed in scores.values() for seed in by_seed})
    results = {}
    for arm in others:
        seeds = [seed for seed in every if seed in scores[arm] and seed in reference]
        differences = [scores[arm][seed] - reference[seed] for seed in seeds]
        results[arm] = Paired(
            n=len(seeds),
            mean=math.fsum(differences) / len(seeds) if seeds else None,
            interval=interval(differences),
            missing_seeds=tuple(seed for seed in every if seed not in seeds),
            verdict=_verdict(differences, 1 - 0.05 / len(others), margin),
        )
    return results


def _verdict(differences: Sequence[float], level: float, margin: float) -> Verdict:
    strict = interval(differences, level)
    if strict is None or len(differences) < MIN_SEEDS:
        return "too few seeds"
    if -margin < strict.low and strict.high < margin:
        return "equal"
    if strict.low > 0:
        return "better"
    return "worse" if strict.high < 0 else "no difference shown"


def interquartile_mean(values: Sequence[float]) -> float | None:
    """The mean of the middle half (Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
    NeurIPS 2021): one collapsed seed of eight does not move it. None of nothing."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25)) if len(values) else None


def probability_of_improvement(arm: Sequence[float], baseline: Sequence[float]) -> float | None:
    """P(a run of the arm beats a run of the baseline), ties half, over all pairs of seeds (the same paper; Mann and
    Whitney's U over the number of pairs). None where one side has no run."""
    if not arm or not baseline:
        return None
    wins = math.fsum(1.0 if a > b else 0.5 if a == b else 0.0 for a in arm for b in baseline)
    return wins / (len(arm) * len(baseline))


def seeds_needed(differences: Sequence[float], effect: float, *, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Paired seeds with which a t-test at level alpha finds a true mean difference of `effect` with this power, from the
    spread seen; None where it is unknown (fewer than two differences) or more than 10,000 are needed.

    Power: noncentral t with n - 1 degrees of freedom and noncentrality effect / sd * sqrt(n).
    """
    import statistics

    from scipy.special import nctdtr, stdtrit

    if len(differences) < 2 or effect <= 0:
        return None
    sd = statistics.stdev(differences)
    if sd == 0:
        return 2
    for n in range(2, 10_001):
        critical = float(stdtrit(n - 1, 1 - alpha / 2))
        shift = effect / sd * math.sqrt(n)
        if shift > 30:  # certain, and beyond what nctdtr can do
            return n
        if 1 - float(nctdtr(n - 1, shift, critical)) + float(nctdtr(n - 1, shift, -critical)) >= power:
            return n
    return None


def time_to_threshold(curve: Mapping[float, float], threshold: float) -> float | None:
    """The first place of the curve with a value at or above the threshold; None: not within the curve (censored)."""
    return next((place for place in sorted(curve) if curve[place] >= threshold), None)


@dataclass(frozen=True)
class Reached:
    """reached of `of` runs got there. median: over all of them; None when it lies beyond what was run: then it is more
    than `beyond`, the median with each censored run counted at its end."""

    reached: int
    of: int
    median: float | None
    beyond: float

    def __str__(self) -> str:
        return f">{_short(self.beyond)}" if self.median is None else _short(self.median)


def summarise_times(times: Sequence[float | None], ends: Sequence[float]) -> Reached:
    """times: one a run, None where the threshold was never reached, which counts as infinite; ends: where each run ended."""
    import statistics

    if not times:
        return Reached(0, 0, None, 0.0)
    median = statistics.median([math.inf if time is None else time for time in times])
    beyond = statistics.median([end if time is None else time for time, end in zip(times, ends, strict=True)])
    return Reached(sum(t is not None for t in times), len(times), None if math.isinf(median) else median, beyond)


def _short(value: float) -> str:
    """Three digits: 12, 3.4k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.0f}{unit}" if value >= 100 * size else f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


@dataclass(frozen=True)
class BandPoint:
    """Mean over seeds at one step, with its interval (None for a single curve)."""

    step: float
    mean: float
    interval: Interval | None


def curve_band(curves: Sequence[Mapping[float, float]]) -> list[BandPoint]:
    """Mean and 95% interval at each step that every curve has, so that all points average the same seeds."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    columns = [(step, [curve[step] for curve in curves]) for step in shared]
    return [BandPoint(step, math.fsum(column) / len(column), interval(column)) for step, column in columns]
