"""Batches by length."""

from igpo_core.batching import token_batches


def test_a_batch_holds_items_of_like_length_within_the_budget() -> None:
    sizes = [30, 21, 40, 90, 31, 120, 22, 300]
    # 4/3 of 21 is 28, so 30 begins a batch; 120 is 4/3 of 90; 300 exceeds the budget and stands alone
    assert token_batches(range(8), sizes, 250) == [[1, 6], [0, 4, 2], [3, 5], [7]]
    assert token_batches(range(8), sizes, 100) == [[1, 6], [0, 4], [2], [3], [5], [7]]


def test_without_a_budget_there_is_one_batch() -> None:
    assert token_batches([2, 0], [5, 1, 1], None) == [[2, 0]]
