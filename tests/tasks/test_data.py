"""Publishing is atomic: a failure, a full disk, a kill or a second process leave nothing that looks whole and is not."""

import fcntl
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest

from igpo_core.config import FileDemonstrations, QuestionFiles
from igpo_core.environments.base import Demonstration
from igpo_core.environments.qa import CorpusEnvironment
from igpo_core.environments.searching import search_for
from igpo_core.errors import DataError
from igpo_core.trajectory import Episode
from tasks.data import publishing as data
from tasks.data.publishing import PublishedData, is_whole, prepare, summary_rows
from tests.tasks.tables import GOOD, PASSAGES, files, lines, row, trajectory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuestionFiles, Path, PublishedData]:
    folder = tmp_path_factory.mktemp("publish")
    config = files(folder, [*GOOD, row("bad", "train", answers=[])])
    return config, folder / "home", prepare(config, folder / "home")


@pytest.mark.parametrize("name", ["questions.parquet", "bm25/data.csc.index.npy", "quarantine.jsonl", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_damaged_folder_is_not_whole(
    published: tuple[QuestionFiles, Path, PublishedData], tmp_path: Path, name: str, damage: str
) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(published[2].folder, folder)
    assert is_whole(folder)
    if damage == "cut":
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        (folder / name).unlink()
    assert not is_whole(folder)


def test_other_quarantined_rows_are_published_under_the_same_version(tmp_path: Path) -> None:
    first = prepare(files(tmp_path / "a", GOOD), tmp_path / "home")
    second = prepare(files(tmp_path / "b", [*GOOD, row("bad", "train", answers=[])]), tmp_path / "home")
    assert (second.version, second.quarantined, first.quarantined) == (first.version, 1, 0)
    assert is_whole(second.folder) and not second.reused


def test_a_failure_while_publishing_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """A real full disk: files may not grow beyond 64 KiB, which the Data Docs do."""
    config = files(tmp_path, GOOD)
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom igpo_core.config import QuestionFiles\n"
        "from tasks.data.publishing import publish, _writing\nfrom tasks.data.reading import read\n"
        "from tasks.data.validation import validate\n"
        "config = QuestionFiles.model_validate_json(sys.argv[1])\nhome = Path(sys.argv[2])\ntables = read(config)\n"
        "validation = validate(tables.questions, tables.corpus, config, home / 'docs')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "with _writing(home):\n    publish(validation, tables, config, home, {})\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert "DataError" in done.stderr and "cannot be written ([Errno 27] File too large" in done.stderr
    assert "free space there" in done.stderr
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == [".lock"]
    made = prepare(config, tmp_path / "home")
    assert not made.reused and is_whole(made.folder)


def test_a_kill_while_publishing_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    """The process dies inside the fill, after every file but the manifest."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom igpo_core.folders import fill_folder\n"
        "def fill(path):\n    (path / 'questions.parquet').write_text('x')\n    os.kill(os.getpid(), 9)\n"
        "fill_folder(Path(sys.argv[1]) / 'data' / 'version', fill)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    left = [path.name for path in (tmp_path / "data").iterdir()]
    assert len(left) == 1 and left[0].startswith(".version.") and left[0].endswith(".partial")
    assert not is_whole(tmp_path / "data" / "version")


def test_two_processes_publish_once(tmp_path: Path) -> None:
    """While another process holds the lock nothing is published; then one process publishes and the other finds it."""
    code = (
        "import sys\nfrom pathlib import Path\nimport great_expectations\nfrom igpo_core.config import LookupWorld\n"
        "from tasks.data.publishing import prepare\nprint('ready', flush=True)\n"
        "made = prepare(LookupWorld(hops=1, train=4, dev=2, test=2), Path(sys.argv[1]))\n"
        "print(made.version, made.reused)\n"
    )
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", code, str(tmp_path)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
        assert [process.stdout and process.stdout.readline() for process in started] == ["ready\n", "ready\n"]
        time.sleep(3)  # publishing these eight rows takes one
        assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]
    results = [process.communicate()[0].split() for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert results[0][0] == results[1][0]
    assert sorted(reused for _, reused in results) == ["False", "True"]


@pytest.mark.parametrize(
    ("rows", "settings", "messages"),
    [
        (GOOD[:2], {}, ["0 good test questions of 1", "data.min_test"]),
        (GOOD, {"min_train": 5}, ["1 good train questions of 5"]),
        (
            [row(name, None) for name in "abc"],
            {},
            ["0 good train questions", "3 quarantined: questions: split known", "give the file its split"],
        ),
        (
            [*GOOD[1:], row("u", "train", answerable=False)],
            {},
            ["0 good train questions", "1 left out: marked as not answerable"],
        ),
    ],
)
def test_too_few_good_rows_stop_with_the_reasons(
    tmp_path: Path, rows: list[Any], settings: dict[str, Any], messages: list[str]
) -> None:
    with pytest.raises(DataError) as raised:
        prepare(files(tmp_path, rows, **settings), tmp_path / "home")
    for message in messages:
        assert message in str(raised.value)
    rejected = tmp_path / "home" / "data" / "rejected"
    assert str(rejected / "quarantine.jsonl") in str(raised.value)
    assert (rejected / "data_docs" / "index.html").is_file()
    assert sorted(path.name for path in rejected.parent.iterdir()) == [".lock", "rejected"]


def test_a_corpus_without_a_good_passage_stops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 good passages of 1 asked for"):
        prepare(files(tmp_path, [*GOOD[1:], row("t", "train")], [{**PASSAGES[0], "text": ""}]), tmp_path / "home")


@pytest.mark.parametrize("name", ["données [v1]", "my runs 100% #1 東京", "a 'quoted' \"name\" & more"])
def test_folders_of_any_name_hold_data(tmp_path: Path, name: str) -> None:
    """The case paths-with-odd-names: prepared, found again, opened and searched."""
    config = files(tmp_path / name / "q uestions", GOOD)
    first = prepare(config, tmp_path / name / "home")
    again = prepare(config, tmp_path / name / "home")
    assert is_whole(first.folder) and again.reused and again.folder == first.folder
    environment = CorpusEnvironment(config, first.folder)
    task = environment.tasks("train")[0]
    assert "capital of Poland" in environment.call(Episode(task), search_for("Warsaw")).text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    config = files(tmp_path, GOOD)
    config.corpus[0].unlink()
    with pytest.raises(DataError, match=r"c\.jsonl: cannot be read"):
        prepare(config, tmp_path / "home")


def test_a_change_to_any_code_that_makes_data_is_noticed() -> None:
    """All that publishing uses of its room is in CODE; of tasks besides, only what fetches keys."""
    here = Path(data.__file__).parent
    used, others = {"publishing"}, set()
    for name in data.CODE:
        text = (here / f"{name}.py").read_text()
        used |= set(re.findall(r"^ *from tasks\.data\.(\w+) import", text, re.MULTILINE))
        others |= set(re.findall(r"^ *from tasks\.(?!data\.)([\w.]+) import", text, re.MULTILINE))
    assert used == set(data.CODE) and others <= {"lab.secrets"}


def test_a_long_passage_is_split_and_what_was_beyond_the_limit_is_found_with_its_title(tmp_path: Path) -> None:
    """30 words in parts of 12 that share 3: starts 0, 9, 18. The answer is the last word."""
    text = " ".join(["filler"] * 12 + ["more"] * 12 + ["the", "old", "mine", "closed", "in", "1931"])
    passages = [*PASSAGES, {"passage_id": "p9", "title": "Zollverein", "text": text}]
    asked = row(
        "t", "test", question="When did the old mine close?", answers=["1931"], supporting_titles=["Zollverein"]
    )
    config = files(tmp_path, [*GOOD, asked], passages, max_passage_words=12, top_k=1)
    folder = prepare(config, tmp_path / "home").folder
    corpus = pandas.read_parquet(folder / "corpus.parquet")
    parts = corpus[corpus["title"] == "Zollverein"]
    assert parts["passage_id"].tolist() == ["p9", "p9#2", "p9#3"]
    assert [part.split() for part in parts["text"]] == [text.split()[start : start + 12] for start in (0, 9, 18)]
    environment = CorpusEnvironment(config, folder)
    question = next(question for question in environment.tasks("test") if question.id == "t")
    observation = environment.search([question.text])[0]
    assert observation.text == "1. Zollverein: " + " ".join(text.split()[18:])
    assert environment.exposes(question, observation.text)
    assert environment.evidence(Episode(question, (), (observation,))) == [1.0]


def test_parts_take_no_id_that_a_passage_has(tmp_path: Path) -> None:
    """A corpus that comes in chunks: d, d#2 and d# are the user's own, d and d# are too long, and d is there twice. d cannot have
    d#2 and takes ##, so that d#2 is free for nobody; d# would have d##2, which is a part of d."""
    long = " ".join(f"w{number}" for number in range(20))
    named = {"d": long, "d#2": "a chunk of my own making", "d#": f"again {long}"}
    passages = [*PASSAGES, *({"passage_id": name, "title": name, "text": text} for name, text in named.items())]
    passages.append({"passage_id": "d", "title": "copy", "text": f"copy {long}"})
    published = prepare(files(tmp_path, GOOD, passages, max_passage_words=12), tmp_path / "home")
    corpus = pandas.read_parquet(published.folder / "corpus.parquet").set_index("passage_id")
    assert corpus.index.tolist()[len(PASSAGES) :] == ["d", "d##2", "d#2", "d#", "d###2"]
    assert corpus.loc["d#2", "text"] == "a chunk of my own making"
    assert published.quarantine_by_rule == {"corpus: id unique": 1}
    assert {"what": "parts of these", "rows": 4} in summary_rows(published)


def test_a_passage_in_parts_is_opened_in_one_piece(tmp_path: Path) -> None:
    """250 words in parts of 100 that share 25: three parts, of which top_k would show two. Other passages have its title too."""
    text = " ".join("the same" if number % 3 else f"w{number}" for number in range(150))
    assert len(text.split()) == 250
    passages = [
        *PASSAGES,
        {"passage_id": "p8", "title": "Kolm", "text": "A village of this name in the north."},
        {"passage_id": "p9", "title": "Kolm", "text": text},
        {"passage_id": "p9#2", "title": "kolm ", "text": "A chunk that the user made of something else."},
        {"passage_id": "p7", "title": "Kolm", "text": f"{text} again"},
        {"passage_id": "p6", "title": "Ammer", "text": f"{text} elsewhere"},
    ]

    def shown(title: str, **changes: int) -> list[str]:
        config = files(tmp_path, GOOD, passages, **{"max_passage_words": 100, "open_words": 250, **changes})
        return CorpusEnvironment(config, prepare(config, tmp_path / "home").folder).opened(title).text.split("\n")

    small, chunk = "1. Kolm: A village of this name in the north.", "A chunk that the user made of something else."
    assert shown("Kolm") == [small, f"2. Kolm: {text}", f"3. kolm: {chunk}", f"4. Kolm: {text} ..."]
    assert shown("Kolm", top_k=2) == [small, f"2. Kolm: {text}"]
    assert shown("ammer", open_words=300) == [f"1. Ammer: {text} elsewhere"]
    cut = " ".join(text.split()[:120])
    assert shown("KOLM", open_words=120, top_k=2) == [small, f"2. Kolm: {cut} ..."]


def test_trajectories_are_published_and_bad_ones_quarantined(tmp_path: Path) -> None:
    rows = [
        trajectory("t1", "How far is it?"),
        trajectory("t2", "How near is it?", turns=4),
        trajectory("heldout", "question  G3"),  # as g3 of test asks
        trajectory("t1", "Again?"),
        trajectory("wordy", "How long?", "one two three four"),
        {"id": "odd", "messages": [{"role": "user", "content": "?"}]},
    ]
    config = files(tmp_path, GOOD, trajectories=[lines(tmp_path / "t.jsonl", rows)], max_answer_words=3)
    published = prepare(config, tmp_path / "home")
    assert published.quarantine_by_rule == {
        "trajectories: readable": 1, "trajectories: id unique": 1, "trajectories: question of train": 1,
        "trajectories: answer length": 1,
    }  # fmt: skip
    quarantine = [json.loads(line) for line in (published.folder / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["id"]: entry["found"] for entry in quarantine}["heldout"] == "asked_in = test"
    assert {"what": "trajectories", "rows": 2} in summary_rows(published)
    demonstrations = FileDemonstrations(use="trajectories")
    drawn = CorpusEnvironment(config, published.folder, 4).demonstrations(random.Random(0), 20, demonstrations)
    assert {item.question.id for item in drawn if isinstance(item, Demonstration)} == {"t1"}  # t2 has five turns
    drawn = CorpusEnvironment(config, published.folder, 5).demonstrations(random.Random(0), 20, demonstrations)
    assert {item.question.id for item in drawn if isinstance(item, Demonstration)} == {"t1", "t2"}
    with pytest.raises(DataError, match="raise it to 2 or more"):
        CorpusEnvironment(config, published.folder, 1).demonstrations(random.Random(0), 1, demonstrations)
    other = files(tmp_path / "other", GOOD, trajectories=[lines(tmp_path / "u.jsonl", rows[:2])], max_answer_words=3)
    assert prepare(other, tmp_path / "home").version == published.version
    fewer = files(tmp_path / "fewer", GOOD, trajectories=[lines(tmp_path / "v.jsonl", rows[:1])], max_answer_words=3)
    assert prepare(fewer, tmp_path / "home").version != published.version
    bad = files(tmp_path / "bad", GOOD, trajectories=[lines(tmp_path / "w.jsonl", rows[5:])])
    with pytest.raises(DataError, match="0 good trajectories of 1"):
        prepare(bad, tmp_path / "home")
