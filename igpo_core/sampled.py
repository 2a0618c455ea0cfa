"""Log-probabilities of what a policy sampled, as the update sees them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from igpo_core.attention import NAME, Packing, compiled_layers, moved, packing_layers, unpackable
from igpo_core.logprobs import target_logprobs, target_logprobs_and_entropies
from igpo_core.policies import Policy
from igpo_core.trajectory import Trajectory


def packs(policy: Policy, sharding: str) -> bool:
    """Return whether updates of a policy are packed: where torch's flash kernel computes what the model's attention does, in
    bfloat16 on a GPU and over the whole history (`unpackable` says what is not), and weights are whole. Others are padded."""
    return policy.half and policy.model.device.type == "cuda" and sharding == "none" and not unpackable(policy.model)


class SampledLogprobs(torch.nn.Module):
    """sampled_logprobs, or packed_logprobs, as a module: what accelerate wraps, so that gradients of several processes meet."""

    def __init__(self, model: Any, *, packed: bool = False) -> None:
        """packed: whether sequences are packed without padding, in compiled layers (igpo_core/attention.py)."""
        super().__init__()
        self.policy, self.packed = model, packed
        self._forwards = compiled_layers(model) if packed else None

    def packing(self) -> AbstractContextManager[None]:
        """What passes run within, and their way back."""
        return packing_layers(self.policy, self._forwards) if self.packed else nullcontext()

    def forward(
        self, trajectories: Sequence[Trajectory], pad: int, temperature: float, entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the log-probability of every sampled token in order, and the entropies where asked for."""
        if not trajectories:
            return torch.zeros(0, device=self.policy.device), None
        if self.packed:
            return packed_logprobs(self.policy, trajectories, temperature, entropy=entropy)
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


def packed_logprobs(
    model: Any, trajectories: Sequence[Trajectory], temperature: float, *, entropy: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As sampled_logprobs, of the trajectories one behind the other in one row [1, tokens]: nothing is padded. The call and its
    way back stand within igpo_core.attention.packing_layers."""
    if model.config._attn_implementation != NAME:  # sequences would see one another
        raise RuntimeError("packed_logprobs outside packing_layers")
    device = next(model.parameters()).device
    lengths = [len(item.token_ids) for item in trajectories]
    tokens = torch.tensor([token for item in trajectories for token in item.token_ids])
    positions = torch.cat([torch.arange(length) for length in lengths])
    offsets = torch.tensor([0, *lengths]).cumsum(0).tolist()
    places = torch.tensor(
        [
            offset + place
            for item, offset in zip(trajectories, offsets, strict=False)
            for turn in item.turns
            for place in range(turn.start, turn.end)
        ]
    )
    targets = moved(tokens[places], device)
    hidden = model.get_decoder()(
        input_ids=moved(tokens[None], device),
        position_ids=moved(positions[None], device),
        use_cache=False,
        packing=Packing.of(lengths, device),
    ).last_hidden_state[0]
    head, predicting = model.get_output_embeddings(), hidden[moved(places - 1, device)]
    if entropy:
        return target_logprobs_and_entropies(head, predicting, targets, temperature)
    return target_logprobs(head, predicting, targets, temperature), None
