"""Shared small things: tiny random models of both architectures, a word policy over world `lookup`, a chat policy."""

import json
import os
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig, LookupWorld, NewPolicy, QuestionFiles, WarmStart
from igpo_core.trajectory import Question

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported: two test processes share two cores

CORPUS = [
    "Marie Curie was born in Warsaw. She won the Nobel Prize in Physics in 1903.",
    "Warsaw is the capital of Poland, on the river Vistula.",
    "The Vistula flows into the Baltic Sea near Gdansk.",
]


def lookup_questions(world: LookupWorld) -> list[Question]:
    from igpo_core.environments import lookup

    return [
        Question(
            row.id, row.source, row.split, row.question, tuple(row.answers), int(row.hops), (), json.loads(row.facts)
        )
        for row in lookup.generate(world).itertuples()
    ]


@pytest.fixture(scope="session")
def lookup_setup() -> tuple[ExperimentConfig, Any, Any]:
    """(config, environment, untrained policy) of a small world `lookup`."""
    from igpo_core.environments.lookup import LookupEnvironment
    from igpo_core.policies import build_policy

    config = ExperimentConfig.model_validate(
        {
            "data": {"kind": "lookup", "hops": 2, "train": 40, "dev": 8, "test": 8},
            "policy": {"kind": "new", "width": 32, "layers": 2, "feed_forward": 64, "window": 256},
            "rollout": {"questions": 3, "group_size": 4, "max_turns": 4, "max_tokens": 200},
        }
    )
    assert isinstance(config.data, LookupWorld)
    environment = LookupEnvironment(config.data, lookup_questions(config.data), config.rollout.max_turns)
    return config, environment, build_policy(config, environment)


@pytest.fixture(scope="session")
def taught(lookup_setup: tuple[ExperimentConfig, Any, Any]) -> tuple[ExperimentConfig, Any, Any]:
    """The same with a policy that has seen some demonstrations: it searches, answers and fails, every branch is taken."""
    from igpo_core.policies import build_policy
    from igpo_core.warmstart import run_warm_start

    config, environment, _ = lookup_setup
    stage = {
        "steps": 120,
        "learning_rate": 1e-2,
        "batch_size": 32,
        "warmup_steps": 5,
        "demonstrations": {"kind": "lookup"},
    }
    warm = config.model_copy(update={"warm_start": WarmStart.model_validate({"stages": [stage]})})
    policy = build_policy(config, environment)
    run_warm_start(warm, environment, policy, progress=lambda *_: None)
    return config, environment, policy


@pytest.fixture(scope="session")
def chat_config() -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "q.jsonl"}], "corpus": ["c.jsonl"]},
            "policy": {"kind": "new", "architecture": "qwen2", "tokenizer": "chat", "vocabulary": 400, "key_value_heads": 2,
                       "width": 32, "layers": 2, "feed_forward": 64, "window": 1024},
            "rollout": {"max_tokens": 1024, "max_new_tokens": 64},
        }
    )  # fmt: skip


@pytest.fixture(scope="session")
def chat_policy(chat_config: ExperimentConfig) -> Any:
    from igpo_core.environments.searching import SEARCH
    from igpo_core.policies import chat_tokenizer, make_policy, new_model

    assert isinstance(chat_config.policy, NewPolicy) and isinstance(chat_config.data, QuestionFiles)
    tokenizer = chat_tokenizer(CORPUS * 5, chat_config.policy)
    return make_policy(new_model(chat_config.policy, len(tokenizer), tokenizer, 0), tokenizer, SEARCH)
