"""Statistics of a paired comparison over seeds. Pure functions.

Interval and verdict are two sides of one test that needs no law of the differences but symmetry about their mean: then every
pattern of signs of (difference - mean) is equally likely (Fisher's randomisation test; as a bootstrap: the wild bootstrap with
random signs, the hypothesis imposed; Davidson and Flachaire, Journal of Econometrics 146(1), 2008). The interval holds the means
that the test does not reject. Its ends are means of subsets of the values: the 2^n - 1 of them cut the line into 2^n parts that
hold the true mean with equal chance (Hartigan, "Using Subsample Values as Typical Values", JASA 64(328), 1969). Where two arms
are alike, differences are symmetric and it covers zero as often as it says, to the step 2^(1-n). With n seeds no level is above
1 - 2^(1-n) and no p-value below 2^(1-n): fewer than MIN_SEEDS carry no verdict, and their interval is the range of the
differences. What no seed showed is in no interval: of an arm that always learns and one that fails in a run of four, eight seeds
hold the true difference in 90% (docs/results.md; a t-interval and a bootstrap do no better).

Of trained models that are asked the same questions, both seeds and questions are samples: two_way_interval resamples both.

p-values are adjusted for the arms compared by Benjamini and Hochberg's procedure (J. R. Stat. Soc. B 57(1), 1995): where all
arms are equal, a report claims any difference in 5% of sweeps at most. An arm that cannot be tested counts with p = 1, so that a
failed run makes no other arm's p smaller. Intervals are each arm's own.

An arm that lacks a run has no verdict: a loss that is not finite ends a run, and an arm that diverges on its bad seeds would be
judged by the others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from igpo_core.errors import DataError

if TYPE_CHECKING:
    import numpy as np

ENUMERATED = 14  # values of which all subsets are counted; of more, RESAMPLES are drawn
RESAMPLES = 20_000
TWO_WAY = 2_000  # resamples of seeds and questions
NUMBERS = 4_000_000  # drawn at a time, so that many questions fit the memory
ALPHA = 0.05
MIN_SEEDS = 6  # 2^(1-6) = 0.031 is the first below ALPHA

Verdict = Literal[
    "better",
    "worse",
    "within margin",
    "no difference shown",
    "too few seeds",
    "runs missing",
    "learnt by heart",
    "start not known",
]


@dataclass(frozen=True)
class Interval:
    """low <= high, in the unit of the values."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """An arm against the baseline, over the n seeds that both have. mean is None when they share none. p: adjusted for the
    arms compared; None with fewer than MIN_SEEDS, or where a seed is missing. differences: of each shared seed, in their order.
    """

    n: int
    mean: float | None
    interval: Interval | None
    missing_seeds: tuple[int, ...]
    p: float | None
    verdict: Verdict
    differences: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """An arm against the baseline as a reader asks for it.

    pair: the differences. score, baseline_score: means over the seeds that both have, None where there are none. above: on how
    many of these seeds the arm is above the baseline. equal: on how many it has the same score. missing: arm or baseline -> the
    seeds that it lacks; only those that lack one.
    """

    arm: str
    baseline: str
    pair: Paired
    score: float | None
    baseline_score: float | None
    above: int
    equal: int
    missing: Mapping[str, tuple[int, ...]]
    title: str
    """What the arms are compared on, for people."""


def comparison(
    scores: Mapping[str, Mapping[int, float]], arm: str, baseline: str, pairs: Mapping[str, Paired], title: str
) -> Comparison:
    """Return the comparison of scores[arm][seed], and of the pairs that `paired` made of them."""
    ours, theirs = scores[arm], scores[baseline]
    both = [(ours[seed], theirs[seed]) for seed in sorted(ours) if seed in theirs]
    means = [math.fsum(side) / len(both) for side in zip(*both, strict=True)] if both else [None, None]
    lacking = {
        name: tuple(seed for seed in pairs[arm].missing_seeds if seed not in scores[name]) for name in (arm, baseline)
    }
    missing = {name: seeds for name, seeds in lacking.items() if seeds}
    above, equal = sum(a > b for a, b in both), sum(a == b for a, b in both)
    return Comparison(arm, baseline, pairs[arm], means[0], means[1], above, equal, missing, title)


@lru_cache
def _subsets(n: int) -> "np.ndarray":
    """[subsets, n] of 0 and 1, none of them empty: all while n is small, else drawn with a fixed seed."""
    import numpy as np

    if n <= ENUMERATED:
        return (np.arange(1, 2**n)[:, None] >> np.arange(n) & 1).astype(float)
    return np.concatenate(list(_blocks(n)))


def _blocks(n: int) -> "Iterator[np.ndarray]":
    """The same rows, in blocks that many values leave room for."""
    import numpy as np

    if n <= ENUMERATED:
        yield _subsets(n)
        return
    generator, rows = np.random.default_rng(0), max(1, NUMBERS // n)
    for start in range(0, RESAMPLES - 1, rows):
        drawn = generator.integers(0, 2, size=(min(rows, RESAMPLES - 1 - start), n)).astype(float)
        drawn[drawn.sum(axis=1) == 0] = 1.0  # one draw in 2^n
        yield drawn


def _cut(n: int, level: float) -> int:
    """How many of the parts between subset means the interval leaves out on each side: at least one, or it had no end."""
    return max(1, math.floor((1 - level) / 2 * (len(_subsets(n)) + 1) + 1e-9))


def coverage(n: int, level: float = 0.95) -> float:
    """The share of sweeps of n seeds whose interval holds the true mean difference, where differences are symmetric about it:
    at least `level`, but for fewer than MIN_SEEDS, which cannot."""
    return 1 - 2 * _cut(n, level) / (len(_subsets(n)) + 1)


def subset_means(values: Sequence[float]) -> list[float]:
    """Sorted means of the subsets of the values. The order of the values does not matter."""
    import numpy as np

    subsets = _subsets(len(values))
    means: list[float] = np.sort(subsets @ np.sort(np.asarray(values, dtype=float)) / subsets.sum(axis=1)).tolist()
    return means


def interval(differences: Sequence[float], level: float = 0.95) -> Interval | None:
    """The means that sign_flip_p would not reject at 1 - level; None for fewer than two values."""
    if len(differences) < 2:
        return None
    means, cut = subset_means(differences), _cut(len(differences), level)
    return Interval(means[cut - 1], means[-cut])


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value of a mean of zero: twice the smaller share of sign patterns whose sum is at least (at most) the one
    seen. Flipping the subset S changes the sum by -2 * sum(S), so the sums of all subsets, the empty one too, are counted."""
    import numpy as np

    ordered = np.sort(np.asarray(differences, dtype=float))
    sums = np.concatenate([subsets @ ordered for subsets in _blocks(len(ordered))])
    tie = 1e-12 * float(np.abs(ordered).sum())
    below, above = 1 + int((sums <= tie).sum()), 1 + int((sums >= -tie).sum())
    return min(1.0, 2 * min(below, above) / (len(sums) + 1))


