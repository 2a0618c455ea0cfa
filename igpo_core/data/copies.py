"""Rows of popular copies of data sets, as the official files have them."""

import json
from collections.abc import Sequence
from typing import Any

# Columns in which popular copies hold JSON as text, where the official files have lists and objects.
_JSON_COLUMNS = (
    "context",
    "supporting_facts",
    "evidences",
    "paragraphs",
    "prompt",
    "reward_model",
    "extra_info",
    "messages",
)


def as_official(row: Any) -> Any:
    """A row of the hub's copies as the official files have it.

    JSON text in a column of lists or objects is read. Lists of [title, x] that became a column of titles and one of x, or objects
    with these two fields, are turned back, and so are paragraphs that became columns. Text that is no JSON and lists of different
    lengths stay as they are, and are a defect.
    """
    if isinstance(row, dict) and any(isinstance(row.get(name), str) for name in _JSON_COLUMNS):
        row = {name: _from_json(value) if name in _JSON_COLUMNS else value for name, value in row.items()}
    if not isinstance(row, dict):
        return row
    if isinstance(row.get("paragraphs"), dict):
        return {**row, "paragraphs": _objects_of(row["paragraphs"])}
    if not {"context", "supporting_facts"} <= row.keys() or not {"id", "_id"} & row.keys():
        return row
    found = row if "_id" in row else {"_id": row["id"], **{name: row[name] for name in row if name != "id"}}
    return {**found, **{name: _pairs_of(row[name], second) for name, second in _SECOND.items()}}


# what the second of a pair is called in copies, beside its title
_SECOND = {"context": ("sentences", "content"), "supporting_facts": ("sent_id",)}


def _objects_of(columns: dict[str, Any]) -> Any:
    """Objects whose fields became columns; columns of different lengths as they are."""
    lengths = {len(values) if isinstance(values, list) else -1 for values in columns.values()}
    if len(lengths) != 1 or -1 in lengths:
        return columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _pairs_of(value: Any, second: Sequence[str]) -> Any:
    """[title, x] of each object {title, x}, which may have become columns; anything else as it is."""
    objects = _objects_of(value) if isinstance(value, dict) else value
    name = next((name for name in second if name in (value if isinstance(value, dict) else _first(objects))), None)
    if name is None or not isinstance(objects, list):
        return value
    return [[item["title"], item[name]] if isinstance(item, dict) and {"title", name} <= item.keys() else item
            for item in objects]  # fmt: skip


def _first(items: Any) -> dict[str, Any]:
    return items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}


def _from_json(value: Any) -> Any:
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
