"""What a server computed for the tokens that it sampled, against what the trainer computes for them.

Two engines round differently, so that an update on a server's samples is slightly off the policy. Truncated importance weights
correct for it in expectation, up to the cut: min(pi_trainer / pi_server, cap) for each token (Espeholt et al. 2018, V-trace's
rho-bar; Yao et al. 2025 for rollouts of another engine).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from igpo_core.batching import token_batches
from igpo_core.config import EngineConfig, ExperimentConfig, VllmEngine
from igpo_core.policies import Policy
from igpo_core.sampled import sampled_logprobs
from igpo_core.trajectory import Trajectory


@torch.no_grad()
def own_logprobs(policy: Policy, trajectories: Sequence[Trajectory], config: ExperimentConfig) -> list[Trajectory]:
    """The same trajectories with the policy's own log-probabilities in their turns and the server's beside them. Costs one
    pass over all tokens, as the update's first forward."""
    found: list[Trajectory] = list(trajectories)
    sizes = [len(item.token_ids) for item in trajectories]
    for batch in token_batches(range(len(sizes)), sizes, config.optimizer.tokens_per_batch):
        with policy.precision():
            logprobs, _ = sampled_logprobs(
                policy.model, [trajectories[i] for i in batch], policy.protocol.pad_id, config.rollout.temperature
            )
        own = iter(logprobs.float().tolist())
        for i in batch:
            item = trajectories[i]
            served = tuple(p for turn in item.turns for p in turn.logprobs)
            turns = tuple(replace(turn, logprobs=tuple(next(own) for _ in turn.logprobs)) for turn in item.turns)
            found[i] = replace(item, turns=turns, engine_logprobs=served)
    return found


@dataclass(frozen=True)
class Drift:
    """log pi_trainer - log pi_engine of some sampled tokens: 0-dimensional tensors, so that nothing waits for a GPU.

    absolute: sum of absolute differences; largest: the largest of them; signed: sum of differences; count: tokens.
    """

    absolute: torch.Tensor
    largest: torch.Tensor
    signed: torch.Tensor
    count: int

    @staticmethod
    def of(logprobs: torch.Tensor, trajectories: Sequence[Trajectory]) -> "Drift":
        """Of all sampled tokens of the trajectories; logprobs: the trainer's, as sampled_logprobs orders them."""
        sampled = torch.tensor([p for item in trajectories for turn in item.turns for p in turn.logprobs])
        differences = logprobs.float() - sampled.to(logprobs.device)
        size = differences.abs()
        return Drift(size.sum(), size.max(), differences.sum(), len(differences))

    @staticmethod
    def metrics(parts: Sequence["Drift"]) -> dict[str, float]:
        """engine/mismatch, mismatch_max and kl as mismatch_metrics has them; {} of nothing."""
        if not parts:
            return {}
        count = sum(part.count for part in parts)
        return {
            "engine/mismatch": math.fsum(float(part.absolute) for part in parts) / count,
            "engine/mismatch_max": max(float(part.largest) for part in parts),
            "engine/kl": -math.fsum(float(part.signed) for part in parts) / count,
        }


def differences(item: Trajectory) -> list[float]:
    """log pi_trainer - log pi_server of each sampled token; [] where the policy itself sampled."""
    if item.engine_logprobs is None:
        return []
    own = (p for turn in item.turns for p in turn.logprobs)
    return [mine - theirs for mine, theirs in zip(own, item.engine_logprobs, strict=True)]


def importance(item: Trajectory, engine: EngineConfig) -> list[float]:
    """The weight of each sampled token in the update."""
    if not isinstance(engine, VllmEngine) or engine.correction == "none":
        return [1.0] * item.sampled_tokens
    most = math.log(engine.cap)
    return [math.exp(min(difference, most)) for difference in differences(item)]


def mismatch_metrics(trajectories: Sequence[Trajectory], engine: EngineConfig) -> dict[str, float]:
    """engine/ metrics of a step's sampled tokens, {} without a server. mismatch, mismatch_max: mean and largest absolute
    difference of log-probabilities; kl: mean of log pi_server - log pi_trainer, which estimates KL(server || trainer);
    cut: share of tokens whose weight is cut."""
    if not isinstance(engine, VllmEngine):
        return {}
    every = [difference for item in trajectories for difference in differences(item)]
    most = math.log(engine.cap)
    return {
        "engine/mismatch": math.fsum(map(abs, every)) / len(every),
        "engine/mismatch_max": max(map(abs, every)),
        "engine/kl": -math.fsum(every) / len(every),
        "engine/cut": sum(difference > most for difference in every) / len(every),
    }
