"""Chunked log-probabilities: values and gradients of the plain computation."""

import pytest
import torch

from igpo_core import logprobs
from igpo_core.logprobs import belief_logprobs, target_logprobs, target_logprobs_and_entropies


@pytest.mark.parametrize("at_a_time", [1, 37, 3 * 37, 10**9])  # rows at a time: 1, 1, 3, all
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, at_a_time: int, temperature: float
) -> None:
    monkeypatch.setattr(logprobs, "LOGITS_AT_A_TIME", at_a_time)
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 37, bias=False)
    hidden, targets, weights = torch.randn(10, 8, requires_grad=True), torch.randint(37, (10,)), torch.randn(2, 10)
    whole = torch.log_softmax(head(hidden) / temperature, -1)
    expected = whole.gather(1, targets[:, None])[:, 0], -(whole.exp() * whole).sum(-1)
    (weights[0] * expected[0] + weights[1] * expected[1]).sum().backward()
    gradients = hidden.grad, head.weight.grad
    hidden.grad = head.weight.grad = None

    values, entropies = target_logprobs_and_entropies(head, hidden, targets, temperature)
    assert torch.allclose(values, expected[0], atol=1e-6) and torch.allclose(entropies, expected[1], atol=1e-6)
    (weights[0] * values + weights[1] * entropies).sum().backward()
    assert torch.allclose(hidden.grad, gradients[0], atol=1e-6) and torch.allclose(
        head.weight.grad, gradients[1], atol=1e-6
    )
    with torch.no_grad():
        assert torch.allclose(target_logprobs(head, hidden, targets, temperature), expected[0], atol=1e-6)


def test_a_large_vocabulary_is_never_whole_in_memory() -> None:
    """Of the tensors kept for the way back none has rows x vocabulary elements."""
    head = torch.nn.Linear(4, 200_000, bias=False)
    hidden, targets = torch.randn(400, 4, requires_grad=True), torch.randint(200_000, (400,))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = target_logprobs(head, hidden, targets).sum()
    assert max(kept, default=0) <= head.weight.numel()
    loss.backward()
    assert hidden.grad is not None


def test_beliefs_are_projected_in_float32_on_a_cpu_too() -> None:
    """Within autocast on a CPU: to the bit what it is outside, where logits of 25 and more are in steps of an eighth inside."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50)
    torch.nn.init.constant_(head.bias, 25.0)
    hidden, targets = torch.randn(40, 16), torch.randint(50, (40,))
    exact = torch.log_softmax(head(hidden), -1).gather(1, targets[:, None])[:, 0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        ours, rounded = belief_logprobs(head, hidden, targets), target_logprobs(head, hidden, targets)
        of_half = belief_logprobs(head, hidden.bfloat16(), targets)  # as an adapter's model hands them over
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 1e-5
    assert (rounded - exact).abs().max() > 0.02
    assert 1e-5 < (of_half - exact).abs().max() < 0.02
