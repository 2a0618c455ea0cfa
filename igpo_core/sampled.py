"""Log-probabilities of what a policy sampled, as the update sees them."""

from collections.abc import Sequence
from typing import Any

import torch

from igpo_core.logprobs import target_logprobs, target_logprobs_and_entropies
from igpo_core.trajectory import Trajectory


class SampledLogprobs(torch.nn.Module):
    """sampled_logprobs as a module: what accelerate wraps, so that gradients of several processes meet."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.policy = model

    def forward(
        self, trajectories: Sequence[Trajectory], pad: int, temperature: float, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not trajectories:
            return torch.zeros(0, device=self.policy.device), None
        return sampled_logprobs(self.policy, trajectories, pad, temperature, entropy=entropy)


def sampled_logprobs(
    model: Any, trajectories: Sequence[Trajectory], pad: int, temperature: float, *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probabilities of the sampled tokens, in order of trajectory, turn, token, and where asked for the entropies of
    the distributions they were drawn from: tensors [N].

    Right padding under a causal mask: no token sees a pad. The vocabulary projection runs on sampled tokens alone.
    """
    device = next(model.parameters()).device
    width = max(len(item.token_ids) for item in trajectories)
    tokens = torch.full((len(trajectories), width), pad, device=device)
    for i, item in enumerate(trajectories):
        tokens[i, : len(item.token_ids)] = torch.tensor(item.token_ids)
    hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    spans = [
        (i, place)
        for i, item in enumerate(trajectories)
        for turn in item.turns
        for place in range(turn.start, turn.end)
    ]
    owner, place = torch.tensor(spans, device=device).T
    head, predicting, targets = model.get_output_embeddings(), hidden[owner, place - 1], tokens[owner, place]
    if entropy:
        return target_logprobs_and_entropies(head, predicting, targets, temperature)
    return target_logprobs(head, predicting, targets, temperature), None
