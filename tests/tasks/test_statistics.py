"""Numbers by hand, by brute force, and coverage by simulation."""

import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_core.errors import DataError
from tasks.report.statistics import (
    Interval,
    Reached,
    _subsets,
    coverage,
    curve_band,
    interquartile_mean,
    interval,
    paired,
    probability_of_improvement,
    seeds_for_verdict,
    seeds_needed,
    sign_flip_p,
    subset_means,
    summarise_times,
    time_to_threshold,
)


def test_interval_by_hand() -> None:
    """2^7 = 128 parts, of which .025 * 128 = 3.2 may lie below: the third smallest mean of a subset, and the third largest.
    1, (1 + 2) / 2, 2, ... and 64, (64 + 32) / 2, (64 + 16) / 2, ..."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]
    assert interval(values) == Interval(2.0, 40.0)
    assert coverage(7) == 1 - 6 / 128
    # up to six values nothing but the whole range reaches the level, and below six not even that
    assert interval(values[:6]) == Interval(1.0, 32.0) and coverage(6) == 1 - 2 / 64
    assert interval(values[:5]) == Interval(1.0, 16.0) and coverage(5) == 1 - 2 / 32
    assert interval([0.25, 0.75]) == Interval(0.25, 0.75) and coverage(2) == 0.5
    assert interval([0.25]) is None and interval([]) is None
    assert coverage(20) == pytest.approx(0.95)


def test_subset_means_are_of_all_subsets() -> None:
    values = [0.3, -0.1, 0.7, 0.2, 0.05]
    subsets = [chosen for size in range(1, 6) for chosen in itertools.combinations(values, size)]
    assert len(subsets) == 31 and subset_means(values) == pytest.approx(sorted(fmean(chosen) for chosen in subsets))


def test_equal_values_have_no_width() -> None:
    assert interval([0.5] * 5) == Interval(0.5, 0.5)


def test_many_values_are_resampled_alike_every_time() -> None:
    values = [math.sin(i) for i in range(16)]
    assert len(subset_means(values)) == 19_999
    found = interval(values)
    _subsets.cache_clear()  # as in another process
    assert found is not None and found == interval(values)
    assert found.low < fmean(values) < found.high


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=6, max_size=10))
def test_the_test_is_scipys_and_the_interval_holds_what_it_does_not_reject(thousandths: list[int]) -> None:
    from scipy.stats import permutation_test

    values = [number / 1000 for number in thousandths]

    def p(mean: float) -> float:
        shifted = ([value - mean for value in values],)
        return float(permutation_test(shifted, fmean, permutation_type="samples", n_resamples=2000).pvalue)

    assert sign_flip_p(values) == pytest.approx(p(0.0))
    found = interval(values)
    assert found is not None
    assert (
        sign_flip_p([v - found.low + 1e-6 for v in values])
        <= 0.05
        >= sign_flip_p([v - found.high - 1e-6 for v in values])
    )
    assert sign_flip_p([v - found.low - 1e-6 for v in values]) > 0.05 or found.high - found.low < 2e-6


@pytest.mark.parametrize("n", [16, 20])
def test_also_where_subsets_are_drawn_both_agree_on_zero(n: int) -> None:
    import numpy as np

    agreed = set()
    for row in np.random.default_rng(n).normal(0.45, 1.0, size=(200, n)).tolist():
        found = interval(row)
        assert found is not None
        assert (sign_flip_p(row) <= 0.05) == (found.low > 0 or found.high < 0)
        agreed.add(found.low > 0)
    assert agreed == {True, False}


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


@pytest.mark.parametrize("n", [5, 6, 8, 16])
@pytest.mark.parametrize("law", ["normal", "two humps"])
def test_an_interval_covers_what_it_says(n: int, law: str) -> None:
    """2,000 samples, normal or as of runs that learn or collapse: the share that holds the true mean, 0, is the level."""
    import numpy as np

    rng = np.random.default_rng(n)
    humps = rng.choice([-0.9, 0.0, 0.0, 0.9], (2000, n)) + rng.normal(0, 0.01, (2000, n))
    rows = (rng.normal(size=(2000, n)) if law == "normal" else humps).tolist()
    covered = sum(found.low <= 0 <= found.high for row in rows if (found := interval(row))) / 2000
    level = coverage(n)
    assert covered == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 2000))


def test_paired_uses_the_shared_seeds_and_names_the_missing() -> None:
    scores = {
        "base": {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.1, 4: 0.2, 5: 0.2, 6: 0.2, 7: 0.2, 8: 0.2},
        "good": {0: 0.6, 1: 0.7, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.7, 6: 0.7, 7: 0.7, 8: 0.7},
        "bad": {0: 0.0, 1: 0.1, 2: 0.1, 3: 0.0, 4: 0.1, 5: 0.1, 6: 0.1, 7: 0.1, 8: 0.1},
        "same": {0: 0.2, 1: 0.1, 2: 0.3, 3: 0.0, 4: 0.3, 5: 0.1, 6: 0.3, 7: 0.2, 8: 0.2},
        "short": {0: 0.9, 1: 0.9},
    }
    found = paired(scores, "base")
    assert set(found) == {"good", "bad", "same", "short"}
    assert found["good"].n == 9 and found["good"].mean == pytest.approx((8 * 0.5 + 0.6) / 9)
    assert {arm: pair.verdict for arm, pair in found.items()} == {
        "good": "better", "bad": "worse", "same": "no difference shown", "short": "runs missing"
    }  # fmt: skip
    # 2/512 twice, something larger, and 1 of the arm that cannot be tested; Benjamini and Hochberg: the smaller two times 4 / 2
    assert found["good"].p == found["bad"].p == pytest.approx(4 / 2 * 2 / 512)
    assert found["short"].p is None
    assert found["short"].missing_seeds == (2, 3, 4, 5, 6, 7, 8) and found["good"].missing_seeds == ()


def test_an_arm_is_not_judged_by_the_seeds_it_survived() -> None:
    """Seven seeds were asked for. On the six that are left the arm is above each time: 2 / 2^6 is below .05."""
    base, up = dict.fromkeys(range(7), 0.2), {seed: 0.5 + 0.01 * seed for seed in range(6)}
    for scores in (
        {"base": base, "arm": up},
        {"base": {**up}, "arm": base},
        {"base": dict.fromkeys(range(6), 0.2), "arm": up},
    ):
        found = paired(scores, "base", 0.0, range(7))["arm"]
        assert (found.n, found.missing_seeds, found.p, found.verdict) == (6, (6,), None, "runs missing")
    level = {seed: 0.2 for seed in range(6)}  # nor equal: what is missing may be far off
    assert paired({"base": base, "arm": level}, "base", 0.03, range(7))["arm"].verdict == "runs missing"
    assert paired({"base": base, "arm": {**up, 6: 0.5}}, "base", 0.0, range(7))["arm"].p == pytest.approx(2 / 2**7)
    assert paired({"base": base, "arm": up}, "base", 0.0, range(5, 7))["arm"].missing_seeds == (6,)


def test_an_arm_that_cannot_be_tested_stays_among_those_compared() -> None:
    """p = 2 / 2^7 of `up`; of the other arm 1, whether it has no run, too few or lost one: adjusted for two it is 4 / 2^7."""
    base, up = dict.fromkeys(range(7), 0.2), {seed: 0.5 + 0.01 * seed for seed in range(7)}
    for other in ({}, {0: 0.9}, {seed: 0.9 for seed in range(6)}):
        found = paired({"base": base, "up": up, "other": other}, "base")
        assert found["up"].p == pytest.approx(4 / 2**7) and found["other"].p is None
    assert paired({"base": base, "up": up}, "base")["up"].p == pytest.approx(2 / 2**7)
    # six seeds carry one arm, and no longer do with a second one that did not run: 2 x 2 / 2^6 = .0625
    six = {"base": {s: 0.2 for s in range(6)}, "up": {s: up[s] for s in range(6)}, "other": {}}
    assert paired(six, "base")["up"].verdict == "no difference shown"


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    base = dict.fromkeys(range(7), 0.2)
    with pytest.raises(DataError, match=r"the score of arm seed 3 is no finite number"):
        paired({"base": base, "arm": {**base, 3: score}}, "base")


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
    five, start = ({seed: scores[seed] for seed in range(5)} for scores in (near, base))
    assert paired({"base": start, "arm": five}, "base", 0.03)["arm"].verdict == "too few seeds"


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
