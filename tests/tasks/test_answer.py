"""The sentence that answers the question of a sweep, on a result of every kind, with numbers worked out by hand."""

from collections.abc import Sequence
from typing import Any

import pytest

from tasks.report.answer import answer, outcome
from tasks.report.statistics import Comparison, comparison, paired

SPECIFICATION: dict[str, Any] = {
    "margin": 0.03,
    "changes": {},
    "arms": {"outcome_only": {}, "igpo": {}},
    "factors": {},
    "base": {
        "data": {"kind": "atlas"},
        "policy": {"kind": "new"},
        "warm_start": {"stages": []},
        "rollout": {"questions": 16, "group_size": 8},
        "training": {"epochs": 4, "steps_per_epoch": 10, "budget": "steps", "amount": None},
    },
}
BASELINE = [0.2] * 7
AHEAD = [0.5, 0.6, 0.5, 0.6, 0.5, 0.6, 0.5]  # .3 and .4 above it
LEVEL = [0.21, 0.19, 0.21, 0.19, 0.21, 0.19, 0.21]  # .01 above and below
APART = [0.5, -0.1, 0.5, -0.1, 0.5, -0.1, 0.5]  # .3 above and below


def compared(igpo: Sequence[float], baseline: Sequence[float] = BASELINE) -> Comparison:
    scores = {"outcome_only": dict(enumerate(baseline)), "igpo": dict(enumerate(igpo))}
    return comparison(scores, "igpo", "outcome_only", paired(scores, "outcome_only", SPECIFICATION["margin"]), "F1")


def lacking(
    igpo: dict[int, float], baseline: dict[int, float], seeds: Sequence[int], **others: dict[int, float]
) -> Comparison:
    scores = {"outcome_only": baseline, "igpo": igpo, **others}
    return comparison(scores, "igpo", "outcome_only", paired(scores, "outcome_only", 0.03, seeds), "F1")


def said(igpo: Sequence[float], baseline: Sequence[float] = BASELINE) -> str:
    return outcome(compared(igpo, baseline), SPECIFICATION["margin"], 1)


def test_better() -> None:
    """Of seven differences .3 (four times) and .4 the mean is 2.4 / 7. The three lowest of 127 subset means are .3 and the three
    highest .4. All seven agree: p = 2 / 2^7."""
    assert said(AHEAD) == (
        "igpo is better than outcome_only: test F1 0.543 against 0.200, a difference of +0.343 (95% interval +0.300 to "
        "+0.400), above on 7 of 7 seeds (p = 0.016)."
    )


def test_worse() -> None:
    assert said(BASELINE, AHEAD) == (
        "igpo is worse than outcome_only: test F1 0.200 against 0.543, a difference of -0.343 (95% interval -0.400 to "
        "-0.300), above on 0 of 7 seeds (p = 0.016)."
    )


def test_a_run_that_is_missing_is_in_the_sentence() -> None:
    """Differences of .3 and .4, three each, over the six seeds that are left, p = 2 / 2^6 of them: no verdict. Six seeds of 63
    subset means: the range is the interval."""
    igpo = dict(enumerate(AHEAD[:6], start=200))
    one = lacking(igpo, dict(enumerate(BASELINE, start=200)), range(200, 207))
    assert outcome(one, 0.03, 1) == (
        "Not decided whether igpo is better or worse than outcome_only: test F1 0.550 against 0.200, a difference of +0.350 "
        "(95% interval +0.300 to +0.400), above on 6 of the 6 seeds that both have. Missing: igpo seed 206. An arm that fails "
        "on some seeds would be judged by those on which it does not."
    )
    worse = outcome(lacking(dict(enumerate(BASELINE[:6], start=200)), igpo, range(200, 207)), 0.03, 1)
    assert worse.startswith("Not decided") and "Missing: igpo seed 206; outcome_only seed 206." in worse
    short = outcome(lacking({0: 0.5, 2: 0.6}, dict(enumerate(BASELINE[:4])), range(4)), 0.03, 1)
    assert "2 seeds are too few for a verdict" in short and short.endswith("Missing: igpo seeds 1, 3.")


