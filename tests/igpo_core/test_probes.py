"""Probes that ride in the rollout's prefills: equal to one plain forward pass each, and without influence on the rollout."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from igpo_core.config import RolloutConfig, reward_of
from igpo_core.environments.base import Observation
from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.policies import Policy, make_policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rewards.information_gain import answer_log_likelihoods
from igpo_core.rewards.scoring import answer_probes, reward_trajectories, score_trajectories
from igpo_core.rollout.rows import RolloutTimes
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Question, Trajectory
from tests.worlds import WithTools


@torch.no_grad()
def plain(model: Any, history: Sequence[int], probe: AnswerProbe) -> float:
    ids = [*history, *probe.prefix_ids, *probe.answer_ids]
    logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    places = range(len(ids) - len(probe.answer_ids), len(ids))
    return sum(float(logprobs[k - 1, ids[k]]) for k in places) / len(probe.answer_ids)


def check(policy: Policy, trajectories: Sequence[Trajectory], probes: Any) -> int:
    """Every score against a plain pass over its own history; returns how many there were."""
    compared = 0
    for item in trajectories:
        assert item.answer_scores is not None and len(item.answer_scores) == len(item.turns)
        for cut, scores in zip(item.cuts, item.answer_scores, strict=True):
            expected = [plain(policy.model, item.token_ids[:cut], probe) for probe in probes(item.question)]
            assert list(scores) == pytest.approx(expected, abs=1e-5)
            compared += len(scores)
    return compared


def run(setup: Any, **arguments: Any) -> list[Trajectory]:
    config, environment, policy = setup
    batch_size = arguments.pop("batch_size", 256)
    settings = config.rollout.model_copy(update={"batch_size": batch_size})
    questions = environment.tasks("train")[:6]
    return rollout(policy, environment, questions, settings, members=4, key=(5, "rollout", 2), **arguments)


def test_each_score_equals_a_plain_forward_pass(taught: Any) -> None:
    probes = answer_probes(taught[2], taught[1], reward_of({}))
    for size in (256, 5, 1):  # 5 cuts through a group of 4
        trajectories = run(taught, batch_size=size, probes=probes)
        assert max(len(item.turns) for item in trajectories) == 4
        assert check(taught[2], trajectories, probes) > 40


def test_probes_leave_the_rollout_as_it_is(taught: Any) -> None:
    without = run(taught)
    assert all(item.answer_scores is None for item in without)
    with_probes = run(taught, probes=answer_probes(taught[2], taught[1], reward_of({})))
    assert [item.token_ids for item in with_probes] == [item.token_ids for item in without]
    for one, other in zip(with_probes, without, strict=True):
        for a, b in zip(one.turns, other.turns, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_riding_and_packed_beliefs_agree(taught: Any) -> None:
    config = reward_of({})
    trajectories = run(taught, probes=answer_probes(taught[2], taught[1], config))
    packed = score_trajectories(taught[2], taught[1], trajectories, config)
    scored = reward_trajectories(taught[2], taught[1], trajectories, config)
    for one, beliefs in zip(scored, packed, strict=True):
        assert one.beliefs == pytest.approx(beliefs, abs=1e-5)


@pytest.mark.parametrize("head", [torch.float32, torch.bfloat16])  # bfloat16: as LoRA leaves the weights
@pytest.mark.parametrize("shift", [0.0, 25.0])
def test_beliefs_in_bfloat16_do_not_depend_on_the_size_of_the_logits(
    taught: Any, shift: float, head: torch.dtype
) -> None:
    """All logits shifted by the same: the softmax is unchanged, and a bfloat16 logit of 25 is one of steps of an eighth. Riding
    and packed, against float32: measured .0013 at most, and with logits in bfloat16 .011 without the shift and .073 with it."""
    config, environment, exact = taught
    model = copy.deepcopy(exact.model)
    model.lm_head.bias = torch.nn.Parameter(torch.full((model.config.vocab_size,), shift))
    model.lm_head.to(head)
    exact = Policy(copy.deepcopy(model), exact.protocol, exact.window)
    exact.model.lm_head.float()
    half = Policy(model, exact.protocol, exact.window, half=True)
    trajectories = run((config, environment, half), probes=answer_probes(half, environment, reward_of({})))
    wanted = score_trajectories(exact, environment, trajectories, reward_of({}))
    packed = score_trajectories(half, environment, trajectories, reward_of({}))
    assert sum(map(len, wanted)) > 40
    for item, one, other in zip(trajectories, wanted, packed, strict=True):
        assert item.answer_scores is not None
        assert [scores[0] for scores in item.answer_scores] == pytest.approx(one, abs=0.005)
        assert other == pytest.approx(one, abs=0.005)


def test_without_probes_a_gain_is_refused(taught: Any) -> None:
    with pytest.raises(ValueError, match="without probes"):
        reward_trajectories(taught[2], taught[1], run(taught), reward_of({}))


def test_time_of_probes_is_counted_apart(taught: Any) -> None:
    times = RolloutTimes()
    run(taught, times=times)
    assert times.scoring == 0.0
    run(taught, probes=answer_probes(taught[2], taught[1], reward_of({})), times=times)
    assert 0.0 < times.scoring < times.total


def echo(requests: Any) -> list[Observation]:
    """Every query finds the same passage, which is longer for some questions."""
    return [Observation("Warsaw is the capital of Poland. " * (1 + len(e.question.text) % 3)) for e, _ in requests]


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_chat_models_with_several_answers_over_many_turns(
    chat_policy: Any, taught: Any, kind: str, monkeypatch: Any
) -> None:
    """Grouped-query attention, 16 turns, answers of different lengths, prompts of different lengths. The model is random:
    its turns are forced, so that it searches on."""
    tokenizer = chat_policy.protocol.tokenizer
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    }  # fmt: skip
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**shape) if kind == "llama" else Qwen2Config(**shape))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    policy = make_policy(model, tokenizer, SEARCH)
    from igpo_core.rollout import transformers_engine

    script, _ = policy.protocol.turn("x", search_for("Warsaw"))
    choose = transformers_engine._Stream._choose

    def forced(self: Any, logits: torch.Tensor, uniforms: torch.Tensor) -> Any:
        _, logprobs = choose(self, logits, uniforms)
        self.said = getattr(self, "said", -1) + 1
        token = torch.full((len(logits),), script[self.said % len(script)])
        return token, logprobs

    monkeypatch.setattr(transformers_engine._Stream, "_choose", forced)
    questions = [
        Question("a", "nq", "train", "Where?", ("Warsaw", "the city of Warsaw in Poland", "W")),
        Question("b", "nq", "train", "Who won the Nobel Prize in Physics in 1903?", ("Marie Curie",)),
    ]
    settings = RolloutConfig(max_turns=16, max_new_tokens=len(script), max_tokens=4096, batch_size=3)
    world: Any = WithTools(taught[1], echo)
    probes = answer_probes(policy, world, reward_of({"aliases": "max"}))
    trajectories = rollout(policy, world, questions, settings, members=2, key=(0, "t", 0), probes=probes)
    assert [len(item.turns) for item in trajectories] == [16] * 4
    assert check(policy, trajectories, probes) == 2 * 16 * 3 + 2 * 16
    # the door, packed, says the same
    item = trajectories[-1]
    packed = answer_log_likelihoods(model, [item.token_ids], [item.cuts], [probes(item.question)[0]])
    assert item.answer_scores is not None
    assert [scores[0] for scores in item.answer_scores] == pytest.approx(packed[0], abs=1e-5)


def test_probes_leave_nothing_in_the_cache(taught: Any, monkeypatch: Any) -> None:
    """After every prefill the cache has as many columns as the mask knows of."""
    from igpo_core.rollout import transformers_engine

    columns: list[tuple[int, int]] = []
    advance = transformers_engine._Stream._advance

    def watched(self: Any, *arguments: Any) -> Any:
        hidden = advance(self, *arguments)
        columns.append((self.cache.get_seq_length(), self.seen.shape[1]))
        return hidden

    monkeypatch.setattr(transformers_engine._Stream, "_advance", watched)
    run((taught[0], taught[1], copy.deepcopy(taught[2])), probes=answer_probes(taught[2], taught[1], reward_of({})))
    assert len(columns) > 20 and all(cached == known for cached, known in columns)


@pytest.mark.parametrize("probes", [[], [AnswerProbe([1], [2]), AnswerProbe([3], [2])]])
def test_probes_that_share_no_prefix_are_refused(taught: Any, probes: list[AnswerProbe]) -> None:
    with pytest.raises(ValueError, match="share their prefix"):
        run(taught, probes=lambda _: probes)


def test_a_probe_of_one_answer_token_and_no_prefix_adds_no_column(taught: Any) -> None:
    probes = lambda question: [AnswerProbe([], taught[2].protocol.probe(question.answers[0]).answer_ids)]  # noqa: E731
    assert check(taught[2], run(taught, probes=probes), probes) > 20
