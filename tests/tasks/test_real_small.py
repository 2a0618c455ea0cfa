"""The real questions that are shipped are what provenance.json says, and can be used as they are."""

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.real_small import ORIGINS, PLACE, make, repositories
from igpo_core.data import identity_key, load_corpus, load_questions
from tasks.lab.home import PROJECT
from tasks.runs.taught import learnt_by_heart
from tasks.specification.presets import load_specification

SHARED = PROJECT.parent / "shared" / "data"


def test_the_files_are_those_of_the_provenance() -> None:
    provenance = json.loads((PLACE / "provenance.json").read_text())
    for name, digest in provenance["sha256"].items():
        assert hashlib.sha256((PLACE / name).read_bytes()).hexdigest() == digest, name
    rows = [json.loads(line) for line in (PLACE / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == sum(provenance["questions"].values()) == 300
    assert Counter(f"{row['source']}, {row['split']}" for row in rows) == provenance["questions"]
    used = Counter(name for row in rows for name in repositories(row["origin"]))
    told = {entry["repository"].removeprefix("https://github.com/"): entry for entry in provenance["origins"]}
    assert {name: entry["questions"] for name, entry in told.items()} == dict(used)
    assert {name: entry["licence"] for name, entry in told.items()} == {name: ORIGINS[name][1] for name in used}
    assert "CC BY-SA 4.0" in (PLACE / "README.md").read_text()


def test_every_question_can_be_answered_from_the_passages_and_stands_in_one_split() -> None:
    questions, corpus = load_questions(PLACE / "questions.jsonl"), load_corpus(PLACE / "corpus.jsonl.gz")
    assert questions["defect"].isna().all() and corpus["defect"].isna().all() and len(corpus) == 3227
    titles = set(corpus["title"])
    assert all(set(wanted) <= titles for wanted in questions["supporting_titles"])
    assert questions["question"].map(identity_key).is_unique


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the tables that the set was made from")
def test_it_is_made_again_from_the_larger_tables() -> None:
    made = make(SHARED)
    for name in ("questions.jsonl", "provenance.json"):
        assert made[name] == (PLACE / name).read_bytes(), name
    assert gzip.decompress(made["corpus.jsonl.gz"]) == gzip.decompress((PLACE / "corpus.jsonl.gz").read_bytes())


@pytest.mark.parametrize(("preset", "taught"), [("real", 4800), ("real-laptop", 160)])
def test_presets_read_it_and_say_what_is_learnt_by_heart(preset: str, taught: int) -> None:
    base = load_specification(preset).base
    assert [Path(file.path).parent for file in base.data.questions] == [PLACE]  # type: ignore[union-attr]
    (told,) = learnt_by_heart(base, 160) or [""]
    assert (f"{taught} demonstrations are made of 160 train questions, 30 times each" in told) is (taught > 1600)
    assert learnt_by_heart(base, 1765) == []
    assert len(learnt_by_heart(base, (taught - 1) // 10)) == 1 and learnt_by_heart(base, taught // 10) == []
