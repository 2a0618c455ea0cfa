"""The report of a sweep that lies in a real MLflow server, with every number worked out by hand."""

import csv
import json
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.errors import DataError
from tasks.report.answer import outcome
from tasks.report.frame import frame_of, placed
from tasks.report.recompute import recompute
from tasks.report.reporting import write_report
from tasks.report.statistics import Reached, paired
from tasks.report.summaries import (
    ArmSummary,
    cell_reports,
    explain,
    left_out,
    seed_rows,
    slice_differences,
    summarise,
    unequal_budgets,
)
from tasks.report.sweeps import RunData, SweepData, collect
from tasks.report.watch import comparison_of
from tasks.report.winner import winners
from tasks.report.wording import (
    Words,
    _certainty,
    _compared,
    columns_of,
    penalty,
    sentences,
    short_table,
    table_rows,
    terminal_table,
)
from tasks.specification.presets import load_specification
from tasks.tracking.outbox import About, Outbox, write_status
from tasks.tracking.sending import Sender, read_sent
from tasks.tracking.server import client, experiment_id
from tasks.tracking.traces import TraceRecord, TurnRecord

RUBRIC = {"f1": "F1", "em": "EM"}
SPECIFICATION: dict[str, Any] = {
    "margin": 0.03,
    "changes": {},
    "name": "study",
    "description": "",
    "factors": {},
    "base": {
        "data": {"kind": "lookup"},
        "reward": {"format_penalty": -1.0, "penalty_on": "turn"},
        "rollout": {"questions": 2, "group_size": 4},
        "training": {"epochs": 1, "steps_per_epoch": 4, "budget": "steps", "amount": None},
        "evaluation": {"test_questions": 64, "threshold": 0.5, "decoding": ["sampled", "greedy"]},
        "policy": {"kind": "new"},
        "warm_start": {"stages": [{"steps": 1, "learning_rate": 1e-3, "demonstrations": {"kind": "lookup"}}]},
    },
    "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {}},
    "baseline": "outcome_only",
    "primary": None,
    "seeds": [0, 1, 2, 3, 4],
    "until": None,
}


def run(arm: str, seed: int, f1: float, dev: tuple[float, float, float], steps: int = 4) -> RunData:
    """Dev F1 at steps 0, 2 and 4; 10 sampled tokens and 0.5 s a step."""
    every = [float(step) for step in range(1, steps + 1)]
    histories = {
        "eval/all/f1": dict(zip((0.0, 2.0, 4.0), dev, strict=True)),
        "test/all/f1": {float(steps): f1},
        "test/all/em": {float(steps): f1 / 2},
        "train/turns": {step: 3 + step for step in every},
        "advantage/dead_groups": {step: step / 10 for step in every},
        "progress/rollouts": {step: 8 * step for step in every},
        "progress/questions": {step: 2 * step for step in every},
        "progress/sampled_tokens": {step: 10 * step for step in every},
        "progress/seconds": {step: 0.5 * step for step in every},
    }
    return with_curves(f"{arm}-{seed}", arm, seed, histories)


def with_curves(run_id: str, arm: str, seed: int, histories: dict[str, dict[float, float]]) -> RunData:
    points = ((name, int(step), 0, value) for name, curve in histories.items() for step, value in curve.items())
    return RunData(run_id, arm, seed, "FINISHED", placed(frame_of(points), "", arm, seed))


def changed(item: RunData, histories: dict[str, dict[float, float]]) -> RunData:
    """The run with other curves beside its own, or in their place."""
    return with_curves(item.run_id, item.arm, item.seed, {**item.histories, **histories})  # type: ignore[dict-item]


PLACES = {f"{arm}-{seed}": [("", arm, seed)] for arm in ("outcome_only", "igpo") for seed in range(5)}
LOW, HIGH = [0.10, 0.12, 0.08, 0.10, 0.10], [0.80, 0.90, 0.70, 0.80, 0.80]


def send_kept(study: str, item: RunData, record: TraceRecord, place: Path) -> Path:
    """Send a finished run that keeps one trajectory; return its folder."""
    identity = {"kind": "train", "sweep": "study-1", "arm": item.arm, "seed": "0"}
    outbox = Outbox(place / item.run_id, About(study, item.run_id, item.run_id, identity, {}))
    outbox.log(4, {name: history[4.0] for name, history in item.histories.items()})
    outbox.keep([record])
    outbox.set_traces([record])
    write_status(outbox.folder, "FINISHED")
    Sender(outbox.folder).send()
    return outbox.folder


def five() -> SweepData:
    low = [run("outcome_only", seed, f1, (0.0, 0.1, 0.2)) for seed, f1 in enumerate(LOW)]
    high = [run("igpo", seed, f1, (0.0, 0.6 if seed else 0.1, 0.9)) for seed, f1 in enumerate(HIGH)]
    return SweepData("1", "study-1", ("outcome_only", "igpo"), (*low, *high), rubric=RUBRIC)


