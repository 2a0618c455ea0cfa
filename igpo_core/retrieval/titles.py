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

    def __init__(self, passages: "pyarrow.Table", wholes: "pyarrow.Table | None" = None) -> None:
        """wholes: passages of which `passages` has parts alone; a column more, `parts`, has the ids of these. None: there are
        none."""
        self._passages, self._titles = passages, _shown(passages)
        self._wholes = None if wholes is None else (wholes, _shown(wholes))

    def passages(self, title: str, most: int) -> list[Passage]:
        """Return the first `most` passages with that title, in table order, one that is split in one piece; [] where there is
        none."""
        wanted = shown_title(title).casefold()
        whole = self._whole(wanted)
        found: dict[str, Passage] = {}  # by id, which all parts of a passage share here
        for row in _rows(self._titles, wanted):
            passage = _passage(self._passages, row)
            passage = whole.get(passage.id, passage)
            found.setdefault(passage.id, passage)
            if len(found) == most:
                break
        return list(found.values())

    def _whole(self, wanted: str) -> dict[str, Passage]:
        """Id of a part -> its passage, of those with a title."""
        if self._wholes is None:
            return {}
        wholes, titles = self._wholes
        return {
            part: _passage(wholes, row) for row in _rows(titles, wanted) for part in wholes.column("parts")[row].as_py()
        }


def _passage(table: "pyarrow.Table", row: int) -> Passage:
    return Passage(*(table.column(name)[row].as_py() for name in COLUMNS))


def _shown(table: "pyarrow.Table") -> "pyarrow.Array":
    """The titles as they are compared."""
    import pyarrow

    return pyarrow.array(
        (shown_title(title.as_py()).casefold() for title in table.column("title")), pyarrow.large_string()
    )


def _rows(titles: "pyarrow.Array", wanted: str) -> list[int]:
    import pyarrow.compute

    rows: list[int] = pyarrow.compute.indices_nonzero(pyarrow.compute.equal(titles, wanted)).to_pylist()
    return rows
