"""A tiny model that knows a text by heart, written as GGUF in llama.cpp's layout."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from igpo_core.config import NewPolicy
from igpo_core.gguf import KNOWN_TEXT
from igpo_core.policies import chat_tokenizer, new_model

HEADS, KEY_VALUE_HEADS = 4, 2
NAMES = {
    "input_layernorm.weight": "attn_norm", "self_attn.q_proj.weight": "attn_q", "self_attn.k_proj.weight": "attn_k",
    "self_attn.v_proj.weight": "attn_v", "self_attn.o_proj.weight": "attn_output",
    "post_attention_layernorm.weight": "ffn_norm", "mlp.gate_proj.weight": "ffn_gate", "mlp.up_proj.weight": "ffn_up",
    "mlp.down_proj.weight": "ffn_down",
}  # fmt: skip


@functools.cache
def known() -> tuple[Any, Any]:
    """A tiny Llama that knows the text by heart, and its tokenizer."""
    settings = NewPolicy(
        tokenizer="chat",
        vocabulary=320,
        width=32,
        layers=2,
        heads=HEADS,
        key_value_heads=KEY_VALUE_HEADS,
        feed_forward=64,
    )
    tokenizer = chat_tokenizer([KNOWN_TEXT], settings)
    model = new_model(settings, len(tokenizer), tokenizer, seed=0)
    learn(model, tokenizer)
    return model, tokenizer


def learn(model: Any, tokenizer: Any) -> None:
    """Teach a model the text by heart."""
    ids = torch.tensor([tokenizer(KNOWN_TEXT)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix in llama.cpp's order: the two halves that RoPE turns together lie next to each other."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(np.stack([rows[:, 0], rows[:, 1]], axis=2).reshape(weight.shape))


def write(
    path: Path,
    taught: tuple[Any, Any],
    *,
    tied: bool = False,
    eos: str = "<|im_end|>",
    template: bool = True,
    change: Callable[[dict[str, np.ndarray]], None] = lambda tensors: None,
) -> Path:
    """The model as a GGUF file in float32."""
    from gguf import GGUFWriter, TokenType

    model, tokenizer = taught
    config, state = model.config, {name: value.float().numpy() for name, value in model.state_dict().items()}
    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("cc0-1.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(vocabulary.index(eos))
    writer.add_bos_token_id(vocabulary.index("<|im_start|>"))
    writer.add_pad_token_id(vocabulary.index("<|endoftext|>"))
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not tied:
        tensors["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        for theirs, ours in NAMES.items():
            value = state[f"model.layers.{layer}.{theirs}"]
            if ours in ("attn_q", "attn_k"):
                value = interleaved(value, HEADS if ours == "attn_q" else KEY_VALUE_HEADS)
            tensors[f"blk.{layer}.{ours}.weight"] = value
    change(tensors)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
