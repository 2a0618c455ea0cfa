"""Users' own Great Expectations suites: what stops, warns or is shown, what is refused before work, what they leave alone."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from igpo_core.config import QuestionFiles, Suites
from igpo_core.data import QUESTION_SCHEMA
from igpo_core.errors import DataError
from tasks.data.checked import SUITE_DOCS, read_checked
from tasks.data.entries import EXPECTATIONS, _require_harmless
from tasks.data.publishing import PublishedData, prepare, summary_rows
from tests.tasks.tables import GOOD, PASSAGES, files, row

NAMES = {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "question", "regex": r"^Question \w+\?$"}}
UNIQUE = {"type": "expect_compound_columns_to_be_unique", "kwargs": {"column_list": ["id", "question"]}}
FEW = {"type": "expect_table_row_count_to_be_between", "kwargs": {"min_value": 1, "max_value": 2}}


def suite(folder: Path, *entries: Any, name: str = "mine") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "id": None, "expectations": entries, "meta": {}, "notes": None}))
    return path


def checked(folder: Path, *entries: Any, rows: Any = GOOD, table: str = "questions") -> QuestionFiles:
    path = suite(folder, *entries)
    return files(folder, rows, PASSAGES, expectations=Suites.model_validate({table: path}))


def pages(folder: Path) -> str:
    return "\n".join(page.read_text() for page in (folder / SUITE_DOCS).rglob("*.html"))


def unmet(published: PublishedData) -> list[dict[str, str]]:
    return list(read_checked(published.checked)["questions"]["unmet"])


def shown_in(published: PublishedData) -> str:
    assert published.checked is not None
    return pages(published.checked)


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Of every file: which one it is on the disk, when it was written, and its bytes."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in [*folder.rglob("*")]
        if path.is_file()
    }


def test_a_suite_stands_beside_the_data_and_touches_nothing_of_them(tmp_path: Path) -> None:
    """Runs may have the data and their index open: with a suite, with another and without one they are the same files."""
    home = tmp_path / "home"
    first = prepare(checked(tmp_path, NAMES), home)
    before, number = state(first.folder), first.folder.stat().st_ino
    assert {"questions.parquet", "data_docs/index.html", "summary.json"} <= {*before}
    assert any(name.startswith("bm25/") for name in before)
    assert "questions own" not in "".join(page.read_text() for page in (first.folder / "data_docs").rglob("*.html"))
    assert "questions own" in shown_in(first) and r"^Question \w+\?$" in shown_in(first)
    for docs in (first.folder / "data_docs", first.checked / SUITE_DOCS if first.checked else Path()):
        links = re.findall(r'href="([^"]+)"', (docs / "index.html").read_text())
        assert {unquote(link) for link in links} == {
            path.relative_to(docs).as_posix() for path in docs.rglob("*.html") if path.name != "index.html"
        }
        assert any(link.startswith("validations/questions") for link in links)
    rows = {line["what"]: line["rows"] for line in summary_rows(first)}
    assert (rows["mine.json on questions, entries"], rows["mine.json on questions, not met"]) == (1, 0)
    again = prepare(checked(tmp_path, NAMES, {**FEW, "severity": "info"}), home)
    plain = prepare(files(tmp_path, GOOD, PASSAGES), home)
    assert plain.checked is None and first.checked != again.checked
    assert first.version == again.version == plain.version
    assert (state(first.folder), first.folder.stat().st_ino) == (before, number)
    only = prepare(files(tmp_path, GOOD, PASSAGES), tmp_path / "other")
    assert only.version == plain.version
    ours = {name: part for name, (*_, part) in before.items() if not name.endswith((".json", ".html", ".css"))}
    assert ours == {name: part for name, (*_, part) in state(only.folder).items() if name in ours}


def test_what_a_suite_found_is_told_whatever_was_prepared_between(tmp_path: Path) -> None:
    """A receipt led to the version, whose folder had the last suite's summary."""
    home, asked = tmp_path / "home", {"column": "question", "regex": "AAA"}
    unmet_one = {"type": NAMES["type"], "kwargs": asked, "severity": "warning"}
    first = prepare(checked(tmp_path, unmet_one), home)
    assert len(first.warnings) == 1 and not first.reused
    plain = prepare(files(tmp_path, GOOD, PASSAGES), home)
    assert (plain.warnings, plain.version) == ([], first.version)
    assert not [line for line in summary_rows(plain) if "mine" in line["what"]]
    again = prepare(checked(tmp_path, unmet_one), home)
    assert again.reused and again.warnings == first.warnings and again.checked == first.checked
    assert summary_rows(again) == summary_rows(first) and "AAA" in shown_in(again)
    assert prepare(files(tmp_path, GOOD, PASSAGES), home).reused
    assert again.checked is not None
    (again.checked / "suites.json").write_text("{}")  # damaged: found anew, the data left as they are
    before = state(first.folder)
    assert prepare(checked(tmp_path, unmet_one), home).warnings == first.warnings
    assert state(first.folder) == before