def send(experiment: str, item: RunData, folder: Path, **tags: str) -> str:
    """The run as the training flow logs it: every step, then the test; other metrics besides."""
    identity = {"kind": "train", "sweep": "study-1", "arm": item.arm, "seed": str(item.seed), **tags}
    outbox = Outbox(folder / item.run_id, About(experiment, item.run_id, item.run_id, identity, {}))
    for step in sorted({step for history in item.histories.values() for step in history}):
        outbox.log(int(step), {name: h[step] for name, h in item.histories.items() if step in h} | {"time/x": 1.0})
    write_status(outbox.folder, item.status)  # type: ignore[arg-type]
    Sender(outbox.folder).send()
    sent = read_sent(outbox.folder)
    assert sent is not None
    return sent.run_id


def test_questions_that_were_not_asked_are_loud() -> None:
    asked = {"test/all/left_out": {4.0: 3.0}, "test/all/questions": {4.0: 61.0}}
    data = five()
    assert left_out(data) == []
    runs = tuple(changed(item, asked) for item in data.runs)
    assert left_out(replace(data, runs=runs)) == [
        "NOT TESTED: 3 questions do not fit rollout.max_tokens; the scores are over the other 61."
    ]


def test_the_report_says_what_its_seeds_can_show() -> None:
    """No p-value of n seeds is below 2^(1-n): six can show one arm of one, seven one of two, nine one of eleven."""
    assert "5 seeds cannot carry one: 7 can" in _certainty(5, 2)
    assert "none alone: for that 7 are needed" in _certainty(6, 2)
    assert "needed" not in _certainty(7, 2) and "none" not in _certainty(6, 1)
    assert "none alone: for that 9 are needed" in _certainty(8, 11)
    assert "no seeds" in _certainty(0, 1)


def summed(data: SweepData, margin: float = 0.0) -> list[ArmSummary]:
    return summarise(data, paired(data.scores(), "outcome_only", margin), "outcome_only", 0.5, margin)


def test_every_number_of_the_table() -> None:
    low, high = summed(five())
    assert (low.arm, low.seeds, low.verdict, low.difference) == ("outcome_only", 5, "baseline", None)
    assert low.score == pytest.approx(0.1) and low.others["em"] == pytest.approx(0.05) and low.decoded == {}
    assert high.score == pytest.approx(0.8) and high.others["em"] == pytest.approx(0.4)
    assert high.pairs == 5 and high.difference == pytest.approx(0.7) and high.verdict == "too few seeds"
    assert high.p is None and seven().p == pytest.approx(2 / 2**7)  # all seven seeds agree
    assert (high.low, high.high) == (pytest.approx(0.62), pytest.approx(0.78))  # of five differences: their range
    assert high.dead_groups == pytest.approx(0.25) and high.turns == 7 and high.seconds == 2
    assert low.steps_to_threshold == Reached(0, 5, None, 4)
    assert high.steps_to_threshold == Reached(5, 5, 2, 2)  # four seeds at step 2, one at step 4
    assert high.rollouts_to_threshold == Reached(5, 5, 16, 16)
    assert high.tokens_to_threshold == Reached(5, 5, 20, 20)
    assert high.seconds_to_threshold == Reached(5, 5, 1, 1)


def test_a_threshold_met_before_training_costs_nothing() -> None:
    row = summed(replace(five(), runs=(run("igpo", 0, 0.9, (0.6, 0.9, 0.9)),)))[1]
    assert row.steps_to_threshold.median == row.tokens_to_threshold.median == row.seconds_to_threshold.median == 0


def test_a_run_without_its_counters_is_named() -> None:
    whole = run("igpo", 3, 0.9, (0.0, 0.6, 0.9))
    bare = replace(whole, frame=whole.frame[whole.frame["key"] != "progress/sampled_tokens"])
    with pytest.raises(DataError, match=r"igpo seed 3.*progress/sampled_tokens at step 2"):
        summed(replace(five(), runs=(bare,)))


def test_metrics_that_are_missing_show_as_missing() -> None:
    bare = with_curves("igpo-0", "igpo", 0, {"test/all/f1": {4.0: 0.9}})
    rows = summed(replace(five(), arms=("igpo",), runs=(bare,)))
    cells = table_rows(rows, columns_of(rows, 0.5, RUBRIC))[0]
    assert cells["F1"] == "0.900" and cells["EM"] == cells["dead groups"] == cells["turns"] == cells["s/run"] == "-"


def test_equal_budgets_and_every_way_to_differ() -> None:
    data = five()
    assert unequal_budgets(data) == []
    longer = replace(data, runs=(*data.runs, run("igpo", 9, 0.8, (0, 0, 0), steps=5)))
    lines = unequal_budgets(longer)
    assert [line.split("comparable: ")[1].split(" is ")[0] for line in lines] == ["steps", "rollouts", "questions"]
    assert "5 in igpo seed 9" in lines[0]
    unfinished = replace(longer, runs=(*data.runs, replace(longer.runs[-1], status="FAILED")))
    assert unequal_budgets(unfinished) == []  # only finished runs are compared


