"""Numbers by hand, by brute force, and coverage by simulation."""

import itertools
import math
from statistics import NormalDist, fmean

import pytest

from tasks.statistics import (
    Interval,
    Reached,
    curve_band,
    expanded_tail,
    interquartile_mean,
    interval,
    paired,
    percentiles,
    probability_of_improvement,
    resample_means,
    seeds_needed,
    summarise_times,
    time_to_threshold,
)


def test_expanded_tail_by_hand() -> None:
    """t_{0.975, 4} = 2.7764 (any table): Phi(-sqrt(5/4) * 2.7764) = Phi(-3.1041) = 0.000954."""
    assert expanded_tail(5, 0.95) == pytest.approx(NormalDist().cdf(-math.sqrt(1.25) * 2.7764451), rel=1e-5)
    assert expanded_tail(5, 0.95) == pytest.approx(0.000954, abs=1e-6)
    assert expanded_tail(10_000, 0.95) == pytest.approx(0.025, abs=1e-4)  # the plain percentile in the limit


def test_interval_is_the_quantile_of_all_resamples() -> None:
    values = [0.3, -0.1, 0.7, 0.2, 0.05]
    means = sorted(fmean(draw) for draw in itertools.product(values, repeat=5))
    assert len(means) == 3125 and resample_means(values) == pytest.approx(means)
    # 3125 * 0.000954 = 2.98: the third smallest and the third largest mean
    assert interval(values) == Interval(pytest.approx(means[2]), pytest.approx(means[3122]))


def test_two_values_give_their_range_and_one_gives_none() -> None:
    assert interval([0.25, 0.75]) == Interval(0.25, 0.75)
    assert interval([0.25]) is None and interval([]) is None


def test_equal_values_have_no_width() -> None:
    assert interval([0.5] * 5) == Interval(0.5, 0.5)


def test_many_values_are_resampled_alike_every_time() -> None:
    values = [math.sin(i) for i in range(12)]
    assert len(resample_means(values)) == 20_000
    found = interval(values)
    assert found is not None and found == interval(values)
    assert found.low < fmean(values) < found.high


def test_coverage_of_five_normal_values() -> None:
    """2,000 samples of five: the plain percentile covers about 84%, the expanded one 92% (93.75% is the range's)."""
    import numpy as np

    tail, expanded, plain, ranges = expanded_tail(5, 0.95), 0, 0, 0
    for row in np.random.default_rng(7).normal(size=(2000, 5)).tolist():
        means = resample_means(row)
        wide, narrow = percentiles(means, tail), percentiles(means, 0.025)
        expanded += wide.low <= 0 <= wide.high
        plain += narrow.low <= 0 <= narrow.high
        ranges += min(row) <= 0 <= max(row)
    assert 0.90 <= expanded / 2000 <= 0.95
    assert plain / 2000 <= 0.86
    assert ranges / 2000 == pytest.approx(1 - 2 ** (1 - 5), abs=0.015)  # what the module says of small n


def test_coverage_of_ten_normal_values_is_near_its_level() -> None:
    import numpy as np

    rows = np.random.default_rng(8).normal(size=(400, 10)).tolist()
    covered = sum(found.low <= 0 <= found.high for row in rows if (found := interval(row)))
    assert 0.92 <= covered / 400 <= 0.98


def test_paired_uses_the_shared_seeds_and_names_the_missing() -> None:
    scores = {
        "base": {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.1, 4: 0.2},
        "good": {0: 0.6, 1: 0.7, 2: 0.9, 3: 0.6, 4: 0.7},
        "bad": {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.0, 4: 0.1},
        "same": {0: 0.2, 1: 0.1, 2: 0.3, 3: 0.0, 4: 0.3},
        "short": {0: 0.9, 1: 0.9, 7: 0.9},
    }
    found = paired(scores, "base")
    assert set(found) == {"good", "bad", "same", "short"}
    assert found["good"].n == 5 and found["good"].mean == pytest.approx(0.52)
    assert found["good"].interval == Interval(pytest.approx(0.5), pytest.approx(0.58))  # 4 x 0.6 and 0.5: 3rd largest
    assert {arm: pair.verdict for arm, pair in found.items()} == {
        "good": "better", "bad": "worse", "same": "no difference shown", "short": "too few seeds"
    }  # fmt: skip
    assert found["short"].missing_seeds == (2, 3, 4, 7) and found["good"].missing_seeds == (7,)


def test_bonferroni_turns_a_verdict() -> None:
    """Twelve values whose 95% interval excludes zero closely; at 1 - 0.05/20 it does not."""
    values = [0.9, -0.5, 0.8, 0.7, -0.2, 0.6, 0.5, -0.1, 0.4, 0.3, 0.2, 0.1]
    base, arm = dict.fromkeys(range(12), 0.0), dict(enumerate(values))
    assert paired({"base": base, "arm": arm}, "base")["arm"].verdict == "better"
    many = paired({"base": base, **{f"arm{i}": arm for i in range(20)}}, "base")
    assert {pair.verdict for pair in many.values()} == {"no difference shown"}


