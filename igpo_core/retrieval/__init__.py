"""Search over a corpus: queries in, passages out. One small file for each way to search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Passage:
    """A passage of a corpus; `id` is its passage_id."""

    id: str
    title: str
    text: str


class Retriever(Protocol):
    """A pure function of its corpus: the same query finds the same passages in the same order."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """The best passages of each query, at most k, best first; none for a query that matches nothing."""
        ...
