"""Rollouts: spans, log-probs and statuses as sampled; nothing depends on batch mates."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from igpo_core.config import RolloutConfig
from igpo_core.environments.base import Observation
from igpo_core.rollout.rows import RolloutTimes
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.sampled import sampled_logprobs
from igpo_core.trajectory import Episode, Final, Malformed, Question, RolloutStatus, ToolCall, Trajectory, Turn

KEY = (5, "rollout", 2)


@pytest.fixture(scope="module")
def setup(taught: Any) -> Any:
    return taught


def run(setup: Any, batch_size: int = 256, **arguments: Any) -> list[Trajectory]:
    config, environment, policy = setup
    settings = config.rollout.model_copy(update={"batch_size": batch_size})
    questions = environment.tasks("train")[:6]
    return rollout(policy, environment, questions, settings, members=4, key=KEY, **arguments)


def test_every_span_holds_what_the_protocol_says(setup: Any) -> None:
    protocol, environment = setup[2].protocol, setup[1]
    trajectories = run(setup)
    assert len(trajectories) == 24
    assert {item.status for item in trajectories} >= {RolloutStatus.ANSWERED, RolloutStatus.MALFORMED}
    assert any(len(item.turns) > 2 for item in trajectories)
    for item in trajectories:
        assert list(item.token_ids[: item.prompt_length]) == protocol.prompt(item.question.text)
        for turn, seen in zip(item.turns, [*item.observations, None], strict=True):
            assert protocol.parse(item.token_ids[turn.start : turn.end]) == turn.action
            if seen is None:
                assert turn.observation_end == turn.end
                continue
            assert isinstance(turn.action, ToolCall)
            found = environment.step([(Episode(item.question), turn.action)])[0]
            assert (found.text, found.label) == (seen, turn.label)
            assert list(item.token_ids[turn.end : turn.observation_end]) == protocol.observation(seen)


def test_the_same_seed_gives_the_same_trajectories_whatever_the_batch(setup: Any) -> None:
    whole = run(setup)
    for size in (1, 5):
        for one, other in zip(whole, run(setup, batch_size=size), strict=True):
            assert one.token_ids == other.token_ids and one.status == other.status
            for a, b in zip(one.turns, other.turns, strict=True):
                assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert run(setup) == whole  # to the bit
    assert [item.token_ids for item in rollout_with_key(setup, (6, "rollout", 2))] != [i.token_ids for i in whole]


def rollout_with_key(setup: Any, key: tuple[int, str, int]) -> list[Trajectory]:
    config, environment, policy = setup
    return rollout(policy, environment, environment.tasks("train")[:6], config.rollout, members=4, key=key)


def test_sampling_log_probs_equal_a_plain_forward_pass(setup: Any) -> None:
    """The cache over turns, with holes and dropped rows, computes what one uncached pass computes: ratio 1."""
    trajectories = run(setup)
    with torch.no_grad():
        again, _ = sampled_logprobs(setup[2].model, trajectories, setup[2].protocol.pad_id, 1.0)
    kept = torch.tensor([p for item in trajectories for turn in item.turns for p in turn.logprobs])
    assert (again - kept).abs().max() < 1e-5


def test_greedy_takes_the_most_likely_token(setup: Any) -> None:
    model = setup[2].model
    for item in run(setup, decoding="greedy"):
        with torch.no_grad():
            best = model(torch.tensor([item.token_ids])).logits[0].argmax(-1).tolist()
        for turn in item.turns:
            assert list(item.token_ids[turn.start : turn.end]) == best[turn.start - 1 : turn.end - 1]


def test_sampled_frequencies_follow_the_distribution(setup: Any) -> None:
    """First sampled token of 4,000 rollouts of one question against the model's own probabilities at temperature 2."""
    config, environment, policy = setup
    question = environment.tasks("train")[0]
    settings = config.rollout.model_copy(update={"temperature": 2.0, "max_turns": 1, "max_new_tokens": 1})
    drawn = rollout(policy, environment, [question], settings, members=4000, key=KEY)
    with torch.no_grad():
        logits = policy.model(torch.tensor([policy.protocol.prompt(question.text)])).logits[0, -1]
    expected = torch.softmax(logits / 2.0, -1)
    counts = torch.zeros_like(expected)
    for item in drawn:
        counts[item.token_ids[-1]] += 1
    error = (counts / 4000 - expected).abs()
    assert bool((error < 5 * (expected * (1 - expected) / 4000).sqrt() + 1e-9).all())  # five standard errors


