"""The report as markdown and for a terminal, to the letter."""

from dataclasses import replace
from pathlib import Path

from tasks.report.summaries import CellReport, cell_reports
from tasks.report.texts import markdown, terminal
from tests.tasks.test_reporting import SPECIFICATION, changed, five

GOLDEN = Path(__file__).with_name("golden")
ANSWER = "g=2: igpo is ahead by .7, and this line goes on " + "and on " * 20 + "to be broken.\ng=4: not decided."


def two_cells() -> list[CellReport]:
    """One cell has slices, another decoding, a run that failed and warnings; the other has neither."""
    factors = {"g": {"2": {"rollout.group_size": 2}, "4": {"rollout.group_size": 4}}}
    extra = {name: {4.0: 0.5} for name in ("test/nq/f1", "test/hop_qa/f1", "test_greedy/all/f1", "test_best/all/f1")}
    data = five()
    runs = [changed(item, extra) for item in data.runs]  # type: ignore[arg-type]
    runs[-1] = replace(runs[-1], status="FAILED")
    odd = replace(data, runs=tuple(runs), warnings=("SEVERAL RUNS of *igpo* seed 0 <b>: the newest one counts.",))
    return cell_reports({**SPECIFICATION, "factors": factors}, {"g=2": odd, "g=4": five()}, ["g=2", "g=4"])


def test_the_texts_are_these() -> None:
    reports = two_cells()
    assert markdown("study-1", ANSWER, reports, "http://x/#/y") == (GOLDEN / "report.md").read_text()
    assert terminal(reports, ANSWER) == (GOLDEN / "terminal.txt").read_text()