def test_severity_says_whether_data_are_stopped_warned_of_or_shown(tmp_path: Path) -> None:
    """Of four questions one is named otherwise; four rows are more than two. GX's severity where none is named is critical."""
    rows = [*GOOD, row("odd", "train", question="Who is <b>$odd</b>?")]
    home = tmp_path / "home"
    with pytest.raises(DataError) as stopped:
        prepare(checked(tmp_path, FEW, NAMES, {**FEW, "severity": "warning"}, rows=rows), home)
    told = str(stopped.value)
    assert "mine.json on questions, entry 1 (expect_table_row_count_to_be_between, critical): observed 4" in told
    assert (
        "entry 2 (expect_column_values_to_match_regex of question, critical): 1 of 4 rows, the first is odd with "
        "'Who is <b>$odd</b>?'" in told
    )
    assert "entry 3" not in told and "severity" in told
    shown = pages(home / "data" / "rejected")
    assert "Who is &lt;b&gt;&#36;odd&lt;/b&gt;?" in shown and "<b>$odd" not in shown
    assert not list(home.glob("data/*/manifest.json"))
    entries = ({**FEW, "severity": "info"}, {**NAMES, "severity": "warning"})
    published = prepare(checked(tmp_path, *entries, rows=rows), home)
    (warning,) = published.warnings
    assert warning.startswith(
        "questions: mine.json: entry 2 (expect_column_values_to_match_regex of question, warning)"
    )
    assert [one["severity"] for one in unmet(published)] == ["info", "warning"]


def test_a_suite_sees_lists_as_json_and_rows_that_could_not_be_read_as_null(tmp_path: Path) -> None:
    rows = [*GOOD, row("lost", "train", question=None)]
    config = checked(
        tmp_path,
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "answers", "value_set": ['["Ann"]']}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "question"}, "severity": "info"},
        rows=rows,
    )
    published = prepare(config, tmp_path / "home")
    assert [one["told"].split(":")[0] for one in unmet(published)] == [
        "entry 2 (expect_column_values_to_not_be_null of question, info)"
    ]


def test_every_table_may_have_a_suite(tmp_path: Path) -> None:
    short = {"type": "expect_column_value_lengths_to_be_between", "kwargs": {"column": "title", "max_value": 4}}
    with pytest.raises(DataError, match=r"mine.json on corpus, entry 1 .*2 of 3 rows, the first is p1 with 'Warsaw'"):
        prepare(checked(tmp_path, short, table="corpus"), tmp_path / "home")


RUN = "id` == @pd.io.common.os.system('touch {mark}') or `id"
WRITTEN = "id.to_csv('{mark}') == None"
PASSED = {"type": "pass_through", "pass_through_filter": WRITTEN}
PAIRS = [["type", "pass_through"], ["pass_through_filter", WRITTEN]]


