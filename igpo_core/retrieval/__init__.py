"""Search over a corpus or the web: queries in, passages out. One small file for each way to search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True)
class Passage:
    """A passage of a corpus; `id` is its passage_id, or its address on the web."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class SearchFailure:
    """What a back end that failed leaves in place of passages: the policy reads a short error, the run counts it."""

    reason: str


Found = Sequence[Passage] | SearchFailure


class Retriever(Protocol):
    """The same query finds the same passages in the same order: over a corpus always, on the web from its cache."""

    def search(self, queries: Sequence[str], k: int) -> Sequence[Found]:
        """The best passages of each query, at most k, best first; none for a query that matches nothing."""
        ...


class Library(Retriever, Protocol):
    """A search over a corpus that lies on this machine."""

    passages: "pyarrow.Table"
    """Columns passage_id, title, text."""