def test_a_budget_of_tokens_allows_other_steps() -> None:
    data = five()
    longer = replace(data, runs=(*data.runs, run("igpo", 9, 0.8, (0, 0, 0), steps=5)))
    assert unequal_budgets(longer, "sampled_tokens", 40.0) == []
    (line,) = unequal_budgets(longer, "sampled_tokens", 50.0)  # 40 tokens in four steps, 50 in five
    assert "outcome_only seed 0" in line and "igpo seed 9" not in line


def test_the_terminal_table_fits() -> None:
    data = five()
    long = replace(data, arms=("outcome_only", "i" * 60), runs=tuple(
        replace(item, arm="i" * 60) if item.arm == "igpo" else item for item in data.runs
    ))  # fmt: skip
    columns = columns_of(summed(long), 0.5, RUBRIC)
    rows = table_rows(summed(long), columns)
    text = terminal_table(rows, columns)
    assert max(map(len, short_table(rows, columns).splitlines())) <= 120
    assert max(map(len, text.splitlines())) <= 120
    assert "+0.700 [" in text and ">4" in text and "5 of 5" in text and "0 of 5" in text


def more(data: SweepData, seeds: int) -> SweepData:
    """The same with further seeds that fare as the first five do, a little apart."""
    extra = [
        replace(item, seed=item.seed + 5, run_id=f"{item.run_id}-again", frame=item.frame.assign(seed=item.seed + 5))
        for item in data.runs
        if item.seed < seeds - 5
    ]
    return replace(data, runs=(*data.runs, *extra))


def seven() -> ArmSummary:
    return summed(more(five(), 7))[1]


def words(data: SweepData) -> str:
    rows = summed(data, SPECIFICATION["margin"])
    return every(sentences(rows, SPECIFICATION, "outcome_only", 0.5, [*unequal_budgets(data), *data.warnings], "F1"))


def every(words: Words) -> str:
    return "\n".join((*words.warnings, *words.shown, *words.limits))


def test_the_seeds_for_the_margin_are_told_where_they_mean_something() -> None:
    """Not of the spread of five differences, and not where nobody would run so many."""
    rows = [summed(five(), 0.03)[1], *(replace(seven(), needed=needed) for needed in (12, 100, 101, 2006, None))]
    told = [row["seeds for margin"] for row in table_rows(rows, columns_of(rows, 0.5, RUBRIC))]
    assert told == ["-", "12", "100", "more than 100", "more than 100", "more than 100"] and rows[0].needed


def test_an_interval_that_leaves_zero_out_is_no_verdict() -> None:
    """Where several arms are compared the p-value is adjusted and the interval is not."""
    unsure = replace(seven(), verdict="no difference shown", p=0.06)
    assert unsure.low is not None and unsure.low > 0
    assert "Its interval leaves zero out, as if no other arm were compared" in _compared(
        unsure, "outcome_only", 0.0, "F1"
    )
    assert "leaves zero out" not in _compared(replace(unsure, low=-0.1), "outcome_only", 0.0, "F1")


def test_words_say_what_was_not_shown() -> None:
    text = words(five().select(["outcome_only", "igpo", "gone"], [0, 1, 2, 3, 4]))
    assert "igpo against outcome_only: +0.700" in text and "5 paired seeds: too few seeds for a verdict" in text
    enough = words(more(five(), 7))
    assert "7 paired seeds: better at this budget (p = 0.016, adjusted)" in enough and "range of the" not in enough
    assert "MISSING: gone seed 0 (no run)" in text
    crowd = words(more(five(), 7).select(["outcome_only", "igpo", "gone"], [*range(7)]))  # 2 x 2 / 2^7 of two arms
    assert "better at this budget (p = 0.031, adjusted)" in crowd and "adjusted for the 2 arms compared here" in crowd
    for part in (
        "The ceiling",
        "Every arm had a format penalty of -1 on the malformed turn. The paper has it in the outcomes' pool",
        "is made by the warm start's demonstrations",
        "5 seeds cannot carry one: 7 can",
        "the interval is the range of the differences, which covers at most 94%",
        "data: lookup",
    ):
        assert part in text


def test_a_budget_of_tokens_is_told_as_one() -> None:
    training = {"epochs": 1, "steps_per_epoch": 4, "budget": "sampled_tokens", "amount": 40}
    (report,) = cell_reports(
        {**SPECIFICATION, "base": {**SPECIFICATION["base"], "training": training}}, {"": five()}, [""]
    )
    assert (
        "trained for 40 sampled tokens in steps of 2 questions x 4 rollouts, 4 steps at most" in report.words.shown[0]
    )


def test_a_cell_without_a_finished_run_leaves_the_others_their_report() -> None:
    levels = {"group": {"2": {"rollout.group_size": 2}, "4": {"rollout.group_size": 4}}}
    failed = replace(five(), runs=tuple(replace(item, status="FAILED") for item in five().runs))
    found = {"group=2": five(), "group=4": failed}
    (report,) = cell_reports({**SPECIFICATION, "factors": levels}, found, ["group=2", "group=4"])
    assert report.cell == "group=2" and report.summaries[1].difference == pytest.approx(0.7)
    assert any(text.startswith("NO FINISHED RUN in group=4") for text in report.words.warnings)


