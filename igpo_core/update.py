"""What an update is put together from: a value for each sampled token, the batch of the loss, its metrics."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from igpo_core.config import ExperimentConfig
from igpo_core.objective import LossTerms, TokenBatch
from igpo_core.protocol import TurnProtocol
from igpo_core.rollout.mismatch import importance
from igpo_core.trajectory import Trajectory


@contextmanager
def training_mode(model: torch.nn.Module, wanted: bool) -> Iterator[None]:
    """Within the block the model is in training mode where that is wanted, and never afterwards: transformers checkpoints
    layers in training mode alone, and a checkpointing layer drops the KV cache that rollouts and beliefs go on from."""
    model.train(wanted)
    try:
        yield
    finally:
        model.eval()


def token_advantages(
    protocol: TurnProtocol, item: Trajectory, turns: Sequence[float], queries: Sequence[float] | None
) -> list[float]:
    """Return one value for each sampled token: its turn's, and in a tool call its share of what the call's tokens have besides.

    A turn whose call has no tokens of its own (it wrote a marker in pieces) has the turn's value alone.
    """
    values = []
    for t, (turn, advantage) in enumerate(zip(item.turns, turns, strict=True)):
        own = [advantage] * (turn.end - turn.start)
        if queries is not None and t < len(queries):
            place = protocol.call_tokens(item.token_ids[turn.start : turn.end])
            inside = range(*place.indices(len(own)))
            for j in inside:
                own[j] += queries[t] / len(inside)
        values += own
    return values


def token_batch(
    trajectories: Sequence[Trajectory],
    advantages: Sequence[Sequence[float]],
    weights: Sequence[float],
    config: ExperimentConfig,
    logprobs: torch.Tensor,
    entropies: torch.Tensor | None,
    reference: torch.Tensor | None,
    first: torch.Tensor | None,
) -> TokenBatch:
    """Return the batch of the loss.

    advantages[i]: of each sampled token of trajectory i; weights[i]: of each of its tokens in the loss's denominator.
    logprobs, entropies, reference: of all sampled tokens, as sampled_logprobs orders them. first: their log-probabilities in
    the step's first update, which later ones take their ratio to; None in the first itself. What sampled them (a cache that grows
    token by token, a server) rounds otherwise than this pass, in bfloat16 by more than narrow clips allow.
    """
    device = logprobs.device
    return TokenBatch(
        logprobs=logprobs,
        old_logprobs=torch.tensor(
            [p for item in trajectories for turn in item.turns for p in turn.logprobs], device=device
        )
        if first is None
        else first,
        advantages=torch.tensor([a for row in advantages for a in row], device=device),
        weights=torch.tensor(
            [
                weight * factor
                for item, weight in zip(trajectories, weights, strict=True)
                for factor in importance(item, config.rollout.engine)
            ],
            device=device,
        ),
        entropies=entropies,
        reference_logprobs=reference,
        segments=_segments(trajectories, config.optimizer.ratio, device),
        on_policy=first is None,
    )


def _segments(trajectories: Sequence[Trajectory], ratio: str, device: Any) -> torch.Tensor | None:
    """The number of each sampled token's turn or trajectory, counted through the batch; None for ratios of tokens."""
    if ratio == "token":
        return None
    sizes = [turn.end - turn.start for item in trajectories for turn in item.turns]
    if ratio == "sequence":
        sizes = [item.sampled_tokens for item in trajectories]
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)


def numbers(terms: LossTerms) -> dict[str, float]:
    """Return the terms as floats; each waits for the device."""
    return {name: value.item() for name, value in vars(terms).items()}


def update_metrics(parts: Sequence[dict[str, float]], norm: float, share: float) -> dict[str, float]:
    """Of all micro-batches of all processes. share: what the weights of all tokens sum to, for means over tokens."""

    def total(name: str) -> float:
        return math.fsum(part[name] for part in parts)

    return {
        "train/loss": total("total"),
        "train/surrogate": total("surrogate"),
        "train/kl": total("kl") / share if share else 0.0,
        "train/clip_share": total("clipped") / share if share else 0.0,
        "train/ratio_error": max((part["ratio_error"] for part in parts), default=0.0),
        "train/grad_norm": norm,
    }
