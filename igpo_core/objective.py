"""The policy objective: clipped surrogate, k3 KL and entropy, as pure functions (paper Eq. 7)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Denominator = Literal["sequence", "token", "constant"]
MOST = 20.0  # of a log ratio and of k3's d: exp of more overflows, or owns the batch (verl cuts there too)


@dataclass(frozen=True)
class TokenBatch:
    """One value for each sampled token of a batch, all of shape [N]; observation tokens are in none of them.

    logprobs: under the policy being trained (with gradient); old_logprobs: as sampled, and from the second update of a step on
    as the first one's own pass gave them; advantages: A_t of the token's turn; weights: the token's share of the loss
    denominator (over the whole step, not the batch, they sum to 1, or with denominator "constant" to the share of the tokens that
    could have been sampled); reference_logprobs: under the reference policy, None without KL; entropies: of the full next-token
    distribution, None without an entropy term. segments: the number of the sequence or turn that a token belongs to, where the
    ratio is of these; None: of each token. on_policy: the policy of now sampled (a step's first update), so that the ratio is 1
    by definition; what sampling and training round differently (in bfloat16 beyond a clip) is in ratio_error alone.
    """

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
    entropies: torch.Tensor | None = None
    reference_logprobs: torch.Tensor | None = None
    segments: torch.Tensor | None = None
    on_policy: bool = False


@dataclass(frozen=True)
class LossTerms:
    """Scalars, each already weighted by the denominator; `total` is what is minimised."""

    total: torch.Tensor
    surrogate: torch.Tensor
    kl: torch.Tensor
    clipped: torch.Tensor  # share of tokens whose clip, of either kind, is active
    ratio_error: torch.Tensor  # max |ratio to old_logprobs - 1|


def policy_loss(
    batch: TokenBatch,
    *,
    clip_low: float,
    clip_high: float,
    kl_coefficient: float,
    entropy_coefficient: float,
    dual_clip: float | None = None,
) -> LossTerms:
    """-sum w min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl * k3 - entropy_coefficient * H.

    With dual_clip, what is summed is at least dual_clip * A where A is negative (Ye et al. 2020, Eq. 5): a token that became
    much more likely under a bad advantage loses its gradient. verl and the paper's code have 3.

    r = exp(log pi - log pi_old) of the token (on_policy: pi_old = pi, without its gradient), or of its segment: exp of the mean
    over the segment, with the gradient of each token's own log-probability (GSPO-token, Zheng et al. 2025, Eq. 13-14).
    k3 = exp(d) - d - 1 with d = log pi_ref - log pi (Schulman's low-variance estimator). log r and d are cut at 20 and -20,
    beyond which they have no gradient.
    """
    ratio = _log_ratio(batch).clamp(-MOST, MOST).exp()
    ratio_error = (ratio.detach() - 1).abs().max()
    if batch.on_policy:
        ratio = (batch.logprobs - batch.logprobs.detach()).exp()
    clipped_ratio = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped, clipped = ratio * batch.advantages, clipped_ratio * batch.advantages
    pushed = torch.minimum(unclipped, clipped)
    active = clipped < unclipped
    if dual_clip is not None:
        bound = dual_clip * batch.advantages
        bounded = (batch.advantages < 0) & (pushed < bound)
        pushed, active = torch.where(bounded, bound, pushed), active | bounded
    surrogate = -(batch.weights * pushed).sum()
    if kl_coefficient and batch.reference_logprobs is None:
        raise ValueError("kl_coefficient > 0 needs reference_logprobs")
    if entropy_coefficient and batch.entropies is None:
        raise ValueError("entropy_coefficient > 0 needs entropies")
    kl = entropy = torch.zeros_like(surrogate)
    if batch.reference_logprobs is not None:
        difference = (batch.reference_logprobs - batch.logprobs).clamp(-MOST, MOST)
        kl = (batch.weights * (difference.exp() - difference - 1)).sum()
    if batch.entropies is not None:
        entropy = (batch.weights * batch.entropies).sum()
    return LossTerms(
        total=surrogate + kl_coefficient * kl - entropy_coefficient * entropy,
        surrogate=surrogate.detach(),
        kl=kl.detach(),
        clipped=(batch.weights * active).sum().detach(),
        ratio_error=ratio_error,
    )


def _log_ratio(batch: TokenBatch) -> torch.Tensor:
    difference = batch.logprobs - batch.old_logprobs
    if batch.segments is None:
        return difference
    count = int(batch.segments.max()) + 1
    sums = torch.zeros(count, dtype=difference.dtype, device=difference.device).index_add_(
        0, batch.segments, difference.detach()
    )
    sizes = torch.bincount(batch.segments, minlength=count).clamp(min=1)
    return (sums / sizes)[batch.segments] + batch.logprobs - batch.logprobs.detach()


def token_weights(
    lengths: Sequence[int], denominator: Denominator, *, most: int, live: Sequence[bool] | None = None
) -> list[float]:
    """The weight of each sampled token of trajectory i; lengths: sampled tokens of every trajectory of the step.

    sequence: 1 / (trajectories * length_i), the mean over trajectories of the mean over tokens (paper Eq. 7, GRPO);
    token: 1 / sum of lengths (DAPO); constant: 1 / (trajectories * most), most: tokens that a trajectory could have sampled
    (Dr. GRPO). Trajectories without any advantage count too, unless `live` says which alone do (dead groups dropped): the
    others weigh 0, in the KL and entropy terms too.
    """
    counts = [True] * len(lengths) if live is None else live
    counted = [length for length, count in zip(lengths, counts, strict=True) if count]
    if denominator == "sequence":
        shares = [len(counted) * length for length in lengths]
    elif denominator == "token":
        shares = [sum(counted)] * len(lengths)
    elif denominator == "constant":
        shares = [len(counted) * most] * len(lengths)
    else:
        raise ValueError(f"unknown denominator {denominator!r}: valid are {', '.join(get_args(Denominator))}")
    return [1 / share if count else 0.0 for share, count in zip(shares, counts, strict=True)]