@pytest.mark.parametrize(
    "condition",
    [
        {"type": "nullity", "column": [["name", RUN]], "is_null": True},
        {"type": "nullity", "column": {"name": RUN}, "is_null": True},
        [["type", "nullity"], ["column", [["name", RUN]]], ["is_null", True]],
        PAIRS,
        PASSED,
        WRITTEN,
        {"type": "and", "conditions": [PAIRS]},
        {"type": "or", "conditions": [PASSED, {"type": "and", "conditions": [PAIRS]}]},
        {"type": "comparison", "column": {"name": "split"}, "operator": "==", "parameter": "train"},
        [],
        "",
        False,
    ],
)
def test_no_condition_runs_whatever_its_shape_and_place(tmp_path: Path, condition: Any) -> None:
    """pydantic takes a list of pairs for an object. The first and PAIRS ran as code once. A column's name is no place either."""
    mark = tmp_path / "ran"
    condition = json.loads(json.dumps(condition).replace("{mark}", str(mark)))
    kwargs = {"column": "question", "regex": "x"}
    entries: list[tuple[Any, str]] = [
        ({**NAMES, "kwargs": {**kwargs, "row_condition": condition}}, "has a row_condition, which"),
        ({**NAMES, "kwargs": kwargs, "row_condition": condition}, "has a row_condition, which"),
        ({**NAMES, "kwargs": {**kwargs, "condition_parser": condition}}, "has a condition_parser, which"),
        ({**NAMES, "kwargs": {"column": "question", "regex": {"row_condition": condition}}}, "it has to be a text"),
        ({**NAMES, "kwargs": [["row_condition", condition], *map(list, kwargs.items())]}, "`kwargs` is no object"),
        ({**NAMES, "kwargs": {**kwargs, "rowCondition": condition}}, "has an argument 'rowCondition'"),
        ({**NAMES, "kwargs": {"regex": "x", "column": condition}}, "`column`"),
        ([["type", NAMES["type"]], ["kwargs", {**kwargs, "row_condition": condition}]], "names no `type`"),
    ]
    for entry, told in entries:
        config = checked(tmp_path, {**entry, "severity": "info"} if isinstance(entry, dict) else entry)
        (tmp_path / "q.jsonl").unlink()
        with pytest.raises(DataError) as refused:
            prepare(config, tmp_path / "home")
        assert str(refused.value).startswith(f"{tmp_path / 'mine.json'}, entry 1") and told in str(refused.value)
        assert not mark.exists()


def test_what_is_built_with_a_condition_or_another_column_is_refused_whatever_the_entry_was() -> None:
    from great_expectations.expectations.core import ExpectColumnValuesToBeNull, ExpectCompoundColumnsToBeUnique

    for built in (
        ExpectColumnValuesToBeNull(column="id", row_condition="1"),
        ExpectColumnValuesToBeNull(column="id` or `id"),
        ExpectCompoundColumnsToBeUnique(column_list=["id", "text"]),
    ):
        with pytest.raises(DataError, match=r"^here ?(has a row_condition|: `column(_list)?` names what is no column)"):
            _require_harmless(built, QUESTION_SCHEMA, "here")
    _require_harmless(ExpectColumnValuesToBeNull(column="id"), QUESTION_SCHEMA, "here")


