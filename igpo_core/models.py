"""Whether a model can be trained here: what its configuration says, and what its numbers say.

Rollouts, beliefs and updates call a model's decoder with masks, positions and a cache of their own, and its head apart from it.
A model that does more than that with either would be sampled and trained on other log-probabilities than its own, without an
error. So each model is tried once when it is loaded, and what needs no weights also in the dry run.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.protocol import TurnProtocol

# Under these names configurations say how many tokens a model takes; a model's own configuration may have a name of its own for
# max_position_embeddings, which transformers knows (GPT-2's n_positions).
WINDOWS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    "model_max_length",
    "seq_length",
    "n_ctx",
    "context_length",
)
# Kinds of layers whose attention is causal over the whole history, for histories within the window that the setting names.
LAYERS = {"full_attention": "", "sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
# What transformers raises on a model's files that it cannot make a model of, beside OSError.
UNLOADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
# of a model's own code; RuntimeError is torch's, too, and a method that is not there is one
_FAULTS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
LARGE = 100.0  # logits that the head is tried with: soft caps are about 15 to 50
TRIED_TOKENS = 6


def without_sdpa(error: BaseException) -> str:
    """What to say of a model that transformers has no SDPA attention for, "" where the error is another one."""
    if "scaled_dot_product_attention" not in str(error):
        return ""
    return (
        f"its attention does not run through torch's scaled_dot_product_attention, which takes the masks of rollouts and scoring "
        f"({str(error).split(' ', 1)[0]}): use another model"
    )


def text_config(config: Any) -> Any:
    """The configuration of the language model: its own one, or the part of a model that takes images too."""
    return config.get_text_config(decoder=True)


def window(config: Any) -> int:
    """The longest sequence, in tokens, that a model attends to as a whole and encodes in one way: its positions, within them the
    window of its sliding or chunked layers, and the length from which its rotary embedding changes.

    Raises ConfigError where its configuration says no such number, or names layers of another kind.
    """
    config = text_config(config)
    if getattr(config, "is_heterogeneous", False):
        raise ConfigError(
            "the layers of this model have shapes of their own each, which is not known here: use another model"
        )
    said = {name: _count(getattr(config, name, None)) for name in WINDOWS}
    positions = next((count for count in said.values() if count), None)
    if positions is None:
        raise ConfigError(
            "this model's config.json does not say how many tokens it takes (max_position_embeddings): write the length that it "
            "was trained with there, in a copy of the model, or use another model"
        )
    return min([positions, *_reaches(config), *_rotations(config)])


def require_embeddings(model: Any, protocol: TurnProtocol) -> None:
    """Raise ConfigError where the model has no embedding for a token of the vocabulary, or for one that prompts, turns and
    padding need. Added tokens that no text becomes may lack one (Gemma 3's image token)."""
    tokenizer, rows = protocol.tokenizer, model.get_input_embeddings().weight.shape[0]
    needed = {
        *protocol.prompt("x"),
        *protocol.observation("x"),
        *protocol.stop_ids,
        protocol.pad_id,
        tokenizer.vocab_size - 1,
    }
    highest = max(needed)
    if highest >= rows:
        raise ConfigError(
            f"the tokenizer has a token {tokenizer.convert_ids_to_tokens(highest)!r} with the id {highest}, and the model has "
            f"{rows} embeddings: take the tokenizer that the model came with, or call "
            "model.resize_token_embeddings(len(tokenizer)) and save the model"
        )


def require_all_weights(missing: Collection[str], name: Any) -> None:
    """Raise CheckpointError where the files hold no values for some of a model's weights: transformers draws them at random, with
    no more than a warning."""
    if missing:
        some = ", ".join(sorted(missing)[:3]) + (", .." if len(missing) > 3 else "")
        raise CheckpointError(
            f"{name} holds no values for {len(missing)} of the model's weights ({some}): they would be random numbers. Fetch or "
            "save the model again, or set in its config.json what it was saved with (num_hidden_layers, tie_word_embeddings)"
        )


def _reaches(config: Any) -> Iterator[int]:
    """How far back layers see that do not see everything."""
    if getattr(config, "alibi", False):
        raise ConfigError(
            "this model has ALiBi for positions, which takes none from rollouts and scoring: use another model"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    unknown = sorted(kinds - set(LAYERS))
    if unknown:
        raise ConfigError(
            f"this model has layers of kind {', '.join(map(str, unknown))}, and rollouts and scoring need attention over the "
            "whole history, with masks: use another model"
        )
    # Mistral and Phi-3 name no kinds of layers: their window is every layer's. Qwen2's is None where it is not used.
    settings = {LAYERS[kind] for kind in kinds} - {""} if kinds else {"sliding_window"}
    for setting in sorted(settings):
        reach = _count(getattr(config, setting, None))
        if reach:
            yield reach


def _rotations(config: Any) -> Iterator[int]:
    """Up to how many tokens positions are encoded in one way, where that depends on a pass's length (longrope). In a longer pass
    cached keys are of the short form and new ones of the long, and a sequence's numbers depend on its neighbours."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [form for form in rope.values() if isinstance(form, dict)]  # one a kind of layer, or one for all
    for form in kinds or [rope]:
        if form.get("rope_type") == "longrope":  # "dynamic" changes beyond the positions, which nothing is longer than
            own = form.get("original_max_position_embeddings")
            yield from filter(None, [_count(own or getattr(config, "original_max_position_embeddings", None))])


def _count(value: Any) -> int | None:
    """A whole number of tokens above 0, None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**53 or value != int(value):
        return None
    return int(value)


@torch.no_grad()
def require_plain_head(model: Any) -> None:
    """Raise ConfigError where a model's logits are not those of its output embedding on what its decoder gives, as with logits
    that are scaled (Granite, Cohere) or capped (Gemma). The decoder is not run, so that a model without weights whose head has
    some can be tried."""
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    if head is None or not hasattr(head, "weight") or decoder is None or decoder is model:
        raise ConfigError(
            f"{type(model).__name__} has no decoder and output embedding apart from each other, which training needs: use "
            "another model"
        )
    weight = head.weight
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, TRIED_TOKENS, weight.shape[-1], generator=generator).to(weight.device, weight.dtype)
    hidden = hidden * (LARGE / head(hidden).abs().amax().clamp(min=1e-6))
    ids = torch.zeros(1, TRIED_TOKENS, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    try:
        with _giving(decoder, hidden) as calls:
            logits = model(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:  # says nothing about the model
        raise
    except _FAULTS as error:
        raise ConfigError(
            f"{type(model).__name__} has more between its decoder and its logits than its output embedding: {error}. Use another "
            "model"
        ) from error
    if not calls or not _alike(logits, head(hidden), 0.05 if weight.dtype == torch.bfloat16 else 0.001):
        raise ConfigError(
            f"{type(model).__name__} does more with its logits than its output embedding does ({_head_settings(model.config)}): "
            "sampling, beliefs and training, which take the embedding's, would use other log-probabilities than the model's own. "
            "Use a model that does not scale or cap its logits"
        )


@contextmanager
def _giving(decoder: Any, hidden: torch.Tensor) -> Iterator[list[int]]:
    """Within the block the decoder gives these hidden states whatever it is given; a list with an entry for each call."""
    calls: list[int] = []

    def given(*_: Any, **__: Any) -> _Output:
        calls.append(1)
        return _Output(hidden)

    decoder.forward = given
    try:
        yield calls
    finally:
        del decoder.forward


class _Output:
    """What a decoder returns, without what only some models return besides (routers' and images' states). It is unpacked by
    position, and by name (`**output`) where a model passes it on in an output of its own."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.last_hidden_state = hidden

    def keys(self) -> tuple[str, ...]:
        return ("last_hidden_state",)

    def __getitem__(self, place: Any) -> Any:
        return self.last_hidden_state if place == "last_hidden_state" else (self.last_hidden_state,)[place]

    def __getattr__(self, name: str) -> None:
        return None


def _head_settings(config: Any) -> str:
    """Settings that a scale or a cap of logits is known by, with their values."""
    both = {**config.to_dict(), **text_config(config).to_dict()}
    known = [f"{name}={value}" for name, value in both.items() if "logit" in name and value is not None]
    return ", ".join(sorted(known)) or "no setting says what"


@torch.no_grad()
def require_plain_decoder(model: Any) -> None:
    """Raise ConfigError where a loaded model's decoder, called as rollouts call it, gives other hidden states than the model's
    own pass: tokens behind one another with a cache, positions and a boolean mask that hides a column of padding."""
    decoder, device = model.get_decoder(), model.get_input_embeddings().weight.device
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(TRIED_TOKENS, device=device) % rows)[None]
    half = model.get_output_embeddings().weight.dtype == torch.bfloat16
    try:
        whole = decoder(input_ids=ids, use_cache=False).last_hidden_state
        own = model(input_ids=ids, use_cache=False).logits
        stepwise = _stepwise(model, ids)
    except torch.OutOfMemoryError:  # says nothing about the model
        raise
    except _FAULTS as error:
        raise ConfigError(
            f"the decoder of {type(model).__name__} cannot be called with masks, positions and a cache, as rollouts do: {error}. "
            "Use another model"
        ) from error
    if not whole.isfinite().all():
        raise ConfigError(
            "this model's weights give no finite numbers: its files are damaged, or not what training left"
        )
    logits = model.get_output_embeddings()(whole)
    # bfloat16 rounds otherwise in other shapes, layer after layer
    if not _alike(own, logits, 0.05 if half else 0.001) or not _alike(whole, stepwise, 0.2 if half else 0.01):
        raise ConfigError(
            f"the decoder of {type(model).__name__} gives other numbers with masks, positions and a cache than without, so that "
            "sampling and training would not see the same model: use a model whose attention is PyTorch's SDPA over the whole "
            "history"
        )


def _stepwise(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Hidden states [1, tokens, width] of tokens that are fed in two parts, with a column of padding between them."""
    from igpo_core.rollout.cache import roomy_cache

    decoder, device, width = model.get_decoder(), ids.device, ids.shape[1] + 1
    cut = width // 2
    real = torch.arange(width, device=device) != cut
    sees = torch.ones(width, width, dtype=torch.bool, device=device).tril() & real
    padded = torch.cat([ids[:, :cut], ids[:, :1], ids[:, cut:]], 1)
    cache, parts = roomy_cache(model.config), []
    for start, end in ((0, cut + 1), (cut + 1, width)):
        output = decoder(
            input_ids=padded[:, start:end],
            attention_mask=sees[None, None, start:end, :end],
            position_ids=(real.cumsum(0) - 1)[None, start:end],
            past_key_values=cache,
            use_cache=True,
        )
        parts.append(output.last_hidden_state)
    return torch.cat(parts, 1)[:, real]


def _alike(left: torch.Tensor, right: torch.Tensor, share: float) -> bool:
    """Whether two tensors differ by at most a share of the largest number in either."""
    if left.shape != right.shape:
        return False
    largest = torch.maximum(left.abs().amax(), right.abs().amax()).float()
    return bool(((left - right).abs().amax().float() <= share * largest).item())
