"""The one schema of question and passage tables, their content hash, and the way from a table to Question objects."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas

from igpo_core.errors import DataError
from igpo_core.trajectory import Question

Kind = Literal["text", "optional text", "texts", "optional integer", "flag"]

SPLITS = ("train", "dev", "test")

# Column -> kind. "text": str; "optional text": str or missing (isna); "texts": list[str]; "optional integer": Int64
# with NA; "flag": bool.
QUESTION_SCHEMA: Mapping[str, Kind] = {
    "id": "text",
    "source": "text",  # igpo_core.config.Source, or the kind of a synthetic world
    "split": "optional text",  # train, dev or test
    "question": "text",
    "answers": "texts",  # the main answer first, then its aliases
    "supporting_titles": "texts",  # titles of the passages that the answer needs; empty: not known
    "hops": "optional integer",
    "facts": "optional text",  # synthetic worlds: a JSON object, query -> observation
    "distractors": "texts",  # synthetic worlds: facts off the chain
    "answerable": "flag",  # False: the table says that its corpus cannot answer it
}
CORPUS_SCHEMA: Mapping[str, Kind] = {"passage_id": "text", "title": "text", "text": "text"}

# Only in loaded frames, not in published tables: why the row cannot be used, or missing when it can.
DEFECT = "defect"


def table(rows: Sequence[Mapping[str, Any]], schema: Mapping[str, Kind]) -> pandas.DataFrame:
    """A frame with the schema's columns and `defect`, one row for each of `rows`, which hold all of these keys."""
    columns = {**schema, DEFECT: "optional text"}
    return pandas.DataFrame(
        {name: pandas.Series([row[name] for row in rows], dtype=_DTYPES[kind]) for name, kind in columns.items()}
    )


_DTYPES = {"text": "str", "optional text": "str", "texts": "object", "optional integer": "Int64", "flag": "bool"}


def content_hash(frame: pandas.DataFrame) -> str:
    """Twelve hex digits of a question or passage table's content: its version.

    Every schema column that the frame has counts, and so does the order of rows (it decides the order of training).
    The file, its format, the index, other columns and `defect` do not.
    """
    schema = QUESTION_SCHEMA if "question" in frame else CORPUS_SCHEMA
    names = [name for name in schema if name in frame]
    digest = hashlib.sha256(json.dumps(names).encode())
    for values in zip(*(_plain(frame[name], schema[name]) for name in names), strict=True):
        digest.update(b"\n" + json.dumps(values, ensure_ascii=False).encode())
    return digest.hexdigest()[:12]


def _plain(column: "pandas.Series[Any]", kind: Kind) -> list[Any]:
    """JSON values of a column: lists whatever sequence holds them, None for every kind of missing value."""
    values, missing = (column.astype(object).tolist(), column.isna().tolist())  # a Series is ten times slower to walk
    if kind == "texts":
        return [list(value) for value in values]
    if kind == "flag":
        return [bool(value) for value in values]
    if kind == "optional integer":
        return [None if gone else int(value) for value, gone in zip(values, missing, strict=True)]
    return [None if gone else value for value, gone in zip(values, missing, strict=True)]


def to_questions(frame: pandas.DataFrame) -> list[Question]:
    """One Question a row, in table order. Raises DataError for a row without a split: such a table is not published."""
    columns = {name: _plain(frame[name], kind) for name, kind in QUESTION_SCHEMA.items()}
    if None in columns["split"]:
        identity = columns["id"][columns["split"].index(None)]
        raise DataError(f"question {identity!r} has no split: give one to load_questions(path, split=...)")
    return [
        Question(
            id=row["id"],
            source=row["source"],
            split=row["split"],
            text=row["question"],
            answers=tuple(row["answers"]),
            hops=row["hops"],
            supporting_titles=tuple(row["supporting_titles"]),
            facts=None if row["facts"] is None else json.loads(row["facts"]),
            distractors=tuple(row["distractors"]),
        )
        for row in (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    ]


def normalised(text: str) -> str:
    """Text for comparison: compatibility forms and case folded, punctuation and white space to single spaces."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