def test_runs_of_other_arms_and_whole_cells_that_are_missing_are_told() -> None:
    """`other` has no run: igpo's p is 2 x 2 / 2^7, of two arms compared."""
    arms: dict[str, Any] = {"outcome_only": {}, "igpo": {}, "other": {}}
    one = lacking(dict(enumerate(AHEAD)), dict(enumerate(BASELINE)), range(7), other={})
    text = answer({**SPECIFICATION, "arms": arms, "primary": "igpo"}, [("", [one])], [], ["other seed 0 (FAILED)"])
    assert (
        "igpo is better than outcome_only" in text and "(p = 0.031, adjusted for 2 arms; the interval is not)." in text
    )
    assert "Missing besides: other seed 0 (FAILED). An arm that lacks a run has no verdict" in text
    crossed = {**SPECIFICATION, "factors": {"gamma": {}}}
    lines = answer(crossed, [("gamma=1", None), ("gamma=0", [compared(AHEAD)])], []).splitlines()
    assert lines[0] == "gamma=1: Not decided: no run of it is finished." and lines[1].startswith(
        "gamma=0: igpo is better"
    )


def test_better_by_less_than_matters_says_so() -> None:
    """Differences .001 .002 .003 .031 .001 .002 .035: the mean is .075 / 7. Each alone and both together, the two .001
    make the three lowest of 127 subset means, and .031, .035 the three highest: .035, .033 and .031."""
    one = compared([0.2 + gain for gain in (0.001, 0.002, 0.003, 0.031, 0.001, 0.002, 0.035)])
    assert outcome(one, 0.03, 1) == (
        "igpo is better than outcome_only: test F1 0.211 against 0.200, a difference of +0.011 (95% interval +0.001 to "
        "+0.031), above on 7 of 7 seeds (p = 0.016). The mean difference is smaller than the margin of 0.03 below which a "
        "difference does not matter."
    )
    assert "smaller" not in said(AHEAD) and "smaller" not in said(BASELINE, AHEAD)


def test_equal_scores_are_called_equal() -> None:
    assert "+0.000 to +0.000), equal on 7 of 7 seeds. The whole interval lies within" in said(BASELINE)
    assert "above on 3 and equal on 3 of 7 seeds" in said([0.2, 0.2, 0.2, 0.21, 0.21, 0.21, 0.19])
    assert "equal on 6 of 7 seeds" in said([*BASELINE[:6], 0.19]) and "above" not in said([*BASELINE[:6], 0.19])


def test_no_margin_is_told_as_none() -> None:
    """The interval of equal scores is [0, 0] and reaches beyond nothing."""
    scores = {"outcome_only": dict(enumerate(BASELINE)), "igpo": dict(enumerate(BASELINE))}
    one = comparison(scores, "igpo", "outcome_only", paired(scores, "outcome_only", 0.0), "F1")
    text = outcome(one, 0.0, 1)
    assert text.startswith("Not decided") and text.endswith(
        "Chance alone may do as much (p = 1.000), and with a margin of 0 no interval shows that there is no difference."
    )
    # differences of a half above and below, exactly the margin: not within it, and not beyond
    halves = {"outcome_only": dict.fromkeys(range(6), 0.5), "igpo": {seed: float(seed % 2) for seed in range(6)}}
    one = comparison(halves, "igpo", "outcome_only", paired(halves, "outcome_only", 0.5), "F1")
    assert "and the interval reaches the margin of 0.5: neither" in outcome(one, 0.5, 1)


def test_no_difference_that_matters() -> None:
    assert said(LEVEL) == (
        "igpo and outcome_only do not differ by an amount that matters: test F1 0.201 against 0.200, a difference of +0.001 "
        "(95% interval -0.010 to +0.010), above on 4 of 7 seeds. The whole interval lies within the margin of 0.03."
    )


def test_not_decided() -> None:
    """The sum of four times .3 and three times -.3 is reached by 64 of the 128 patterns of signs on either side: p = 1."""
    assert said(APART) == (
        "Not decided whether igpo is better or worse than outcome_only: test F1 0.243 against 0.200, a difference of +0.043 "
        "(95% interval -0.300 to +0.300), above on 4 of 7 seeds. Chance alone may do as much (p = 1.000), and the interval "
        "reaches beyond the margin of 0.03: neither a difference nor its absence was shown."
    )


