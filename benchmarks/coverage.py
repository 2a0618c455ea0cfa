"""How often the report's interval holds the true difference.

python -m benchmarks.coverage REPORT_RUN_ID     A/A sweeps resampled from one of preset a-a; MLFLOW_TRACKING_URI where it is not
                                                the embedded server
python -m benchmarks.coverage --scores "0.943 0.959 ..." "0.955 0.021 ..."
                                                the same from the test F1 of each seed under the two names
python -m benchmarks.coverage --learn 1 0.75    two arms whose runs learn with these chances (F1 .95, else .015, noise .015)

In a resampled A/A sweep each seed is one of the real sweep's, its two names exchanged by a coin: under one arm with two names
that is as likely as not. The true difference is then 0.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy.stats import bootstrap, ttest_1samp

from tasks.report.recompute import recompute
from tasks.report.statistics import coverage, paired
from tasks.report.summaries import differences

LEARNED, FAILED, NOISE = 0.95, 0.015, 0.015
Draw = Callable[[int], np.ndarray]


def counted(draw: Draw, truth: float, seeds: int, sweeps: int) -> str:
    """draw(seeds): the differences of one sweep. In which share of the sweeps the report's interval and others hold the true
    difference, and the report claims one (without a margin, which takes claims away)."""
    rng, found = np.random.default_rng(seeds), dict.fromkeys(("interval", "claim", "t", "percentile", "BCa"), 0)
    for _ in range(sweeps):
        drawn = draw(seeds)
        scores = {"baseline": dict.fromkeys(range(seeds), 0.0), "arm": dict(enumerate(drawn.tolist()))}
        pair = paired(scores, "baseline")["arm"]
        assert pair.interval is not None
        found["interval"] += pair.interval.low <= truth <= pair.interval.high
        found["claim"] += pair.verdict in ("better", "worse")
        found["t"] += bool(ttest_1samp(drawn, truth).pvalue > 0.05)
        for method in ("percentile", "BCa"):
            other = bootstrap((drawn,), np.mean, method=method, n_resamples=2000, rng=rng).confidence_interval
            found[method] += bool(other.low <= truth <= other.high)
    share = {name: f"{count / sweeps:.1%}" for name, count in found.items()}
    return (
        f"{seeds:3d} seeds, {sweeps} sweeps: {truth:+.3f} covered in {share['interval']} ({coverage(seeds):.1%} where symmetric "
        f"and without ties), a difference claimed in {share['claim']}; covered by Student's t in {share['t']}, by the percentile "
        f"bootstrap in {share['percentile']}, by the BCa bootstrap in {share['BCa']}"
    )


def resampling(observed: np.ndarray) -> Draw:
    """As many seeds as the real sweep has are drawn with replacement, fewer without."""
    rng = np.random.default_rng(len(observed))

    def draw(seeds: int) -> np.ndarray:
        return np.asarray(rng.choice(observed, seeds, replace=seeds >= len(observed)) * rng.choice([-1.0, 1.0], seeds))

    return draw


def learning(arm: float, baseline: float) -> Draw:
    rng = np.random.default_rng(0)

    def runs(chance: float, seeds: int) -> np.ndarray:
        return np.where(rng.random(seeds) < chance, LEARNED, FAILED) + rng.normal(0, NOISE, seeds)

    return lambda seeds: runs(arm, seeds) - runs(baseline, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("run_id", nargs="?")
    source.add_argument("--scores", nargs=2, metavar=("ONE", "OTHER"))
    source.add_argument("--learn", nargs=2, type=float, metavar=("ARM", "BASELINE"))
    parser.add_argument("--sweeps", type=int, default=200)
    given = parser.parse_args()
    if given.learn:
        arm, baseline = given.learn
        for seeds in (5, 6, 8, 10, 20):
            print(counted(learning(arm, baseline), (arm - baseline) * (LEARNED - FAILED), seeds, given.sweeps))
        return
    if given.scores:
        one, other = ([float(value) for value in row.split()] for row in given.scores)
        observed = np.subtract(other, one)
    else:
        (cell,) = recompute(given.run_id)
        first, second = scores = cell.data.scores()
        observed = np.array(differences(scores, second, first))
    print(f"{len(observed)} differences: mean {observed.mean():+.3f}, standard deviation {observed.std(ddof=1):.3f}")
    for seeds in (5, 8, len(observed)):
        print(counted(resampling(observed), 0.0, seeds, given.sweeps))


if __name__ == "__main__":
    main()
