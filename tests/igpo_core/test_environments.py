"""The contract of environments, kept by every one that is shipped; and broken, so that the check is seen to see."""

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas
import pytest

from igpo_core.config import (
    AtlasDemonstrations,
    AtlasWorld,
    CalculatorDemonstrations,
    CalculatorWorld,
    ExperimentConfig,
    FileDemonstrations,
    LookupDemonstrations,
    LookupWorld,
    QuestionFiles,
    reward_of,
)
from igpo_core.data.schema import QUESTION_SCHEMA, table
from igpo_core.diagnostics import belief_metrics, fits_window
from igpo_core.environments.base import Environment, Need
from igpo_core.environments.contract import ContractError, check
from igpo_core.environments.qa import NO_SUCH_TITLE, CorpusEnvironment
from igpo_core.errors import ConfigError
from igpo_core.policies import word_tokenizer
from igpo_core.protocol import WordProtocol
from igpo_core.retrieval.bm25 import BM25
from igpo_core.rewards.scoring import explain_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Episode, Observation, Question, ToolCall

SIZES = {"train": 40, "dev": 10, "test": 10}
WORLDS = {
    "lookup": (LookupWorld(**SIZES), LookupDemonstrations()),
    "lookup with distractors": (LookupWorld(distractors=2, **SIZES), LookupDemonstrations()),
    "atlas": (AtlasWorld(**SIZES), AtlasDemonstrations()),
    "calculator": (CalculatorWorld(**SIZES), CalculatorDemonstrations()),
}
PASSAGES = [
    ("p0", "Warsaw", "Capital of Poland on the Vistula."),
    ("p1", "Marie  Curie", "Born in Warsaw. " + " ".join(f"w{n}" for n in range(30))),
    ("p2", "Marie Curie", "A second passage of this title."),
]


def opened(settings: Any, folder: Path) -> Environment:
    settings.generate().to_parquet(folder / "questions.parquet")
    environment: Environment = settings.open(folder, 5)
    return environment


def corpus(
    folder: Path, passages: Sequence[tuple[str, str, str]] = tuple(PASSAGES), **changes: Any
) -> CorpusEnvironment:
    rows = [
        {"source": "custom", "hops": None, "facts": None, "distractors": [], "answerable": True, "defect": None, "id": split,
         "split": split, "question": f"Where was Curie born, {split}?", "answers": ["Warsaw"],
         "supporting_titles": ["Marie Curie", "Warsaw"]}
        for split in ("train", "dev", "test")
    ]  # fmt: skip
    table(rows, QUESTION_SCHEMA).drop(columns="defect").to_parquet(folder / "questions.parquet")
    frame = pandas.DataFrame(passages, columns=["passage_id", "title", "text"])
    frame.to_parquet(folder / "corpus.parquet")
    BM25.build(frame, folder / "bm25")
    content = {"questions": [{"path": "q"}], "corpus": ["c"], "max_passage_words": 4, **changes}
    return CorpusEnvironment(QuestionFiles.model_validate(content), folder)


@pytest.mark.parametrize("name", WORLDS)
def test_a_shipped_world_keeps_the_contract(tmp_path: Path, name: str) -> None:
    settings, demonstrations = WORLDS[name]
    check(opened(settings, tmp_path), demonstrations)


@pytest.mark.parametrize("open_words", [0, 12])
def test_files_keep_the_contract(tmp_path: Path, open_words: int) -> None:
    check(corpus(tmp_path, open_words=open_words), FileDemonstrations())


def test_the_check_sees_a_state_that_is_kept(tmp_path: Path) -> None:
    environment: Any = opened(WORLDS["calculator"][0], tmp_path)
    answers: list[int] = []

    def counting(episode: Episode, call: ToolCall) -> Observation:
        answers.append(0)
        return Observation(f"{len(answers)} .")

    environment.call = counting
    with pytest.raises(ContractError, match="together are answered otherwise"):
        check(environment)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"rubric": lambda episode: {"closeness": 1.0, "accuracy": 1.0}}, "settings say"),
        ({"rubric": lambda episode: {"accuracy": 0.5, "closeness": 1.0}}, "its own answer"),
        ({"rubric": lambda episode: {"accuracy": 1.0, "closeness": 1.0}}, "any answer earns"),
        ({"example_call": lambda question: ToolCall("browse", {})}, "no tool of the interface"),
        ({"example_call": lambda question: ToolCall("calculate", {"query": "1"})}, "takes"),
        ({"belief_targets": lambda question: ()}, "no answer"),
        ({"vocabulary": lambda: ["question"]}, "lacks words of tasks"),
        ({"evidence": lambda episode: []}, "one value for each observation"),
        ({"exposes": lambda question, observation: False}, "exposes is true of no observation"),
        ({"call": lambda episode, call: Observation("1 .", label="2nd try (cached)")}, "part of a metric's name"),
    ],
)
def test_the_check_sees_what_is_broken(tmp_path: Path, broken: dict[str, Any], said: str) -> None:
    settings, demonstrations = WORLDS["calculator"]
    environment: Any = opened(settings, tmp_path)
    for name, value in broken.items():
        setattr(environment, name, value)
    with pytest.raises(ContractError, match=said):
        check(environment, demonstrations)


def test_the_check_sees_a_source_that_the_data_check_would_quarantine(tmp_path: Path) -> None:
    settings, _ = WORLDS["calculator"]
    environment: Any = opened(settings, tmp_path)
    foreign = replace(environment.tasks("train")[0], source="sums")
    environment.tasks = lambda split: [foreign] if split == "train" else []
    with pytest.raises(ContractError, match="its source is 'sums': of a generated table it is 'calculator'"):
        check(environment)


