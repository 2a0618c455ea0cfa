"""Attention of one new token a row, in bfloat16 on a CPU: what torch's own attention computes, where it is used and where not."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from igpo_core.rollout import transformers_engine as engine
from igpo_core.rollout.one_token import NAME, attend, one_token_layers
from igpo_core.sampled import sampled_logprobs
from igpo_core.trajectory import Trajectory


def tensors(tokens: int) -> tuple[torch.Tensor, ...]:
    """6 heads of queries over 2 of keys, 5 rows, 9 columns of which each row sees others, the first always."""
    torch.manual_seed(0)
    query, key, value = torch.randn(5, 6, tokens, 8), torch.randn(5, 2, 9, 8), torch.randn(5, 2, 9, 8)
    mask = torch.rand(5, 1, tokens, 9) < 0.6
    mask[..., 0] = True
    return query, key, value, mask


def test_one_token_sees_what_its_mask_shows() -> None:
    query, key, value, mask = tensors(1)
    found, _ = attend(None, query, key, value, mask, scaling=0.3)
    assert found.shape == (5, 1, 6, 8)
    for row in range(5):
        for head in range(6):
            seen = mask[row, 0, 0]
            own_keys, own_values = key[row, head // 3, seen].double(), value[row, head // 3, seen].double()
            weights = (0.3 * own_keys @ query[row, head, 0].double()).exp()
            wanted = (weights / weights.sum()) @ own_values
            torch.testing.assert_close(found[row, 0, head].double(), wanted, atol=1e-6, rtol=1e-5)


def test_several_tokens_are_torchs_own() -> None:
    query, key, value, mask = tensors(4)
    found, _ = attend(SimpleNamespace(num_key_value_groups=3), query, key, value, mask, scaling=0.3)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(3, 1), value.repeat_interleave(3, 1), attn_mask=mask, scale=0.3
    )
    assert torch.equal(found, wanted.transpose(1, 2))


def gap(policy: Any, exact: Any, trajectories: list[Trajectory]) -> float:
    """Mean distance of the log-probabilities that were sampled with from those of a pass in float32."""
    sampled = torch.tensor([p for item in trajectories for turn in item.turns for p in turn.logprobs])
    with torch.no_grad():
        plain = sampled_logprobs(exact.model, trajectories, policy.protocol.pad_id, 1.0)[0]
    return float((sampled - plain).abs().mean())


def test_a_rollout_in_bfloat16_rounds_no_more_than_with_torchs_attention(taught: Any, monkeypatch: Any) -> None:
    config, environment, exact = taught
    half = replace(exact, model=copy.deepcopy(exact.model), half=True)

    def run() -> list[Trajectory]:
        questions = environment.tasks("train")[:6]
        return engine.rollout(half, environment, questions, config.rollout, members=4, key=(5, "rollout", 2))

    ours = run()
    monkeypatch.setattr(engine, "one_token_layers", lambda policy: nullcontext())
    torchs = run()
    logprobs = [[turn.logprobs for item in found for turn in item.turns] for found in (ours, torchs)]
    assert logprobs[0] != logprobs[1]  # it was used
    assert sum(len(item.observations) for item in ours) > 10
    assert gap(half, exact, ours) < 1.5 * gap(half, exact, torchs) < 0.02


@pytest.mark.parametrize("change", ["float32", "a window", "another type"])
def test_others_attend_as_before(taught: Any, change: str) -> None:
    policy = replace(taught[2], model=copy.deepcopy(taught[2].model), half=change != "float32")
    if change == "a window":
        policy.model.config.sliding_window = 32
    if change == "another type":
        policy.model.config.model_type = "stablelm"
    with one_token_layers(policy):
        assert policy.model.config._attn_implementation == "sdpa"


def test_layers_are_theirs_again_after_a_fault(taught: Any) -> None:
    policy = replace(taught[2], model=copy.deepcopy(taught[2].model), half=True)
    with pytest.raises(KeyError), one_token_layers(policy):
        assert policy.model.config._attn_implementation == NAME
        raise KeyError
    assert policy.model.config._attn_implementation == "sdpa"
