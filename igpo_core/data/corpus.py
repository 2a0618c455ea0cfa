"""Passage files to the one schema: tables of passages, and the paragraphs inside the official question files."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas

from igpo_core.data.reading import RawTable, Row, read_table
from igpo_core.data.schema import CORPUS_SCHEMA, table

# What the benchmark's corpus carries besides the schema: known, and not needed.
KNOWN_EXTRAS = {"source", "sources"}


def load_corpus(path: str | Path) -> pandas.DataFrame:
    """Passages of a file as a frame with CORPUS_SCHEMA and `defect`, in file order.

    Formats: plain parquet, JSON or CSV with passage_id, title, text; and HotpotQA, 2WikiMultihopQA and MuSiQue files,
    whose paragraphs become passages: equal ones once, the id a hash of title and text, sentences joined by one space.
    Raises DataError: unreadable or empty file, missing or unknown column.
    """
    raw = read_table(path)
    if {"_id", "context"} <= raw.columns:
        return _distinct(raw, "context")
    if "paragraphs" in raw.columns:
        return _distinct(raw, "paragraphs")
    known = "a passage table"
    raw.require(CORPUS_SCHEMA, f"{known} (no HotpotQA, 2WikiMultihopQA or MuSiQue file either)")
    raw.refuse_unknown({*CORPUS_SCHEMA, *KNOWN_EXTRAS}, known)
    rows = []
    for index in range(len(raw.rows)):
        row = Row.of(raw, index)
        passage = {"passage_id": row.identifier("passage_id"), "title": row.text("title"), "text": row.text("text")}
        rows.append({**passage, "defect": row.defect})
    return table(rows, CORPUS_SCHEMA)


def _distinct(raw: RawTable, column: str) -> pandas.DataFrame:
    passages: dict[str, dict[str, Any]] = {}
    for index in range(len(raw.rows)):
        for passage in _paragraphs(raw, index, column):
            passages.setdefault(passage["passage_id"], passage)
    return table(list(passages.values()), CORPUS_SCHEMA)


def _paragraphs(raw: RawTable, index: int, column: str) -> Iterator[dict[str, Any]]:
    """Passages of one question's row; what is wrong with the row as a whole becomes one defective passage."""
    whole = Row.of(raw, index)
    items = whole.get(column, required=True)
    if items is not None and not isinstance(items, list):
        whole.bad(column, f"is {type(items).__name__}, not a list")
    if whole.defect is not None:
        yield {"passage_id": whole.name, "title": "", "text": "", "defect": whole.defect}
        return
    for place, item in enumerate(items):
        row = Row({}, f"{whole.name} {column}[{place}]")
        title, text = _title_and_text(row, item)
        hashed = hashlib.sha256(f"{title}\0{text}".encode()).hexdigest()[:12]
        yield {
            "passage_id": f"p-{hashed}" if row.defect is None else row.name,
            "title": title,
            "text": text,
            "defect": row.defect,
        }


def _title_and_text(row: Row, item: Any) -> tuple[str, str]:
    """[title, [sentence, ...]] of HotpotQA and 2WikiMultihopQA, {title, paragraph_text} of MuSiQue."""
    match item:
        case [title, [*sentences]]:
            parts = [row.checked(f"sentence {place}", sentence) for place, sentence in enumerate(sentences)]
            return row.checked("title", title), " ".join(part for part in parts if part)
        case {"title": title, "paragraph_text": text}:
            return row.checked("title", title), row.checked("paragraph_text", text)
    row.bad("paragraph", "is neither [title, [sentences]] nor {title, paragraph_text}")
    return "", ""