def test_the_check_sees_a_score_that_mlflow_has_no_name_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _ = WORLDS["calculator"]
    environment = opened(settings, tmp_path)
    monkeypatch.setattr(type(settings), "rubric", {"accuracy (ours)": "Accuracy"})
    with pytest.raises(ContractError, match=r"'accuracy \(ours\)' is part of a metric's name"):
        check(environment)


@pytest.mark.parametrize(
    ("word", "what"), [("done", "final_thought"), (".", "what a call returns"), ("*", "demonstrations")]
)
def test_the_check_sees_a_word_that_no_token_stands_for(tmp_path: Path, word: str, what: str) -> None:
    settings, demonstrations = WORLDS["calculator"]
    environment: Any = opened(settings, tmp_path)
    known = environment.vocabulary()
    environment.vocabulary = lambda: [item for item in known if item != word]
    with pytest.raises(ContractError, match=re.escape(f"lacks words of {what}: [{word!r}]")):
        check(environment, demonstrations)


def test_a_passage_is_opened_by_its_title(tmp_path: Path) -> None:
    """Two passages have one title, but for its spaces; each is shown with open_words words."""
    environment = corpus(tmp_path, open_words=6)
    question = environment.tasks("dev")[0]
    calls = [
        ToolCall("search", {"query": "Vistula"}),
        ToolCall("open", {"title": "marie curie "}),
        ToolCall("open", {"title": "Marie"}),
    ]
    found = environment.step([(Episode(question), call) for call in calls])
    assert [item.text for item in found] == [
        "1. Warsaw: Capital of Poland on ...",
        "1. Marie Curie: Born in Warsaw. w0 w1 w2 ...\n2. Marie Curie: A second passage of this title.",
        NO_SUCH_TITLE,
    ]
    episode = Episode(question, tuple(calls), tuple(found))
    assert environment.evidence(episode) == [0.5, 1.0, 1.0]
    assert [tool.name for tool in environment.settings.interface.tools] == ["search", "open"]
    assert "call one of the tools once" in environment.settings.interface.system_prompt


def test_two_tools_are_parsed_and_told_in_the_prompt(tmp_path: Path, chat_policy: Any) -> None:
    from igpo_core.protocol import ChatProtocol

    interface = corpus(tmp_path, open_words=6).settings.interface
    protocol = ChatProtocol(chat_policy.protocol.tokenizer, interface)
    ids, _ = protocol.turn("look", ToolCall("open", {"title": "Warsaw"}))
    assert protocol.parse(ids) == ToolCall("open", {"title": "Warsaw"})
    prompt = protocol.decode(protocol.prompt("Where?"))
    assert '"name": "open"' in prompt and '"name": "search"' in prompt
    with pytest.raises(ConfigError, match="one tool with one text"):
        WordProtocol(word_tokenizer(["done"]), interface)


def test_opening_needs_a_corpus() -> None:
    web = {"kind": "web", "api": "retriever", "url": "http://127.0.0.1:1"}
    with pytest.raises(ValueError, match="open_words=5 gives a tool"):
        QuestionFiles.model_validate({"questions": [{"path": "q"}], "search": web, "open_words": 5})


@pytest.mark.parametrize(
    ("data", "reward", "said"),
    [
        ({"kind": "calculator"}, {"outcome": "f1"}, r"outcome=f1 is no score .*accuracy, closeness"),
        ({"kind": "lookup"}, {"outcome": "accuracy"}, r"outcome=accuracy is no score .*f1, em, paper_f1"),
    ],
)
def test_an_arm_asks_for_what_its_environment_has(data: dict[str, Any], reward: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExperimentConfig.model_validate({"data": data, "reward": reward})


def test_an_arm_that_asks_for_more_than_is_offered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LookupWorld, "offers", LookupWorld.offers - {"exposure", "states"})
    with pytest.raises(
        ValueError, match=r"tell whether an observation shows the answer .*data.kind=lookup does not offer"
    ):
        ExperimentConfig.model_validate({"reward": {"gain": "first_exposure"}})
    with pytest.raises(ValueError, match="same state"):
        ExperimentConfig.model_validate({"reward": {"reward": "gigpo"}})
    ExperimentConfig.model_validate({"reward": {"reward": "outcome_only"}})


def test_a_title_that_many_passages_have_fills_no_window(tmp_path: Path) -> None:
    """A long article in pieces: as many of them as a search shows, not all."""
    pieces = [(f"p{n}", "Kolm", f"piece {n} of the article") for n in range(40)]
    environment = corpus(tmp_path, passages=pieces, open_words=6, top_k=3)
    (seen,) = environment.step([(Episode(environment.tasks("train")[0]), ToolCall("open", {"title": "Kolm"}))])
    assert seen.text.count("piece") == environment.settings.top_k == 3


class Unbelieving(LookupWorld):
    """A world whose tasks have no answer that a belief could be read for."""

    offers: ClassVar[frozenset[Need]] = LookupWorld.offers - {"beliefs"}


def test_without_beliefs_nothing_asks_for_them(taught: Any) -> None:
    config, known, policy = taught
    environment: Any = copy.copy(known)
    environment.settings = Unbelieving(**config.data.model_dump(exclude_unset=True))

    def belief_targets(question: Question) -> tuple[str, ...]:
        raise AssertionError("asked for a belief")

    environment.belief_targets = belief_targets
    reward = reward_of({"reward": "outcome_only"})
    tried = rollout(policy, environment, known.tasks("train")[:2], config.rollout, members=2, key=(0, "own", 0))
    explained = explain_trajectories(policy, environment, tried, reward)
    assert all(fits_window(policy, environment, item, reward) and item.beliefs is None for item in explained)
    assert not [name for name in belief_metrics(policy, environment, explained, reward) if "evidence" not in name]
