"""Users' own Great Expectations suites: what stops, warns or is shown, what is refused before work, what they leave alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import QuestionFiles
from igpo_core.config.data import Suites
from igpo_core.data import QUESTION_SCHEMA
from igpo_core.errors import DataError
from tasks.data.entries import EXPECTATIONS, _require_harmless
from tasks.data.publishing import prepare, summary_rows
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
    return "\n".join(page.read_text() for page in (folder / "data_docs").rglob("*.html"))


def test_a_suite_that_is_met_stands_in_data_docs_and_changes_no_version(tmp_path: Path) -> None:
    """Rows, and so the version that runs are of, are what they are without a suite; another suite validates anew."""
    home = tmp_path / "home"
    plain = prepare(files(tmp_path, GOOD, PASSAGES), home)
    assert "expect" not in (plain.folder / "summary.json").read_text()
    bits = {path.name: path.read_bytes() for path in plain.folder.glob("*.parquet")}
    config = checked(tmp_path, NAMES)
    published = prepare(config, home)
    assert (published.version, published.reused, published.warnings) == (plain.version, False, [])
    assert {path.name: path.read_bytes() for path in published.folder.glob("*.parquet")} == bits
    assert "questions own" in pages(published.folder) and r"^Question \w+\?$" in pages(published.folder)
    rows = {line["what"]: line["rows"] for line in summary_rows(published)}
    assert (rows["mine.json on questions, entries"], rows["mine.json on questions, not met"]) == (1, 0)
    assert prepare(config, home).reused
    again = prepare(checked(tmp_path, NAMES, {**FEW, "severity": "info"}), home)
    assert (again.version, again.reused) == (plain.version, False)


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
    unmet = json.loads((published.folder / "summary.json").read_text())["expectations"]["questions"]["unmet"]
    assert [one["severity"] for one in unmet] == ["info", "warning"]


def test_a_suite_sees_lists_as_json_and_rows_that_could_not_be_read_as_null(tmp_path: Path) -> None:
    rows = [*GOOD, row("lost", "train", question=None)]
    config = checked(
        tmp_path,
        {"type": "expect_column_values_to_be_in_set", "kwargs": {"column": "answers", "value_set": ['["Ann"]']}},
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "question"}, "severity": "info"},
        rows=rows,
    )
    published = prepare(config, tmp_path / "home")
    unmet = json.loads((published.folder / "summary.json").read_text())["expectations"]["questions"]["unmet"]
    assert [one["told"].split(":")[0] for one in unmet] == [
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
        ({**NAMES, "notes": [{"a": "b"}]}, "`notes` is not a text"),
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
    shown = pages(published.folder)
    assert "Who is &lt;script&gt;alert(1)&lt;/script&gt;&#36;x?" in shown and "<script>alert" not in shown
    unmet = json.loads((published.folder / "summary.json").read_text())["expectations"]["questions"]["unmet"]
    assert len(unmet) == 3 and unmet[1]["told"].endswith("4 of 4 rows, the first is g1 with 'g1'")
