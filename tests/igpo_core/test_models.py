"""Models of other families: trained on their own log-probabilities, or refused with the reason, in a run and in the dry run."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from igpo_core.config import ExperimentConfig, PretrainedPolicy
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.logprobs import target_logprobs
from igpo_core.models import require_plain_decoder, require_plain_head
from igpo_core.policies import load_policy
from tasks.runs.described import describe

SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
POSITIONS: dict[str, Any] = {"max_position_embeddings": 1024}
GEMMA: dict[str, Any] = {**SHAPE, **POSITIONS, "head_dim": 8, "layer_types": ["full_attention"] * 2}


@pytest.fixture
def tokenizer(chat_policy: Any) -> Any:
    return copy.deepcopy(chat_policy.protocol.tokenizer)


def ids_of(tokenizer: Any) -> dict[str, Any]:
    end = tokenizer.eos_token_id
    return {
        "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id, "eos_token_id": end, "bos_token_id": end
    }  # fmt: skip


def saved(folder: Path, config: Any, tokenizer: Any) -> Path:
    """A random model whose logits are large enough to tell distributions apart."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(base: ExperimentConfig, folder: Path, longest: int = 1024) -> ExperimentConfig:
    rollout = base.rollout.model_copy(update={"max_tokens": longest})
    return base.model_copy(update={"policy": PretrainedPolicy(name=str(folder)), "rollout": rollout})


def said(run: Any) -> str:
    """What a run or a dry run says where it refuses, "" where it does not."""
    try:
        run()
    except Exception as error:
        assert isinstance(error, IgpoError), f"a traceback: {error!r}"
        return str(error)
    return ""


def both(config: ExperimentConfig) -> tuple[str, str]:
    """What a run and what the dry run say of the model."""
    assert isinstance(config.policy, PretrainedPolicy)
    name = config.policy.name
    return said(lambda: load_policy(name, config)), said(lambda: describe(config, None))  # type: ignore[arg-type]


def off(policy: Any) -> float:
    """How far the log-probabilities that are used lie from the model's own, in nats."""
    ids = torch.tensor([policy.protocol.prompt("Who built the bridge?")])
    with torch.no_grad():
        own = torch.log_softmax(policy.model(input_ids=ids).logits[0, :-1].float(), -1)
        hidden = policy.model.get_decoder()(input_ids=ids).last_hidden_state[0, :-1]
        used = target_logprobs(policy.model.get_output_embeddings(), hidden, ids[0, 1:])
    return float((own.gather(1, ids[0, 1:, None])[:, 0] - used).abs().max())


SCALED = {
    "granite": (GraniteConfig, {**SHAPE, **POSITIONS, "logits_scaling": 8.0}, "logits_scaling=8.0"),
    "cohere": (CohereConfig, {**SHAPE, **POSITIONS, "logit_scale": 0.0625}, "logit_scale=0.0625"),
    "gemma3": (Gemma3TextConfig, {**GEMMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
}
PLAIN = {
    "granite": (GraniteConfig, {**SHAPE, **POSITIONS, "logits_scaling": 1.0}),
    "cohere": (CohereConfig, {**SHAPE, **POSITIONS, "logit_scale": 1.0}),
    "gemma3": (Gemma3TextConfig, GEMMA),
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}),
}


@pytest.mark.parametrize("name", SCALED)
def test_models_whose_logits_are_scaled_are_refused(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any, name: str
) -> None:
    kind, others, setting = SCALED[name]
    config = settings(chat_config, saved(tmp_path, kind(**ids_of(tokenizer), **others), tokenizer))
    for reason in both(config):
        assert "does more with its logits than its output embedding does" in reason and setting in reason


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_models_without_a_scale_are_taken(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any, name: str
) -> None:
    kind, others = PLAIN[name]
    config = settings(chat_config, saved(tmp_path, kind(**ids_of(tokenizer), **others), tokenizer))
    assert both(config) == ("", "")
    assert off(load_policy(tmp_path, config)) < 1e-4


WITHOUT_SDPA = [BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=405)]
if not Gemma2PreTrainedModel._supports_sdpa:  # transformers 5.17 has it, and Gemma 2 is refused for its soft caps there
    WITHOUT_SDPA.append(Gemma2Config(vocab_size=405, **GEMMA))


@pytest.mark.parametrize("config", WITHOUT_SDPA)
def test_models_without_sdpa_are_refused_for_that(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any, config: PreTrainedConfig
) -> None:
    for reason in both(settings(chat_config, saved(tmp_path, config, tokenizer))):
        assert "its attention does not run through torch's scaled_dot_product_attention" in reason
        assert "use another model" in reason and "*.safetensors" not in reason


