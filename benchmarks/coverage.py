"""How often the report's interval covers zero, and its verdict claims nothing, when nothing differs: A/A sweeps resampled
from a real one.

python -m benchmarks.coverage REPORT_RUN_ID, of a sweep of preset a-a; MLFLOW_TRACKING_URI where it is not the embedded server.
Each resampled sweep has so many seeds of the real one, and in each seed the two names are exchanged by a coin: under one arm
with two names that is as likely as not.
"""

import argparse

import numpy as np
from scipy.stats import bootstrap, ttest_1samp

from tasks.recompute import recompute
from tasks.statistics import paired
from tasks.summaries import differences

SWEEPS = 200
MARGIN = 0.03  # of preset a-a


def resampled(observed: list[float], seeds: int, margin: float, sweeps: int = SWEEPS) -> dict[str, int]:
    """Of `sweeps` resampled A/A sweeps, in how many the 95% interval covers zero, in how many it is wholly beyond the margin,
    and in how many the report claims a difference; and in how many other intervals cover zero. All seeds asked for: drawn
    with replacement, else without."""
    rng = np.random.default_rng([seeds, len(observed)])
    count = dict.fromkeys(("covered", "beyond the margin", "claimed", "t", "BCa"), 0)
    for _ in range(sweeps):
        drawn = rng.choice(observed, seeds, replace=seeds >= len(observed)) * rng.choice([-1.0, 1.0], seeds)
        scores = {"one": dict.fromkeys(range(seeds), 0.0), "other": dict(enumerate(drawn.tolist()))}
        pair = paired(scores, "one", margin)["other"]
        assert pair.interval is not None
        count["covered"] += pair.interval.low <= 0 <= pair.interval.high
        count["beyond the margin"] += pair.interval.low > margin or pair.interval.high < -margin
        count["claimed"] += pair.verdict in ("better", "worse")
        count["t"] += bool(ttest_1samp(drawn, 0).pvalue > 0.05)
        other = bootstrap((drawn,), np.mean, method="BCa", n_resamples=2000, rng=rng).confidence_interval
        count["BCa"] += bool(other.low <= 0 <= other.high)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_id")
    (cell,) = recompute(parser.parse_args().run_id)
    scores = cell.data.scores()
    first, second = scores
    observed = differences(scores, second, first)
    print(
        f"{len(observed)} paired differences: mean {np.mean(observed):+.3f}, standard deviation {np.std(observed, ddof=1):.3f}"
    )
    for seeds in (5, 8, len(observed)):
        count = resampled(observed, seeds, MARGIN)
        print(
            f"{seeds:3d} seeds, {SWEEPS} sweeps: zero covered in {count['covered']} ({count['covered'] / SWEEPS:.1%}), interval "
            f"beyond {MARGIN} in {count['beyond the margin']}, a difference claimed in {count['claimed']}; zero covered by "
            f"Student's t in {count['t']}, by the BCa bootstrap in {count['BCa']}"
        )


if __name__ == "__main__":
    main()
