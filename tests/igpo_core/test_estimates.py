"""Counted needs against what torch itself counts: parameters, operations, bytes that are kept for the way back."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from igpo_core.config import ExperimentConfig, Lora
from igpo_core.estimates import GIB, Shape, memory, work
from igpo_core.weights import add_lora, trained

# Qwen2.5 as its model cards and config.json have it: 0.49 and 7.62 billion parameters
HALF = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
    vocab_size=151936, tie_word_embeddings=True,
)  # fmt: skip
SEVEN = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064, tie_word_embeddings=False,
)  # fmt: skip
TINY = Qwen2Config(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=500, tie_word_embeddings=False,
)  # fmt: skip


def configure(policy: Any = None, **parts: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]},
            "policy": {"kind": "pretrained", "name": "m", **(policy or {})},
            **parts,
        }
    )


@pytest.mark.parametrize(("config", "billions"), [(HALF, 0.494), (SEVEN, 7.616)])
def test_parameters_of_qwen(config: Qwen2Config, billions: float) -> None:
    with torch.device("meta"):
        counted = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert counted / 1e9 == pytest.approx(billions, abs=0.001)
    assert Shape.of(config).parameters == pytest.approx(counted, rel=1e-3)


def test_parameters_of_an_adapter() -> None:
    model = AutoModelForCausalLM.from_config(TINY)
    add_lora(model, Lora(rank=8), 0)
    assert Shape.of(TINY).adapter(Lora(rank=8)) == sum(parameter.numel() for parameter in trained(model))


def test_operations_of_a_forward_pass_and_its_way_back() -> None:
    model, tokens = AutoModelForCausalLM.from_config(TINY, attn_implementation="eager"), 100
    with FlopCounterMode(display=False) as counter:
        loss = model(torch.randint(500, (1, tokens))).logits.sum()
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    config = configure(rollout={"questions": 1, "group_size": 2}, reward={"reward": "outcome_only"})
    counted = work(Shape.of(TINY), config, tokens=tokens, sampled=tokens, probes=0)
    # eager attention computes both triangles, of which the estimate counts one
    attention = 2 * tokens * tokens * 4 * 16 * 3
    assert counted.rollout / 2 == pytest.approx(forward - attention, rel=1e-6)
    assert counted.update / 2 == pytest.approx(
        3 * (forward - attention)
    ) and counter.get_total_flops() == pytest.approx(2 * forward, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_that_are_kept_for_the_way_back(checkpointing: bool) -> None:
    model = AutoModelForCausalLM.from_config(TINY, attn_implementation="sdpa").train(checkpointing)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    fixed = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed and tensor.is_floating_point():
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = 512
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model.get_decoder()(input_ids=torch.randint(500, (1, tokens)), use_cache=False).last_hidden_state
    assert hidden.shape[1] == tokens
    optimizer = {"tokens_per_batch": tokens, "gradient_checkpointing": checkpointing}
    config = configure(optimizer=optimizer, rollout={"max_tokens": 64})
    none = configure(optimizer={**optimizer, "tokens_per_batch": 64}, rollout={"max_tokens": 64})
    counted = memory(Shape.of(TINY), config).activations - memory(Shape.of(TINY), none).activations
    counted = counted * tokens // (tokens - 64)
    if checkpointing:  # one block is computed again, whole, on the way back: not among what is kept
        whole = memory(Shape.of(TINY), configure(optimizer={"tokens_per_batch": tokens}, rollout={"max_tokens": 64}))
        rest = memory(Shape.of(TINY), configure(optimizer={"tokens_per_batch": 64}, rollout={"max_tokens": 64}))
        last_norm = 2 * 64 * 4 * tokens
        blocks = (whole.activations - rest.activations) * tokens // (tokens - 64) - last_norm
        counted -= blocks // TINY.num_hidden_layers
    assert 0.9 < counted / sum(kept.values()) < 1.15


def test_memory_of_presets_in_round_numbers() -> None:
    """Qwen2.5-7B, all weights in float32 with gradient and two moments: 16 bytes a parameter, 2 more for bfloat16."""
    full = memory(Shape.of(SEVEN), configure({"dtype": "bfloat16"}))
    assert (full.weights + full.optimizer) / 7.616e9 == pytest.approx(18, rel=0.01)
    assert full.copies == 0 and full.total > 127 * GIB
    lora = memory(
        Shape.of(SEVEN),
        configure(
            {"dtype": "bfloat16", "lora": {"rank": 16}}, optimizer={"kl_coefficient": 0.01}, reward={"scorer": "frozen"}
        ),
    )
    assert lora.weights / 7.616e9 == pytest.approx(2, rel=0.02) and lora.optimizer < 0.5 * GIB
    assert lora.copies == 2 * lora.optimizer // 3


def test_rollouts_on_servers_leave_this_accelerator() -> None:
    engine = {"kind": "vllm", "urls": ["http://127.0.0.1:8000"], "weights": "/tmp/weights"}
    shape, parts = Shape.of(TINY), {"reward": {"gain": "prob_diff"}, "optimizer": {"tokens_per_batch": 4096}}
    here, away = configure(**parts), configure(**parts, rollout={"engine": engine})
    assert memory(shape, here).cache > 0 and memory(shape, away).cache == 0
    sizes = {"tokens": 50, "sampled": 20, "probes": 30}
    ours, theirs = work(shape, here, **sizes), work(shape, away, **sizes)
    assert theirs.decoding_bytes == 0 and theirs.rollout == ours.rollout and theirs.update == ours.update
    # beliefs cannot ride in a server's passes: each history is read once more, without the vocabulary
    rollouts = here.rollout.questions * here.rollout.group_size
    attention = 2 * 50 * 4 * 16 * 3
    assert theirs.beliefs - ours.beliefs == rollouts * 50 * (2 * shape.block_weights + attention)
