"""The QA benchmark environment: questions of a published data folder, and search over its passages or the web."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas

from igpo_core.config import BM25Search, DenseSearch, FileDemonstrations, QuestionFiles
from igpo_core.data import SPLITS, to_questions
from igpo_core.environments.base import Demonstration, DemonstrationTurn, Lesson, Observation
from igpo_core.errors import DataError
from igpo_core.retrieval import Found, Passage, Retriever, SearchFailure
from igpo_core.retrieval.bm25 import BM25
from igpo_core.text import first_words
from igpo_core.trajectory import Answer, Question, Search

NO_RESULTS = "No results."
FAILED = "The search failed. Try again or search for something else."
CACHE = "search.sqlite"  # pinned results of web search, beside the published data: all versions share it
CUT = "..."  # stands after the last word of a passage that is not shown whole


class CorpusEnvironment:
    """Questions of `<folder>/questions.parquet` and search over `<folder>/bm25` or `<folder>/dense`, as
    tasks.data.publishing publishes them, or over the web."""

    def __init__(self, config: QuestionFiles, folder: Path) -> None:
        """Raises DataError when the folder is no published one, ConfigError where the key of a web search is missing."""
        table = folder / "questions.parquet"
        if not table.is_file():
            raise DataError(f"{folder} holds no published data ({table.name} is missing): run the prepare-data flow")
        questions = to_questions(pandas.read_parquet(table))
        self._by_split = {split: tuple(q for q in questions if q.split == split) for split in SPLITS}
        self._folder = folder
        self._retriever = open_retriever(config, folder)
        self._top_k = config.top_k
        self._max_words = config.max_passage_words

    def questions(self, split: str) -> Sequence[Question]:
        """All questions of "train", "dev" or "test", in table order; another name raises KeyError."""
        return self._by_split[split]

    def search(self, requests: Sequence[tuple[Question, str]]) -> list[Observation]:
        """One observation a request, in order: numbered passages, NO_RESULTS, or FAILED where the back end failed. The
        question itself has no influence."""
        found = self._retriever.search([query for _, query in requests], self._top_k)
        return [Observation(self._render(item), failed=isinstance(item, SearchFailure)) for item in found]

    def _observations(self, queries: Sequence[str]) -> list[str]:
        return [self._render(found) for found in self._retriever.search(queries, self._top_k)]

    def _render(self, found: Found) -> str:
        """A line for each passage: "1. Title: text", its text cut after max_passage_words words."""
        if isinstance(found, SearchFailure):
            return FAILED
        return self._lines(found)

    def _lines(self, passages: Sequence[Passage]) -> str:
        lines = []
        for number, passage in enumerate(passages, start=1):
            cut = first_words(passage.text, self._max_words)
            text = " ".join(passage.text.split()) if cut is None else f"{cut} {CUT}"
            lines.append(f"{number}. {' '.join(passage.title.split())}: {text}")
        return "\n".join(lines) or NO_RESULTS

    def demonstrations(
        self, rng: random.Random, count: int, settings: FileDemonstrations
    ) -> list[Demonstration | Lesson]:
        """`count` train questions drawn with replacement, each searched for its supporting titles, or for its own text
        where these are not known, then answered with its main answer. Observations are the real search results."""
        train = self._by_split["train"]
        drawn = [rng.choice(train) for _ in range(count)]
        queries = [(question.supporting_titles or (question.text,))[: settings.max_searches] for question in drawn]
        found = iter(self._observations([query for several in queries for query in several]))
        return [
            Demonstration(
                question,
                (
                    *(DemonstrationTurn(f"I look for {query}", Search(query), next(found)) for query in several),
                    DemonstrationTurn("I can answer now.", Answer(question.answers[0])),
                ),
            )
            for question, several in zip(drawn, queries, strict=True)
        ]

    def vocabulary(self) -> list[str]:
        """Empty: natural text has no closed vocabulary."""
        return []

    def texts(self) -> Iterable[str]:
        """Every passage of the corpus as an observation shows it, then every train question: no dev or test text."""
        corpus = self._folder / "corpus.parquet"
        if corpus.is_file():
            frame = pandas.read_parquet(corpus, columns=["passage_id", "title", "text"])
            for row in frame.itertuples(index=False):
                yield self._lines([Passage(*row)])
        for question in self._by_split["train"]:
            yield question.text


def open_retriever(config: QuestionFiles, folder: Path) -> Retriever:
    """The search over a published folder that the settings name. Raises DataError and ConfigError (see the retrievers)."""
    if isinstance(config.search, BM25Search):
        return BM25.open(folder / "bm25")
    if isinstance(config.search, DenseSearch):
        from igpo_core.retrieval.dense import Dense

        return Dense.open(folder / "dense", config.search)
    from igpo_core.retrieval.web import WebRetriever

    return WebRetriever(config.search, folder.parents[1] / CACHE)