def test_a_run_that_failed_takes_the_verdict_away() -> None:
    """Without seed 6 of igpo six seeds of seven are left, all above: p = 2 / 2^6 of those, and no verdict."""
    asked, data = {**SPECIFICATION, "seeds": list(range(7))}, more(five(), 7)
    (whole,) = cell_reports(asked, {"": data}, [""])
    assert whole.summaries[1].verdict == "better"
    failed = tuple(replace(r, status="FAILED") if (r.arm, r.seed) == ("igpo", 6) else r for r in data.runs)
    (report,) = cell_reports(asked, {"": replace(data, runs=failed)}, [""])
    assert (report.summaries[1].verdict, report.rows[1]["p"]) == ("runs missing", "-")
    assert report.data.absent == (("igpo", 6, "FAILED"),)
    assert "6 paired seeds: no verdict, since a run of either is missing" in every(report.words)
    assert "Missing: igpo seed 6." in outcome(report.comparison("igpo"), 0.03, 1)
    never = replace(data, runs=tuple(r for r in data.runs if r.seed != 6))  # of either arm
    (report,) = cell_reports(asked, {"": never}, [""])
    assert "Missing: igpo seed 6; outcome_only seed 6." in outcome(report.comparison("igpo"), 0.03, 1)


def test_a_warm_start_learnt_by_heart_takes_the_verdict_away() -> None:
    """Of seven seeds all above, and of one that lacks a run. The difference is told, and no p."""
    asked, data, line = {**SPECIFICATION, "seeds": list(range(7))}, more(five(), 7), "LEARNT BY HEART: 60 times each"
    (report,) = cell_reports(asked, {"": data}, [""], {"": [line]})
    summary, said = report.summaries[1], outcome(report.comparison("igpo"), 0.03, 1)
    assert (summary.verdict, report.rows[1]["p"], summary.pairs) == ("learnt by heart", "-", 7)
    assert report.words.warnings[0] == line and "no verdict, since the warm start is learnt by heart" in every(
        report.words
    )
    assert said.startswith("Not decided whether igpo is better or worse") and "carries no verdict" in said
    assert "p = " not in said and winners(SPECIFICATION, [report], ["igpo"]) == []
    failed = tuple(replace(r, status="FAILED") if (r.arm, r.seed) == ("igpo", 6) else r for r in data.runs)
    (report,) = cell_reports(asked, {"": replace(data, runs=failed)}, [""], {"": [line]})
    assert "Missing: igpo seed 6." in outcome(report.comparison("igpo"), 0.03, 1)
    (whole,) = cell_reports(asked, {"": data}, [""], {"another": [line]})
    assert whole.summaries[1].verdict == "better"
    assert (summary.difference, summary.low) == (whole.summaries[1].difference, whole.summaries[1].low)
    assert report.rows[1]["seeds for margin"] == "-" and int(whole.rows[1]["seeds for margin"]) > 0


@pytest.mark.parametrize("score", [math.nan, math.inf, sys.float_info.max, -sys.float_info.max])  # MLflow's infinity
def test_a_score_that_is_no_number_counts_as_missing(score: float) -> None:
    """Seed 6 of igpo ended without a number. The mean of the others is .8 as before; with it there were none."""
    data = more(five(), 7)
    odd = tuple(run("igpo", 6, score, (0, 0, 0)) if (r.arm, r.seed) == ("igpo", 6) else r for r in data.runs)
    (report,) = cell_reports({**SPECIFICATION, "seeds": list(range(7))}, {"": replace(data, runs=odd)}, [""])
    assert report.summaries[1].verdict == "runs missing" and report.summaries[1].score == pytest.approx(0.8)
    assert report.data.absent == (("igpo", 6, "its test F1 is no finite number"),)
    assert any("MISSING: igpo seed 6 (its test F1 is no finite number)" in line for line in report.words.warnings)


def test_a_difference_that_was_shown_and_does_not_matter_says_so() -> None:
    """Seven differences: .001 five times, .04 twice: the mean is .085 / 7 = .012. The interval ends at .04, beyond .03."""
    runs = tuple(
        run(arm, seed, 0.5 + (arm == "igpo") * (0.04 if seed > 4 else 0.001), (0, 0, 0))
        for arm in ("outcome_only", "igpo")
        for seed in range(7)
    )
    (report,) = cell_reports({**SPECIFICATION, "seeds": list(range(7))}, {"": replace(five(), runs=runs)}, [""])
    small = "smaller than the margin of 0.03 below which a difference does not matter"
    assert report.summaries[1].verdict == "better" and f"The mean difference is {small}." in every(report.words)
    (winner,) = winners(SPECIFICATION, [report], ["igpo"])
    assert winner.verdict.endswith(f"7 seeds; the difference is {small}")


