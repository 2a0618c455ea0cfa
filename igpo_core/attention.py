"""Attention over packed sequences: a pass is [1, tokens], sequence behind sequence, without padding and without a mask.

Each query sees its own sequence up to itself. On a GPU one kernel does it for training, prefill and decoding alike: the flash
kernel that torch ships, which takes lengths by sequence and reads grouped heads as they are. On a CPU the same is computed
sequence by sequence, so that everything around it can be tested there.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any

import torch
from transformers import AttentionInterface

from igpo_core.errors import ConfigError
from igpo_core.folders import own_folder
from igpo_core.models import text_config

NAME = "igpo_packed"  # under which transformers knows packed_attention


@dataclass(frozen=True)
class Packing:
    """Where the sequences of a pass lie.

    starts: [sequences + 1] int32, sequence i is tokens starts[i] to starts[i + 1] of the pass. longest: an upper bound of their
    tokens; the kernel's grid grows with it.

    The others are of a pass whose keys go into slots (igpo_core/rollout/slots.py), None without: columns: [tokens], where each
    token's key and value go in the flat cache of a layer; key_starts: [sequences + 1] int32, where each sequence's first key
    lies there; key_lengths: [sequences] int32, the keys of each sequence, those of this pass included; longest_keys: an upper
    bound of these.
    """

    starts: torch.Tensor
    longest: int
    columns: torch.Tensor | None = None
    key_starts: torch.Tensor | None = None
    key_lengths: torch.Tensor | None = None
    longest_keys: int = 0

    @staticmethod
    def of(lengths: Sequence[int], device: Any) -> "Packing":
        """Sequences of so many tokens, one behind the other, each with its own keys alone."""
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        return Packing(moved(starts, device), power_of_two(max(lengths)))


def moved(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on the device; a GPU that is at work is not waited for."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`: bounds that take few values keep compiled code few."""
    return 1 << max(0, count - 1).bit_length()


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; query: [1, heads, tokens, size], key and value with fewer heads.

    Returns [1, tokens, heads, size]. A module with slots has its layer's keys and values in slot_keys and slot_values,
    [columns, heads, size].
    """
    # Rotary embedding promotes queries and keys to float32 where the residual is; under autocast attention computes in the
    # values' type.
    queries, keys, values = (tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    if packing.columns is not None:
        module.slot_keys.index_copy_(0, packing.columns, keys)
        module.slot_values.index_copy_(0, packing.columns, values)
        keys, values = module.slot_keys, module.slot_values
    return attend(queries.contiguous(), keys, values, packing, scaling)[None], None


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, packing: Packing, scaling: float
) -> torch.Tensor:
    """Causal attention, [tokens, heads, size]; the last query of a sequence sees all its keys."""
    starts, longest = packing.starts, packing.longest
    if packing.key_starts is not None and packing.key_lengths is not None:
        slotted: torch.Tensor = _attend_in_slots(
            queries,
            keys,
            values,
            starts,
            packing.key_starts,
            packing.key_lengths,
            longest,
            packing.longest_keys,
            scaling,
        )
        return slotted
    if queries.device.type != "cuda":
        return _attend_by_sequence(queries, keys, values, packing, scaling)
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        queries, keys, values, starts, starts, longest, longest, 0.0, True, False, scale=scaling
    )[0]
    return output


@torch.library.custom_op("igpo::attend_in_slots", mutates_args=())
def _attend_in_slots(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    key_lengths: torch.Tensor,
    longest: int,
    longest_keys: int,
    scaling: float,
) -> torch.Tensor:
    """The flash kernel over a cache, without gradient. An operation of its own for compiled layers: with one query a sequence the
    kernel lays its output out otherwise than torch tells the compiler."""
    if queries.device.type != "cuda":
        packing = Packing(starts, longest, None, key_starts, key_lengths, longest_keys)
        return _attend_by_sequence(queries, keys, values, packing, scaling)
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        queries,
        keys,
        values,
        starts,
        key_starts,
        longest,
        longest_keys,
        0.0,  # dropout
        True,  # causal, aligned at the last query and the last key
        False,  # no debug mask
        scale=scaling,
        seqused_k=key_lengths,
    )[0]
    return output.contiguous()


@_attend_in_slots.register_fake
def _(queries: torch.Tensor, *_: Any) -> torch.Tensor:
    return queries.new_empty(queries.shape)


def _attend_by_sequence(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, packing: Packing, scaling: float
) -> torch.Tensor:
    starts = packing.starts.tolist()
    key_starts = starts if packing.key_starts is None else packing.key_starts.tolist()
    lengths = None if packing.key_lengths is None else packing.key_lengths.tolist()
    parts = []
    for i, (first, end) in enumerate(itertools.pairwise(starts)):
        if first == end:
            continue
        seen = key_starts[i + 1] - key_starts[i] if lengths is None else lengths[i]
        own = slice(key_starts[i], key_starts[i] + seen)
        causal = torch.ones(end - first, seen, dtype=torch.bool, device=queries.device).tril(seen - (end - first))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                queries[first:end].transpose(0, 1)[None],
                keys[own].transpose(0, 1)[None],
                values[own].transpose(0, 1)[None],
                attn_mask=causal,
                scale=scaling,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)


AttentionInterface.register(NAME, packed_attention)


# Types of models whose packed pass, and whose pass over slots, is compared with a plain one (tests/igpo_core/test_continuous.py).
# Others may not hand on what a packed pass needs (GPT-2, StableLM), or keep keys of another form (DeepSeek's).
PACKED_TYPES = (
    "gemma", "glm4", "glm4_moe", "granite", "llama", "mistral", "mixtral", "olmo2", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "smollm3",
)  # fmt: skip
KNOWN_CODE = ("transformers.", "torch.", "peft.", "igpo_core.")
# What configurations call the number of experts.
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def unpackable(model: Any) -> str:
    """Return what keeps a model's sequences from being packed, "" where nothing does: it has to be of PACKED_TYPES and of
    transformers' own code, and its attention causal over the whole history, without a cap on its scores."""
    return unpackable_attention(text_config(model.config)) or _foreign_code(model)


