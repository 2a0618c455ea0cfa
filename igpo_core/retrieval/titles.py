"""Passages by their title."""

from typing import TYPE_CHECKING

from igpo_core.retrieval import Passage

if TYPE_CHECKING:
    import pyarrow

COLUMNS = ("passage_id", "title", "text")


def shown_title(title: str) -> str:
    """Return a title as observations show it: on one line."""
    return " ".join(title.split())


class Titles:
    """The passages of an Arrow table (passage_id, title, text) by title, without regard to case and white space."""

    def __init__(self, passages: "pyarrow.Table") -> None:
        import pyarrow

        self._passages = passages
        shown = (shown_title(title.as_py()).casefold() for title in passages.column("title"))
        self._titles = pyarrow.array(shown, pyarrow.large_string())

    def passages(self, title: str, most: int) -> list[Passage]:
        """Return the first `most` passages with that title, in table order; [] where there is none."""
        import pyarrow.compute

        same = pyarrow.compute.equal(self._titles, shown_title(title).casefold())
        rows = pyarrow.compute.indices_nonzero(same)[:most].to_pylist()
        return [Passage(*(self._passages.column(name)[row].as_py() for name in COLUMNS)) for row in rows]