def test_what_a_run_last_did_counts_only_at_its_end() -> None:
    """Seed 0 solved nothing after step 2: its turns of then are no turns of step 4. Means of 5 and 7, and of 6 alone."""
    runs = [
        with_curves(
            f"igpo-{seed}", "igpo", seed, {"test/all/f1": {4.0: 0.9}, "train/turns": {1.0: 3.0, 4.0: 5.0}, **more}
        )
        for seed, more in enumerate(
            ({"train/turns_solved": {1.0: 5.0, 2.0: 9.0}}, {"train/turns_solved": {1.0: 7.0, 4.0: 6.0}})
        )
    ]
    data = SweepData("1", "s", ("igpo",), tuple(runs), rubric=RUBRIC)
    rows = {row["metric"]: row["igpo"] for row in explain(data)}
    assert rows[".. of the solved"] == "6 → 6" and rows["turns (tool calls: one less)"] == "3 → 5"
    assert "dead groups" not in rows  # no run has it


def test_a_row_that_begins_after_the_first_update_says_so() -> None:
    """Diagnostics are of evaluated steps: their first value is of step 6 here, where arms are no longer alike."""
    curves = {"test/all/f1": {12.0: 0.9}, "train/turns": {1.0: 3.0, 12.0: 5.0}}
    thought = {"diagnostics/gain_thought": {6.0: -0.1, 12.0: 0.2}}
    data = SweepData("1", "s", ("igpo",), (with_curves("igpo-0", "igpo", 0, {**curves, **thought}),), rubric=RUBRIC)
    assert explain(data) == [
        {"metric": "turns (tool calls: one less)", "igpo": "3 → 5"},
        {"metric": "gain from the thought, after the update (nats), from step 6", "igpo": "-0.1 → 0.2"},
    ]


def test_the_comparison_stands_right_after_the_score() -> None:
    names = [column.title for column in columns_of(summed(five()), 0.5, RUBRIC)]
    assert names[:6] == ["arm", "seeds", "F1", "difference in F1 [95%]", "verdict", "p"]
    assert names.index("EM") > names.index("seeds for margin")


def test_slices_by_source_and_by_hops_within_a_source() -> None:
    """Two sources, one of which has questions of two lengths: four slices; a single hop count is the source again."""
    names = ("nq", "nq/hops_1", "musique", "musique/hops_2", "musique/hops_3")
    values = {f"test/{name}/f1": {4.0: 0.1 * place} for place, name in enumerate(names)}
    runs = [
        with_curves(f"{arm}-0", arm, 0, {"test/all/f1": {4.0: 0.5}, "train/turns": {4.0: 2.0}} | {
            name: {step: value * scale for step, value in curve.items()} for name, curve in values.items()
        })
        for arm, scale in (("outcome_only", 1.0), ("igpo", 2.0))
    ]  # fmt: skip
    found = slice_differences(SweepData("1", "s", ("outcome_only", "igpo"), tuple(runs), rubric=RUBRIC), "outcome_only")
    assert {name: pairs["igpo"].mean for name, pairs in found.items()} == {
        "musique": pytest.approx(0.2), "nq": 0.0, "musique/hops_2": pytest.approx(0.3), "musique/hops_3": pytest.approx(0.4)
    }  # fmt: skip


def test_every_seed_of_every_arm_stands_in_a_table() -> None:
    """Seed 2 of igpo has no finished run: its place is empty, and no other number moves into it."""
    found = {("outcome_only", 10): 0.25, ("outcome_only", 2): 0.5, ("igpo", 10): 0.75}
    runs = [with_curves(f"{arm}-{seed}", arm, seed, {"test/all/f1": {4.0: f1}}) for (arm, seed), f1 in found.items()]
    assert seed_rows(SweepData("1", "s", ("outcome_only", "igpo"), tuple(runs), rubric=RUBRIC)) == [
        {"arm": "outcome_only", "seed 2": "0.500", "seed 10": "0.250"},
        {"arm": "igpo", "seed 2": "-", "seed 10": "0.750"},
    ]


def test_words_of_a_cell_say_what_the_cell_is() -> None:
    """A sweep over group sizes and penalties: its base describes none of its cells."""
    levels = {
        "group": {
            "2": {"rollout.group_size": 2, "rollout.questions": 4},
            "4": {"rollout.group_size": 4, "rollout.questions": 2},
        },
        "penalty": {"-1": {"reward.format_penalty": -1}, "0": {"reward.format_penalty": 0}},
    }
    cell = "group=2,penalty=0"
    (report,) = cell_reports({**SPECIFICATION, "factors": levels}, {cell: five()}, [cell])
    told = every(report.words)
    assert "4 steps of 4 questions x 2 rollouts" in told
    assert "Other format penalties than those of the cells. A penalty decides how an arm fails." in told


@pytest.mark.parametrize(
    ("value", "place", "words"),
    [
        (0.0, "turn", "no format penalty"),
        (-1.0, "turn", "a format penalty of -1 on the malformed turn"),
        (-0.5, "apart", "a format penalty of -0.5 apart from the outcomes' pool"),
        (-2.0, "trajectory", "a format penalty of -2 in the outcomes' pool, as the paper has it"),
    ],
)
def test_a_format_penalty_in_words(value: float, place: str, words: str) -> None:
    assert penalty({"format_penalty": value, "penalty_on": place}) == words


