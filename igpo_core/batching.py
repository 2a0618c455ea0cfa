"""Batches under a token budget: sorted by length where rows are padded, filled evenly where they are packed."""

from collections.abc import Iterable, Sequence

# Measured on warm-start demonstrations, 2,048 tokens a batch: 5 % of all tokens are padding instead of 19 %, in 5.5 batches
# instead of 4.
LONGEST_TO_SHORTEST = 4 / 3


def token_batches(chosen: Iterable[int], sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """Items of `chosen` in batches of rising size whose padded tokens (rows x longest) stay within the budget, and whose longest
    item is at most LONGEST_TO_SHORTEST times as long as the shortest.

    sizes[i]: tokens of item i. An item that alone exceeds the budget stands alone; budget None: one batch.
    """
    batches: list[list[int]] = []
    for i in sorted(chosen, key=lambda i: sizes[i]):
        if batches and (budget is None or _joins(batches[-1], sizes, i, budget)):
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _joins(batch: Sequence[int], sizes: Sequence[int], i: int, budget: int) -> bool:
    return (len(batch) + 1) * sizes[i] <= budget and sizes[i] <= LONGEST_TO_SHORTEST * sizes[batch[0]]


def packed_batches(chosen: Iterable[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Items of `chosen` in as few batches of at most `budget` tokens as filling the emptiest one allows, all about as full.

    sizes[i]: tokens of item i; nothing is padded. An item that alone exceeds the budget makes a batch exceed it.
    """
    items = sorted(chosen, key=lambda i: -sizes[i])
    if not items:
        return []
    most = max(budget, sizes[items[0]])
    for count in range(-(-sum(sizes[i] for i in items) // most), len(items) + 1):
        batches: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for i in items:
            place = filled.index(min(filled))
            batches[place].append(i)
            filled[place] += sizes[i]
        if max(filled) <= most:
            return batches
    raise AssertionError("an item a batch always fits")
