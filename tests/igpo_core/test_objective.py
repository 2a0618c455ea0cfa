"""Clipped surrogate, k3 and denominators by hand."""

import math

import pytest
import torch

from igpo_core.objective import TokenBatch, policy_loss, token_weights

SETTINGS = {"clip_low": 0.2, "clip_high": 0.3, "kl_coefficient": 0.0, "entropy_coefficient": 0.0}


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_clipping_in_all_four_corners_by_hand() -> None:
    # ratios 1.5, 1.5, 0.5, 0.5 with advantages +1, -1, +1, -1; bounds 0.8 and 1.3
    # min(1.5, 1.3) = 1.3; min(-1.5, -1.3) = -1.5; min(0.5, 0.8) = 0.5; min(-0.5, -0.8) = -0.8; their mean is -0.125
    logprobs = tensor(*[math.log(r) for r in (1.5, 1.5, 0.5, 0.5)]).requires_grad_()
    batch = TokenBatch(logprobs, tensor(0, 0, 0, 0), tensor(1, -1, 1, -1), tensor(0.25, 0.25, 0.25, 0.25))
    terms = policy_loss(batch, **SETTINGS)
    assert terms.total.item() == pytest.approx(0.125)
    assert terms.clipped.item() == pytest.approx(0.5)  # the first and the last
    assert terms.ratio_error.item() == pytest.approx(0.5)
    terms.total.backward()
    # d(-w r A)/d log pi = -w r A where not clipped, else 0
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.0, 0.375, -0.125, 0.0])


def test_a_dual_clip_bounds_negative_advantages_alone_by_hand() -> None:
    # ratios 5, 5, 2 with advantages -1, +1, -1; clips 0.8 and 1.3, bound 3: max(-5, -3) = -3; min(5, 1.3) = 1.3; -2 stays
    logprobs = tensor(math.log(5), math.log(5), math.log(2)).requires_grad_()
    batch = TokenBatch(logprobs, tensor(0, 0, 0), tensor(-1, 1, -1), tensor(0.25, 0.25, 0.5))
    terms = policy_loss(batch, **SETTINGS, dual_clip=3.0)
    assert terms.total.item() == pytest.approx(0.25 * 3 - 0.25 * 1.3 + 0.5 * 2)
    assert terms.clipped.item() == pytest.approx(0.5)  # the first two
    terms.total.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([0.0, 0.0, 1.0])  # -w r A, or 0
    without = policy_loss(batch, **SETTINGS)
    assert without.total.item() == pytest.approx(0.25 * 5 - 0.25 * 1.3 + 0.5 * 2)


def test_a_ratio_at_the_dual_clip_itself_is_not_clipped_by_hand() -> None:
    # ratio 5, advantage -1, bound 5: -5 is not below -5, so that d(-w r A)/d log pi = -1 * 5 * -1 is kept
    logprobs = tensor(math.log(5)).requires_grad_()
    batch = TokenBatch(logprobs, tensor(0), tensor(-1), tensor(1))
    terms = policy_loss(batch, **SETTINGS, dual_clip=logprobs.exp().item())  # 5 as exp rounds it
    assert terms.total.item() == pytest.approx(5) and terms.clipped.item() == 0
    terms.total.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == pytest.approx([5.0])


def test_on_policy_the_ratio_is_one_whatever_sampling_rounded() -> None:
    # as far off as bfloat16 rounds: taken as ratios, 1.5 and 0.5 would be clipped and lose their gradient
    logprobs = tensor(math.log(1.5), math.log(0.5)).requires_grad_()
    batch = TokenBatch(logprobs, tensor(0, 0), tensor(1, -1), tensor(0.5, 0.5), on_policy=True)
    terms = policy_loss(batch, **SETTINGS)
    assert terms.clipped.item() == 0 and terms.ratio_error.item() == pytest.approx(0.5)
    terms.total.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-0.5, 0.5]  # -w A, exactly


