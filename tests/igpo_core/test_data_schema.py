"""The one schema: its content hash, the way to Question objects, and the benchmark's tables in it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

from igpo_core.data import content_hash, load_corpus, load_questions, to_questions
from igpo_core.data.reading import unique
from igpo_core.data.schema import normalised
from igpo_core.errors import DataError
from igpo_core.trajectory import Question

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
GOOD = {"id": "good", "question": "Q?", "answers": ["A"]}


def write(path: Path, rows: tuple[Any, ...]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_the_content_hash_sees_content_and_order_alone(tmp_path: Path) -> None:
    rows = ({"id": "a", "question": "Q?", "answers": ["A", "B"]}, {"id": "b", "question": "R?", "answers": ["C"]})
    frame = load_questions(write(tmp_path / "q.jsonl", rows))
    same = content_hash(frame)
    assert len(same) == 12 and int(same, 16) >= 0
    frame.drop(columns="defect").to_parquet(tmp_path / "published.parquet")
    assert content_hash(pandas.read_parquet(tmp_path / "published.parquet")) == same
    assert content_hash(load_questions(tmp_path / "published.parquet")) == same
    assert content_hash(frame.assign(note="x").set_index(pandas.Index([7, 8]))) == same
    others = [frame[::-1], frame[:1], frame.assign(split="dev"), frame.assign(answers=[["B", "A"], ["C"]])]
    assert len({same, *(content_hash(other) for other in others)}) == 5


def test_the_content_hash_is_the_same_in_another_process(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", (GOOD, {**GOOD, "id": "ü", "hops": 2}))
    code = "import sys; from igpo_core.data import *; print(content_hash(load_questions(sys.argv[1])))"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == content_hash(load_questions(path))


def test_to_questions(tmp_path: Path) -> None:
    row = {**GOOD, "split": "train", "hops": 2, "facts": '{"q": "fact ."}', "distractors": ["d"], "source": "lookup"}
    path = write(tmp_path / "q.jsonl", (row, {**GOOD, "split": "dev"}))
    load_questions(path).to_parquet(tmp_path / "q.parquet")  # arrays in place of lists, NaN in place of None
    assert to_questions(pandas.read_parquet(tmp_path / "q.parquet")) == [
        Question("good", "lookup", "train", "Q?", ("A",), 2, (), {"q": "fact ."}, ("d",)),
        Question("good", "custom", "dev", "Q?", ("A",)),
    ]


def test_to_questions_refuses_a_row_without_a_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'good' has no split"):
        to_questions(load_questions(write(tmp_path / "q.jsonl", (GOOD,))))


def test_unique_and_normalised() -> None:
    assert unique(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
    assert normalised("  Who's  “THE_Boss”?\n") == "who s the boss"
    assert normalised("?!") == ""


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark tables are not beside this checkout")
def test_the_benchmark_tables() -> None:
    """Counts from the tables' own README."""
    questions = load_questions(SHARED / "questions.parquet")
    assert len(questions) == 7722 and questions["answerable"].sum() == 4127
    answerable = questions[questions["answerable"]]
    assert answerable["split"].value_counts().to_dict() == {"train": 1765, "dev": 488, "test": 1874}
    assert (answerable["source"] == "2wikimultihopqa").sum() == 1551
    authors = load_questions(SHARED / "igpo" / "test.parquet")
    assert len(authors) == 3197 and authors["id"].is_unique
    assert authors["source"].value_counts().to_dict() == {
        "nq": 512, "triviaqa": 512, "hotpotqa": 512, "2wikimultihopqa": 512, "musique": 512, "popqa": 512,
        "bamboogle": 125,
    }  # fmt: skip
    opened = load_questions(SHARED / "questions_open.parquet")
    assert len(opened) == 28079 and set(opened["source"]) == {"musique", "custom"}
    corpus = load_corpus(SHARED / "corpus.parquet")
    assert len(corpus) == 39466
    for frame in (questions, authors, opened, corpus):
        assert frame["defect"].isna().all()
    assert to_questions(questions)[0].supporting_titles == ("You've Got What Gets Me", "George Gershwin")