def test_the_report_of_an_untrained_policy_says_so_first() -> None:
    base = {**SPECIFICATION["base"], "warm_start": None}
    (report,) = cell_reports({**SPECIFICATION, "base": base}, {"": five()}, [""])
    assert report.words.warnings[0].startswith("THE POLICY IS UNTRAINED")
    (taught,) = cell_reports(SPECIFICATION, {"": five()}, [""])
    assert not any("UNTRAINED" in line for line in taught.words.warnings)


def test_words_claim_nothing_where_nothing_was_shown() -> None:
    data = more(five(), 10)
    level = replace(data, runs=tuple(
        changed(item, {"test/all/f1": {4.0: 0.5 + 0.1 * (-1) ** item.seed * (item.arm == "igpo")}})
        for item in data.runs
    ))  # fmt: skip
    assert "no difference was shown" in words(level) and "better" not in words(level)
    close = replace(data, runs=tuple(
        changed(item, {"test/all/f1": {4.0: 0.9 + 0.001 * (5 + item.seed) * (item.arm == "igpo")}})
        for item in data.runs
    ))  # fmt: skip
    # ten seeds: a collapse in one run of ten is missed with a chance of .9^10 = 35%
    assert "within the margin" in words(close) and "35%" in words(close) and "better" not in words(close)
    few = data.select(["outcome_only", "igpo"], [0, 1])
    assert "too few seeds for a verdict" in words(few) and "better" not in words(few)


