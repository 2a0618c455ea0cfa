"""The one schema of question and passage tables, their content hash, and the way from a table to Question objects."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas

from igpo_core.errors import DataError
from igpo_core.text import CLUSTER, MARKS, UNSPACED, composed, one_form
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
# Expert trajectories (igpo_core/data/trajectories.py). turns: a JSON list of {thought, tool, arguments, observation} or
# {thought, answer}.
TRAJECTORY_SCHEMA: Mapping[str, Kind] = {"id": "text", "question": "text", "answer": "text", "turns": "text"}

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
    """Twelve hex digits of a question, passage or trajectory table's content: its version.

    Every schema column that the frame has counts, and so does the order of rows (it decides the order of training).
    The file, its format, the index, other columns and `defect` do not.
    """
    schema = TRAJECTORY_SCHEMA if "turns" in frame else QUESTION_SCHEMA if "question" in frame else CORPUS_SCHEMA
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
    """Return text to look for names in: its words in lower case, with single spaces between them.

    A sign that tells names apart stays with its word: "c++", "c#", "5%", "-40", "3.5". Other symbols and emoji are words of their
    own, punctuation and what only decorates (quotation marks, asterisks, arrows) is left out. In scripts without spaces each
    character is a word, so that a name is found within a sentence. Whether two texts are one is asked of identity_key.
    """
    return " ".join(_NAME_PARTS.findall(_folded(text)))


def identity_key(text: str) -> str:
    """Return a key that two texts share only if they are one text: "Who built it?" and "who built  it", not "C" and "C++".

    Folded are case, white space, full-width letters, quotation marks, hyphens between letters, and punctuation of sentences at
    the border of a word. Kept are symbols, signs of numbers, vowel signs, emoji, punctuation inside a word or a number, brackets
    around nothing, and punctuation by itself ("What is ! in C?").
    """
    pieces = _BETWEEN_LETTERS.sub(" ", _folded(text).translate(_QUOTES)).split()
    bare = [_bare(piece) for piece in pieces]
    if bare and not bare[-1]:  # "Qui ?"
        bare.pop()
    return " ".join(key or piece for key, piece in zip(bare, pieces, strict=False))


_BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_])[-\u2010\u2011](?=[^\W\d_])")
_QUOTES = dict.fromkeys(
    map(ord, "`\u00b4\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f"), '"'
) | dict.fromkeys(map(ord, "\u2018\u2019\u201a\u201b"), "'")
_STOPS = ".,:;!?\u2026\u00bf\u00a1\u061f\u060c\u061b\u06d4\u0964\u0965\u1362\u104a\u104b\u17d4\u3002\u3001\uff61\uff64"
_BEFORE = re.compile(r"^[\"'(\[{\u00bf\u00a1]+(?=\w)")
_BEHIND = re.compile(rf"(?<=[\w{MARKS}])[\"')\]}}{_STOPS}]+$")
_BEHIND_SHORT = re.compile(rf"(?<=[\w{MARKS}])[{_STOPS.replace('!', '')}]+$")
_LETTER_SEEN = re.compile(r"[^\W\d]")
_OF_WORD = re.compile(rf"[\w{MARKS}]")
_LIKE_A_CALL = re.compile(r"[(\[{][)\]}]")  # f(), a[]


def _bare(piece: str) -> str:
    """A piece between spaces without the punctuation of sentences at its borders; "" where it has nothing else.

    Behind a number or a single letter "!", quotation marks and brackets are kept: 5!, 5", (2+3)*4, x'.
    """
    if all(char in _PUNCTUATION for char in piece):
        return ""
    piece = _BEFORE.sub("", piece)
    if _LIKE_A_CALL.search(piece):
        return piece
    longer = _LETTER_SEEN.search(piece) and len(_OF_WORD.findall(piece)) > 1
    return (_BEHIND if longer else _BEHIND_SHORT).sub("", piece)


_PUNCTUATION = frozenset("\"'" + _STOPS)


def _folded(text: str) -> str:
    """One form, ordinary width, lower case. Not casefold, to which "Ma\u00dfe" and "Masse" are one."""
    text = one_form(text)
    return text.lower() if text.isascii() else composed("".join(map(_narrow, text)).lower())


def _narrow(char: str) -> str:
    """The ordinary character of a full-width or half-width one."""
    kind, _, code = unicodedata.decomposition(char).partition(" ")
    return chr(int(code, 16)) if kind in ("<wide>", "<narrow>") else char


# Symbols that decorate: markup, arrows, boxes and bullets. Others are symbols of categories Sc, Sk, Sm and So.
_DECORATION = frozenset("<>=|^~`\u00b4\u00a8") | {
    chr(code) for code in (*range(0x2190, 0x2200), *range(0x2500, 0x2600))
}
_SYMBOLS = "".join(
    re.escape(char)
    for char in map(chr, range(0x21, 0x1FB00))
    if unicodedata.category(char)[0] == "S" and char not in _DECORATION
)
_LETTER = f"(?:[^\\W_{UNSPACED}]|[{MARKS}\u200c\u200d])"
_NAME_PARTS = re.compile(
    f"(?:(?<![\\w{MARKS}])[-\u2212](?=\\d))?(?:\\d+(?:[.,:/]\\d+)+|{_LETTER}+)(?:[+#%]+(?!{_LETTER}))?|{CLUSTER}"
    f"|[{_SYMBOLS}][{_SYMBOLS}{MARKS}\u200d\ufe0f\U000e0020-\U000e007f]*"
)
