"""Colours and legends of the report's figures."""

from pathlib import Path

from tasks.report.figures import arm_colours, turn_by_turn
from tasks.report.sweeps import SweepData
from tasks.tracking.mlflow_runs import tags_of
from tests.tasks.planned import planned
from tests.tasks.test_reporting import RUBRIC, with_curves


def test_a_panel_of_arms_that_none_before_it_had_names_all_of_its_lines() -> None:
    """Gains are of igpo and of rms in units of their own; advantages are of all three."""
    curves = {"test/all/f1": {4.0: 0.5}, "advantage/std_turn_1": {4.0: 1.0}}
    gain = {"reward/gain_turn_1": {4.0: 0.2}, "reward/gain_at_hop_1": {4.0: 0.2}}
    runs = (
        with_curves("a", "outcome_only", 0, curves),
        with_curves("b", "igpo", 0, {**curves, **gain}),
        with_curves("c", "rms", 0, {**curves, **gain}),
    )
    data = SweepData("1", "s", ("outcome_only", "igpo", "rms"), runs, rubric=RUBRIC)
    figure = turn_by_turn(data, "outcome_only", {"igpo": "nats", "rms": "probability"})
    named = [
        [text.get_text() for text in legend.get_texts()] if (legend := axis.get_legend()) else []
        for axis in figure.axes
    ]
    assert named == [["igpo"], ["rms"], [], [], ["outcome_only", "igpo", "rms"]]


def test_a_run_has_the_colour_of_its_arm_in_the_report(tmp_path: Path) -> None:
    arms = ["outcome_only", *(f"arm_{n}" for n in range(1, 13))]
    colours = arm_colours(arms, "outcome_only")
    assert len({*colours.values()}) == 13
    for number, arm in enumerate(arms):
        spec = planned(tmp_path, arm=arm, arm_number=number).spec
        assert tags_of(spec)["mlflow.runColor"] == colours[arm]
