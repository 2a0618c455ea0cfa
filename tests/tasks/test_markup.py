"""No value of a data row is markup, and data that only look alike are told apart."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import QuestionFiles
from tasks.data.reading import read
from tasks.data.validation import Validation, validate

PASSAGES = [
    {"passage_id": "p1", "title": "Brenn", "text": "Brenn is a market town whose bridge was built by Ida Holm."}
]
PAYLOADS = ("<script>alert(1)</script>", "<img src=x onerror=alert(2)>", "\x1b]0;owned\x07<svg onload=alert(3)>")


def checked(tmp_path: Path, rows: list[dict[str, Any]]) -> Validation:
    for name, table in (("q.jsonl", rows), ("c.jsonl", PASSAGES)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in table))
    config = QuestionFiles.model_validate(
        {"questions": [{"path": str(tmp_path / "q.jsonl")}], "corpus": [str(tmp_path / "c.jsonl")]}
    )
    tables = read(config)
    return validate(tables.questions, tables.corpus, config, tmp_path / "docs")


def hostile_rows() -> list[dict[str, Any]]:
    """Rows with each payload as their source, split, answer and id, all of them bad."""
    good = {"question": "Who built it?", "answers": ["Ida Holm"], "split": "train"}
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(PAYLOADS):
        rows += [
            {**good, "id": f"s{number}", "source": text, "question": f"Who built bridge {number}?"},
            {**good, "id": f"t{number}", "split": text, "question": f"Who built tower {number}?"},
            {**good, "id": f"d{number}", "answers": {text: 1}},
            {**good, "id": f"{text}{number}", "answers": ["bridge"], "question": f"Which bridge is bridge {number}?"},
        ]
    return rows


def test_no_value_of_a_row_is_markup_in_data_docs(tmp_path: Path) -> None:
    checked(tmp_path, hostile_rows())
    pages = [page.read_text() for page in (tmp_path / "docs").rglob("*.html")]
    whole = "\n".join(pages)
    assert pages and not [part for part in ("<script>alert", "<img src=x", "<svg onload") if part in whole]
    assert 'src="https://' not in whole and '<script src="//' not in whole
    assert all("default-src 'none'" in page for page in pages)


@pytest.mark.parametrize("control", ["\x1b]0;owned\x07\x1b[2J", "\x9b31mowned", "\rowned", "\u202eowned", "owned\x00"])
def test_no_value_of_a_row_is_a_control_sequence_in_the_terminal(tmp_path: Path, control: str) -> None:
    """A warning names the first row that fails by its id."""
    row = {"id": control, "question": "Which bridge is it?", "answers": ["bridge"], "split": "train"}
    (warning,) = (line for line in checked(tmp_path, [row]).warnings if "not named in question" in line)
    assert "owned" in warning and warning.isprintable()


def test_texts_that_differ_in_a_symbol_are_two_and_the_metrics_sameness_is_told(tmp_path: Path) -> None:
    rows = [
        {"id": "t", "question": "Who designed C?", "answers": ["C"], "split": "train"},
        {"id": "e", "question": "Who designed C++?", "answers": ["C#"], "split": "test"},
        {"id": "i", "question": "कि क्या है", "answers": ["A"], "split": "train"},
        {"id": "k", "question": "की क्या है", "answers": ["\u200b"], "split": "dev"},
    ]
    found = checked(tmp_path, rows)
    assert found.counts == {"questions: answers not empty": 1}
    assert any("2 rows fail 'answer has a name of its own'" in warning for warning in found.warnings)
    assert any("1 rows fail 'answer has a word'" in warning for warning in found.warnings)


def test_many_statements_of_an_answer_are_looked_at_in_linear_time(tmp_path: Path) -> None:
    """16,000 of them took half a minute when the rest of the text was normalised at each."""
    from tasks.data.columns import _names, _states

    started = time.monotonic()
    assert not _states("answer: x " * 16_000, ["ida holm"])
    assert time.monotonic() - started < 10
    assert _states("answer: x " * 16_000 + "the answer is Ida  Holm.", ["ida holm"])
    many = [f"ida holm {number}" for number in range(16_000)]
    assert not _states("answer: x " * 16_000, many) and not _names("x y " * 16_000, many)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("text", "stated"),
    [
        ("Who? Answer: Ida Holm", True), ("Answer: Ida Holm or Bo Lund", False), ("The answer is Ida.", False),
        ("Answer: Ida Holms", False), ("Ida Holm. Answer: Bo", False), ("Answer: no", True), ("Answer: no or yes", False),
    ],
)  # fmt: skip
def test_what_states_an_answer(text: str, stated: bool) -> None:
    from tasks.data.columns import _states

    assert _states(text, ["ida holm", "no"]) is stated


@pytest.mark.parametrize(
    ("key", "named"),
    [("who is ida holm", True), ("who is ida holmes", False), ("ida", False), ("yes or no", False), ("", False)],
)
def test_what_names_an_answer(key: str, named: bool) -> None:
    from tasks.data.columns import _names

    assert _names(key, ["ida holm", "yes", "no", ""]) is named


# ------------------------------------------------------------------------------------------------ markdown and the report

CELLS = [
    "a | b", "|", "`code`", "``a`b``", "[click](javascript:alert(1))", "![seen](http://evil.example/x.png)", "[a][b]",
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "</td><svg onload=alert(1)>", "<!-- hidden", "<?x", "<b>",
    "<http://evil.example>", "&lt;img src=x&gt;", "&amp;", "&#60;b>", "http://127.0.0.1/?a=1&b=2", "\\", "\\|", "\\`x`",
    "**bold**", "_lean_", "~~gone~~", "[x]: http://e.e",
    "# title", "> said", "- item", "+ item", "1. item", "12) item", "---", "- - -", "===", "two\nlines",
    "a\u2028b", "",
    "outcome_only", "+0.031 [-0.002, +0.064]", "a < b > c", "igpo - outcome_only",
]  # fmt: skip


TABLE = ("table", "thead", "tbody", "tr", "th", "td")


def rendered(text: str) -> tuple[set[str], list[str]]:
    """What markdown becomes: the kinds of its parts, and the text of each line or cell."""
    from markdown_it import MarkdownIt

    parts = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)
    inline = [part for part in parts if part.type == "inline"]
    kinds = {part.type for part in parts} | {child.type for part in inline for child in part.children or []}
    return kinds, ["".join(child.content for child in part.children or []) for part in inline]


def test_no_cell_of_a_markdown_table_is_markup() -> None:
    """Nor a column's name. Each shows as it was, on one line."""
    from tasks.report.wording import markdown_table

    shown = [" ".join(text.split()) for text in CELLS]
    columns = {f"{number} {text}": text for number, text in enumerate(CELLS)}
    for rows, expected in (
        (
            [{"arm": "first", "value": text} for text in CELLS],
            ["arm", "value", *(part for text in shown for part in ("first", text))],
        ),
        ([columns], [*(f"{number} {text}".strip() for number, text in enumerate(shown)), *shown]),
    ):
        kinds, cells = rendered(markdown_table(rows))
        assert cells == expected
        assert {kind for kind in kinds if kind.split("_")[0] not in TABLE} <= {"inline", "text", "text_special"}


@pytest.mark.parametrize("text", CELLS)
def test_a_cell_of_a_table_of_prefects_is_a_line_of_text(text: str) -> None:
    """Prefect's page shows each as markdown of its own."""
    from tasks.report.wording import literal_rows

    ((kept,),) = (row.values() for row in literal_rows([{"what": text}]))
    kinds, lines = rendered(kept)
    assert kinds <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    assert lines == ([" ".join(text.split())] if text else [])
    assert literal_rows([{"rows": 3, "share": 0.5}]) == [{"rows": 3, "share": 0.5}]


def test_the_message_of_a_night_quotes_a_row_as_text() -> None:
    """As a markdown artifact; a failed night names the row that it failed of."""
    from igpo_core.errors import DataError
    from tasks.report.morning import failed, page

    kinds, lines = rendered(page(failed("study", DataError("\n".join(CELLS)), "make up")))
    assert kinds <= {
        "heading_open",
        "heading_close",
        "paragraph_open",
        "paragraph_close",
        "inline",
        "text",
        "text_special",
        "softbreak",
    }
    assert lines[0] == "study: the night FAILED" and "<script>alert(1)</script>" in "".join(lines)
