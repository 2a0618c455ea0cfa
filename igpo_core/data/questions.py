"""Question files of every format to the one schema. Each format is a function from a row to that row in our terms."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas

from igpo_core.data.reading import RawTable, Row, present, read_table, unique, whole
from igpo_core.data.schema import QUESTION_SCHEMA, table
from igpo_core.errors import DataError

# Names of sources in the files of others.
SOURCE_NAMES = {
    "2wiki": "2wikimultihopqa",
    "tq": "triviaqa",
    "hotpot_qa": "hotpotqa",
    "hotpotqa/hotpot_qa": "hotpotqa",
    "Bamboogle": "bamboogle",
    "hotpotqa_or_2wikimultihopqa": "custom",  # a mixture whose rows do not say which
}
OF_SEARCH_R1 = "searchR1_"  # stands before a source's name in verl's copy of Search-R1's tables
TWO_WIKI_TYPES = {"bridge_comparison", "compositional", "inference"}  # which HotpotQA has not: bridge and comparison
ANSWER_SEPARATOR = "<|answer_split|>"
ID_ALIASES = "id_aliases.json"  # 2WikiMultihopQA's other names of entities, beside its question files
MAX_HOPS = 1000
LIST_AS_TEXT = re.compile(r"""\s*\[\s*["'\]]""")  # and not the film [REC], which an answer may be
FOREIGN_MARKS = ("<think>", "<answer>")  # of a prompt that says how to think and answer

# What the benchmark's tables carry besides the schema: known, and not needed.
KNOWN_EXTRAS = {
    "type", "level", "supporting_passage_ids", "context_passage_ids", "titles_in_corpus", "answer_in_support", "yesno",
    "official_split", "in_igpo_test", "in_igpo_dev", "in_questions", "supporting_method", "origin",
}  # fmt: skip


def load_questions(path: str | Path, *, split: str | None = None) -> pandas.DataFrame:
    """Questions of a file as a frame with QUESTION_SCHEMA and `defect`, in file order.

    split: for rows that name none. In the authors' files extra_info.split is the official split a row was drawn from
    ("dev" throughout their test file), not the file's role: there a given split takes precedence.
    Formats: the authors' parquet; HotpotQA and 2WikiMultihopQA JSON; MuSiQue JSON Lines; plain parquet, JSON or CSV
    with id, question, answers and optionally the other columns of QUESTION_SCHEMA (`source` is "custom" when absent,
    answers are read as in Row.texts). A 2WikiMultihopQA file whose rows have answer_id gets the names that ID_ALIASES beside it
    has for them. Raises DataError: unreadable or empty file, missing or unknown column.
    """
    raw = read_table(path)
    convert = _format(raw)
    names = _id_aliases(raw) if convert is _two_wiki else {}
    rows = []
    for index in range(len(raw.rows)):
        row = Row.of(raw, index)
        rows.append({**_EMPTY, **convert(row, split), "defect": None})
        if names:
            others = names.get(row.text("answer_id", required=False) or "", [])
            rows[-1]["answers"] = list(dict.fromkeys([*rows[-1]["answers"], *others]))
        rows[-1]["defect"] = row.defect
        rows[-1]["id"] = rows[-1]["id"] or row.name
    if convert is _authors:
        for made, identity in zip(rows, unique([made["id"] for made in rows]), strict=True):
            made["id"] = identity
    return table(rows, QUESTION_SCHEMA)


_EMPTY: dict[str, Any] = {
    "id": "", "source": "custom", "split": None, "question": "", "answers": [], "supporting_titles": [], "hops": None,
    "facts": None, "distractors": [], "answerable": True,
}  # fmt: skip

Convert = Callable[[Row, str | None], dict[str, Any]]


def _format(raw: RawTable) -> Convert:
    columns = raw.columns
    if {"data_source", "prompt"} <= columns:
        raw.require(["data_source", "prompt", "reward_model"], "an IGPO question file")
        return _authors
    if {"_id", "context"} <= columns:
        raw.require(
            ["_id", "question", "answer", "supporting_facts", "context"],
            "a HotpotQA or 2WikiMultihopQA file (files without answers cannot be used)",
        )
        types = {row.get("type") for row in raw.rows if isinstance(row, dict) and isinstance(row.get("type"), str)}
        return _two_wiki if "evidences" in columns or types & TWO_WIKI_TYPES else _hotpot
    if "paragraphs" in columns:
        raw.require(["id", "question", "answer", "paragraphs"], "a MuSiQue file (files without answers cannot be used)")
        return _musique
    known = "a plain question table"
    raw.require(["id", "question", "answers"], f"{known} (no IGPO, HotpotQA, 2WikiMultihopQA or MuSiQue file either)")
    raw.refuse_unknown({*QUESTION_SCHEMA, *KNOWN_EXTRAS}, known)
    return _plain


def _plain(row: Row, split: str | None) -> dict[str, Any]:
    source = row.text("source", required=False) or "custom"
    facts = row.text("facts", required=False)
    if facts is not None and not _is_json_object(facts):
        row.bad("facts", "is no JSON object")
    return {
        "id": row.identifier("id"),
        "source": SOURCE_NAMES.get(source, source),
        "split": row.text("split", required=False) or split,
        "question": row.text("question"),
        "answers": row.texts("answers", required=True),
        "supporting_titles": row.texts("supporting_titles"),
        "hops": row.count("hops", MAX_HOPS),
        "facts": facts,
        "distractors": row.texts("distractors"),
        "answerable": row.flag("answerable", True),
    }


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _authors(row: Row, split: str | None) -> dict[str, Any]:
    """{data_source, prompt: [{role, content}], reward_model: {ground_truth}, extra_info: {index, split}}.

    The question is the last user message, or stands by itself in Search-R1's tables (_asked); aliases are joined by
    <|answer_split|>; a numeric index counts in its source.
    """
    source = (row.text("data_source") or "").removeprefix(OF_SEARCH_R1)
    source = SOURCE_NAMES.get(source, source)
    extra = _object(row, "extra_info", required=False)
    question = _asked(row, extra)
    index = whole(present(extra.get("index")))
    if index is not None and (isinstance(index, bool) or not isinstance(index, str | int)):
        row.bad("extra_info.index", f"is {type(index).__name__}, neither text nor a whole number")
        index = None
    named = index if isinstance(index, str) and index.strip() else f"{source}-{row.name if index is None else index}"
    own = present(extra.get("split"))
    return {
        "id": row.checked("extra_info.index", named),
        "source": source,
        "split": split or (None if own is None else row.checked("extra_info.split", own)),
        "question": question,
        "answers": _true_answers(row),
    }


def _asked(row: Row, extra: dict[str, Any]) -> str:
    """The question of a row. Search-R1's prompts tell of another protocol; its tables have the question besides, in a column or
    in extra_info."""
    asked = [
        message["content"]
        for message in _objects(row, "prompt")
        if message.get("role") == "user" and message.get("content") is not None
    ]
    if not asked and row.readable:
        row.bad("prompt", "has no user message")
    for name, value in (("question", row.values.get("question")), ("extra_info.question", extra.get("question"))):
        if present(value) is not None:
            return row.checked(name, value)
    if not asked:
        return ""
    text = row.checked("prompt.content", asked[-1])
    if all(mark in text for mark in FOREIGN_MARKS):
        marks = ", ".join(FOREIGN_MARKS)
        row.bad(
            "prompt.content", f"tells of another protocol ({marks}): give the question alone, or in a column question"
        )
    return text


def _true_answers(row: Row) -> list[str]:
    """The answers of reward_model.ground_truth, which may be JSON text; Search-R1 has {"target": [...]} there."""
    name = "reward_model.ground_truth"
    truth = _object(row, "reward_model").get("ground_truth")
    if isinstance(truth, str) and truth.lstrip().startswith("{") and _is_json_object(truth):
        truth = json.loads(truth)
    if isinstance(truth, dict):
        truth = truth.get("target")
    if isinstance(truth, str) and not LIST_AS_TEXT.match(truth):
        truth = truth.split(ANSWER_SEPARATOR)
    if isinstance(truth, str | list):
        return row.listed(name, truth)
    if row.readable:
        row.checked(name, truth)
    return []


def _hotpot(row: Row, split: str | None) -> dict[str, Any]:
    """{_id, question, answer, supporting_facts: [[title, sentence]], context, type, level}; all have 2 hops."""
    return {**_with_supporting_facts(row, split), "source": "hotpotqa", "hops": 2}


def _two_wiki(row: Row, split: str | None) -> dict[str, Any]:
    """HotpotQA's fields and evidences: [[subject, relation, object]]. bridge_comparison has 4 hops, the others 2."""
    hops = 4 if row.text("type", required=False) == "bridge_comparison" else 2
    return {**_with_supporting_facts(row, split), "source": "2wikimultihopqa", "hops": hops}


def _id_aliases(raw: RawTable) -> dict[str, list[str]]:
    """Return the accepted names of each Wikidata id, from the file that the official evaluation v1.1 reads: a line
    {Q_id, aliases, demonyms} for each id. {} where the questions name no ids, or where the file is not there.

    Raises DataError for a line that is no such object: a name that is left out would lower every score unseen.
    """
    path = raw.path.parent / ID_ALIASES
    if "answer_id" not in raw.columns or not path.is_file():
        return {}
    found = read_table(path)
    found.require(["Q_id", "aliases", "demonyms"], "2WikiMultihopQA's table of names")
    names: dict[str, list[str]] = {}
    for index in range(len(found.rows)):
        row = Row.of(found, index)
        names[row.identifier("Q_id")] = [*row.texts("aliases", required=True), *row.texts("demonyms", required=True)]
        if row.defect:
            raise DataError(f"{path}: {row.defect}: repair the line or fetch the file again")
    return names


def _with_supporting_facts(row: Row, split: str | None) -> dict[str, Any]:
    titles = []
    for place, fact in enumerate(_items(row, "supporting_facts")):
        if isinstance(fact, list) and fact:
            titles.append(row.checked(f"supporting_facts[{place}]", fact[0]))
        else:
            row.bad(f"supporting_facts[{place}]", "is not [title, sentence number]")
    return {
        "id": row.identifier("_id"),
        "split": split,
        "question": row.text("question"),
        "answers": [row.text("answer")],
        "supporting_titles": list(dict.fromkeys(titles)),
    }


def _musique(row: Row, split: str | None) -> dict[str, Any]:
    """{id: "2hop__...", question, answer, answer_aliases, answerable, paragraphs: [{title, paragraph_text,
    is_supporting}]}; the number of hops stands in the id."""
    titles = [
        row.checked("paragraphs.title", paragraph.get("title"))
        for paragraph in _objects(row, "paragraphs")
        if Row(paragraph, row.name, row.defects).flag("is_supporting", False)
    ]
    identity = row.identifier("id")
    hops = re.match(r"(\d)hop", identity)
    return {
        "id": identity,
        "source": "musique",
        "split": split,
        "question": row.text("question"),
        "answers": list(dict.fromkeys([row.text("answer"), *row.texts("answer_aliases")])),
        "supporting_titles": list(dict.fromkeys(titles)),
        "hops": int(hops[1]) if hops else None,
        "answerable": row.flag("answerable", True),
    }


def _items(row: Row, name: str) -> list[Any]:
    value = row.get(name, required=True)
    if value is None:
        return []
    if not isinstance(value, list):
        row.bad(name, f"is {type(value).__name__}, not a list")
        return []
    return value


def _objects(row: Row, name: str) -> list[dict[str, Any]]:
    items = _items(row, name)
    if not all(isinstance(item, dict) for item in items):
        row.bad(name, "has an item that is no object")
    return [item for item in items if isinstance(item, dict)]


def _object(row: Row, name: str, *, required: bool = True) -> dict[str, Any]:
    value = row.get(name, required=required)
    if value is None:
        return {}
    if not isinstance(value, dict):
        row.bad(name, f"is {type(value).__name__}, not an object")
        return {}
    return value
