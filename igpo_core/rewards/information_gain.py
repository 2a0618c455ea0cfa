"""Beliefs and information gains (paper Eq. 3 and 4).

All beliefs of a trajectory are read in one forward pass: behind its history stand, for every cut, the probe's prefix
and then each accepted answer, under an attention mask in which a probe sees the history up to its cut and itself alone.
Positions of a probe go on from its cut, so each value equals that of a plain forward pass over history and probe.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn.attention.flex_attention import create_block_mask

from igpo_core.batching import token_batches
from igpo_core.logprobs import target_logprobs
from igpo_core.protocol import AnswerProbe

__all__ = ["AnswerProbe", "answer_log_likelihoods", "belief", "information_gains", "score_beliefs"]

Aliases = Literal["logsumexp", "max", "shortest", "first"]
Gain = Literal["log_prob_diff", "prob_diff"]
_PAD, _HISTORY, _SHARED = -2, -1, -1  # values of `cut` and `answer` in a packed row


def answer_log_likelihoods(
    model: Any,
    sequences: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    probes: Sequence[AnswerProbe],
    *,
    max_tokens: int | None = None,
) -> list[list[float]]:
    """Mean log-probability of the answer tokens given sequences[i][:c] + prefix_ids, for every cut c of trajectory i.

    sequences[i]: all token ids; cuts[i]: increasing history lengths in [1, len(sequences[i])]; probes[i]: one probe.
    suffix_ids follow the answer and so cannot change its probability; they are not fed. float32; a value depends on its
    own history alone. max_tokens bounds the tokens (padding included) of one forward pass; a single trajectory that
    exceeds it gets a pass of its own. Raises ValueError on lengths that differ and on cuts outside the sequence.
    """
    scores = score_beliefs(model, sequences, cuts, [[probe] for probe in probes], max_tokens=max_tokens)
    return [[by_answer[0] for by_answer in by_cut] for by_cut in scores]


@torch.no_grad()
def score_beliefs(
    model: Any,
    sequences: Sequence[Sequence[int]],
    cuts: Sequence[Sequence[int]],
    probes: Sequence[Sequence[AnswerProbe]],
    *,
    max_tokens: int | None = None,
) -> list[list[list[float]]]:
    """As answer_log_likelihoods, for several answers of a trajectory: scores[i][cut][answer].

    The probes of one trajectory share their prefix, which is fed once for each cut.
    """
    if not len(sequences) == len(cuts) == len(probes):
        raise ValueError(f"{len(sequences)} sequences, {len(cuts)} lists of cuts and {len(probes)} of probes")
    rows = [_pack(i, *item) for i, item in enumerate(zip(sequences, cuts, probes, strict=True))]
    values: list[list[float]] = [[] for _ in rows]
    for batch in token_batches(range(len(rows)), [len(row.tokens) for row in rows], max_tokens):
        for i, result in zip(batch, _forward(model, [rows[i] for i in batch]), strict=True):
            values[i] = result
    scores = []
    for row, flat in zip(rows, values, strict=True):
        means, start = [], 0
        for length in row.lengths:
            means.append(math.fsum(flat[start : start + length]) / length)
            start += length
        answers = len(row.lengths) // row.cuts if row.cuts else 0
        scores.append([means[c * answers : (c + 1) * answers] for c in range(row.cuts)])
    return scores


@dataclass(frozen=True)
class _Packed:
    """One trajectory with its probes behind it.

    By token: position; cut (which cut's probe it belongs to, _HISTORY for the history); answer (which answer, _SHARED
    for prefix and history); limit (history tokens it sees). By scored token: at (whose hidden state predicts it), target.
    lengths: scored tokens of each (cut, answer).
    """

    tokens: list[int]
    positions: list[int]
    cut: list[int]
    answer: list[int]
    limit: list[int]
    at: list[int]
    target: list[int]
    lengths: list[int]
    cuts: int


def _pack(i: int, sequence: Sequence[int], cuts: Sequence[int], probes: Sequence[AnswerProbe]) -> _Packed:
    if not probes or any(probe.prefix_ids != probes[0].prefix_ids for probe in probes):
        raise ValueError(f"trajectory {i}: its probes must be at least one and share their prefix")
    if list(cuts) != sorted(set(cuts)) or (cuts and not 1 <= cuts[0] <= cuts[-1] <= len(sequence)):
        raise ValueError(f"trajectory {i}: cuts must increase within [1, {len(sequence)}], got {list(cuts)}")
    history = cuts[-1] if cuts else 0  # what follows the last cut is in no belief
    tokens = list(sequence[:history])
    positions, cut, answer = (list(range(history)), [_HISTORY] * history, [_SHARED] * history)
    limit = list(range(1, history + 1))
    at: list[int] = []
    target: list[int] = []
    lengths: list[int] = []

    def add(ids: Sequence[int], first: int, c: int, a: int, seen: int) -> None:
        tokens.extend(ids)
        positions.extend(range(first, first + len(ids)))
        cut.extend([c] * len(ids))
        answer.extend([a] * len(ids))
        limit.extend([seen] * len(ids))

    for c, seen in enumerate(cuts):
        prefix = probes[0].prefix_ids
        add(prefix, seen, c, _SHARED, seen)
        before = len(tokens) - 1 if prefix else seen - 1
        for a, probe in enumerate(probes):
            fed = probe.answer_ids[:-1]  # the last answer token is predicted, and predicts nothing
            at.extend([before, *range(len(tokens), len(tokens) + len(fed))])
            target.extend(probe.answer_ids)
            lengths.append(len(probe.answer_ids))
            add(fed, seen + len(prefix), c, a, seen)
    return _Packed(tokens, positions, cut, answer, limit, at, target, lengths, len(cuts))


def _forward(model: Any, rows: Sequence[_Packed]) -> list[list[float]]:
    """Log-probabilities of the scored tokens of each row."""
    device, width = model.device, max(len(row.tokens) for row in rows)
    if width == 0:
        return [[] for _ in rows]

    def table(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([getattr(row, name) + [fill] * (width - len(row.tokens)) for row in rows], device=device)

    cut, answer, limit = table("cut", _PAD), table("answer", _PAD), table("limit", 0)

    def sees(row: Any, _head: Any, query: Any, key: Any) -> torch.Tensor:
        history = (cut[row, key] == _HISTORY) & (key < limit[row, query])
        probe = (cut[row, query] == cut[row, key]) & (cut[row, key] != _HISTORY)
        branch = (answer[row, key] == _SHARED) | (answer[row, query] == answer[row, key])
        return (history | (probe & branch)) & (key <= query)

    with _attention_over(model, sees, len(rows), width) as mask:
        hidden = model.get_decoder()(
            input_ids=table("tokens", 0), attention_mask=mask, position_ids=table("positions", 0), use_cache=False
        ).last_hidden_state
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in row.at], device=device)
    at = torch.tensor([index for row in rows for index in row.at], device=device)
    target = torch.tensor([token for row in rows for token in row.target], device=device)
    logprobs = target_logprobs(model.get_output_embeddings(), hidden[owner, at], target).tolist()
    results, start = [], 0
    for row in rows:
        results.append(logprobs[start : start + len(row.at)])
        start += len(row.at)
    return results


@contextlib.contextmanager
def _attention_over(model: Any, sees: Callable[..., torch.Tensor], rows: int, width: int) -> Iterator[Any]:
    """The attention mask of `sees`(row, head, query, key): dense on a CPU; on a GPU a block mask for FlexAttention, which
    computes no block that is empty and holds no [rows, width, width] tensor, with the model set to it meanwhile."""
    if not _in_blocks(model.device):
        row, place = torch.arange(rows, device=model.device), torch.arange(width, device=model.device)
        yield sees(row[:, None, None], None, place[None, :, None], place[None, None, :])[:, None]
        return
    with _flex_attention(model):
        yield create_block_mask(sees, rows, None, width, width, device=model.device)


def _in_blocks(device: torch.device) -> bool:
    return device.type == "cuda"


@contextlib.contextmanager
def _flex_attention(model: Any) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("flex_attention")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def belief(scores: Sequence[float], lengths: Sequence[int], aliases: Aliases) -> float:
    """One belief s from the mean log-probabilities of several accepted answers; lengths: their tokens.

    logsumexp (TIPS), max, shortest (fewest tokens; the first of them) or first (the authors' code).
    """
    if aliases == "logsumexp":
        top = max(scores)
        return top + math.log(math.fsum(math.exp(score - top) for score in scores))
    if aliases == "max":
        return max(scores)
    if aliases == "shortest":
        return scores[min(range(len(scores)), key=lambda i: lengths[i])]
    if aliases == "first":
        return scores[0]
    raise ValueError(f"unknown aliases {aliases!r}: valid are {', '.join(get_args(Aliases))}")


def information_gains(beliefs: Sequence[float], gain: Gain) -> list[float]:
    """g_t for t = 1..T-1 from s_0..s_{T-1}: log_prob_diff s_t - s_{t-1} (Eq. 4), prob_diff exp(s_t) - exp(s_{t-1})."""
    if gain == "log_prob_diff":
        values = list(beliefs)
    elif gain == "prob_diff":
        values = [math.exp(value) for value in beliefs]
    else:
        raise ValueError(f"unknown gain {gain!r}: valid are {', '.join(get_args(Gain))}")
    return [after - before for before, after in itertools.pairwise(values)]
