"""Attention of one new token a row over a cache, in bfloat16 on a CPU: two products a layer with keys and values as they lie.

torch's attention for CPUs goes through rows and heads with products of one query each. For 32 rows of SmolLM2's shape over 480
columns it took 1.8 ms a layer, and this .7 ms: docs/performance.md, "SmolLM2 on a CPU".
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from igpo_core.attention import unpackable
from igpo_core.policies import Policy

NAME = "igpo_one_token"  # under which transformers knows attend


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    scaling: float,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer; query: [rows, heads, tokens, size], key and value: [rows, fewer heads, columns,
    size], attention_mask: [rows, 1, tokens, columns], true where a token sees a column.

    Returns [rows, tokens, heads, size]. More tokens than one a row are torch's own to attend.
    """
    rows, heads, tokens, size = query.shape
    if tokens > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    # a head of keys serves several heads of queries, which are one product with it
    queries = query.reshape(rows, key.shape[1], -1, size).to(value.dtype)
    scores = (queries @ key.to(value.dtype).transpose(2, 3)).float() * scaling
    weights = scores.masked_fill(~attention_mask, -torch.inf).softmax(-1).to(value.dtype)
    return (weights @ value).reshape(rows, 1, heads, size), None


AttentionInterface.register(NAME, attend)


@contextmanager
def one_token_layers(policy: Policy) -> Iterator[None]:
    """Within the block a policy that computes in bfloat16 on a CPU attends so, where its layers look at the whole history and
    are of a type that was compared (igpo_core.attention.unpackable); any other one as before."""
    model = policy.model
    if not policy.half or model.device.type != "cpu" or unpackable(model):
        yield
        return
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