def test_a_difference_within_the_margin_is_equality_on_either_side_of_zero() -> None:
    base = dict.fromkeys(range(5), 0.9)
    near = {seed: 0.9 + gain for seed, gain in enumerate((0.004, 0.010, 0.012, 0.019, 0.011))}
    assert paired({"base": base, "arm": near}, "base")["arm"].verdict == "better"
    assert paired({"base": base, "arm": near}, "base", 0.03)["arm"].verdict == "equal"
    assert paired({"base": near, "arm": base}, "base", 0.03)["arm"].verdict == "equal"
    assert paired({"base": base, "arm": near}, "base", 0.012)["arm"].verdict == "better"  # part of it lies beyond
    wide = {**near, 0: 0.8}
    assert paired({"base": base, "arm": wide}, "base", 0.03)["arm"].verdict == "no difference shown"


def test_without_a_baseline_nothing_is_compared() -> None:
    found = paired({"arm": {0: 1.0, 1: 1.0}}, "base")["arm"]
    assert (found.n, found.mean, found.interval, found.missing_seeds) == (0, None, None, (0, 1))
    assert found.verdict == "too few seeds"


def test_time_to_threshold() -> None:
    curve = {0: 0.1, 10: 0.5, 5: 0.2, 15: 0.4}
    assert time_to_threshold(curve, 0.5) == 10
    assert time_to_threshold(curve, 0.05) == 0
    assert time_to_threshold(curve, 0.51) is None and time_to_threshold({}, 0.1) is None


def test_censored_runs_count_as_later_than_any_other() -> None:
    assert summarise_times([12, 14, None], [40, 40, 40]) == Reached(2, 3, 14, 14)
    late = summarise_times([12, None, None], [40, 40, 40])
    assert late == Reached(1, 3, None, 40) and str(late) == ">40"
    assert str(summarise_times([10, None], [40, 40])) == ">25"  # the median of 10 and something above 40
    assert str(summarise_times([12_345, 12_345], [2e6, 2e6])) == "12.3k"
    assert summarise_times([], []) == Reached(0, 0, None, 0.0)


def test_curve_band_uses_steps_that_all_have() -> None:
    band = curve_band([{0: 0.0, 5: 0.2, 10: 1.0}, {0: 0.5, 5: 0.6}])
    assert [(point.step, point.mean) for point in band] == [(0, 0.25), (5, pytest.approx(0.4))]
    assert band[1].interval == Interval(0.2, 0.6)
    assert curve_band([{0: 1.0}])[0].interval is None and curve_band([]) == []


def test_interquartile_mean_by_hand() -> None:
    # 8 values: the lowest and the highest two go; (2 + 3 + 5 + 6) / 4
    assert interquartile_mean([0.0, 1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 100.0]) == pytest.approx(4.0)
    assert interquartile_mean([]) is None


def test_probability_of_improvement_by_hand() -> None:
    # 1 beats 0 and ties 1; 3 beats both: (1 + 0.5 + 1 + 1) / 4
    assert probability_of_improvement([1.0, 3.0], [0.0, 1.0]) == pytest.approx(0.875)
    assert probability_of_improvement([], [1.0]) is None


def test_seeds_needed_against_a_simulation() -> None:
    """The smallest n with 80% power for an effect of one standard deviation is 10 (Cohen's tables: d = 1.0, paired)."""
    import numpy as np
    from scipy.stats import ttest_1samp

    differences = list(np.array([-1.0, 1.0]) / 2**0.5)  # sample standard deviation 1
    assert seeds_needed(differences, 1.0) == 10
    rng = np.random.default_rng(0)
    found = ttest_1samp(rng.normal(1.0, 1.0, (4000, 10)), 0.0, axis=1).pvalue < 0.05
    fewer = ttest_1samp(rng.normal(1.0, 1.0, (4000, 8)), 0.0, axis=1).pvalue < 0.05
    assert found.mean() > 0.78 > fewer.mean()
    assert seeds_needed([0.1], 1.0) is None and seeds_needed([0.2, 0.2], 0.1) == 2


def test_equal_arms_are_found_equal() -> None:
    """200 A/A comparisons of 20 normal seeds: the interval covers zero in about 95% of them, and verdicts are rare."""
    import numpy as np

    rng = np.random.default_rng(1)
    covered = verdicts = 0
    for _ in range(200):
        scores = {arm: dict(enumerate(rng.normal(0.5, 0.1, 20).tolist())) for arm in ("a", "b")}
        pair = paired(scores, "a")["b"]
        assert pair.interval is not None
        covered += pair.interval.low <= 0 <= pair.interval.high
        verdicts += pair.verdict in ("better", "worse")
    assert 182 <= covered <= 198  # 190 expected, three standard deviations are 9
    assert verdicts == 200 - covered