def test_every_type_that_is_taken_has_these_arguments_alone_and_prints_them_itself() -> None:
    """None has an argument that is SQL, a query, a schema that is fetched, or an object."""
    from great_expectations.expectations.expectation import Expectation
    from great_expectations.expectations.registry import get_expectation_impl

    for kind, arguments in EXPECTATIONS.items():
        found = get_expectation_impl(kind)
        assert set(arguments) <= set(found.__fields__), kind
        assert found._prescriptive_renderer.__func__ is not Expectation._prescriptive_renderer.__func__, kind
        assert not [name for name, (_, fits) in arguments.items() if fits({}) or fits([["a", "b"]])], kind
        assert not {"row_condition", "condition_parser", "json_schema", "unexpected_rows_query"} & set(arguments)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"type": "expect_nothing", "kwargs": {}}, "(expect_nothing) is none of those that are taken, which are expect_"),
        ({**NAMES, "kwargs": {"column": "text", "regex": "x"}}, "no column 'text' in questions, which has id, source"),
        ({**NAMES, "kwargs": {"regex": "x"}}, "column field required"),
        ({**NAMES, "kwargs": {"column": "question", "regexp": "x"}}, "'regexp'; its arguments are column, mostly, regex"),
        ({**NAMES, "severity": "fatal"}, "severity is 'fatal'; it is one of critical, warning, info"),
        ({"expectation_type": NAMES["type"], "kwargs": {}}, "names no `type`"),
        ({**NAMES, "kwargs": [1]}, "`kwargs` is no object"),
        ({**FEW, "kwargs": {"min_value": {"$PARAMETER": "n"}}}, "has a parameter ($PARAMETER)"),
        ({"type": "expect_table_column_count_to_equal", "kwargs": {"value": 3}}, "the columns of questions are always"),
        ({"type": "expect_column_to_exist", "kwargs": {"column": "id", "column_index": 0}}, "the columns of questions are"),
        ({**NAMES, "kwargs": {"column": ["question"], "regex": "x"}}, "`column` is '['question']': it has to be the name"),
        ({**UNIQUE, "kwargs": {"column_list": [["question"], "id"]}}, "`column_list`: there is no column '['question']'"),
        ({**UNIQUE, "kwargs": {"column_list": [["column", "id"]]}}, "there is no column '['column', 'id']' in questions"),
        ({**NAMES, "kwargs": {"column": "question", "regex": "x" * 2001}}, "it has to be a text of at most 2000"),
        ({**NAMES, "kwargs": {"column": "question", "regex": [["$PARAMETER", "x"]]}}, "it has to be a text of at most"),
        ({**FEW, "kwargs": {"min_value": 10**400}}, "it has to be a whole number"),
        ({**NAMES, "description": ["b"]}, "`description` is not a text"),
        ({**NAMES, "description": 0}, "`description` is not a text"),
        ({**NAMES, "description": "\udc80"}, "`description` is not a text"),
        ({**NAMES, "severity": 0}, "severity is '0'; it is one of critical, warning, info"),
        ({"type": "expect_column_values_to_match_strftime_format", "kwargs": {"column": "id", "strftime_format": "%d %d"}},
         "is no expectation of Great Expectations: redefinition of group name"),
        ({"type": "unexpected_rows_expectation", "kwargs": {"unexpected_rows_query": "x"}}, "is none of those that are"),
        ({"type": "\x1b[31m", "kwargs": {}}, "(\\x1b[31m) is none of those"),
    ],
)  # fmt: skip
def test_a_suite_that_is_none_is_refused_before_anything_is_read(tmp_path: Path, entry: Any, told: str) -> None:
    config = checked(tmp_path, {**FEW, "severity": "info"}, entry, rows=["no question file at all"])
    (tmp_path / "q.jsonl").unlink()
    with pytest.raises(DataError) as refused:
        prepare(config, tmp_path / "home")
    assert told in str(refused.value) and str(refused.value).startswith(f"{tmp_path / 'mine.json'}, entry 2")


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"name": "x"}',
        '{"expectations": []}',
        '{"expectations": {}}',
        "\xff",
        "[" * 900 + "]" * 900,
        "[" * 10**5,
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    config = checked(tmp_path, FEW)
    (tmp_path / "mine.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.expectations\.questions: .*mine\.json .*great_expectations 1\.x"):
        prepare(config, tmp_path / "home")
    (tmp_path / "mine.json").unlink()
    with pytest.raises(DataError, match=r"mine\.json cannot be read"):
        prepare(config, tmp_path / "home")


def test_an_entry_that_pandas_cannot_answer_is_named(tmp_path: Path) -> None:
    other = {"type": "expect_column_values_to_be_between", "kwargs": {"column": "question", "min_value": 3}}
    with pytest.raises(
        DataError, match=r"mine\.json, entry 1 \(.*between of question\) cannot be evaluated on questions"
    ):
        prepare(checked(tmp_path, other), tmp_path / "home")


