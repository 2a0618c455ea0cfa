"""Users' own rules: Great Expectations suites, in files as great_expectations 1.x writes them, one for each table.

A suite runs in the checkpoint of our own rules, on the table as it was read, and judges it as a whole: an entry of severity
`critical`, which is what entries are that name none, stops the data from being published, one of `warning` is warned of, and one
of `info` stands in Data Docs alone. Columns are those of the schema, with lists as JSON text; rows that could not be read are
null in all of them. Nothing of a suite is run as code: tasks/data/entries.py has what is taken.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas

from igpo_core.config import DataConfig, QuestionFiles
from igpo_core.data import CORPUS_SCHEMA, QUESTION_SCHEMA
from igpo_core.data.schema import DEFECT, TRAJECTORY_SCHEMA, Kind
from igpo_core.errors import DataError
from igpo_core.folders import file_hash
from tasks.data.data_docs import escaped, shown
from tasks.data.entries import WRITE_ONE, build, is_text

SCHEMAS: Mapping[str, Mapping[str, Kind]] = {
    "questions": QUESTION_SCHEMA,
    "corpus": CORPUS_SCHEMA,
    "trajectories": TRAJECTORY_SCHEMA,
}
LONGEST_NAME = 200  # characters of a suite's name
LARGEST = 2**22  # bytes of a file; an entry takes some hundred


@dataclass(frozen=True)
class Suite:
    """A user's suite. entries: GX's expectations, in the order of the file; table: what it is of."""

    table: str
    file: Path
    name: str
    entries: tuple[Any, ...]


@dataclass(frozen=True)
class Unmet:
    """An entry that the table does not meet. told: in words, with the first value that fails."""

    severity: str
    told: str


def given_suites(config: DataConfig) -> dict[str, Path]:
    """Return the file of each table that has a suite."""
    if not isinstance(config, QuestionFiles) or config.expectations is None:
        return {}
    return {table: path for table in SCHEMAS if (path := getattr(config.expectations, table)) is not None}


def read_suites(config: DataConfig) -> dict[str, Suite]:
    """Return the suite of each table that has one. Raises DataError, naming file and entry, for a file that is no suite, a column
    that is not in the table, or an expectation that Great Expectations has not."""
    return {table: _read(table, path) for table, path in given_suites(config).items()}


def suites_told(suites: Mapping[str, Suite], unmet: Mapping[str, Sequence[Unmet]]) -> dict[str, dict[str, Any]]:
    """Return what a summary says of suites: by table file name, name, hash, number of entries and what is not met."""
    return {
        table: {
            "file": suite.file.name,
            "name": suite.name,
            "sha256": file_hash(suite.file),
            "entries": len(suite.entries),
            "unmet": [{"severity": one.severity, "told": one.told} for one in unmet.get(table, ())],
        }
        for table, suite in suites.items()
    }


def suite_name(table: str) -> str:
    """Return what the suite of a table is called in the checkpoint and in Data Docs."""
    return f"{table} own"


# ------------------------------------------------------------------------------------------------- reading a file


def _read(table: str, path: Path) -> Suite:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"data.expectations.{table}: {path} is larger than {LARGEST // 2**20} MiB: {WRITE_ONE}")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"data.expectations.{table}: {path} cannot be read ({error.strerror}): name a suite's file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"data.expectations.{table}: {path} is damaged ({error}): {WRITE_ONE}") from error
    entries = content.get("expectations") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"data.expectations.{table}: {path} holds no list `expectations` with an entry: {WRITE_ONE}")
    built = tuple(
        build(entry, table, SCHEMAS[table], f"{path}, entry {number}") for number, entry in enumerate(entries, start=1)
    )
    name = content.get("name", path.stem)
    if not is_text(name) or not 0 < len(name) <= LONGEST_NAME:
        raise DataError(
            f"data.expectations.{table}: {path}: its `name` is no text of 1 to {LONGEST_NAME} characters: {WRITE_ONE}"
        )
    return Suite(table, path, name, built)


# --------------------------------------------------------------------------------------------------- in the checkpoint


def columns_of(table: str, rows: pandas.DataFrame) -> pandas.DataFrame:
    """Return the columns that a suite looks at: the schema's, a list as JSON text, null in rows that could not be read."""
    sound = rows[DEFECT].isna() if DEFECT in rows else pandas.Series(True, index=rows.index)
    found = {}
    for name, kind in SCHEMAS[table].items():
        column = rows[name]
        if kind == "texts":
            column = column.map(lambda values: json.dumps(list(values), ensure_ascii=False))
        found[name] = column.astype("object").where(sound & column.notna(), None)
        if kind == "optional integer":
            found[name] = found[name].astype("Int64")
    return pandas.DataFrame(found)


