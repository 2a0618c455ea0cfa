"""Collapses, each drawn as a curve by hand, and the curves that look alike and are none."""

import pytest

from tasks.report.alarms import alarms
from tasks.report.sweeps import SweepData
from tests.tasks.test_reporting import with_curves

Histories = dict[str, dict[float, float]]


def told(histories: Histories) -> list[str]:
    run = with_curves("r", "igpo", 3, {"test/all/f1": {4.0: 0.1}, **histories})
    return alarms(SweepData("1", "s", ("igpo",), (run,), rubric={"f1": "F1"}))


def endings(rate: list[float], **ends: list[float]) -> Histories:
    """train/format_rate and shares of other endings at steps 1, 2, .."""
    named = {"train/format_rate": rate, **{f"train/status_{name}": values for name, values in ends.items()}}
    return {name: {float(step): value for step, value in enumerate(values, 1)} for name, values in named.items()}


@pytest.mark.parametrize(
    ("histories", "alarm"),
    [
        # 5% malformed at the start beside 40% searching to the limit, then 95%
        (endings([0.55, 0.05], turn_limit=[0.4, 0.0]), "MALFORMED TURNS in igpo"),
        # 70% at the start: half as many again would be more than all; nearly all is enough
        (endings([0.3, 0.2, 0.0]), "seed 3 from step 3"),
        (endings([0.9, 0.4], turn_limit=[0.0, 0.6]), "ENDLESS CALLING in igpo"),
        # on real text the window is full before the turns are used up
        (endings([0.9, 0.1], window_full=[0.0, 0.9]), "ENDLESS CALLING in igpo"),
        (
            {"train/turns": {1.0: 4.0, 2.0: 2.3}, "eval/all/f1": {0.0: 0.0, 2.0: 0.1}},
            "EARLY ANSWERS in igpo: turns fell below 60% of the start, and the score on dev ended low; seed 3 from step 2.",
        ),
        # an arm whose gain is never seen is the outcome alone under another name
        (
            {"advantage/dead_groups_gain": {1.0: 1.0, 2.0: 1.0}},
            "NO GAIN in igpo: the gains of every group came to nothing",
        ),
    ],
)
def test_a_collapse_is_told_with_its_seed_and_step(histories: Histories, alarm: str) -> None:
    (line,) = told(histories)
    assert alarm in line


@pytest.mark.parametrize(
    "histories",
    [
        endings([0.3, 0.35]),  # bad from the start, and no worse
        endings([0.9, 0.6], turn_limit=[0.0, 0.4]),
        {"train/turns": {1.0: 4.0, 2.0: 2.3}, "eval/all/f1": {0.0: 0.0, 2.0: 0.9}},  # fewer turns, right answers
        {"advantage/dead_groups_gain": {1.0: 1.0, 2.0: 0.9}},
        {},
    ],
)
def test_what_is_no_collapse_is_not_told(histories: Histories) -> None:
    assert told(histories) == []