def _foreign_code(model: Any) -> str:
    """Return what code of its own a model's decoder is: it may compute attention by itself, over other sequences too."""
    homes = {type(part).__module__ for part in model.get_decoder().modules()}
    foreign = sorted(home for home in homes if not home.startswith(KNOWN_CODE))
    return f"code of its own ({', '.join(foreign)})" if foreign else ""


def unpackable_attention(config: Any) -> str:
    """Return the same of a language model's configuration."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    # Mistral and Phi-3 name no kinds of layers: their window is every layer's. Qwen2's is None where it is not used.
    window = getattr(config, "sliding_window", None)
    if kinds or window:
        named = f"layers of kind {', '.join(sorted(kinds))}" if kinds else "layers"
        return named + (f" with a sliding window of {window} tokens" if window else "")
    if getattr(config, "attn_logit_softcapping", None):
        return "a cap on attention's scores"
    known = config.model_type in PACKED_TYPES
    return "" if known else f"type {config.model_type}, of which no packed pass was compared with a plain one"


def require_packable(model: Any) -> None:
    """Raise ConfigError for a model whose sequences cannot be packed, or whose decoding step is no CUDA graph: compiled experts
    with float32 weights read on the CPU how many tokens each of them has."""
    config = text_config(model.config)
    reason = unpackable(model)
    if not reason and any(getattr(config, name, None) for name in EXPERTS):
        reason = f"experts (type {config.model_type}), which no graph of a decoding step takes"
    if reason:
        raise ConfigError(
            f"rollout.engine.kind=continuous knows attention over the whole history alone, of types {', '.join(PACKED_TYPES)}, "
            f"and this model has {reason}: set rollout.engine.kind=transformers"
        )


@contextmanager
def packing_layers(model: Any, forwards: Sequence[Callable[..., Any]] | None = None) -> Iterator[None]:
    """Within the block the model's decoder takes packed passes: decoder(input_ids=[1, tokens], position_ids=[1, tokens],
    use_cache=False, packing=Packing). forwards: what its layers run in place of their own forward, one each (compiled ones).

    The way back of such a pass belongs into the block too: checkpointing computes layers again there."""
    config, layers = model.config, model.get_decoder().layers
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        for layer, forward in zip(layers, forwards or (), strict=forwards is not None):
            layer.forward = forward
        yield
    finally:
        config._attn_implementation = before
        for layer in layers:
            vars(layer).pop("forward", None)


def compiled_layers(model: Any) -> list[Callable[..., Any]]:
    """The forward of each layer of the decoder, compiled for passes of any number of tokens. They are compiled once, for
    layers differ in their weights alone."""
    keep_compiled_code()
    return [torch.compile(layer.forward, dynamic=True) for layer in model.get_decoder().layers]


def keep_compiled_code() -> None:
    """Have torch keep what it compiles in this user's own folder, unless the user named one. It reads that again as code, and by
    itself keeps it in the temporary folder under the user's name, a folder that anybody could make first.

    Raises ConfigError where others may write to the user's own.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")  # torch sets it too, to its own choice, when it is imported
    if not given or given.startswith(os.path.join(gettempdir(), "torchinductor_")):
        folder = own_folder() / "compiled"
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