def with_images(tokenizer: Any) -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    return Gemma3Config(
        text_config={**GEMMA, **ids_of(tokenizer)},
        vision_config=vision,
        mm_tokens_per_image=1,
        image_token_index=3,
        boi_token_index=4,
        eoi_token_index=5,
    )


def test_a_window_that_stands_in_the_language_models_part(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any
) -> None:
    model = Gemma3ForConditionalGeneration(with_images(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert both(settings(chat_config, tmp_path)) == ("", "")
    policy = load_policy(tmp_path, settings(chat_config, tmp_path))
    assert policy.window == 1024 and off(policy) < 1e-4
    for reason in both(settings(chat_config, tmp_path, 1025)):
        assert "rollout.max_tokens=1025 exceeds the 1024 tokens" in reason


def loose(**settings: Any) -> Any:
    """A configuration that transformers would not let be written."""
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda decoder: config
    return config


def of(**settings: Any) -> PreTrainedConfig:
    """A configuration of no kind that is known."""
    return PreTrainedConfig(**settings)


WINDOWS = [
    (LlamaConfig(max_position_embeddings=64), 64),
    (GPT2Config(n_positions=48), 48),
    (of(max_seq_len=96), 96),
    (of(seq_length=80), 80),
    (of(max_position_embeddings=None, n_ctx=33), 33),
    (of(max_position_embeddings=-1, model_max_length=2048.0), 2048),
    (of(text_config=of(max_position_embeddings=70), max_position_embeddings=9), 70),
    (MistralConfig(max_position_embeddings=64, sliding_window=16), 16),
    (MistralConfig(max_position_embeddings=64, sliding_window=None), 64),
    (Qwen2Config(max_position_embeddings=64, sliding_window=16, use_sliding_window=False), 64),
    (
        Qwen2Config(
            max_position_embeddings=64,
            sliding_window=16,
            use_sliding_window=True,
            max_window_layers=1,
            num_hidden_layers=2,
        ),
        16,
    ),
    (of(max_position_embeddings=64, attention_chunk_size=8, layer_types=["chunked_attention"]), 8),
    (of(max_position_embeddings=64, sliding_window=8, layer_types=["full_attention"]), 64),
    (LlamaConfig(max_position_embeddings=64, rope_parameters={"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}), 64),
    (LlamaConfig(max_position_embeddings=64, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), 64),
    (loose(max_position_embeddings=64, rope_parameters={
        "rope_type": "dynamic", "original_max_position_embeddings": 8}), 64),
    (loose(max_position_embeddings=64, rope_parameters={
        "full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 8}}), 8),
    (loose(max_position_embeddings=64, original_max_position_embeddings=16,
        rope_parameters={"rope_type": "longrope"}), 16),
    (Phi3Config(max_position_embeddings=64, original_max_position_embeddings=8, hidden_size=32, num_attention_heads=2,
        pad_token_id=0, rope_parameters={
            "rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4}), 8),
]  # fmt: skip


@pytest.mark.parametrize(("config", "expected"), WINDOWS)
def test_the_longest_sequence_by_the_names_that_models_have_for_it(config: Any, expected: int) -> None:
    from igpo_core.models import window

    assert window(config) == expected


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (of(), "does not say how many tokens it takes"),
        (of(max_position_embeddings=0), "does not say how many tokens it takes"),
        (of(max_position_embeddings=True), "does not say how many tokens it takes"),
        (of(max_position_embeddings="long"), "does not say how many tokens it takes"),
        (of(max_position_embeddings=float("inf")), "does not say how many tokens it takes"),
        (Lfm2Config(layer_types=["conv", "full_attention"], num_hidden_layers=2), "layers of kind conv"),
        (FalconConfig(alibi=True), "ALiBi"),
    ],
)
def test_a_configuration_that_says_no_window_is_refused(config: PreTrainedConfig, reason: str) -> None:
    from igpo_core.models import window

    assert reason in said(lambda: window(config))


def test_a_sliding_window_is_the_longest_trajectory(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any
) -> None:
    """Rollouts show a model its whole history; a history within the window is seen as a whole by the model too."""
    config = MistralConfig(**ids_of(tokenizer), **SHAPE, max_position_embeddings=1024, sliding_window=600)
    saved(tmp_path, config, tokenizer)
    for reason in both(settings(chat_config, tmp_path)):
        assert "rollout.max_tokens=1024 exceeds the 600 tokens" in reason
    assert both(settings(chat_config, tmp_path, 600)) == ("", "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_position_embeddings": "long"}, "max_position_embeddings"),
        ({"num_attention_heads": 7}, "7"),
        ({"num_attention_heads": 0}, ""),
        ({"vocab_size": 3}, ""),
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"hidden_act": "no_such_act"}, "no_such_act"),
    ],
)
def test_a_damaged_configuration_is_said_and_no_traceback(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any, change: dict[str, Any], reason: str
) -> None:
    saved(tmp_path, LlamaConfig(**ids_of(tokenizer), **SHAPE, **POSITIONS), tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    in_a_run, in_the_dry_run = both(settings(chat_config, tmp_path))
    assert in_a_run and reason in in_a_run
    assert in_the_dry_run and reason in in_the_dry_run


def test_a_token_without_an_embedding_is_refused(tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any) -> None:
    """A padding token that was added to the tokenizer alone."""
    saved(tmp_path, LlamaConfig(**ids_of(tokenizer), **SHAPE, **POSITIONS), tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    for reason in both(settings(chat_config, tmp_path)):
        assert "a token '[PAD]' with the id" in reason and "resize_token_embeddings" in reason


def test_an_added_token_that_no_text_becomes_needs_no_embedding(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any
) -> None:
    """Gemma 3's tokenizer has one for images that its models for text lack."""
    saved(tmp_path, LlamaConfig(**ids_of(tokenizer), **SHAPE, **POSITIONS), tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(tmp_path)
    assert both(settings(chat_config, tmp_path)) == ("", "")


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**ids_of(tokenizer), **SHAPE, **POSITIONS))
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = settings(chat_config, tmp_path)
    assert "no finite numbers" in said(lambda: load_policy(tmp_path, config))


def without(folder: Path, part: str) -> None:
    kept = {name: value for name, value in load_file(folder / "model.safetensors").items() if part not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "config", "count", "first"),
    [
        ("lm_head", {}, 1, "lm_head.weight"),  # the files of a tied model, and a config.json that does not say so
        ("layers.1.", {}, 9, "model.layers.1.input_layernorm.weight"),  # a shard that was lost; nine tensors a layer
        ("no such part", {"num_hidden_layers": 3}, 9, "model.layers.2.input_layernorm.weight"),
    ],
)
def test_weights_that_no_file_holds_are_refused(
    tmp_path: Path,
    chat_config: ExperimentConfig,
    tokenizer: Any,
    part: str,
    config: dict[str, Any],
    count: int,
    first: str,
) -> None:
    saved(tmp_path, LlamaConfig(**ids_of(tokenizer), **SHAPE, **POSITIONS), tokenizer)
    without(tmp_path, part)
    given = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(given | config))
    reason = said(lambda: load_policy(tmp_path, settings(chat_config, tmp_path)))
    assert f"no values for {count} of the model's weights ({first}" in reason


def test_a_tied_model_needs_no_output_embedding_of_its_own(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any
) -> None:
    shape = {**ids_of(tokenizer), **SHAPE, **POSITIONS}
    saved(tmp_path, LlamaConfig(**shape, tie_word_embeddings=True), tokenizer)
    without(tmp_path, "lm_head")
    assert said(lambda: load_policy(tmp_path, settings(chat_config, tmp_path))) == ""


def test_a_model_that_is_its_own_decoder_is_refused(
    tmp_path: Path, chat_config: ExperimentConfig, tokenizer: Any
) -> None:
    config = Llama4TextConfig(
        **ids_of(tokenizer), **SHAPE, **POSITIONS, head_dim=8, num_local_experts=2, intermediate_size_mlp=64
    )
    saved(tmp_path, config, tokenizer)
    for reason in both(settings(chat_config, tmp_path)):
        assert "has no decoder and output embedding apart from each other" in reason


class Cumulative(torch.nn.Module):
    """What a recurrent layer does: it adds up what came before, padding too."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + hidden.cumsum(1)


def test_a_decoder_that_sees_padding_is_refused(chat_policy: Any) -> None:
    from igpo_core.models import require_plain_decoder

    model = copy.deepcopy(chat_policy.model)
    require_plain_decoder(model)
    model.model.layers[0].mlp = torch.nn.Sequential(model.model.layers[0].mlp, Cumulative())
    assert "gives other numbers with masks, positions and a cache" in said(lambda: require_plain_decoder(model))


def test_memory_that_does_not_suffice_is_no_fault_of_the_model(
    chat_policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says it with a RuntimeError, as models say that they cannot be called so."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no masks here")

    model = copy.deepcopy(chat_policy.model)
    for error, raised in ((full, torch.OutOfMemoryError), (refuse, ConfigError)):
        monkeypatch.setattr(model, "forward", error)
        for check in (require_plain_head, require_plain_decoder):
            with pytest.raises(raised):
                check(model)