def test_not_decided_for_want_of_seeds() -> None:
    text = said(AHEAD[:2], BASELINE[:2])
    assert text.startswith("Not decided whether igpo is better or worse than outcome_only: test F1 0.550 against 0.200")
    assert "above on 2 of 2 seeds. 2 seeds are too few for a verdict on 1 arm" in text
    assert "6 fixed before the first result are the fewest" in text
    one = said(AHEAD[:1], BASELINE[:1])
    assert "interval" not in one and "above on 1 of 1 seed. 1 seed is too few" in one
    assert outcome(compared([]), 0.03, 1) == (
        "Not decided: igpo and outcome_only have no finished seed in common. Missing: igpo seeds 0, 1, 2, 3, 4, 5, 6."
    )
    # six seeds can carry a verdict on one arm, on two only together: p is twice 2 / 2^6 where the other arm shows nothing
    scores = {"outcome_only": dict(enumerate(BASELINE[:6])), "igpo": dict(enumerate(AHEAD[:6])),
              "other": dict(enumerate(APART[:6]))}  # fmt: skip
    pairs = paired(scores, "outcome_only", 0.03)
    text = outcome(comparison(scores, "igpo", "outcome_only", pairs, "F1"), 0.03, 2)
    assert "p = 0.062" in text and "6 seeds are too few for a verdict on 2 arms alone: 7 fixed before" in text


@pytest.mark.parametrize("scores", [AHEAD, BASELINE, LEVEL, APART, AHEAD[:2], []])
def test_no_answer_invites_to_add_seeds(scores: list[float]) -> None:
    text = answer(SPECIFICATION, [("", [compared(scores)])], [])
    assert not any(word in text for word in ("--seeds", "add", "more seeds", "can decide"))


def test_what_it_is_of_is_said_once() -> None:
    one = compared(AHEAD)
    text = answer(SPECIFICATION, [("", [one])], [])
    end = (
        "It holds for this world (atlas), this budget (40 steps of 16 questions x 8 rollouts) and this warm start, and says "
        "nothing of others."
    )
    assert text == f"{outcome(one, 0.03, 1)} {end}"
    cold = {**SPECIFICATION, "base": {**SPECIFICATION["base"], "warm_start": None, "data": {"kind": "files"}}}
    assert "for these questions and passages, this budget" in answer(cold, [("", [one])], [])
    assert "this start (new policy, no warm start)" in answer(cold, [("", [one])], [])
    crossed = {**SPECIFICATION, "factors": {"gamma": {}}}
    lines = answer(crossed, [("gamma=1", [one]), ("gamma=0", [compared(LEVEL)])], ["seed 5 added"]).splitlines()
    assert [line.split(": ")[0] for line in lines[:2]] == ["gamma=1", "gamma=0"]
    assert (
        lines[2].startswith("Exploratory: seed 5 added, against the preset.")
        and "each line for its own cell" in lines[3]
    )
    alone = "A p is adjusted for the arms of its own cell alone: of twenty cells"  # 5% of them: one
    assert alone in lines[3] and alone not in text


def test_seeds_that_until_added_are_told_with_what_decided() -> None:
    until = {**SPECIFICATION, "until": {"width": 0.2, "seeds": 20}}
    text = answer(until, [("", [compared(AHEAD)])], [], added=[207, 208])
    assert (
        "Seeds 207, 208 were added until every interval was at most 0.2 wide or there were 20 seeds: the width alone decided, "
        "never where an interval lay."
    ) in text and "Exploratory" not in text
    assert "Seed 207 was added" in answer(until, [("", [compared(AHEAD)])], [], added=[207])
    assert "added" not in answer(until, [("", [compared(AHEAD)])], [])


def test_what_departs_from_the_preset_makes_it_exploratory() -> None:
    text = answer(SPECIFICATION, [("", [compared(AHEAD)])], ["seeds 5, 6 added", "arm igpo left out"])
    assert "Exploratory: seeds 5, 6 added; arm igpo left out, against the preset." in text
    assert "Exploratory" not in answer(SPECIFICATION, [("", [compared(AHEAD)])], [])