def endings(setup: Any, turns: Sequence[str], **changes: Any) -> Trajectory:
    """Run the engine on a model whose output is forced to `turns` (control words and words), one question."""
    config, environment, policy = setup
    protocol = policy.protocol
    question: Question = environment.tasks("train")[0]
    forced = [[protocol.ids[word] for word in turn.split()] for turn in turns]
    model = ForcedModel(policy.model, forced)
    settings: RolloutConfig = config.rollout.model_copy(update=changes)
    return rollout(type(policy)(model, protocol, policy.window), environment, [question], settings, members=1, key=KEY)[
        0
    ]


class ForcedModel:
    """The real model, except that its logits force a script of turns."""

    def __init__(self, model: Any, script: list[list[int]]) -> None:
        self.model, self.config, self.device = model, model.config, model.device
        self.script = [token for turn in script for token in turn]
        self.calls = 0

    def get_decoder(self) -> Any:
        return self.model.get_decoder()

    def get_output_embeddings(self) -> Any:
        def head(hidden: torch.Tensor) -> torch.Tensor:
            logits = torch.full((*hidden.shape[:-1], self.config.vocab_size), -30.0)
            logits[..., self.script[self.calls]] = 30.0
            self.calls += 1
            return logits

        return head


SEARCH = "<think> boss of F1 </think> <tool_call> boss of F1 </tool_call>"
ANSWER = "<think> done </think> <answer> F1 </answer>"


@pytest.mark.parametrize(
    ("turns", "changes", "status", "action"),
    [
        ([SEARCH, ANSWER], {}, RolloutStatus.ANSWERED, Final),
        ([SEARCH, "<think> boss </think> </answer>"], {}, RolloutStatus.MALFORMED, Malformed),
        (["<eos>"], {}, RolloutStatus.MALFORMED, Malformed),
        ([SEARCH] * 3, {"max_turns": 3}, RolloutStatus.TURN_LIMIT, ToolCall),
        (["boss " * 16], {}, RolloutStatus.TURN_TRUNCATED, Malformed),
        ([SEARCH] * 4, {"max_tokens": 60}, RolloutStatus.WINDOW_FULL, ToolCall),
    ],
)
def test_every_way_a_rollout_ends(setup: Any, turns: list[str], changes: dict, status: Any, action: type) -> None:
    item = endings(setup, turns, **changes)
    assert item.status is status
    assert isinstance(item.turns[-1].action, action)
    assert item.answer == ("F1" if status is RolloutStatus.ANSWERED else None)
    assert len(item.cuts) == len(item.turns)
    assert len(item.token_ids) <= changes.get("max_tokens", 200)


def test_a_prompt_without_room_is_named(setup: Any) -> None:
    with pytest.raises(ValueError, match=r"question lookup-train-00000.*max_tokens=20"):
        endings(setup, [ANSWER], max_tokens=20)


def test_the_environment_gets_all_calls_of_a_turn_at_once_with_those_before(setup: Any) -> None:
    config, environment, policy = setup
    sizes: list[int] = []

    class Counting:
        def step(self, requests: Any) -> list[Observation]:
            sizes.append(len(requests))
            for episode, _ in requests:
                assert len(episode.calls) == len(episode.observations) == len(sizes) - 1
                assert all(call.name == "search" for call in episode.calls) and episode.answer is None
            found: list[Observation] = environment.step(requests)
            return found

    times = RolloutTimes()
    questions = environment.tasks("train")[:6]
    rollout(policy, Counting(), questions, config.rollout, members=4, key=KEY, times=times)  # type: ignore[arg-type]
    assert 1 <= len(sizes) <= config.rollout.max_turns - 1 and sizes[0] > 4
    assert 0 < times.tools < times.total


def test_random_spans_are_refused() -> None:
    question = Question("q", "lookup", "train", "?", ("a",))
    turn = Turn(2, 3, 3, Final("a"), (-0.1,))
    for bad in ({"prompt_length": 1}, {"turns": ()}, {"token_ids": (1, 2)}):
        values = {"token_ids": (1, 2, 3), "prompt_length": 2, "turns": (turn,)} | bad
        with pytest.raises(ValueError):
            Trajectory(question, "g", status=RolloutStatus.ANSWERED, **values)
