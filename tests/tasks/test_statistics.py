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
    seeds_for_verdict,
    seeds_needed,
    sign_flip_p,
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
    found, likely = resample_means(values)
    assert len(means) == 3125 and len(found) == 126  # 9 over 5: draws that differ in more than order
    assert sum(likely) == pytest.approx(1)
    counted = [mean for mean, share in zip(found, likely, strict=True) for _ in range(round(share * 3125))]
    assert counted == pytest.approx(means)
    # 3125 * 0.000954 = 2.98: the third smallest and the third largest mean
    assert interval(values) == Interval(pytest.approx(means[2]), pytest.approx(means[3122]))


def test_two_values_give_their_range_and_one_gives_none() -> None:
    assert interval([0.25, 0.75]) == Interval(0.25, 0.75)
    assert interval([0.25]) is None and interval([]) is None


def test_equal_values_have_no_width() -> None:
    assert interval([0.5] * 5) == Interval(0.5, 0.5)


def test_many_values_are_resampled_alike_every_time() -> None:
    values = [math.sin(i) for i in range(12)]
    assert len(resample_means(values)[0]) == 20_000
    found = interval(values)
    assert found is not None and found == interval(values)
    assert found.low < fmean(values) < found.high


@pytest.mark.parametrize("n", [5, 8, 12, 16])
def test_the_order_of_the_seeds_decides_nothing(n: int) -> None:
    values = [0.93 - 0.001 * i for i in range(n - 1)] + [-0.005]
    shuffled = [values[-1], *reversed(values[:-1])]
    assert interval(values, 0.995) == interval(shuffled, 0.995) and sign_flip_p(values) == sign_flip_p(shuffled)


def test_sign_flips_by_hand() -> None:
    """2^6 patterns of signs. All six of one sign: the pattern itself and its opposite, 2/64. One of six is small and against
    the rest: flipping it alone gives a larger sum, so 4/64. Sums of 1, 1, 1, 1, -1, -1: |sum| >= 2 unless three are flipped so
    that it is 0, C(6, 3) = 20 patterns: 44/64."""
    assert sign_flip_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)
    assert sign_flip_p([0.9, 0.9, 0.9, 0.9, 0.9, -0.01]) == pytest.approx(4 / 64)
    assert sign_flip_p([1.0, 1.0, 1.0, 1.0, -1.0, -1.0]) == pytest.approx(44 / 64)
    assert sign_flip_p([0.0] * 6) == 1.0


def test_coverage_of_five_normal_values() -> None:
    """2,000 samples of five: the plain percentile covers about 84%, the expanded one 92% (93.75% is the range's)."""
    import numpy as np

    tail, expanded, plain, ranges = expanded_tail(5, 0.95), 0, 0, 0
    for row in np.random.default_rng(7).normal(size=(2000, 5)).tolist():
        means = resample_means(row)
        wide, narrow = percentiles(*means, tail), percentiles(*means, 0.025)
        expanded += wide.low <= 0 <= wide.high
        plain += narrow.low <= 0 <= narrow.high
        ranges += min(row) <= 0 <= max(row)
    assert 0.90 <= expanded / 2000 <= 0.95
    assert plain / 2000 <= 0.86
    assert ranges / 2000 == pytest.approx(1 - 2 ** (1 - 5), abs=0.015)  # what the module says of small n


def test_coverage_of_ten_normal_values_is_near_its_level() -> None:
    import numpy as np

    rows = np.random.default_rng(8).normal(size=(150, 10)).tolist()
    covered = sum(found.low <= 0 <= found.high for row in rows if (found := interval(row)))
    assert 0.90 <= covered / 150 <= 0.99


def test_paired_uses_the_shared_seeds_and_names_the_missing() -> None:
    scores = {
        "base": {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.1, 4: 0.2, 5: 0.2, 6: 0.2, 7: 0.2, 8: 0.2},
        "good": {0: 0.6, 1: 0.7, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.7, 6: 0.7, 7: 0.7, 8: 0.7},
        "bad": {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.0, 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1, 8: 0.1},
        "same": {0: 0.2, 1: 0.1, 2: 0.3, 3: 0.0, 4: 0.3, 5: 0.1, 6: 0.3, 7: 0.2, 8: 0.2},
        "short": {0: 0.9, 1: 0.9, 9: 0.9},
    }
    found = paired(scores, "base")
    assert set(found) == {"good", "bad", "same", "short"}
    assert found["good"].n == 9 and found["good"].mean == pytest.approx((8 * 0.5 + 0.6) / 9)
    assert {arm: pair.verdict for arm, pair in found.items()} == {
        "good": "better", "bad": "worse", "same": "no difference shown", "short": "too few seeds"
    }  # fmt: skip
    # 2/512 twice and something larger; Benjamini and Hochberg: the smaller two times 3 / 2, the largest as it is
    assert found["good"].p == found["bad"].p == pytest.approx(3 / 2 * 2 / 512)
    assert found["short"].p is None
    assert found["short"].missing_seeds == (2, 3, 4, 5, 6, 7, 8, 9) and found["good"].missing_seeds == (9,)


