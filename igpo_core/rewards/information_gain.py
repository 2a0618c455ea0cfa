"""Beliefs (paper Eq. 3); the gains made of them are in gains.py.

The history of a trajectory is encoded once, under the plain causal mask that attention kernels are fastest at. On its keys
and values then stand all probes in one pass: for every cut the probe's prefix and each accepted answer, behind a mask in
which a probe sees the history up to its cut and itself alone. Positions of a probe go on from its cut, so each value equals
that of a plain forward pass over history and probe, to the rounding of what the model computes in; and no mask is quadratic
in the history.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from igpo_core.batching import token_batches
from igpo_core.logprobs import belief_logprobs
from igpo_core.protocol import AnswerProbe

__all__ = ["AnswerProbe", "answer_log_likelihoods", "score_beliefs"]

_PAD, _SHARED = -2, -1  # values of `cut` and `answer`


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
    suffix_ids follow the answer and so cannot change its probability; they are not fed. A value depends on its own history
    alone, up to rounding: 1e-6 in float32. Under bfloat16 autocast the projection on the vocabulary is float32 all the same, and
    what the decoder rounds moves a log-probability by up to 0.02 (measured against float32 on policies of two and three layers;
    the mean was 0.0002 and 0.006; logits shifted by 25 changed neither). max_tokens bounds the tokens
    (padding included) of one forward pass; a single trajectory that exceeds it gets a pass of its own. Raises ValueError on
    lengths that differ and on cuts outside the sequence.
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
    for batch in token_batches(range(len(rows)), [len(row.history) + len(row.tokens) for row in rows], max_tokens):
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
    """One trajectory's history, and its probes one behind the other.

    By probe token: position; cut (which cut's probe it belongs to); answer (which answer, _SHARED for the prefix); limit
    (history tokens it sees). By scored token: at, the place whose hidden state predicts it (a probe token, or -n for the
    n-th history token where a probe has no prefix), and target. lengths: scored tokens of each (cut, answer).
    """

    history: list[int]
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
    history = list(sequence[: cuts[-1] if cuts else 0])  # what follows the last cut is in no belief
    row = _Packed(history, [], [], [], [], [], [], [], [], len(cuts))

    def add(ids: Sequence[int], first: int, c: int, a: int, seen: int) -> None:
        row.tokens.extend(ids)
        row.positions.extend(range(first, first + len(ids)))
        row.cut.extend([c] * len(ids))
        row.answer.extend([a] * len(ids))
        row.limit.extend([seen] * len(ids))

    for c, seen in enumerate(cuts):
        prefix = probes[0].prefix_ids
        add(prefix, seen, c, _SHARED, seen)
        before = len(row.tokens) - 1 if prefix else -seen
        for a, probe in enumerate(probes):
            fed = probe.answer_ids[:-1]  # the last answer token is predicted, and predicts nothing
            row.at.extend([before, *range(len(row.tokens), len(row.tokens) + len(fed))])
            row.target.extend(probe.answer_ids)
            row.lengths.append(len(probe.answer_ids))
            add(fed, seen + len(prefix), c, a, seen)
    return row


def _forward(model: Any, rows: Sequence[_Packed]) -> list[list[float]]:
    """Log-probabilities of the scored tokens of each row."""
    device, decoder = model.device, model.get_decoder()
    past, width = max(len(row.history) for row in rows), max(len(row.tokens) for row in rows)
    if past == 0:
        return [[] for _ in rows]

    def table(name: str, columns: int, fill: int) -> torch.Tensor:
        padded = [getattr(row, name) + [fill] * (columns - len(getattr(row, name))) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=device)

    # Right padding under a causal mask: no token of a history sees a pad.
    cache = DynamicCache()  # of whole histories: those of sliding layers are no longer than their window
    encoded = decoder(input_ids=table("history", past, 0), past_key_values=cache, use_cache=True).last_hidden_state
    hidden = encoded
    if width:
        cut, answer, limit = (table("cut", width, _PAD), table("answer", width, _PAD), table("limit", width, 0))
        history = torch.arange(past, device=device) < limit[:, :, None]
        own = (cut[:, :, None] == cut[:, None, :]) & (
            (answer[:, None, :] == _SHARED) | (answer[:, :, None] == answer[:, None, :])
        )
        own &= torch.ones(width, width, dtype=torch.bool, device=device).tril()
        probed = decoder(
            input_ids=table("tokens", width, 0),
            position_ids=table("positions", width, 0),
            attention_mask=torch.cat([history, own], 2)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        hidden = torch.cat([probed, encoded], 1)
    owner = torch.tensor([i for i, row in enumerate(rows) for _ in row.at], device=device)
    at = torch.tensor([k if k >= 0 else width - k - 1 for row in rows for k in row.at], device=device)
    target = torch.tensor([token for row in rows for token in row.target], device=device)
    logprobs = belief_logprobs(model.get_output_embeddings(), hidden[owner, at], target).tolist()
    results, start = [], 0
    for row in rows:
        results.append(logprobs[start : start + len(row.at)])
        start += len(row.at)
    return results
