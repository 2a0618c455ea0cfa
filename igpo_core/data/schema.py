"""The one schema of question and passage tables, their content hash, and the way from a table to Question objects."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas

from igpo_core.errors import DataError
from igpo_core.text import one_form
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
    """Return text to look for names in: compatibility forms and case folded, all but letters, marks and digits to single spaces.

    It folds symbols, so that a name is found beside any of them. Whether two texts are one is asked of identity_key.
    """
    folded = unicodedata.normalize("NFKC", one_form(text)).casefold()
    return " ".join("".join(char if _in_word(char) else " " for char in folded).split())


def identity_key(text: str) -> str:
    """Return a key that two texts share only if they are one text: "Who built it?" and "who built  it", not "C" and "C++".

    Case, white space, full-width letters, quotation marks and the punctuation of sentences are folded. Symbols, signs of numbers,
    vowel signs, emoji and punctuation inside a number or before a name (".NET") are kept.
    """
    text = "".join(_narrow(char) for char in one_form(text)).casefold()
    text = _BETWEEN_LETTERS.sub(" ", unicodedata.normalize("NFC", text))
    return " ".join(_OF_SENTENCES.sub(" ", text).split())


_OF_SENTENCES = re.compile(
    r"""["'`´“”„‟‘’‚‛«»‹›…;!?¿¡؟。、！？，；：「」『』()\[\]{}_।]|[—–](?!\d)|[,:](?!\d)|(?<!\d)[,:]|\.(?!\w)|(?<=[^\W\d])\."""
)
_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[-‐‑](?=[^\W\d_])")


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char)[0] == "M"


def _narrow(char: str) -> str:
    """The ordinary character of a full-width or half-width one."""
    kind, _, code = unicodedata.decomposition(char).partition(" ")
    return chr(int(code, 16)) if kind in ("<wide>", "<narrow>") else char