def test_one_arm_of_many_needs_more_seeds() -> None:
    """2^(1-8) = 0.0078 is below .05 alone and above .05 / 11; eleven such arms carry one another."""
    base, up = dict.fromkeys(range(8), 0.0), {seed: 0.8 + 0.01 * seed for seed in range(8)}
    level = {seed: 0.1 * (-1) ** seed for seed in range(8)}
    assert paired({"base": base, "up": up}, "base")["up"].verdict == "better"
    crowd = {"base": base, "up": up, **{f"level{i}": level for i in range(10)}}
    found = paired(crowd, "base")
    assert {pair.verdict for pair in found.values()} == {"no difference shown"}
    assert found["up"].p == pytest.approx(11 * 2 / 256)
    together = paired({"base": base, **{f"up{i}": up for i in range(11)}}, "base")
    assert {pair.verdict for pair in together.values()} == {"better"}
    assert [seeds_for_verdict(k) for k in (1, 2, 11)] == [6, 7, 9]


@pytest.mark.parametrize("arms", [1, 4])
def test_equal_arms_get_a_verdict_in_few_sweeps(arms: int) -> None:
    """Runs that learn (.95) or collapse (.02) by a coin, seven seeds: a report claims something in at most 5% of A/A sweeps."""
    import numpy as np

    rng, claims = np.random.default_rng(arms), 0
    for _ in range(300):
        table = np.where(rng.random((arms + 1, 7)) < 0.5, 0.95, 0.02) + rng.normal(0, 0.01, (arms + 1, 7))
        scores = {f"arm{i}": dict(enumerate(row)) for i, row in enumerate(table.tolist())}
        claims += any(pair.verdict in ("better", "worse") for pair in paired(scores, "arm0").values())
    assert claims / 300 <= 0.05 + 2 * (0.05 * 0.95 / 300) ** 0.5


def test_a_difference_within_the_margin_on_either_side_of_zero() -> None:
    base = dict.fromkeys(range(6), 0.9)
    near = {seed: 0.9 + gain for seed, gain in enumerate((0.004, 0.010, 0.012, 0.019, 0.011, 0.010))}
    assert paired({"base": base, "arm": near}, "base")["arm"].verdict == "better"
    assert paired({"base": base, "arm": near}, "base", 0.03)["arm"].verdict == "within margin"
    assert paired({"base": near, "arm": base}, "base", 0.03)["arm"].verdict == "within margin"
    assert paired({"base": base, "arm": near}, "base", 0.012)["arm"].verdict == "better"  # part of it lies beyond
    wide = {**near, 0: 0.8}
    assert paired({"base": base, "arm": wide}, "base", 0.03)["arm"].verdict == "no difference shown"
    five = {seed: near[seed] for seed in range(5)}
    assert paired({"base": base, "arm": five}, "base", 0.03)["arm"].verdict == "too few seeds"


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
    assert seeds_needed([0.1], 1.0) is None and seeds_needed([0.2, 0.2], 0.1) == 6  # what a verdict takes at least
    # eleven arms: level .0045; by the same formula in any power calculator
    strict = seeds_needed(differences, 1.0, compared=11)
    assert strict is not None
    fewer_still, enough = (
        (ttest_1samp(rng.normal(1.0, 1.0, (4000, n)), 0.0, axis=1).pvalue < 0.05 / 11).mean()
        for n in (strict - 2, strict)
    )
    assert enough > 0.78 and fewer_still < 0.8


def test_equal_arms_are_found_equal() -> None:
    """100 A/A comparisons of 20 normal seeds: the interval covers zero in about 95% of them, and verdicts are rare."""
    import numpy as np

    rng = np.random.default_rng(1)
    covered = verdicts = 0
    for _ in range(100):
        scores = {arm: dict(enumerate(rng.normal(0.5, 0.1, 20).tolist())) for arm in ("a", "b")}
        pair = paired(scores, "a")["b"]
        assert pair.interval is not None
        covered += pair.interval.low <= 0 <= pair.interval.high
        verdicts += pair.verdict in ("better", "worse")
    assert covered >= 88  # 95 expected, three standard deviations are 6.5
    assert verdicts <= 12
