"""The policy objective: clipped surrogate, k3 KL and entropy, as pure functions (paper Eq. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Denominator = Literal["sequence", "token"]


@dataclass(frozen=True)
class TokenBatch:
    """One value for each sampled token of a batch, all of shape [N]; observation tokens are in none of them.

    logprobs: under the policy being trained (with gradient); old_logprobs: as sampled; advantages: A_t of the token's
    turn; weights: the token's share of the loss denominator (they sum to 1 over the whole step, not the batch);
    reference_logprobs: under the reference policy, None without KL; entropies: of the full next-token distribution,
    None without an entropy term.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    entropies: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None


@dataclass(frozen=True)
class LossTerms:
    """Scalars, each already weighted by the denominator; `total` is what is minimised."""

    total: torch.Tensor
    surrogate: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor  # share of tokens whose clip is active
    ratio_error: torch.Tensor  # max |ratio - 1|


def policy_loss(
    batch: TokenBatch, *, clip_low: float, clip_high: float, kl_coefficient: float, entropy_coefficient: float
) -> LossTerms:
    """-sum w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl * k3 - entropy_coefficient * H.

    r = exp(log pi - log pi_old); k3 = exp(d) - d - 1 with d = log pi_ref - log pi (Schulman's low-variance estimator).
    """
    ratio = (batch.logprobs - batch.old_logprobs).exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped, clipped = ratio * batch.advantages, clipped_ratio * batch.advantages
    surrogate = -(batch.weights * torch.minimum(unclipped, clipped)).sum()
    if kl_coefficient and batch.reference_logprobs is None:
        raise ValueError("kl_coefficient > 0 needs reference_logprobs")
    if entropy_coefficient and batch.entropies is None:
        raise ValueError("entropy_coefficient > 0 needs entropies")
    kl = entropy = torch.zeros_like(surrogate)
    if batch.reference_logprobs is not None:
        difference = batch.reference_logprobs - batch.logprobs
        kl = (batch.weights * (difference.exp() - difference - 1)).sum()
    if batch.entropies is not None:
        entropy = (batch.weights * batch.entropies).sum()
    return LossTerms(
        total=surrogate + kl_coefficient * kl - entropy_coefficient * entropy,
        surrogate=surrogate.detach(),
        kl=kl.detach(),
        clipped=(batch.weights * (clipped < unclipped)).sum().detach(),
        ratio_error=(ratio.detach() - 1).abs().max(),
    )


def token_weights(lengths: Sequence[int], denominator: Denominator) -> list[float]:
    """The weight of each sampled token of trajectory i; lengths: sampled tokens of every trajectory of the step.

    sequence: 1 / (trajectories * length_i), the mean over trajectories of the mean over tokens (paper Eq. 7, GRPO);
    token: 1 / sum of lengths (DAPO). Both denominators count trajectories without any advantage too.
    """
    if denominator == "sequence":
        return [1 / (len(lengths) * length) for length in lengths]
    if denominator == "token":
        return [1 / sum(lengths)] * len(lengths)
    raise ValueError(f"unknown denominator {denominator!r}: valid are {', '.join(get_args(Denominator))}")
