"""How often the report's interval covers zero when nothing differs: A/A sweeps resampled from a real one.

python -m benchmarks.coverage REPORT_RUN_ID, of a sweep of preset a-a; MLFLOW_TRACKING_URI where it is not the embedded server.
Each resampled sweep has so many seeds of the real one, and in each seed the two names are exchanged by a coin: under one arm
with two names that is as likely as not.
"""

import argparse

import numpy as np

from tasks.recompute import recompute
from tasks.statistics import interval
from tasks.summaries import differences

SWEEPS = 200


def covering(observed: list[float], seeds: int, sweeps: int = SWEEPS) -> int:
    """Of `sweeps` resampled A/A sweeps, in how many the 95% interval covers zero. All seeds asked for: drawn with
    replacement, else without."""
    rng = np.random.default_rng([seeds, len(observed)])
    covered = 0
    for _ in range(sweeps):
        drawn = rng.choice(observed, seeds, replace=seeds >= len(observed)) * rng.choice([-1.0, 1.0], seeds)
        found = interval(drawn.tolist())
        assert found is not None
        covered += found.low <= 0 <= found.high
    return covered


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
        covered = covering(observed, seeds)
        print(f"{seeds:3d} seeds: zero covered in {covered} of {SWEEPS} ({covered / SWEEPS:.1%})")


if __name__ == "__main__":
    main()
