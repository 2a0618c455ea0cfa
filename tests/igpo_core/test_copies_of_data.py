"""Popular copies of data sets, odd values, and compressed files."""

import bz2
import gzip
import json
import lzma
from datetime import datetime
from pathlib import Path

import pandas
import pyarrow
import pyarrow.parquet
import pytest

from igpo_core.data import load_corpus, load_questions, reading
from igpo_core.errors import DataError
from igpo_core.rewards.outcome import f1_score
from tests.igpo_core.zips import zip_of

TEXT = b'{"passage_id": "a", "title": "Orla", "text": "a lake"}\n'


@pytest.mark.parametrize(
    "content",
    [gzip.compress(TEXT), bz2.compress(TEXT), lzma.compress(TEXT), zip_of({"c.jsonl": TEXT})],
    ids=["gzip", "bzip2", "xz", "zip"],
)
def test_a_compressed_file_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    assert load_corpus(tmp_path / "c")["title"].tolist() == ["Orla"]


@pytest.mark.parametrize(
    "content",
    [zip_of({"a": TEXT, "b": TEXT}), gzip.compress(TEXT)[:-9], gzip.compress(gzip.compress(TEXT))],
    ids=["two files", "cut", "twice"],
)
def test_what_cannot_be_unpacked_is_refused_by_that_reason(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(DataError, match="unpack"):
        load_corpus(tmp_path / "c")


def test_search_r1s_answers_and_two_wikis_json_text(tmp_path: Path) -> None:
    row = {
        "data_source": "nq",
        "prompt": [{"role": "user", "content": "who?"}],
        "reward_model": {"ground_truth": {"target": ["Ida", "I. Holm"]}},
    }
    (tmp_path / "r.jsonl").write_text(json.dumps(row))
    assert load_questions(tmp_path / "r.jsonl", split="train")["answers"][0] == ["Ida", "I. Holm"]
    wiki = {
        "_id": "w", "type": "comparison", "question": "Who?", "answer": "Ida", "context": json.dumps([["Brenn", ["A town."]]]),
        "supporting_facts": json.dumps([["Brenn", 0]]), "evidences": "[]",
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([wiki]), tmp_path / "w.parquet")
    assert load_questions(tmp_path / "w.parquet", split="train")["supporting_titles"][0] == ["Brenn"]
    assert load_corpus(tmp_path / "w.parquet")["text"].tolist() == ["A town."]


def test_nan_is_missing_and_a_date_that_nobody_asked_for_harms_no_row(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(
        '{"id": 3.0, "question": "Who?", "answers": ["Cafe\u0301\u200b"], "hops": NaN, "split": NaN}'
    )
    frame = load_questions(tmp_path / "q.jsonl", split="train")
    assert (frame["id"][0], frame["answers"][0], frame["split"][0]) == ("3", ["Caf\u00e9"], "train")
    days = pyarrow.array([4_000_000], pyarrow.int32()).view(pyarrow.date32())
    columns = {"passage_id": ["a"], "title": ["Orla"], "text": ["a lake"], "source": days}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    assert load_corpus(tmp_path / "c.parquet")["defect"].isna().all()


def test_values_without_a_python_object_harm_their_row_alone(tmp_path: Path) -> None:
    """A title that is no UTF-8 is a defect of its row; times out of range and of unknown zones are columns nobody asked for."""
    titles = pyarrow.StringArray.from_buffers(
        2, pyarrow.py_buffer(b"\0\0\0\0\4\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"Orla\xff")
    )
    columns = {"passage_id": ["a", "b"], "title": titles, "text": ["a lake", "a hill"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "c.parquet")
    first, second = load_corpus(tmp_path / "c.parquet")["defect"]
    assert pandas.isna(first) and "title" in second and "utf-8" in second
    times = {
        "far": pyarrow.array([2**62, 0], pyarrow.timestamp("us")),
        "zone": pyarrow.array([0, None], pyarrow.timestamp("us", tz="Mars/Base")),
    }
    pyarrow.parquet.write_table(pyarrow.table(times), tmp_path / "t.parquet")
    above, below = reading.read_table(tmp_path / "t.parquet").rows
    assert "OverflowError" in above["far"].reason and below["far"] == datetime(1970, 1, 1)
    assert (
        "ArrowInvalid" in above["zone"].reason or "Mars/Base" in above["zone"].reason
    )  # pytz's, where it is installed
    assert below["zone"] is None


def test_empty_columns_do_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two columns of four rows, of which one has nothing: eight values."""
    pyarrow.parquet.write_table(
        pyarrow.table({"passage_id": ["a"] * 4, "nothing": pyarrow.nulls(4)}), tmp_path / "c.parquet"
    )
    monkeypatch.setattr(reading, "MAX_CELLS", 8, raising=False)
    assert len(reading.read_table(tmp_path / "c.parquet").rows) == 4
    monkeypatch.setattr(reading, "MAX_CELLS", 7, raising=False)
    with pytest.raises(DataError, match="8 values"):
        reading.read_table(tmp_path / "c.parquet")


@pytest.mark.parametrize("gold", ["\u200eBrenn", "Brenn\u200b", "Bre\u00adnn"])
def test_invisible_characters_are_no_part_of_an_answer(gold: str) -> None:
    assert f1_score("Brenn", [gold]) == 1.0


# ------------------------------------------------------------------------- what other programs write, and what a refusal says

LINE = '{"id": "%s", "question": "How deep is Orla?", "answers": ["40 m"]}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.jsonl", b"\xef\xbb\xbf" + f"{LINE % 'a'}\r\n{LINE % 'b'}\r\n".encode()),
        ("q.csv", b'\xef\xbb\xbfid,question,answers\r\na,"How deep\r\nis Orla?",40 m\r\nb,Who?,40 m\r\n'),
        ("q.json", b"\xef\xbb\xbf" + f"[{LINE % 'a'},\r\n{LINE % 'b'}]\r\n".encode()),
    ],
)
def test_what_windows_programs_write_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    frame = load_questions(tmp_path / name, split="train")
    assert frame["id"].tolist() == ["a", "b"] and frame["defect"].isna().all()
    assert frame["answers"].tolist() == [["40 m"], ["40 m"]]


def test_a_byte_order_mark_between_two_lines_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_bytes(f"\ufeff{LINE % 'a'}\n\ufeff{LINE % 'b'}\n".encode())
    with pytest.raises(DataError, match="line 2"):
        load_questions(tmp_path / "q.jsonl", split="train")


def test_text_of_another_encoding_is_told_to_become_utf8(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_bytes("id,question,answers\na,How?,40 m\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-8"):
        load_questions(tmp_path / "q.csv", split="train")


def test_names_of_flashrag_are_refused_with_what_is_missing_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "t0", "question": "who?", "golden_answers": ["Ida"], "metadata": {}}')
    with pytest.raises(DataError, match=r"\['answers'\], which are missing.*golden_answers"):
        load_questions(tmp_path / "q.jsonl")
    (tmp_path / "c.jsonl").write_text('{"id": "0", "contents": "Brenn"}')
    with pytest.raises(DataError, match=r"'passage_id'.*missing.*contents"):
        load_corpus(tmp_path / "c.jsonl")


def test_nan_of_parquet_is_missing_and_of_answers_a_defect(tmp_path: Path) -> None:
    columns = {
        "id": ["a", "b"], "question": ["How deep is Orla?", "Who built it?"], "answers": [["40 m"], ["Ida"]],
        "hops": pyarrow.array([2.0, float("nan")], from_pandas=False),
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    frame = load_questions(tmp_path / "q.parquet", split="train")
    assert frame["defect"].isna().all() and frame["hops"].tolist() == [2, pandas.NA]
    (tmp_path / "q.jsonl").write_text('{"id": "a", "question": "How deep is Orla?", "answers": NaN}')
    assert load_questions(tmp_path / "q.jsonl", split="train")["defect"][0].startswith("answers: is missing")


@pytest.mark.parametrize(
    "odd",
    [
        pyarrow.array([4_000_000], pyarrow.int32()).view(pyarrow.date32()),
        pyarrow.array([2**60], pyarrow.int64()).view(pyarrow.timestamp("us")),
        pyarrow.array([0], pyarrow.timestamp("us", tz="Nowhere/Town")),
        pyarrow.array([b"\xff"]),
    ],
    ids=["date", "time", "zone", "bytes"],
)
def test_an_odd_column_that_nobody_asked_for_harms_no_question(tmp_path: Path, odd: pyarrow.Array) -> None:
    columns = {
        "data_source": ["nq"], "prompt": [[{"role": "user", "content": "how deep is lake orla"}]], "ability": ["fact"],
        "reward_model": [{"ground_truth": "40 m"}], "seen": odd,
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    frame = load_questions(tmp_path / "t.parquet", split="train")
    assert frame["defect"].isna().all() and frame["answers"][0] == ["40 m"]


def test_two_wikis_json_text_of_several_titles(tmp_path: Path) -> None:
    names = ["Orla", "Tind", "Vesk"]
    rows: list[dict[str, str]] = []
    for number, name in enumerate(names):
        title = f"Lake {name}"
        rows.append(
            {
                "_id": f"w{number}",
                "type": "compositional",
                "question": f"Who built the bridge south of lake {name}?",
                "answer": "Ida Holm",
                "context": json.dumps([[title, [f"{title} is deep.", "It is cold."]], ["Brenn", ["Built by Ida."]]]),
                "supporting_facts": json.dumps([[title, 0], ["Brenn", 0]]),
                "evidences": json.dumps([[title, "south of it", "Brenn"]]),
            }
        )
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    frame = load_questions(tmp_path / "train.parquet", split="train")
    assert frame["defect"].isna().all()
    assert frame["supporting_titles"].tolist() == [
        ["Lake Orla", "Brenn"],
        ["Lake Tind", "Brenn"],
        ["Lake Vesk", "Brenn"],
    ]
    passages = load_corpus(tmp_path / "train.parquet")
    assert passages["defect"].isna().all() and len(passages) == 4  # three lakes, and Brenn once


# ----------------------------------------------------------------------------- other copies, and other dresses of a missing value

ASKED = "who built the bridge of brenn?"
PROMPT = (
    "Answer the given question. Reason inside <think> and </think>, answer inside <answer> and </answer>. Question: "
)
SEARCH_R1 = {
    "id": "train_0", "question": ASKED, "golden_answers": ["Ida Holm"], "data_source": "nq", "ability": "fact-reasoning",
    "prompt": [{"role": "user", "content": f"{PROMPT}{ASKED}\n"}],
    "reward_model": {"ground_truth": {"target": ["Ida Holm"]}, "style": "rule"}, "extra_info": {"index": 0, "split": "train"},
}  # fmt: skip
VERL = {
    "data_source": "searchR1_nq", "prompt": [{"role": "system", "content": "Help."}, *SEARCH_R1["prompt"]],
    "reward_model": SEARCH_R1["reward_model"], "extra_info": {"index": 0, "question": ASKED, "split": "train"},
}  # fmt: skip


@pytest.mark.parametrize("row", [SEARCH_R1, VERL], ids=["Search-R1", "verl"])
def test_search_r1s_question_is_the_question_and_not_its_prompt(tmp_path: Path, row: dict[str, object]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "train.parquet")
    (found,) = load_questions(tmp_path / "train.parquet", split="train").to_dict("records")
    assert (found["id"], found["source"], found["question"], found["answers"]) == ("nq-0", "nq", ASKED, ["Ida Holm"])
    assert pandas.isna(found["defect"])


def test_a_prompt_of_another_protocol_without_its_question_is_a_defect(tmp_path: Path) -> None:
    row = {name: value for name, value in SEARCH_R1.items() if name not in ("question", "golden_answers", "id")}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    assert "prompt.content: tells of another protocol" in load_questions(tmp_path / "q.jsonl")["defect"][0]


@pytest.mark.parametrize(
    ("truth", "answers"),
    [
        ('{"target": ["Ida", "I. Holm"]}', ["Ida", "I. Holm"]),
        ('["Ida", "I. Holm"]', ["Ida", "I. Holm"]),
        ("Ida<|answer_split|>I. Holm", ["Ida", "I. Holm"]),
        ("{Ida}", ["{Ida}"]),
        ("['Ida' 'I. Holm']", []),  # numpy's text of an array
        ("[REC]", ["[REC]"]),  # the name of a film
        ("[REC]<|answer_split|>REC", ["[REC]", "REC"]),
    ],
)
def test_a_true_answer_that_became_text(tmp_path: Path, truth: str, answers: list[str]) -> None:
    row = {**VERL, "reward_model": json.dumps({"ground_truth": truth})}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    frame = load_questions(tmp_path / "q.jsonl")
    assert frame["answers"][0] == answers and pandas.isna(frame["defect"][0]) is bool(answers)


PAIRS = {"context": [["Brenn", ["A town.", "It is old."]]], "supporting_facts": [["Brenn", 0]]}
OBJECTS = {
    "context": [{"title": "Brenn", "sentences": ["A town.", "It is old."]}],
    "supporting_facts": [{"title": "Brenn", "sent_id": 0}],
}
COLUMNS = {
    "context": {"title": ["Brenn"], "content": [["A town.", "It is old."]]},
    "supporting_facts": {"title": ["Brenn"], "sent_id": [0]},
}


@pytest.mark.parametrize("form", [PAIRS, OBJECTS, COLUMNS], ids=["pairs", "objects", "columns"])
@pytest.mark.parametrize("name", ["id", "_id"])
@pytest.mark.parametrize(
    ("kind", "source", "hops"),
    [("bridge", "hotpotqa", 2), ("inference", "2wikimultihopqa", 2), ("bridge_comparison", "2wikimultihopqa", 4)],
)
def test_hotpotqa_and_2wiki_in_each_form_without_the_columns_that_copies_leave_out(
    tmp_path: Path, form: dict[str, object], name: str, kind: str, source: str, hops: int
) -> None:
    (tmp_path / "q.jsonl").write_text(
        json.dumps({name: "w", "type": kind, "question": "Who?", "answer": "Ida", **form})
    )
    (row,) = load_questions(tmp_path / "q.jsonl").to_dict("records")
    assert (row["id"], row["source"], row["hops"], row["supporting_titles"]) == ("w", source, hops, ["Brenn"])
    assert load_corpus(tmp_path / "q.jsonl")["text"].tolist() == ["A town. It is old."]


@pytest.mark.parametrize("said", [True, 1, 1.0, "True", "TRUE", "1"])
@pytest.mark.parametrize("columns", [False, True])
def test_musiques_paragraphs_in_each_form(tmp_path: Path, said: object, columns: bool) -> None:
    paragraphs: object = [
        {"idx": 0, "title": "Brenn", "paragraph_text": "A town.", "is_supporting": said},
        {"idx": 1, "title": "Orla", "paragraph_text": "A lake.", "is_supporting": "false"},
    ]
    if columns:
        paragraphs = {
            "idx": [0, 1], "title": ["Brenn", "Orla"], "paragraph_text": ["A town.", "A lake."], "is_supporting": [said, "false"],
        }  # fmt: skip
    row = {"id": "2hop__1_2", "question": "Who?", "answer": "Ida", "answer_aliases": "", "paragraphs": paragraphs}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    (found,) = load_questions(tmp_path / "q.jsonl").to_dict("records")
    assert (found["supporting_titles"], found["answers"]) == (["Brenn"], ["Ida"]) and pandas.isna(found["defect"])
    assert load_corpus(tmp_path / "q.jsonl")["title"].tolist() == ["Brenn", "Orla"]


@pytest.mark.parametrize("missing", ["", " ", "nan", "NaN", "None", "null", "NA", "N/A", "<NA>", None])
def test_a_missing_number_or_truth_value_by_the_names_that_programs_write(tmp_path: Path, missing: object) -> None:
    row = {"id": "a", "question": "Who?", "answers": ["NA"], "hops": missing, "answerable": missing}
    (tmp_path / "q.jsonl").write_text(json.dumps({**row, "supporting_titles": ""}))
    (found,) = load_questions(tmp_path / "q.jsonl").to_dict("records")
    assert pandas.isna(found["hops"]) and (found["answerable"], found["supporting_titles"]) == (True, [])
    assert pandas.isna(found["defect"]) and found["answers"] == ["NA"]  # sodium, or Namibia


def test_bytes_in_lists_decimals_and_truth_values_of_a_column_of_floats(tmp_path: Path) -> None:
    columns = {
        "id": pyarrow.array([7, 8]).cast(pyarrow.decimal128(19, 0)), "question": ["Who?", "When?"],
        "answers": pyarrow.array([[b"Ida"], ["Z\u00fcrich".encode()]], pyarrow.list_(pyarrow.binary())),
        "hops": pyarrow.array([2, 3]).cast(pyarrow.decimal128(19, 0)), "answerable": ["1.0", "0.0"],
    }  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "q.parquet")
    frame = load_questions(tmp_path / "q.parquet")
    assert frame["defect"].isna().all()
    assert frame["id"].tolist() == ["7", "8"] and frame["answers"].tolist() == [["Ida"], ["Z\u00fcrich"]]
    assert frame["hops"].tolist() == [2, 3] and frame["answerable"].tolist() == [True, False]


@pytest.mark.parametrize(("mark", "name"), [("\t", "tabs"), (";", "semicolons")])
def test_another_separator_than_a_comma_is_named(tmp_path: Path, mark: str, name: str) -> None:
    (tmp_path / "q.csv").write_text(f"id{mark}question{mark}answers\na{mark}Who, then?{mark}Ida\n")
    with pytest.raises(DataError, match=f"separated by {name}"):
        load_questions(tmp_path / "q.csv")