@pytest.mark.night  # 23 s: three reports of many runs
def test_an_until_that_came_after_a_look_is_exploratory(mlflow_server: str, tmp_path: Path) -> None:
    """One study has `until` from its first report on; the other is looked at, gets it, and goes on from seed 3 to 4."""
    late, until = "an `until` that an earlier report of this sweep did not have", {"width": 0.2, "seeds": 9}
    for study, first in (("planned", until), ("looked-at", None)):
        for item in five().runs:
            send(study, item, tmp_path / study)
        start = {**SPECIFICATION, "name": study, "seeds": [0, 1, 2, 3], "until": first}
        write_report(start, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
        for asked, added in (({**start, "until": until}, []), ({**start, "seeds": [*range(5)], "until": until}, [4])):
            report = write_report(asked, "study-1", {"": "v1"}, PLACES, [""], "make ablation", added=added)
        assert "Seed 4 was added until every interval was at most 0.2 wide" in report.answer
        assert (late in report.answer) == (first is None) == bool(report.exploratory)


def test_report_from_a_real_server(mlflow_server: str, tmp_path: Path) -> None:
    data = five()
    for item in data.runs[:-1]:
        send("study", item, tmp_path)
    send("study", replace(data.runs[-1], status="FAILED"), tmp_path)
    send("study", replace(run("other", 0, 1.0, (1, 1, 1)), run_id="foreign"), tmp_path, sweep="study-2")

    found = collect("study", "study-1", rubric=RUBRIC)[""]
    assert {(item.arm, item.seed): item.histories for item in found.runs} == {
        (item.arm, item.seed): item.histories for item in data.runs
    }
    assert [item.seed for item in found.finished("igpo")] == [0, 1, 2, 3]

    first = write_report(SPECIFICATION, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    assert "igpo seed 4 (FAILED)" in first.markdown and "igpo seed 4 (FAILED)" in first.terminal.replace("\n", " ")
    assert [row["verdict"] for row in first.rows] == ["baseline", "too few seeds"]

    write_status(tmp_path / "igpo-4", "FINISHED")
    Sender(tmp_path / "igpo-4").send()
    second = write_report(SPECIFICATION, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    assert second.run_id == first.run_id and f"/runs/{first.run_id}/artifacts/report.html?" in second.url
    assert "MISSING" not in second.markdown and "UNEQUAL" not in second.markdown

    lasted = client().get_run(first.run_id).info.end_time
    points = client().get_metric_history(second.run_id, "report/igpo/difference")
    assert second.answer.startswith("Not decided whether igpo is better or worse than outcome_only: test F1 0.800")
    found_again = write_report(SPECIFICATION, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    assert found_again == replace(second, reused=True) and not second.reused  # nothing had changed
    added = write_report(
        SPECIFICATION, "study-1", {"": "v1"}, PLACES, [""], "make ablation", exploratory=["seed 4 added"]
    )
    assert not added.reused and added.run_id == first.run_id and "Exploratory: seed 4 added" in added.terminal
    second = added
    assert client().get_metric_history(second.run_id, "report/igpo/difference") == points  # unchanged: no new point
    assert client().get_run(first.run_id).info.end_time == lasted  # a report written again does not seem to take longer

    reports = client().search_runs([experiment_id("study")], "tags.kind = 'report'")
    assert [item.info.run_id for item in reports] == [first.run_id]
    assert reports[0].info.status == "FINISHED" and reports[0].data.tags["sweep"] == "study-1"
    assert reports[0].data.metrics["report/igpo/difference"] == pytest.approx(0.7)

    folder = Path(client().download_artifacts(first.run_id, "", str(tmp_path)))
    table = json.loads((folder / "table.json").read_text())
    assert {row["arm"]: row["score"] for row in table} == pytest.approx({"outcome_only": 0.1, "igpo": 0.8})
    (again,) = recompute(first.run_id)  # from the training runs alone
    assert again.rows == second.rows and "turns (tool calls: one less)" in second.markdown
    assert json.loads(json.dumps([asdict(row) for row in again.summaries])) == [
        {name: value for name, value in row.items() if name != "cell"} for row in table
    ]
    with pytest.raises(DataError, match="gives no run 0123"):
        recompute("0123")
    with pytest.raises(DataError, match="is no report"):
        recompute(found.runs[0].run_id)
    page = (folder / "report.html").read_text()
    assert "<svg" in page and "igpo against outcome_only: +0.700" in page
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [row["arm"] for row in rows] == ["outcome_only", "igpo"] and rows[1]["F1"] == "0.800"
    assert yaml.safe_load((folder / "specification.yaml").read_text()) == SPECIFICATION
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["data"] == ["v1"] and versions["packages"]["mlflow"] and versions["git"]
    assert (folder / "report.md").read_text() == second.markdown and second.answer in second.markdown
    assert second.answer in page and page.index(second.answer) < page.index("<svg")
    assert second.terminal.replace("\n", " ").endswith(second.answer)
    for name in ("overview", "score", "difference", "dead_groups", "turns"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_viewer_links_a_test_trajectory_to_its_trace(mlflow_server: str, tmp_path: Path) -> None:
    turn = TurnRecord("<answer> x </answer>", "answer", "x", None, -1.0, None, None)
    told = TraceRecord("q1", "who ?", ("x",), (turn,), "answered", {"f1": 1.0, "em": 1.0}, "outcome_only", 0, "test", 4)
    odd = "who\u2028is\x85it\x0b?"  # what str.splitlines takes for ends of lines
    trained = replace(told, question_id="q0", question=odd, split="train")
    item = five().runs[0]
    identity = {"kind": "train", "sweep": "study-1", "arm": item.arm, "seed": "0"}
    outbox = Outbox(tmp_path / item.run_id, About("viewed", item.run_id, item.run_id, identity, {}))
    outbox.log(4, {name: history[4.0] for name, history in item.histories.items()})
    outbox.keep([trained])
    outbox.keep([told])  # of the same step
    outbox.keep([told])  # a run that goes on keeps nothing twice
    outbox.set_traces([told])
    write_status(outbox.folder, "FINISHED")
    Sender(outbox.folder).send()
    report = write_report({**SPECIFICATION, "name": "viewed"}, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    page = (Path(client().download_artifacts(report.run_id, "report.html", str(tmp_path)))).read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', page)
    content = json.loads(data)
    first, second = content["rows"]
    assert content["units"] == {"igpo": "nats"}  # the outcome alone has no gain
    assert (first["split"], first["trace"], first["question"], second["split"]) == ("train", None, odd, "test")
    place = experiment_id("viewed")
    (trace,) = client().search_traces(locations=[place])
    assert second["trace"].endswith(
        f"/#/experiments/{place}/traces?selectedEvaluationId={trace.info.trace_id}&workflowType=machine_learning"
    )


def test_an_effect_that_left_its_earlier_interval_is_told(mlflow_server: str, tmp_path: Path) -> None:
    """Differences of .70 +- .06, then .70 again with other data, then .30: another code version learned less."""
    for sweep, f1 in (("w-1", 0.8), ("w-2", 0.79), ("w-3", 0.4)):
        for seed in range(5):
            pair = run("outcome_only", seed, LOW[seed], (0, 0, 0)), run("igpo", seed, f1 + 0.01 * seed, (0, 0, 0))
            for item in pair:
                named = replace(item, run_id=f"{sweep}-{item.run_id}")
                send("watch", named, tmp_path, sweep=sweep)

    def report(sweep: str, **changes: Any) -> Any:
        places = {f"{sweep}-{key}": there for key, there in PLACES.items()}
        return write_report(
            {**SPECIFICATION, "name": "watch", **changes}, sweep, {"": "v1"}, places, [""], "make ablation"
        )

    first, second, third = report("w-1"), report("w-2"), report("w-3")
    assert first.moved == [] and second.moved == []
    (moved,) = third.moved
    assert (moved.arm, moved.before, moved.before_url) == ("igpo", "w-2", second.url)
    assert moved.difference == pytest.approx(0.32) and moved.low <= 0.71 <= moved.high
    assert "EFFECT MOVED: igpo" in third.terminal.replace("\n", " ") and "EFFECT MOVED" in third.markdown
    assert report("w-3").moved == [moved]  # told again, against the same sweep
    assert report("w-3", seeds=[0, 1, 2, 3]).moved == []  # another specification: nothing to compare with


def test_a_setting_that_is_new_and_not_set_makes_no_other_comparison() -> None:
    """An older report's fingerprint has to be found. This one changes with the preset, or where every report starts anew."""
    content = load_specification("outcome-vs-igpo").model_dump(mode="json")
    assert comparison_of(content) == "536069657c08"
    older = {**content, "base": {**content["base"], "optimizer": {**content["base"]["optimizer"]}}}
    del older["base"]["optimizer"]["dual_clip"]
    older["base"]["reward"] = {**older["base"]["reward"], "credit": "turn"}
    assert comparison_of(older) == comparison_of(content)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"training": {"device": "cuda", "memory_share": 0.5}}, True),
        ({"expect": [{"metric": "train/grad_norm", "most": 5.0, "otherwise": "warn"}]}, True),
        ({"optimizer": {"learning_rate": 0.5}}, False),
    ],
)
def test_settings_that_change_no_number_make_no_other_comparison(settings: dict[str, Any], same: bool) -> None:
    base = SPECIFICATION["base"]
    other = {**base, **{name: {**base.get(name, {}), **value} if isinstance(value, dict) else value
                        for name, value in settings.items()}}  # fmt: skip
    assert (comparison_of({**SPECIFICATION, "base": other}) == comparison_of(SPECIFICATION)) is same


def test_one_run_serves_every_cell_that_its_arm_does_not_tell_apart(mlflow_server: str, tmp_path: Path) -> None:
    """outcome_only was run once a seed; igpo in both cells, with +.70 and +.30 and once with another run of the arm."""
    factors = {"gamma": {"1": {"reward.gamma": 1.0}, "0.9": {"reward.gamma": 0.9}}}
    changes = {"optimizer.learning_rate": 1e-5, "policy.name": "x" * 300}
    specification = {**SPECIFICATION, "name": "crossed", "factors": factors, "changes": changes}
    places: dict[str, list[tuple[str, str, int]]] = {}
    for seed in range(5):
        alone = run("outcome_only", seed, LOW[seed], (0, 0, 0))
        both = {"gamma=1": 0.8, "gamma=0.9": 0.4}
        places[alone.run_id] = [(cell, "outcome_only", seed) for cell in both]
        send("crossed", alone, tmp_path, cell="gamma=1")
        for cell, f1 in both.items():
            item = replace(run("igpo", seed, f1, (0, 0, 0)), run_id=f"igpo-{seed}-{cell}")
            places[item.run_id] = [(cell, "igpo", seed)]
            send("crossed", item, tmp_path, cell=cell)
    report = write_report(
        specification,
        "study-1",
        {"gamma=1": "v1", "gamma=0.9": "v1"},
        places,
        ["gamma=1", "gamma=0.9"],
        "make ablation",
    )
    tags = client().get_run(report.run_id).data.tags  # told apart from the same sweep without what was set
    assert tags["set"] == f"optimizer.learning_rate=1e-05, policy.name={'x' * 300}"
    name = f"report study-1: 2 arms, seeds 0,1,2,3,4 · {tags['set']}"
    assert tags["mlflow.runName"] == name[:250]  # a column of MLflow's database
    assert [(cell.cell, cell.summaries[1].difference) for cell in recompute(report.run_id)] == [
        ("gamma=1", pytest.approx(0.7)),
        ("gamma=0.9", pytest.approx(0.3)),
    ]
    metrics = client().get_run(report.run_id).data.metrics
    assert metrics["report/gamma 0.9/igpo/difference"] == pytest.approx(0.3)
    assert [line.split(": ")[0] for line in report.answer.splitlines()[:2]] == ["gamma=1", "gamma=0.9"]
    folder = Path(client().download_artifacts(report.run_id, "", str(tmp_path / "downloaded")))
    assert "The effect by cell" in (folder / "report.html").read_text()


def test_the_newest_finished_run_of_a_pair_counts(mlflow_server: str, tmp_path: Path) -> None:
    for name, f1, status in (("a", 0.1, "FINISHED"), ("b", 0.3, "FINISHED"), ("c", 0.9, "FAILED")):
        send("pairs", replace(run("igpo", 0, f1, (0, 0, 0)), run_id=name, status=status), tmp_path)
    found = collect("pairs", "study-1", rubric=RUBRIC)[""]
    assert [item.last("test/all/f1") for item in found.runs] == [0.3]
    assert "SEVERAL RUNS of igpo seed 0" in found.warnings[0]
    asked = collect("pairs", "study-1", {"a": [("", "igpo", 0)]}, rubric=RUBRIC)[""]
    assert [item.last("test/all/f1") for item in asked.runs] == [0.1] and asked.warnings == ()


def test_a_sweep_without_finished_runs_is_refused(mlflow_server: str, tmp_path: Path) -> None:
    send("none", replace(run("igpo", 0, 0.1, (0, 0, 0)), status="FAILED"), tmp_path)
    with pytest.raises(DataError, match=r"no run to report on is finished.*igpo seed 0 \(FAILED\)"):
        write_report({**SPECIFICATION, "name": "none"}, "study-1", {"": "v1"}, PLACES, [""], "make ablation")
    assert client().search_runs([experiment_id("none")], "tags.kind = 'report'") == []
