"""A gold answer that no turn can give is told of by its row; lengths are measured in what limits them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.config import QuestionFiles
from igpo_core.data import load_questions
from igpo_core.environments.qa import CUT, CorpusEnvironment
from igpo_core.retrieval import Passage
from tasks.data.publishing import prepare
from tasks.data.reading import read
from tasks.data.validation import Validation, validate
from tasks.runs.dry_run import dry_run
from tests.tasks.tables import PASSAGES, files, lines, row


def checked(folder: Path, questions: list[Any], passages: list[Any] = PASSAGES, **settings: Any) -> Validation:
    config = files(folder, questions, passages, **settings)
    tables = read(config)
    return validate(tables.questions, tables.corpus, config, folder / "docs")


@pytest.mark.parametrize(
    "gold", ["<answer>Ida</answer>", "the tag </think>", "<tool_call>", "Andr\ufffd", "A", "+", "The The"]
)
def test_a_gold_answer_that_is_hard_to_earn_is_told_of_by_its_row(tmp_path: Path, gold: str) -> None:
    found = checked(tmp_path, [row("plain", "train"), row("hard", "train", answers=[gold])])
    told = [warning for warning in found.warnings if "'answer " in warning and "named" not in warning]
    assert len(told) == 1 and "1 rows" in told[0] and "the first is hard" in told[0]


def test_words_of_a_script_without_spaces_are_counted_by_two_characters(tmp_path: Path) -> None:
    """Nine words: 17 characters in two pieces of 11 and 6."""
    text = "黄山位于安徽省南部，是著名的旅游景点。"
    passages = [{"passage_id": "zh", "title": "黄山", "text": text}]
    asked = {"question": "黄山在哪个省的什么地方呢", "answers": ["安徽省南部"]}  # 12 and 5 characters: 6 and 3 words
    for most, counts in (({"max_question_words": 6, "max_answer_words": 3}, {}),
                         ({"max_question_words": 5}, {"questions: question length": 1}),
                         ({"max_answer_words": 2}, {"questions: answer length": 1})):  # fmt: skip
        found = checked(tmp_path, [row("zh", "train", **asked)], passages, **most)
        assert found.counts == counts
    assert not any("stub" in warning for warning in found.warnings)
    for most, parts in ((9, 1), (8, 2)):
        corpus = checked(tmp_path, [row("zh", "train")], passages, max_passage_words=most).corpus
        assert corpus is not None and len(corpus) == parts


def test_a_passage_without_spaces_is_cut_in_an_observation(tmp_path: Path) -> None:
    shown = CorpusEnvironment._lines(
        [Passage("p", "黄山", "黄山位于安徽省南部"), Passage("q", "Brenn", "one two three four")], 3
    )
    assert shown == f"1. 黄山: 黄山位于安徽 {CUT}\n2. Brenn: one two three {CUT}"


def test_a_script_that_bm25_searches_by_pairs_is_told_of(tmp_path: Path) -> None:
    chinese = [{"passage_id": "zh", "title": "黄山", "text": "黄山位于安徽省南部，是著名的旅游景点。"}]
    told = [w for w in checked(tmp_path, [row("a", "train")], [*PASSAGES, *chinese]).warnings if "script" in w]
    assert len(told) == 1 and "1 rows" in told[0] and "the first is zh" in told[0] and "search" in told[0]
    assert not any("script" in warning for warning in checked(tmp_path, [row("a", "train")]).warnings)


def preset(folder: Path, gold: str, **rollout: Any) -> str:
    rows = [
        row(f"{split}{n}", split, question=f"What of {split} {n}?")
        for split in ("train", "dev", "test")
        for n in range(4)
    ]
    rows[5]["answers"] = [gold]
    content = {
        "name": "golds", "baseline": "outcome_only", "seeds": [0], "processes": 1,
        "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {}},
        "base": {
            "data": files(folder, rows, max_answer_words=200).model_dump(mode="json"),
            "policy": {"kind": "new", "architecture": "qwen2", "tokenizer": "chat", "vocabulary": 400, "width": 32, "layers": 2,
                       "heads": 4, "key_value_heads": 2, "feed_forward": 64, "window": 2048},
            "rollout": {"questions": 2, "group_size": 2, "max_turns": 3, "max_new_tokens": 64, "max_tokens": 1024, **rollout},
            "training": {"epochs": 1, "steps_per_epoch": 1},
            "warm_start": {"stages": [{"steps": 2, "learning_rate": 1.0e-2, "batch_size": 2, "warmup_steps": 1,
                                       "demonstrations": {"kind": "files"}}]},
        },
    }  # fmt: skip
    (folder / "golds.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "golds.yaml")


def test_an_answer_longer_than_a_turn_is_named_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    long = preset(tmp_path, " ".join(f"word{number}" for number in range(100)))
    told = [line for line in dry_run(long) if "max_new_tokens" in line]
    assert len(told) == 1 and "1 questions" in told[0] and "'dev1'" in told[0] and "word0 word1" in told[0]


def test_a_text_that_no_vocabulary_gives_back_is_named(lookup_setup: Any) -> None:
    """A grammar of words has no word of this name: what its policy can write is <unk>."""
    from dataclasses import replace

    from igpo_core.rollout.rows import unsaid_answers

    config, environment, policy = lookup_setup
    questions = environment.tasks("train")[:3]
    assert unsaid_answers(policy, environment, config.rollout, questions) is None
    odd = replace(questions[1], id="odd", answers=("Nobody",))
    said = unsaid_answers(policy, environment, config.rollout, [questions[0], odd])
    assert said is not None and "1 questions" in said and "'odd'" in said and "cannot be read back" in said
    alias = replace(odd, answers=("Nobody", questions[1].answers[0]))
    assert unsaid_answers(policy, environment, config.rollout, [alias]) is None  # one accepted answer is enough


def test_ids_that_each_file_counts_anew_are_refused_by_that_reason(tmp_path: Path) -> None:
    from igpo_core.errors import DataError

    named = [
        {"path": lines(tmp_path / f"{s}.jsonl", [{"id": n, "question": f"What of {s} {n}?", "answers": ["x"]} for n in range(4)]),
         "split": s}
        for s in ("train", "dev", "test")
    ]  # fmt: skip
    config = QuestionFiles.model_validate({"questions": named, "corpus": [lines(tmp_path / "c.jsonl", PASSAGES)]})
    assert load_questions(tmp_path / "dev.jsonl")["id"].tolist() == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match=r"8 quarantined: questions: id unique \(give every row an id of its own"):
        prepare(config, tmp_path / "home")


def test_a_source_that_train_lacks_is_refused_by_that_reason(tmp_path: Path) -> None:
    from igpo_core.errors import DataError

    rows = [
        row(f"{split}{source}", split, source=source, question=f"What of {split} {source}?")
        for split, sources in (("train", ["nq", "popqa"]), ("dev", ["hotpotqa"]), ("test", ["hotpotqa", "nq"]))
        for source in sources
    ]
    with pytest.raises(DataError, match=r"0 good train questions of 1.*3 left out: of another source"):
        prepare(files(tmp_path, rows, sources=["hotpotqa"]), tmp_path / "home")