def unmet_entries(suite: Suite, entries: Sequence[Any], results: Any, identities: Sequence[str]) -> list[Unmet]:
    """Return what a table does not meet, in the order of the file. entries: as the context keeps them; identities: of the rows.

    Raises DataError for an entry that could not be evaluated.
    """
    by_id = {result.expectation_config.id: result for result in results.results}
    found = []
    for number, entry in enumerate(entries, start=1):
        result = by_id[entry.id]
        column = result.expectation_config.kwargs.get("column")
        named = result.expectation_config.type + (f" of {column}" if column else "")
        raised = _raised(result.exception_info)
        if raised is not None:
            raise DataError(f"{suite.file}, entry {number} ({named}) cannot be evaluated on {suite.table}: {raised}")
        if not result.success:
            severity = str(getattr(entry.severity, "value", entry.severity))
            found.append(Unmet(severity, f"entry {number} ({named}, {severity}): {_why(result.result, identities)}"))
    return found


def _raised(info: Mapping[str, Any]) -> str | None:
    """What an evaluation died of: GX has it plain, or by metric."""
    for part in (info, *(value for value in info.values() if isinstance(value, dict))):
        if part.get("raised_exception"):
            return shown(" ".join(str(part.get("exception_message")).split()))
    return None


def _why(result: Mapping[str, Any], identities: Sequence[str]) -> str:
    failing = result.get("unexpected_index_list") or ()
    if not failing:
        listed = {"values": "partial_unexpected_list", "missing": "partial_missing_list"}
        seen = {name: result[key] for name, key in listed.items() if result.get(key)}
        return ", ".join(
            f"{name} {shown(value)}" for name, value in (seen or {"observed": result.get("observed_value")}).items()
        )
    first = min(failing, key=lambda item: int(item["row"]))
    value = next((shown(value) for name, value in first.items() if name != "row"), "")
    return f"{len(failing)} of {len(identities)} rows, the first is {shown(identities[int(first['row'])])}" + (
        f" with {value!r}" if value else ""
    )


def keep_escaped(context: Any, suite: Any) -> None:
    """Put escaped copies of what was found with a suite in its place in the context, which Data Docs are made of: the suite was
    judged on the columns as they are. Descriptions too; arguments are escaped by Great Expectations itself, and notes and meta,
    which it takes for Markdown, are not read."""
    store = context.validation_results_store
    for key in store.list_keys():
        if key.expectation_suite_identifier.name == suite.name:
            found = store.get(key)
            for one in found.results:
                one.result = escaped(one.result)
                one.expectation_config.description = escaped(one.expectation_config.description)
            store.set(key, found)
    for entry in suite.expectations:
        entry.description = escaped(entry.description)
    context.suites.add_or_update(suite)


def forget(context: Any, names: Sequence[str]) -> None:
    """Take users' own suites, and what was found with them, out of the context: Data Docs made now are of our rules alone."""
    store = context.validation_results_store
    for key in store.list_keys():
        if key.expectation_suite_identifier.name in names:
            store.remove_key(key)
    for name in names:
        context.validation_definitions.delete(name)
        context.suites.delete(name)
