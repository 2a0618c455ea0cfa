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
    text = said(AHEAD[:2])
    assert text.startswith("Not decided whether igpo is better or worse than outcome_only: test F1 0.550 against 0.200")
    assert "above on 2 of 2 seeds. 2 seeds are too few for a verdict on 1 arm" in text
    assert "6 fixed before the first result are the fewest" in text
    assert "interval" not in said(AHEAD[:1]) and "above on 1 of 1 seed. 1 seed is too few" in said(AHEAD[:1])
    assert outcome(compared([]), 0.03, 1) == "Not decided: igpo and outcome_only have no finished seed in common."
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


def test_what_departs_from_the_preset_makes_it_exploratory() -> None:
    text = answer(SPECIFICATION, [("", [compared(AHEAD)])], ["seeds 5, 6 added", "arm igpo left out"])
    assert "Exploratory: seeds 5, 6 added; arm igpo left out, against the preset." in text
    assert "Exploratory" not in answer(SPECIFICATION, [("", [compared(AHEAD)])], [])
