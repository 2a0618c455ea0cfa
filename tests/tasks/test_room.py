"""Whether a policy's window has room for the histories that are scored and their probes."""

from typing import Any

import pytest

from igpo_core.config import LookupWorld, NewPolicy, reward_of
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.environments.searching import SEARCH
from igpo_core.errors import ConfigError
from igpo_core.policies import Policy, chat_tokenizer
from igpo_core.protocol import ChatProtocol
from igpo_core.rewards import scoring
from igpo_core.rewards.room import longest_history, require_room
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Question
from tasks.specification.presets import PRESETS, load_specification


def test_a_probe_that_does_not_fit_the_window_is_named(taught: Any) -> None:
    """Window 256; a probe of world lookup has 4 tokens of prefix and 1 of the answer. A history that is scored leaves room for
    a turn of 16 tokens; other questions' observations fill that; an empty observation has 2 tokens."""
    config, environment, policy = taught
    questions = environment.tasks("train")[:3]

    def room(max_tokens: int, reward: str, **choices: Any) -> None:
        rollout = config.rollout.model_copy(update={"max_tokens": max_tokens})
        require_room(
            policy,
            environment,
            questions,
            config.model_copy(update={"rollout": rollout, "reward": reward_of({"reward": reward, **choices})}),
        )

    room(267, "outcome_and_gain")
    room(267, "outcome_and_gain", gain="leave_one_turn_out")
    room(268, "outcome_only")
    with pytest.raises(ConfigError, match=rf"{questions[0].id}.*max_tokens=268 .* up to 252 tokens.*\(5 tokens\).*256"):
        room(268, "outcome_and_gain")
    room(265, "outcome_and_gain", credit="observation")
    room(251, "outcome_and_gain", credit="query")
    for most, credit in ((266, "observation"), (252, "query")):
        with pytest.raises(ConfigError, match=f"max_tokens={most}"):
            room(most, "outcome_and_gain", credit=credit)


@pytest.mark.parametrize("arm", [{}, {"gain": "leave_one_turn_out"}, {"credit": "observation"}, {"credit": "query"}])
def test_no_history_that_is_scored_is_longer_than_room_was_asked_for(
    taught: Any, arm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a window so narrow that trajectories end for want of room, and one of them by nothing to spare."""
    config, environment, policy = taught
    questions = environment.tasks("train")[:6]

    def draw(max_tokens: int) -> list[Any]:
        settings = config.rollout.model_copy(update={"max_tokens": max_tokens})
        return rollout(policy, environment, questions, settings, members=4, key=(0, "room", 0))

    spare = config.rollout.max_new_tokens
    most = max(item.cuts[-1] for item in draw(200)) + spare
    found = draw(most)
    assert max(item.cuts[-1] for item in found) == most - spare  # the bound is reached
    assert max(item.cuts[-1] for item in draw(most - 1)) < most - spare
    scored: list[int] = []
    real = scoring.score_beliefs

    def spy(model: Any, sequences: Any, cuts: Any, probes: Any, **keywords: Any) -> Any:
        scored.extend(place for row in cuts for place in row)
        return real(model, sequences, cuts, probes, **keywords)

    monkeypatch.setattr(scoring, "score_beliefs", spy)
    tight = config.model_copy(
        update={
            "rollout": config.rollout.model_copy(update={"max_tokens": most}),
            "reward": reward_of({"gain": "prob_diff", **arm}),
        }
    )
    scoring.reward_trajectories(policy, environment, found, tight.reward, served=True)
    assert len(scored) > 20 and max(scored) <= longest_history(policy, tight)


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("qwen-*.yaml")))
def test_presets_for_real_models_fit_their_windows(preset: str) -> None:
    """Qwen2.5-0.5B, 1.5B and 7B-Instruct have 32,768 positions (their config.json); their chat template, another tokenizer."""
    specification = load_specification(preset)
    text = "Who was the first woman to win the Nobel Prize in Physics?"
    tokenizer = chat_tokenizer([text] * 5, NewPolicy(tokenizer="chat", vocabulary=400))
    tokenizer.chat_template = (PRESETS.parents[1] / "tests" / "data" / "qwen2_5_chat_template.jinja").read_text()
    policy = Policy(None, ChatProtocol(tokenizer, SEARCH), 32768)
    environment = LookupEnvironment(LookupWorld(), [], 4)  # its answers are read as those of files are
    question = Question("q", "hotpotqa", "train", text, ("Marie Sklodowska Curie of Warsaw, Poland",))
    for cell, arm, seed in specification.runs():
        require_room(policy, environment, [question], specification.experiment(arm, seed, cell))
