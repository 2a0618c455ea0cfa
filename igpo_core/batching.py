"""Length-sorted batches under a token budget: one way for scoring, update and warm start."""

from collections.abc import Iterable, Sequence


def token_batches(chosen: Iterable[int], sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """Items of `chosen` in batches of rising size whose padded tokens (rows x longest) stay within the budget.

    sizes[i]: tokens of item i. An item that alone exceeds the budget stands alone; budget None: one batch.
    """
    batches: list[list[int]] = []
    for i in sorted(chosen, key=lambda i: sizes[i]):
        if batches and (budget is None or (len(batches[-1]) + 1) * sizes[i] <= budget):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
