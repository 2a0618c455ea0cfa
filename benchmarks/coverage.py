"""How often the report's interval covers zero, and its verdict claims nothing, when nothing differs: A/A sweeps resampled
from a real one.

python -m benchmarks.coverage REPORT_RUN_ID, of a sweep of preset a-a; MLFLOW_TRACKING_URI where it is not the embedded server. Or
python -m benchmarks.coverage --scores "0.943 0.959 ..." "0.955 0.021 ...", the test F1 of each seed under the two names.
Each resampled sweep has so many seeds of the real one, and in each seed the two names are exchanged by a coin: under one arm
with two names that is as likely as not.
"""

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, ttest_1samp

from tasks.recompute import recompute
from tasks.statistics import coverage, paired
from tasks.summaries import differences

CLAIMED = "claimed"


def resampled(observed: Sequence[float], seeds: int, sweeps: int) -> dict[str, int]:
    """Of `sweeps` resampled A/A sweeps: in how many each interval covers zero, and in how many the report claims a difference
    (preset a-a has a margin of .03, which takes claims away: here there is none). All seeds asked for: drawn with replacement,
    else without."""
    rng = np.random.default_rng([seeds, len(observed)])
    count = dict.fromkeys(("interval", "t", "percentile", "BCa", CLAIMED), 0)
    for _ in range(sweeps):
        drawn = rng.choice(observed, seeds, replace=seeds >= len(observed)) * rng.choice([-1.0, 1.0], seeds)
        pair = paired({"one": dict.fromkeys(range(seeds), 0.0), "other": dict(enumerate(drawn.tolist()))}, "one")[
            "other"
        ]
        assert pair.interval is not None
        count["interval"] += pair.interval.low <= 0 <= pair.interval.high
        count[CLAIMED] += pair.verdict in ("better", "worse")
        count["t"] += bool(ttest_1samp(drawn, 0).pvalue > 0.05)
        for method in ("percentile", "BCa"):
            other = bootstrap((drawn,), np.mean, method=method, n_resamples=2000, rng=rng).confidence_interval
            count[method] += bool(other.low <= 0 <= other.high)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_id", nargs="?")
    parser.add_argument("--scores", nargs=2, metavar=("ONE", "OTHER"))
    parser.add_argument("--sweeps", type=int, default=200)
    given = parser.parse_args()
    if (given.run_id is None) == (given.scores is None):
        parser.error("give the id of a report's run, or --scores")
    if given.scores:
        one, other = ([float(value) for value in row.split()] for row in given.scores)
        observed = [b - a for a, b in zip(one, other, strict=True)]
    else:
        (cell,) = recompute(given.run_id)
        first, second = scores = cell.data.scores()
        observed = differences(scores, second, first)
    print(
        f"{len(observed)} paired differences: mean {np.mean(observed):+.3f}, standard deviation {np.std(observed, ddof=1):.3f}"
    )
    for seeds in (5, 8, len(observed)):
        count = {
            name: f"{found / given.sweeps:.1%}" for name, found in resampled(observed, seeds, given.sweeps).items()
        }
        print(
            f"{seeds:3d} seeds, {given.sweeps} sweeps: zero covered in {count['interval']} ({coverage(seeds):.1%} without "
            f"ties), a difference claimed in {count[CLAIMED]}; zero covered by Student's t in "
            f"{count['t']}, by the percentile bootstrap in {count['percentile']}, by the BCa bootstrap in {count['BCa']}"
        )


if __name__ == "__main__":
    main()