def test_what_great_expectations_itself_writes_is_read_and_is_no_markup(tmp_path: Path) -> None:
    import great_expectations as gx

    bad = "<script>alert(1)</script>$x"
    texts: dict[str, Any] = {"severity": "info", "notes": bad, "description": bad, "meta": {"notes": bad}}
    expectations = gx.expectations
    own = gx.ExpectationSuite(
        name=f"../{bad}",
        expectations=[
            expectations.ExpectColumnMostCommonValueToBeInSet(column="question", value_set=[bad], **texts),
            expectations.ExpectColumnPairValuesToBeEqual(column_A="id", column_B="question", severity="info"),
            expectations.ExpectColumnValuesToMatchRegex(column="question", regex=bad, severity="info"),
        ],
        notes=bad,
    )
    config = checked(tmp_path, FEW, rows=[*GOOD, row("odd", "train", question=f"Who is {bad}?")])
    (tmp_path / "mine.json").write_text(json.dumps(own.to_json_dict()))
    published = prepare(config, tmp_path / "home")
    shown = shown_in(published)
    assert "Who is &lt;script&gt;alert(1)&lt;/script&gt;&#36;x?" in shown and "<script>alert" not in shown
    assert len(unmet(published)) == 3 and unmet(published)[1]["told"].endswith("4 of 4 rows, the first is g1 with 'g1'")


MARK = "<u id=zz>$zz"
MARKDOWN = f"{MARK} [x](https://evil.example/a) **b**"
BY_SHAPE = {
    "regex": MARK, "strftime_format": f"%Y{MARK}", "regex_list": [MARK], "value_set": [MARK], "value": 1, "min_value": 0,
    "max_value": 1, "column_list": ["question", "answers"], "column_A": "question", "column_B": "answers", "mostly": 0.9,
    "match_on": "any", "strict_min": True, "strict_max": True, "strictly": True, "or_equal": True, "ties_okay": True,
}  # fmt: skip
OF_NUMBERS = ("_max_", "_min_", "_mean_", "_median_", "_stdev_", "_sum_", "values_to_be_between", "creasing")


def test_no_text_of_any_type_that_is_taken_is_markup(tmp_path: Path) -> None:
    """Great Expectations prints arguments of a type without a renderer of its own as they are."""
    texts = {"severity": "info", "notes": MARKDOWN, "description": MARKDOWN, "meta": {"notes": MARKDOWN}}
    entries = []
    for kind, arguments in EXPECTATIONS.items():
        column = "hops" if any(part in kind for part in OF_NUMBERS) else "question"
        kwargs = {name: BY_SHAPE.get(name, column) for name in arguments if name != "ignore_row_if"}
        entries.append(
            {"type": kind, "kwargs": kwargs, "severity": "info"}
        )  # its own renderer speaks: it has no description
        entries.append({"type": kind, "kwargs": {**kwargs, "mostly": 0.8} if "mostly" in kwargs else kwargs, **texts})
    rows = [
        *GOOD,
        *(row(name, "train", question=f"{name} {MARK}?", answers=[MARK, name], hops=2) for name in ("a", "b")),
    ]
    path = suite(
        tmp_path, *entries, {"type": NAMES["type"], "kwargs": {"column": "question", "regex": MARK}, "severity": "info"}
    )
    path.write_text(path.read_text().replace('"name": "mine"', f'"name": "{MARK}", "notes": "{MARK}"', 1))
    published = prepare(files(tmp_path, rows, PASSAGES, expectations=Suites(questions=path)), tmp_path / "home")
    assert published.checked is not None
    for page in (published.checked / SUITE_DOCS).rglob("*.html"):
        text = page.read_text()
        assert "<u id" not in text and 'href="https://evil' not in text and "<strong>b</strong>" not in text, page
    shown = shown_in(published)
    assert shown.count("&lt;u id=zz&gt;") > 2 * len(EXPECTATIONS)


@pytest.mark.parametrize("name", ["\ud800", "", "x" * 201, {"a": "b"}])
def test_a_suites_name_is_a_short_text(tmp_path: Path, name: Any) -> None:
    path = suite(tmp_path, FEW)
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": name}))
    config = files(tmp_path, GOOD, PASSAGES, expectations=Suites(questions=path))
    with pytest.raises(DataError, match=r"mine.json: its `name` is no text of 1 to 200 characters"):
        prepare(config, tmp_path / "home")
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_what_great_expectations_says_of_an_entry_is_no_control_sequence(tmp_path: Path) -> None:
    bad = {"type": NAMES["type"], "kwargs": {"column": "question", "regex": "(?\x1b[31m"}}
    with pytest.raises(DataError, match=r"cannot be evaluated on questions: .*\\x1b") as refused:
        prepare(checked(tmp_path, bad), tmp_path / "home")
    assert str(refused.value).isprintable()
