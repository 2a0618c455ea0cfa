"""Models on the same questions: intervals over seeds and questions, pairing, verdicts, with numbers worked out by hand."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from igpo_core.errors import DataError
from tasks.report import statistics
from tasks.report.compared import MEAN, Asked, Draw, Score, compare
from tasks.report.compared_shown import main_rows, slice_rows, told
from tasks.report.statistics import Interval, sign_flip_p, two_way_interval


def test_one_number_has_no_interval_and_equal_ones_a_point() -> None:
    assert two_way_interval([np.array([[0.5]])]) is None
    assert two_way_interval([np.full((3, 4), 0.25)]) == Interval(0.25, 0.25)


@pytest.mark.parametrize("scores", [[[0.0, 1.0]], [[0.0], [1.0]], [[0.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 1.0]]])
def test_two_values_that_are_drawn_twice(scores: list[list[float]]) -> None:
    """Of two questions, or two seeds, a resample has the same one twice in half of all cases: its mean is 0 in a quarter of them
    and 1 in another, more than the 2.5% that an interval leaves out on a side."""
    assert two_way_interval([np.array(scores)]) == Interval(0.0, 1.0)


def test_both_seeds_and_questions_are_in_the_interval() -> None:
    """20 seeds that differ by +-.1 and 50 questions that differ by +-.3: the variance of the mean is .01 / 20 + .09 / 50 = .0023,
    so that an interval is .5 +- 1.96 x .04796. Questions alone would give .0424, seeds alone .0224."""
    seeds, questions = np.tile([0.1, -0.1], 10), np.tile([0.3, -0.3], 25)
    found = two_way_interval([0.5 + seeds[:, None] + questions[None, :]])
    assert found is not None
    half = 1.96 * math.sqrt(0.01 / 20 + 0.09 / 50)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    assert (found.high + found.low) / 2 == pytest.approx(0.5, abs=0.006)


def test_sources_count_the_same_and_share_their_seeds() -> None:
    """Seeds of 0 and 1 in three sources: a resample's seeds are the same in all, so that the mean of sources is 0 in a quarter of
    cases. With seeds of their own it were 0 in one of 64, less than the 2.5% that an interval leaves out."""
    one = np.array([[0.0], [1.0]])
    assert two_way_interval([one, one, np.tile(one, (1, 30))]) == Interval(0.0, 1.0)
    flat = two_way_interval([np.zeros((1, 3)), np.ones((1, 300))])
    assert flat == Interval(0.5, 0.5)


def test_many_values_are_counted_in_blocks_with_the_same_p(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [0.01 * (n % 7) - 0.02 for n in range(40)]
    whole = sign_flip_p(values)
    monkeypatch.setattr(statistics, "NUMBERS", 1234)
    assert sign_flip_p(values) == whole


def draws(model: str, training: int | None, rows: Sequence[Sequence[float]], source: str = "nq") -> list[Draw]:
    """One draw a row; questions are numbered."""
    return [
        Draw(model, training, seed, {(source, str(n)): value for n, value in enumerate(row)})
        for seed, row in enumerate(rows)
    ]


def asked(count: int, source: str = "nq", hops: Mapping[int, int] = {}) -> dict[tuple[str, str], Asked]:
    return {(source, str(n)): Asked(source, hops.get(n)) for n in range(count)}


def whole(scores: Sequence[Score]) -> dict[str, Score]:
    return {row.model: row for row in scores if row.part == scores[0].part}


def test_scores_are_means_and_differences_are_paired() -> None:
    """base: .0 .4 and .2 .2; one: .5 .5 and .3 .7. Means .2 and .5. Differences by seed and question: .5 .1 and .1 .5. A resample
    of one seed and one question alone, one in four, has one of them."""
    found = whole(
        compare(
            [*draws("base", None, [[0.0, 0.4], [0.2, 0.2]]), *draws("one", None, [[0.5, 0.5], [0.3, 0.7]])], asked(2), 0
        )
    )
    assert found["base"].score == pytest.approx(0.2) and found["base"].difference is None
    one = found["one"]
    assert (one.score, one.difference) == (pytest.approx(0.5), pytest.approx(0.3))
    assert one.difference_interval == Interval(pytest.approx(0.1), pytest.approx(0.5))  # type: ignore[arg-type]
    assert (one.seeds, one.trained, one.questions) == (2, False, 2)


def test_training_seeds_are_the_rows_where_there_are_several() -> None:
    """The arm's seeds 3 and 5 have .2 and .6, each the mean of two draws; the warm starts of these seeds .1 and .3. Differences
    by training seed: .1 and .3. Paired with the wrong seed they would be -.1 and .5."""
    arm = [*draws("arm", 3, [[0.1], [0.3]]), *draws("arm", 5, [[0.5], [0.7]])]
    start = [*draws("start", 5, [[0.3], [0.3]]), *draws("start", 3, [[0.0], [0.2]])]
    found = whole(compare([*start, *arm], asked(1), 0))["arm"]
    assert (found.seeds, found.trained) == (2, True)
    assert found.difference == pytest.approx(0.2)
    assert found.difference_interval == Interval(pytest.approx(0.1), pytest.approx(0.3))  # type: ignore[arg-type]
    assert found.p is None and found.verdict == "too few seeds"


def test_a_model_trained_once_stands_against_every_training_seed() -> None:
    """The base's draws .1 and .3 have the mean .2; six training seeds have .3 to .8: differences .1 to .6, mean .35. All six are
    above: the exact test gives 2 / 2^6."""
    arm = [draw for seed in range(6) for draw in draws("arm", seed, [[0.3 + seed / 10]])]
    found = whole(compare([*draws("base", None, [[0.1], [0.3]]), *arm], asked(1), 0))["arm"]
    assert found.difference == pytest.approx(0.35) and found.p == pytest.approx(2 / 64)
    assert found.verdict == "better"
    turned = whole(compare([*arm, *draws("base", None, [[0.1], [0.3]])], asked(1), 0))["base"]
    assert turned.difference == pytest.approx(-0.35) and turned.p == pytest.approx(2 / 64) and turned.verdict == "worse"


def test_a_model_that_cannot_be_tested_stays_among_those_compared() -> None:
    """Six training seeds are .1 above, p = 2 / 2^6; a model of two seeds cannot be tested: adjusted for two, 4 / 2^6."""
    base = draws("base", None, [[0.2]])
    up = [draw for seed in range(6) for draw in draws("up", seed, [[0.3]])]
    few = [draw for seed in range(2) for draw in draws("few", seed, [[0.3]])]
    assert whole(compare([*base, *up], asked(1), 0))["up"].p == pytest.approx(2 / 64)
    found = whole(compare([*base, *up, *few], asked(1), 0))
    assert found["up"].p == pytest.approx(4 / 64) and found["few"].p is None
    assert found["up"].verdict == "no difference shown" and found["few"].verdict == "too few seeds"


def test_an_arm_is_not_judged_by_the_training_seeds_it_survived() -> None:
    """Of seven training seeds of the first model the other has six, all .1 above: 2 / 2^6 of those would be better."""
    base, up = (
        [draw for seed in range(seeds) for draw in draws(model, seed, [[score]])]
        for model, seeds, score in (("base", 7, 0.2), ("up", 6, 0.3))
    )
    found = whole(compare([*base, *up], asked(1), 0))["up"]
    assert (found.verdict, found.p) == ("runs missing", None) and found.difference == pytest.approx(0.1)
    six = [draw for draw in base if draw.training_seed != 6]
    assert whole(compare([*six, *up], asked(1), 0))["up"].verdict == "better"


@pytest.mark.parametrize(("base", "up"), [(range(200, 207), [203]), ([203], range(200, 207)), ([3], [4])])
def test_an_arm_that_kept_one_training_seed_is_not_judged(base: Sequence[int], up: Sequence[int]) -> None:
    """All .1 apart on each of six questions: over seven seeds the test had 2 / 2^7, over questions 2 / 2^6."""
    own = [draw for seed in base for draw in draws("base", seed, [[0.2] * 6])]
    other = [draw for seed in up for draw in draws("up", seed, [[0.3] * 6])]
    found = whole(compare([*own, *other], asked(6), 0))["up"]
    assert (found.verdict, found.p) == ("runs missing", None) and found.difference == pytest.approx(0.1)


def test_one_training_seed_that_both_have_is_tested_over_questions() -> None:
    """Six questions, each .1 above: 2 / 2^6."""
    found = whole(compare([*draws("base", 3, [[0.2] * 6]), *draws("up", 3, [[0.3] * 6])], asked(6), 0))["up"]
    assert found.verdict == "better" and found.p == pytest.approx(2 / 64)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(DataError, match=r"one: the score of question 1 with sampling seed 0 is no finite number"):
        compare([*draws("base", None, [[0.1, 0.2]]), *draws("one", None, [[0.1, score]])], asked(2), 0)


def test_models_trained_once_are_tested_over_questions() -> None:
    """Six questions, all .2 better in the mean of two draws, though the first is worse in one of them: p is 2 / 2^6 of it.
    Another that is level has 1. Adjusted for two: 2 x 2 / 64 and 1."""
    base = draws("base", None, [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 2)
    up = draws("up", None, [[0.0, 0.3, 0.4, 0.5, 0.6, 0.7], [0.6, 0.5, 0.6, 0.7, 0.8, 0.9]])
    level = draws("level", None, [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]] * 2)
    found = whole(compare([*base, *up], asked(6), 0.03))
    assert found["up"].p == pytest.approx(2 / 64) and found["up"].verdict == "better"
    both = whole(compare([*base, *up, *level], asked(6), 0.03))
    assert both["up"].p == pytest.approx(4 / 64) and both["up"].verdict == "no difference shown"
    assert both["level"].p == 1 and both["level"].verdict == "within margin"


def test_a_verdict_needs_the_interval_besides_the_test_over_seeds() -> None:
    """Every one of six seeds is .1 above in the mean of two questions, which p sees alone; but one question is 1 better and the
    other .8 worse, and other questions might be like the second: the interval over both has zero in it."""
    base = [draw for seed in range(6) for draw in draws("base", seed, [[0.0, 0.9]])]
    arm = [draw for seed in range(6) for draw in draws("arm", seed, [[1.0, 0.1]])]
    found = whole(compare([*base, *arm], asked(2), 0.03))["arm"]
    assert found.difference == pytest.approx(0.1) and found.p == pytest.approx(2 / 64)
    assert found.verdict == "no difference shown"


def test_a_question_that_one_model_was_not_asked_counts_for_none() -> None:
    one = draws("one", None, [[1.0, 0.0]])
    two = [replace(draw, model="two", scores={("nq", "0"): 0.5}) for draw in one]
    found = whole(compare([*one, *two], asked(2), 0))
    assert found["one"].questions == 1 and found["one"].score == 1 and found["two"].difference == -0.5


def test_slices_and_the_mean_of_sources() -> None:
    """nq: 0 1 1 (hops 1 2 2), musique: 0. The mean of sources is (2/3 + 0) / 2, of questions it were 1/2."""
    nq, musique = draws("m", None, [[0.0, 1.0, 1.0]]), draws("m", None, [[0.0]], "musique")
    joined = [replace(nq[0], scores={**nq[0].scores, **musique[0].scores})]
    about = asked(3, hops={0: 1, 1: 2, 2: 2}) | asked(1, "musique", {0: 4})
    found = compare(joined, about, 0)
    assert {row.part: (row.questions, row.score) for row in found} == {
        MEAN: (4, pytest.approx(1 / 3)),
        "nq": (3, pytest.approx(2 / 3)),
        "nq/hops_1": (1, 0.0),
        "nq/hops_2": (2, 1.0),
        "musique": (1, 0.0),
    }
    (row,) = main_rows(found, {"musique"}, "F1")
    assert row["nq"] == "0.667" and row["musique (out of domain)"] == "0.000" and row["verdict"] == "reference"
    assert row["F1, mean of sources [95%]"].startswith("0.333 [") and row["seeds"] == "1 sampling"
    assert [line["slice"] for line in slice_rows(found, {"musique"})][-1] == "musique (out of domain)"
    words = told(found, "test", "F1", 1)
    assert words.startswith("1 model on 4 test questions, 1 sampling seed: F1, each source counting the same.")


def test_greedy_has_one_row() -> None:
    """Differences 1 1 0 of one decoding each: questions alone are resampled."""
    found = whole(compare([*draws("a", None, [[0.0, 0.0, 0.0]]), *draws("b", None, [[1.0, 1.0, 0.0]])], asked(3), 0))[
        "b"
    ]
    assert found.seeds == 1 and found.difference == pytest.approx(2 / 3)
    assert found.difference_interval == Interval(0.0, 1.0)
