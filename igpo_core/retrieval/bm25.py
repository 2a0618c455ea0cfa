"""BM25 over title and text, with bm25s: the words of igpo_core/retrieval/words.py, Lucene's formula (k1 1.5, b 0.75).

Each kind of words is scored apart, by the passages' lengths in that kind, and the scores are added: what a long English question
finds depends on ordinary words alone. An index folder holds bm25s's arrays, and the words and the passages as Arrow files. All
are memory-mapped, so that many processes share one copy.
"""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow
import pyarrow.ipc

from igpo_core.errors import DataError
from igpo_core.folders import fill_folder
from igpo_core.retrieval import Passage
from igpo_core.retrieval.alone import bm25s
from igpo_core.retrieval.words import FEW, Tokenizer, Words

if TYPE_CHECKING:
    import pandas

PASSAGES = "passages.arrow"
WORDS = "words.arrow"

# What decides an index besides its corpus: part of a published data version.
SETTINGS = {
    "library": f"bm25s {bm25s.__version__}",
    "method": "lucene",
    "k1": 1.5,
    "b": 0.75,
    "stop_words": "english, as names in titles and in queries of few words",
    "few_words": FEW,
    "stemmer": "english",
    "without_spaces": "characters and pairs",
    "layout": 3,
}


class BM25:
    """An index that was built with `build` and is opened with `open`."""

    def __init__(self, index: Any, words: pyarrow.Table, passages: pyarrow.Table) -> None:
        self._index = index
        self._vocabulary = _Words(words.column("word"))
        self.passages = passages

    @classmethod
    def build(cls, corpus: "pandas.DataFrame", folder: Path) -> None:
        """Index the passages of a frame (passage_id, title, text) into a new folder, whole or absent.

        Raises DataError when no passage has a word to index.
        """
        tokenizer = Tokenizer()
        words = [tokenizer.passage(title, text) for title, text in zip(corpus["title"], corpus["text"], strict=True)]
        # one kind after the other is in alphabetical order (see words.SMALL)
        kinds = [[line[kind] for line in words] for kind in range(len(Words._fields))]
        scored = [_scored(lines) for lines in kinds if any(lines)]
        if not scored:
            raise DataError("the corpus has no word to index: give passages with text")
        (vocabulary, index), *others = scored
        for more, second in others:
            vocabulary = {word: number for number, word in enumerate([*vocabulary, *more])}
            index.scores = _side_by_side(index.scores, second.scores)
            index.vocab_dict = vocabulary
        passages = passage_table(corpus)

        def write(path: Path) -> None:
            index.save(path, show_progress=False)
            for name, table in ((PASSAGES, passages), (WORDS, pyarrow.table({"word": list(vocabulary)}))):
                with pyarrow.ipc.new_file(path / name, table.schema) as file:
                    file.write_table(table)

        fill_folder(folder, write)

    @classmethod
    def open(cls, folder: Path) -> "BM25":
        """Memory-map an index folder. Raises DataError when the folder is none, or damaged."""
        try:
            # bm25s would read its vocabulary into a dictionary, a copy in each process
            index = bm25s.BM25.load(folder, mmap=True, load_vocab=False)
            words, passages = (
                pyarrow.ipc.open_file(pyarrow.memory_map(str(folder / name))).read_all() for name in (WORDS, PASSAGES)
            )
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
            raise DataError(f"{folder} is no whole BM25 index ({error}): publish the data again") from error
        if passages.num_rows != index.scores["num_docs"]:
            raise DataError(
                f"{folder}: the index counts {index.scores['num_docs']} passages, {PASSAGES} has {passages.num_rows}: "
                "publish the data again"
            )
        return cls(index, words, passages)

    def __len__(self) -> int:
        """Passages in the corpus."""
        count: int = self.passages.num_rows
        return count

    def passage(self, row: int) -> Passage:
        """Return the passage of a row of the corpus table."""
        return Passage(*(self.passages.column(name)[row].as_py() for name in ("passage_id", "title", "text")))

    def search(self, queries: Sequence[str], k: int) -> list[list[Passage]]:
        """At most k passages a query, best score first, equal scores in table order.

        Only passages that share a word with the query (igpo_core/retrieval/words.py). Raises ValueError for k < 1.
        """
        if k < 1:
            raise ValueError(f"k={k}: ask for at least one passage")
        distinct = list(dict.fromkeys(queries))  # the trajectories of a group often ask the same
        tokenizer = Tokenizer()
        found = {}
        for query in distinct:
            words = tokenizer.query(query)
            found[query] = [self.passage(row) for row in self._best([*words.pieces, *words.small, *words.ordinary], k)]
        return [list(found[query]) for query in queries]

    def _best(self, words: list[str], k: int) -> list[int]:
        """Rows of the best passages. bm25s's own top-k leaves the order of equal scores to the partition."""
        numbers = [number for word in words if (number := self._vocabulary.number(word)) is not None]
        if not numbers:
            return []
        scores = self._index.get_scores_from_ids(numbers)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0
        rows = np.flatnonzero((scores >= least) & (scores > 0))
        best: list[int] = rows[np.lexsort((rows, -scores[rows]))][:k].tolist()
        return best


def passage_table(corpus: "pandas.DataFrame") -> pyarrow.Table:
    """The passages of a frame as an Arrow table, in its order."""
    return pyarrow.table(
        {name: pyarrow.array(corpus[name], pyarrow.large_string()) for name in ("passage_id", "title", "text")}
    )


class _Words(Sequence[str]):
    """The sorted words of an Arrow column; a word's number is its place."""

    def __init__(self, column: pyarrow.ChunkedArray) -> None:
        self._column = column

    def __len__(self) -> int:
        count: int = len(self._column)
        return count

    def __getitem__(self, place: Any) -> Any:
        return self._column[place].as_py()

    def number(self, word: str) -> int | None:
        place = bisect_left(self, word)
        return place if place < len(self) and self[place] == word else None


def _scored(lines: Sequence[Sequence[str]]) -> tuple[dict[str, int], Any]:
    """The numbers of the words of passages, of which there is one at least, and bm25s's index over them."""
    # bm25s numbers the words in the order of a set, another one in each process: sorted, the files are reproducible.
    vocabulary = {word: number for number, word in enumerate(sorted({word for line in lines for word in line}))}
    tokens = bm25s.tokenization.Tokenized(ids=[[vocabulary[word] for word in line] for line in lines], vocab=vocabulary)
    index = bm25s.BM25(method=SETTINGS["method"], k1=SETTINGS["k1"], b=SETTINGS["b"], backend="numpy")
    index.index(tokens, create_empty_token=False, show_progress=False)
    return vocabulary, index


def _side_by_side(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two tables of scores (compressed columns, one for each word; a row for each passage) as one."""
    joined = {name: np.concatenate([first[name], second[name]]) for name in ("data", "indices")}
    return {**first, **joined, "indptr": np.concatenate([first["indptr"], second["indptr"][1:] + first["indptr"][-1]])}