def two_way_interval(strata: "Sequence[np.ndarray]", level: float = 0.95) -> Interval | None:
    """Return the interval of the mean over strata of their means, over what was drawn at random: seeds and questions.

    strata: [seeds, questions] each, of the same seeds: a score, or the difference of two on the same question and seed. A stratum
    is a data set, and all count the same. Each resample draws seeds, the same ones for every stratum, and the questions of each
    stratum, both with replacement (the pigeonhole bootstrap: Owen, Annals of Applied Statistics 1(2), 2007), and the ends are
    quantiles of the means. With one seed it is of the questions alone; few seeds make it too narrow, as of every bootstrap: of n
    it sees (n - 1) / n of their variance. None for a single number, which has no spread.
    """
    import numpy as np

    from igpo_core.seeds import numpy_rng

    seeds = len(strata[0])
    if seeds < 2 and all(scores.shape[1] < 2 for scores in strata):
        return None
    generator = numpy_rng(0, "two-way bootstrap")
    drawn = generator.multinomial(seeds, [1 / seeds] * seeds, size=TWO_WAY) / seeds
    means = np.zeros(TWO_WAY)
    for scores in strata:
        count = scores.shape[1]
        rows = max(1, NUMBERS // count)
        for start in range(0, TWO_WAY, rows):
            by_question = drawn[start : start + rows] @ scores
            chosen = generator.integers(0, count, size=by_question.shape)
            means[start : start + rows] += np.take_along_axis(by_question, chosen, axis=1).mean(axis=1) / len(strata)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired(
    scores: Mapping[str, Mapping[int, float]], baseline: str, margin: float = 0.0, asked: Sequence[int] = ()
) -> dict[str, Paired]:
    """Every other arm against the baseline, seed by seed: scores[arm][seed]. asked: seeds that every arm was asked for, besides
    those that some arm has.

    An arm whose whole 95% interval lies within -margin .. margin is "within margin", on whichever side of zero it lies: a
    difference that does not matter is no reason to choose an arm. Otherwise it is "better" or "worse" where its adjusted p is
    at most ALPHA. missing_seeds: those that this arm or the baseline lacks. With one of them it is "runs missing". Raises
    DataError where a score is no finite number.
    """
    from scipy.stats import false_discovery_control

    others = [arm for arm in scores if arm != baseline]
    reference = scores.get(baseline, {})
    odd = [
        f"{arm} seed {seed}" for arm, own in scores.items() for seed, score in own.items() if not math.isfinite(score)
    ]
    if odd:
        raise DataError(
            f"the score of {', '.join(odd)} is no finite number: leave it out, so that it counts as missing"
        )
    every = sorted({*asked, *(seed for by_seed in scores.values() for seed in by_seed)})
    shared = {arm: [seed for seed in every if seed in scores[arm] and seed in reference] for arm in others}
    found = {arm: [scores[arm][seed] - reference[seed] for seed in shared[arm]] for arm in others}
    tested = [arm for arm in others if len(shared[arm]) == len(every) >= MIN_SEEDS]
    raw = [sign_flip_p(found[arm]) if arm in tested else 1.0 for arm in others]
    adjusted = dict(zip(others, map(float, false_discovery_control(raw) if raw else []), strict=True))
    p = {arm: adjusted[arm] for arm in tested}
    results = {}
    for arm, differences in found.items():
        mean = math.fsum(differences) / len(differences) if differences else None
        results[arm] = Paired(
            n=len(differences),
            mean=mean,
            interval=interval(differences),
            missing_seeds=tuple(seed for seed in every if seed not in shared[arm]),
            p=p.get(arm),
            verdict=_verdict(mean, interval(differences), p.get(arm), margin, len(every)),
            differences=tuple(differences),
        )
    return results


def without_verdict(pairs: Mapping[str, Paired]) -> dict[str, Paired]:
    """Return the same differences where arms start from a warm start that is learnt by heart: what differs on such data says
    nothing of the method, however many seeds there are, so that no p is told."""
    return {arm: replace(pair, p=None, verdict="learnt by heart") for arm, pair in pairs.items()}


def _verdict(mean: float | None, span: Interval | None, p: float | None, margin: float, asked: int) -> Verdict:
    if mean is None or span is None or p is None:
        return "too few seeds" if asked < MIN_SEEDS else "runs missing"
    if -margin < span.low and span.high < margin:
        return "within margin"
    if p > ALPHA:
        return "no difference shown"
    return "better" if mean > 0 else "worse"


def seeds_for_verdict(compared: int) -> int:
    """Seeds with which one arm alone of `compared` can be shown to differ: 2^(1-n) <= ALPHA / compared."""
    return math.ceil(1 - math.log2(ALPHA / compared))


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


def seeds_needed(differences: Sequence[float], effect: float, *, compared: int = 1, power: float = 0.8) -> int | None:
    """Paired seeds with which a true mean difference of `effect` gets a verdict with this power, from the spread seen; None
    where it is unknown (fewer than two differences) or more than 10,000 are needed.

    Counted for a t-test at level ALPHA / compared, which the sign-flip test comes near to: noncentral t with n - 1 degrees of
    freedom and noncentrality effect / sd * sqrt(n). Never fewer than seeds_for_verdict(compared).
    """
    import statistics

    from scipy.special import nctdtr, stdtrit

    if len(differences) < 2 or effect <= 0:
        return None
    sd, fewest = statistics.stdev(differences), seeds_for_verdict(compared)
    if sd == 0:
        return fewest
    for n in range(fewest, 10_001):
        critical = float(stdtrit(n - 1, 1 - ALPHA / compared / 2))
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
