"""Log-probabilities of given tokens without a [.., vocabulary] tensor for all of them at once."""

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

# Logits held at a time. 2**25 float32 are 128 MiB, and about three such tensors live while a chunk is worked on.
LOGITS_AT_A_TIME = 2**25
# On a GPU four times as many: with each chunk the whole projection is cast again and a gradient of its size is added up.
LOGITS_AT_A_TIME_ON_GPU = 2**27


def target_logprobs(head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return log softmax(head(hidden) / temperature)[target], float32, shape [N]; hidden: [N, width], targets: [N].

    The projection runs over chunks of rows; with gradient each chunk is computed again on the way back instead of being
    kept, so that memory does not grow with N times the vocabulary. Within autocast logits have bfloat16's eight bits: see
    belief_logprobs.
    """
    return torch.cat([part for part, _ in _chunks(head, hidden, targets, temperature, entropy=False)])


@torch.no_grad()
def belief_logprobs(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return what target_logprobs does, with a projection in float32 also within autocast and of weights in bfloat16.

    bfloat16 rounds a logit of 30 to steps of an eighth, and gains are differences of log-probabilities. For the few rows of
    probes float32 costs little. The update keeps the precision of the policy: its loss takes no such difference (the ratio to
    the same pass is 1 by definition), and on an H100 a float32 head would make the update of a 7B model about half as long
    again.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        return target_logprobs(_InFloat32(head), hidden.float(), targets)


class _InFloat32:
    """A head that computes in float32; weights in bfloat16 are converted once, as long as this lives."""

    def __init__(self, head: Any) -> None:
        self.weight = head.weight
        self._head = head
        self._weights = {name: tensor.float() for name, tensor in head.named_parameters()}

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = torch.func.functional_call(self._head, self._weights, (hidden,))
        return logits


def target_logprobs_and_entropies(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """As target_logprobs, and the entropy of each whole distribution, in nats."""
    parts = list(_chunks(head, hidden, targets, temperature, entropy=True))
    return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])


def _chunks(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, *, entropy: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    most = LOGITS_AT_A_TIME_ON_GPU if hidden.is_cuda else LOGITS_AT_A_TIME
    rows = max(1, most // head.weight.shape[0])
    if len(targets) <= rows:  # one chunk: keeping it is cheaper than computing it twice
        return [_chunk(head, hidden, targets, temperature, entropy)]
    if not torch.is_grad_enabled():
        return [
            _chunk(head, h, t, temperature, entropy)
            for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
        ]
    return [
        checkpoint(_chunk, head, h, t, temperature, entropy, use_reentrant=False)
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]


def _chunk(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = head(hidden).float()
    if temperature != 1.0:
        logits = logits / temperature
    if logits.is_cuda and not entropy:  # one kernel each way; sums of exponentials of their own are six
        logprobs = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        return logprobs, logprobs
    normaliser = logits.logsumexp(-1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - normaliser
    if not entropy:
        return logprobs, logprobs
    # H = log Z - sum p * logit
    return logprobs, normaliser - (torch.softmax(logits, -1) * logits).sum(-1)
