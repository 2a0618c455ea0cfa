"""The report as texts that are no page: markdown for MLflow, and what a terminal shows at the end of a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tasks.report.wording import aligned, literal, markdown_table, short_table, wrapped

if TYPE_CHECKING:
    from tasks.report.summaries import CellReport

TEMPLATES = Path(__file__).with_name("templates")


def markdown(sweep: str, answer: str, reports: "Sequence[CellReport]", compare: str) -> str:
    """Return the whole report: the answer, then for each cell its table, words, and further tables by title."""
    return _rendered("report.md.j2", sweep=sweep, answer=answer, reports=reports, compare=compare) + "\n"


def terminal(reports: "Sequence[CellReport]", answer: str) -> str:
    """Return what is told at the end of a sweep: the table and the score of each seed, warnings, then the answer."""
    return _rendered("terminal.txt.j2", answer=answer, reports=reports)


def _rendered(name: str, **values: object) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=False,  # no HTML: `literal` and `table` take markdown's own markup out
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {
        "literal": literal, "table": markdown_table, "short": short_table, "aligned": aligned, "wrapped": wrapped,
    }  # fmt: skip
    return environment.get_template(name).render(**values)