def test_k3_and_entropy_by_hand() -> None:
    batch = TokenBatch(
        tensor(-1.0, -2.0), tensor(-1.0, -2.0), tensor(0, 0), tensor(0.5, 0.5), tensor(0.3, 0.7), tensor(-1.5, -2.0)
    )
    terms = policy_loss(batch, **{**SETTINGS, "kl_coefficient": 0.1, "entropy_coefficient": 0.01})
    k3 = math.exp(-0.5) + 0.5 - 1  # d = -1.5 - -1.0 = -0.5 for the first token, 0 for the second
    assert terms.kl.item() == pytest.approx(0.5 * k3)
    assert terms.total.item() == pytest.approx(0.1 * 0.5 * k3 - 0.01 * 0.5)


def test_a_coefficient_without_its_input_raises() -> None:
    batch = TokenBatch(tensor(0), tensor(0), tensor(1), tensor(1))
    with pytest.raises(ValueError, match="reference_logprobs"):
        policy_loss(batch, **{**SETTINGS, "kl_coefficient": 0.1})
    with pytest.raises(ValueError, match="entropies"):
        policy_loss(batch, **{**SETTINGS, "entropy_coefficient": 0.1})


def test_denominators() -> None:
    assert token_weights([1, 4], "sequence", most=8) == [0.5, 0.125]
    assert token_weights([1, 4], "token", most=8) == [0.2, 0.2]
    assert token_weights([1, 4], "constant", most=8) == [1 / 16, 1 / 16]
    with pytest.raises(ValueError, match="sequence, token, constant"):
        token_weights([1], "batch", most=8)  # type: ignore[arg-type]


def test_dropped_dead_groups_weigh_nothing() -> None:
    live = [True, False, True]
    assert token_weights([1, 4, 2], "sequence", most=8, live=live) == [0.5, 0.0, 0.25]
    assert token_weights([1, 4, 2], "token", most=8, live=live) == pytest.approx([1 / 3, 0.0, 1 / 3])
    assert token_weights([1, 4, 2], "constant", most=8, live=live) == [1 / 16, 0.0, 1 / 16]
    assert token_weights([1, 4], "token", most=8, live=[False, False]) == [0.0, 0.0]


def test_what_exp_would_overflow_is_cut() -> None:
    # log ratios 100 and -100 with A = -1 and 1, and d the same: exp(20) = 485165195.41 in place of infinity in float32
    logprobs = torch.tensor([-1.0, -101.0]).requires_grad_()
    old, reference = torch.tensor([-101.0, -1.0]), torch.tensor([99.0, -201.0])
    batch = TokenBatch(logprobs, old, torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.5]), None, reference)
    terms = policy_loss(batch, **{**SETTINGS, "kl_coefficient": 1.0})
    assert terms.surrogate.item() == pytest.approx(
        0.5 * math.exp(20), rel=1e-6
    )  # min(r A, ..) of the first is -exp(20)
    # d = 100 and -100: exp(20) - 20 - 1, and exp(-20) + 20 - 1
    assert terms.kl.item() == pytest.approx(0.5 * (math.exp(20) - 21) + 0.5 * 19, rel=1e-6)
    terms.total.backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, 0.0]


def test_a_ratio_of_segments_by_hand() -> None:
    # segment 0: log ratios log 1.5, log 0.5 -> their mean, ratio sqrt(0.75) = 0.866; segment 1: log 1.2
    logprobs = tensor(math.log(1.5), math.log(0.5), math.log(1.2)).requires_grad_()
    batch = TokenBatch(
        logprobs, tensor(0, 0, 0), tensor(1, 2, -1), tensor(0.25, 0.25, 0.5), segments=torch.tensor([0, 0, 1])
    )
    terms = policy_loss(batch, **SETTINGS)
    assert terms.total.item() == pytest.approx(-(0.25 * 0.75**0.5 + 0.5 * 0.75**0.5 - 0.5 * 1.2))
    terms.total.backward()
    assert logprobs.grad is not None  # each token moves by its own advantage, times the ratio of its segment
    assert logprobs.grad.tolist() == pytest.approx([-0.25 * 0.75**0.5, -0.5 * 0.75**0.5, 0.6])
