"""Files as no writer of tables makes them: a table, or a DataError, and no missing value that becomes text."""

import datetime
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from igpo_core.data import load_questions
from igpo_core.errors import DataError
from tests.igpo_core.zips import zip_of

ROW = {"id": "a", "question": "Who?", "answers": ["Ida"]}


def raised(load: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """The kind of what it raises, and its message."""
    try:
        load()
    except Exception as error:
        return type(error), str(error)
    return None, ""


def a_zip(offset: int) -> bytes:
    """One entry, which its directory says to stand at `offset` (a zip64 field)."""
    made = bytearray(zip_of({"q": json.dumps(ROW)}))
    entry, end = made.index(b"PK\1\2"), made.index(b"PK\5\6")
    extra = struct.pack("<HHQ", 1, 8, offset)
    made[end + 12 : end + 16] = struct.pack("<I", struct.unpack("<I", made[end + 12 : end + 16])[0] + len(extra))
    made[entry + 47 : entry + 47] = extra  # behind the name
    made[entry + 42 : entry + 46] = b"\xff" * 4
    made[entry + 30 : entry + 32] = struct.pack("<H", len(extra))
    return bytes(made)


@pytest.mark.parametrize("offset", [0, 10_000, 2**62, 2**63, 2**64 - 1])
def test_a_zip_whose_entry_stands_nowhere_is_refused(tmp_path: Path, offset: int) -> None:
    (tmp_path / "q.zip").write_bytes(a_zip(offset))
    kind, said = raised(lambda: load_questions(tmp_path / "q.zip"))
    assert kind is (DataError if offset else None) and (offset == 0 or "q.zip" in said)


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_column_of_parquet_whose_name_is_no_text_is_refused(tmp_path: Path, store_schema: bool) -> None:
    target = io.BytesIO()
    table = pyarrow.table({"id": ["a"], "question": ["Who?"], "answers": [["Ida"]], "zzzz": ["x"]})
    pyarrow.parquet.write_table(table, target, store_schema=store_schema)
    (tmp_path / "q.parquet").write_bytes(target.getvalue().replace(b"zzzz", b"\xff\xfe\xff\xff"))
    kind, said = raised(lambda: load_questions(tmp_path / "q.parquet"))
    assert kind is DataError and "q.parquet" in said


def authors(**extra: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": "who?"}]
    return {"data_source": "nq", "prompt": prompt, "reward_model": {"ground_truth": "Ida"}, "extra_info": extra}


@pytest.mark.parametrize(
    ("index", "identity"),
    [(3, "nq-3"), (3.0, "nq-3"), ("own", "own"), (None, "nq-q.jsonl line 1"), (float("nan"), "nq-q.jsonl line 1")],
)
def test_an_index_of_the_authors_files_is_what_it_plainly_means(tmp_path: Path, index: Any, identity: str) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(authors(index=index)))
    frame = load_questions(tmp_path / "q.jsonl", split="train")
    assert (frame["id"][0], frame["defect"].isna()[0]) == (identity, True)


@pytest.mark.parametrize("index", [True, 2.5, [1], {"a": 1}])
def test_an_index_of_another_type_is_a_defect(tmp_path: Path, index: Any) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(authors(index=index)))
    defect = load_questions(tmp_path / "q.jsonl", split="train")["defect"][0]
    assert isinstance(defect, str) and "extra_info.index" in defect


def test_a_split_that_is_nan_is_missing(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps(authors(split=float("nan"), index=1)))
    frame = load_questions(tmp_path / "q.jsonl")
    assert frame["defect"].isna()[0] and frame["split"].isna()[0]


@pytest.mark.parametrize("flag", [True, 1, 1.0])
def test_a_supporting_paragraph_is_told_by_a_number_too(tmp_path: Path, flag: Any) -> None:
    paragraphs = [{"title": "Brenn", "paragraph_text": "A town.", "is_supporting": flag}]
    row = {"id": "2hop__1", "question": "Who?", "answer": "Ida", "paragraphs": paragraphs}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert load_questions(tmp_path / "q.jsonl", split="train")["supporting_titles"][0] == ["Brenn"]


@pytest.mark.parametrize(
    ("answers", "word"),
    [
        ([1871, 1872], "int"),
        (True, "bool"),
        (7, "int"),
        ({"value": "Ida", "aliases": ["Ida Holm"]}, "dict"),  # TriviaQA's object
        (["Ida", None], "None"),
        (["Ida", ["Holm"]], "list"),
        ("['Ida', 'Holm']", "JSON list"),  # a list as Python writes it
        ("[REC]", "JSON list"),
    ],
)
def test_answers_of_another_type_are_a_defect_that_names_it(tmp_path: Path, answers: Any, word: str) -> None:
    rows = [{"id": "a", "question": "When?", "answers": answers}, {"id": "b", "question": "Who?", "answers": ["Ida"]}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    frame = load_questions(tmp_path / "q.jsonl", split="train")
    assert frame["defect"].isna().tolist() == [False, True] and word in frame["defect"][0]


def test_dates_as_answers_are_a_defect(tmp_path: Path) -> None:
    columns = {"id": ["a"], "question": ["When?"], "answers": [[datetime.date(1871, 5, 2)]]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    assert "date" in load_questions(tmp_path / "q.parquet", split="train")["defect"][0]
