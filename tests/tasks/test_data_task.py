"""From files to a published folder: exact quarantine counts, what stops the flow, what is found again."""

import json
from pathlib import Path
from typing import Any

import pandas
import pytest

from igpo_core.config import AtlasWorld, LookupWorld, QuestionFiles
from igpo_core.data import to_questions
from igpo_core.environments.qa import CorpusEnvironment
from igpo_core.errors import DataError
from tasks.data import prepare, summary_rows

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

PASSAGES = [
    {"passage_id": "p1", "title": "Warsaw", "text": "Warsaw lies on the Vistula river in Poland."},
    {"passage_id": "p2", "title": "Paris", "text": "Paris lies on the Seine and is the capital of France."},
    {"passage_id": "p3", "title": "Rome", "text": "Rome lies on the Tiber river in central Italy."},
]


def question(identity: str, split: str, text: str, **others: Any) -> dict[str, Any]:
    """A row that passes every rule unless a field says otherwise."""
    return {"id": identity, "source": "nq", "split": split, "question": text, "answers": ["Vistula"],
            "supporting_titles": ["Warsaw"], **others}  # fmt: skip


GOOD = [
    question("a", "train", "Which river flows through the capital of Poland?"),
    question("b", "dev", "Which river flows past the castle of Warsaw?"),
    question("c", "test", "On which river did Marie Curie grow up?"),
]


def files(
    folder: Path, questions: list[dict[str, Any]], corpus: list[dict[str, Any]] = PASSAGES, **settings: Any
) -> Any:
    folder.mkdir(exist_ok=True)
    for name, rows in (("questions", questions), ("corpus", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QuestionFiles(questions=(folder / "questions.jsonl",), corpus=folder / "corpus.jsonl", **settings)


def quarantine(folder: Path) -> set[tuple[str, str, str]]:
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return {(row["table"], row["id"], row["rule"]) for row in map(json.loads, lines)}


def folders(home: Path) -> list[str]:
    """Names of published folders, and of anything half-written beside them."""
    return sorted(path.name for path in (home / "data").iterdir() if path.is_dir() and path.name != "receipts")


def test_every_rule_quarantines_its_own_rows_and_the_good_ones_go_on(tmp_path: Path) -> None:
    bad = [
        question("a", "train", "A second row with the id of the first?"),
        question("blank", "train", "   "),
        question("mute", "train", "Who has no answer here?", answers=["", "  "]),
        question("long-question", "train", " ".join(["why"] * 12)),
        question("long-answer", "train", "Who talks long?", answers=["one two three four"]),
        question("stranger", "train", "Who made this row?", source="wikipedia"),
        question("lost", "validation", "Where does this row belong?"),
        question("nowhere", "train", "Which title is not there?", supporting_titles=["Warsaw", "Atlantis"]),
        question("shared-test", "train", "on WHICH river did Marie Curie grow up"),
        question("shared-dev", "train", "Which river flows past the castle of Warsaw?!"),
        question("dev-in-test", "dev", "On which river did Marie Curie grow up?"),
        question("told", "train", "Which river is it? The answer is Vistula."),
        question("shape", "train", "Is a number an answer?", answers=7),
    ]
    aliases = question("aliases", "train", "Which river is long?", answers=["Vistula", "the long grey river"])
    named = question("named", "train", "Is the Vistula or the Seine longer?", answers=["Vistula"])
    broken = [
        {"passage_id": "p1", "title": "Twice", "text": "The id of the first passage once more here."},
        {"passage_id": "empty", "title": "Empty", "text": " "},
    ]
    config = files(
        tmp_path / "in", [*GOOD, *bad, aliases, named], [*PASSAGES, *broken], max_question_words=10, max_answer_words=3
    )
    published = prepare(config, tmp_path / "home")

    assert quarantine(published.folder) == {
        ("corpus", "p1", "id unique"),
        ("corpus", "empty", "text not empty"),
        ("questions", "a", "id unique"),
        ("questions", "blank", "question not empty"),
        ("questions", "mute", "answers not empty"),
        ("questions", "long-question", "question length"),
        ("questions", "long-answer", "answer length"),
        ("questions", "stranger", "source known"),
        ("questions", "lost", "split known"),
        ("questions", "nowhere", "supporting titles in corpus"),
        ("questions", "shared-test", "question in one split"),
        ("questions", "shared-dev", "question in one split"),
        ("questions", "dev-in-test", "question in one split"),
        ("questions", "told", "answer not stated"),
        ("questions", "shape", "readable"),
    }
    assert published.quarantined == 15
    assert published.quarantine_by_rule["questions: question in one split"] == 3
    assert sum(published.quarantine_by_rule.values()) == 15
    assert published.counts == {"train": 3, "dev": 1, "test": 1}
    table = pandas.read_parquet(published.folder / "questions.parquet")
    assert table["id"].tolist() == ["a", "b", "c", "aliases", "named"]
    assert list(table["answers"][3]) == ["Vistula"]  # the four words are too long, the row is not lost
    dropped = [warning for warning in published.warnings if "no alias dropped" in warning]
    assert len(dropped) == 1 and "3 rows" in dropped[0]  # mute, long-answer, aliases
    assert any("answer not named in question" in warning and "named" in warning for warning in published.warnings)
    assert (published.folder / "data_docs" / "index.html").is_file()
    shape = next(
        row
        for row in map(json.loads, (published.folder / "quarantine.jsonl").read_text().splitlines())
        if row["id"] == "shape"
    )
    assert shape["field"] == "answers" and "questions.jsonl line 16" in shape["found"]


def test_the_folder_opens_as_an_environment_and_names_its_figures(tmp_path: Path) -> None:
    published = prepare(files(tmp_path / "in", GOOD), tmp_path / "home")
    assert published.folder == tmp_path / "home" / "data" / published.version
    assert set(published.seconds) == {"read", "validate", "write", "index"}
    assert published.index_bytes == sum(path.stat().st_size for path in (published.folder / "bm25").iterdir()) > 0
    environment = CorpusEnvironment(files(tmp_path / "in", GOOD), published.folder)
    (asked,) = environment.questions("test")
    assert environment.search([(asked, "Seine")])[0].text.startswith("1. Paris: Paris lies on the Seine")
    rows = {row["what"]: row["rows"] for row in summary_rows(published)}
    assert rows["questions, nq, train"] == 1 and rows["passages"] == 3 and rows["quarantined, all rules"] == 0


def test_a_second_run_finds_the_folder_wherever_the_files_lie(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = prepare(files(tmp_path / "in", GOOD), home)
    made = (first.folder / "summary.json").stat().st_mtime_ns
    again = prepare(files(tmp_path / "moved", GOOD), home)
    assert (first.reused, again.reused, again.version) == (False, True, first.version)
    assert (again.folder / "summary.json").stat().st_mtime_ns == made

    spaced = [{**row, "question": f"  {row['question']} "} for row in GOOD]  # other bytes, the same rows
    assert prepare(files(tmp_path / "in", spaced), home).version == first.version


def test_the_version_follows_content_order_and_settings(tmp_path: Path) -> None:
    home = tmp_path / "home"
    versions = [
        prepare(files(tmp_path / "in", GOOD), home).version,
        prepare(files(tmp_path / "in", [GOOD[1], GOOD[0], GOOD[2]]), home).version,
        prepare(files(tmp_path / "in", [{**GOOD[0], "answers": ["Wisla"]}, *GOOD[1:]]), home).version,
        prepare(files(tmp_path / "in", GOOD, PASSAGES[::-1]), home).version,
        prepare(files(tmp_path / "in", GOOD, top_k=2), home).version,
    ]
    assert len(set(versions)) == 5


def test_a_damaged_folder_is_published_again(tmp_path: Path) -> None:
    home, config = tmp_path / "home", files(tmp_path / "in", GOOD)
    table = prepare(config, home).folder / "questions.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1])
    assert prepare(config, home).reused is False
    assert table.read_bytes() == whole


def test_too_few_good_rows_stop_with_counts_reasons_and_remedy(tmp_path: Path) -> None:
    rows = [*GOOD, question("nowhere", "train", "Which title is not there?", supporting_titles=["Atlantis"])]
    with pytest.raises(DataError) as raised:
        prepare(files(tmp_path / "in", rows, min_train=2), tmp_path / "home")
    message = str(raised.value)
    assert "1 good train questions of 2" in message
    assert "1 quarantined: questions: supporting titles in corpus" in message
    assert "data.min_train" in message and "add the passages to the corpus" in message
    assert folders(tmp_path / "home") == ["rejected"]
    assert ("questions", "nowhere", "supporting titles in corpus") in quarantine(
        tmp_path / "home" / "data" / "rejected"
    )


def test_a_corpus_without_the_titles_stops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 quarantined: questions: supporting titles in corpus"):
        prepare(files(tmp_path / "in", GOOD, PASSAGES[1:]), tmp_path / "home")


def test_a_publish_that_fails_leaves_nothing(tmp_path: Path) -> None:
    unsearchable = [{"passage_id": "p", "title": "Warsaw", "text": "the of and to it"}]
    rows = [{**row, "supporting_titles": []} for row in GOOD]
    with pytest.raises(DataError, match="no word to index"):
        prepare(files(tmp_path / "in", rows, [{**unsearchable[0], "title": "The"}]), tmp_path / "home")
    assert folders(tmp_path / "home") == []


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(DataError, match=r"home.*cannot be written"):
        prepare(files(tmp_path / "in", GOOD), tmp_path / "home")


def test_chosen_rows(tmp_path: Path) -> None:
    """only_answerable, sources, split and evaluation; evaluation rows stay whatever only_answerable says."""
    rows = [
        *GOOD,
        question("unanswerable", "train", "Who cannot be found?", answerable=False, supporting_titles=["Atlantis"]),
        question("musique", "train", "Who is of another source?", source="musique"),
        question("bare", "train", "Who names no split?"),
    ]
    del rows[-1]["split"]
    examination = tmp_path / "examination.jsonl"
    examination.write_text(
        json.dumps(question("c", "dev", "Who is asked?", answerable=False, supporting_titles=["Atlantis"])) + "\n"
        + json.dumps(question("d", "dev", "Which river flows through the capital of Poland")) + "\n"
    )  # fmt: skip
    config = files(tmp_path / "in", rows, sources=("nq",), split="train", evaluation=examination)
    published = prepare(config, tmp_path / "home")
    questions = to_questions(pandas.read_parquet(published.folder / "questions.parquet"))
    assert [(q.id, q.split) for q in questions] == [("c", "test"), ("d", "test"), ("b", "dev"), ("bare", "train")]
    assert quarantine(published.folder) == {("questions", "a", "question in one split")}  # asked in the evaluation
    summary = json.loads((published.folder / "summary.json").read_text())
    assert summary["dropped"] == {
        "marked as not answerable": 1,
        "test row replaced by the evaluation file": 1,
        "of another source": 1,
    }


@pytest.mark.parametrize(
    "world",
    [LookupWorld(hops=2, train=20, dev=5, test=4, distractors=1), AtlasWorld(hops=2, train=20, dev=5, test=4)],
    ids=lambda world: world.kind,
)
def test_a_synthetic_world_is_published_without_a_corpus(world: Any, tmp_path: Path) -> None:
    published = prepare(world, tmp_path)
    assert published.counts == {"train": 20, "dev": 5, "test": 4}
    assert published.quarantined == 0 and published.index_bytes == 0
    questions = to_questions(pandas.read_parquet(published.folder / "questions.parquet"))
    assert {q.source for q in questions} == {world.kind}
    assert all(q.facts is not None and len(q.facts) == 2 for q in questions)
    assert sorted(path.name for path in published.folder.iterdir()) == [
        "data_docs", "manifest.json", "quarantine.jsonl", "questions.parquet", "summary.json",
    ]  # fmt: skip
    assert prepare(world, tmp_path).reused


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark tables are not beside this checkout")
def test_the_benchmark_and_the_authors_test_file(tmp_path: Path) -> None:
    """7,722 and 3,197 rows read; 94 of the authors' NQ rows have answers longer than 30 words and nothing else."""
    config = QuestionFiles(
        questions=(SHARED / "questions.parquet",),
        corpus=SHARED / "corpus.parquet",
        evaluation=SHARED / "igpo" / "test.parquet",
    )
    published = prepare(config, tmp_path)
    summary = json.loads((published.folder / "summary.json").read_text())
    assert summary["read"] == {"questions": 7722 + 3197, "passages": 39466}
    assert published.counts == {"train": 1765, "dev": 488, "test": 3197 - 94}
    assert published.quarantine_by_rule == {"questions: answer length": 94}
    assert summary["counts_by_source"]["bamboogle"]["test"] == 125
