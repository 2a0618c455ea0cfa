"""The QA benchmark environment: questions of a published data folder, and BM25 search over its passages."""

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas

from igpo_core.config import FileDemonstrations, QuestionFiles
from igpo_core.data import SPLITS, to_questions
from igpo_core.environments.base import Demonstration, DemonstrationTurn, Lesson, Observation
from igpo_core.errors import DataError
from igpo_core.retrieval import Passage
from igpo_core.retrieval.bm25 import BM25
from igpo_core.trajectory import Answer, Question, Search

NO_RESULTS = "No results."
CUT = "..."  # stands after the last word of a passage that is not shown whole


class CorpusEnvironment:
    """Questions and search over `<folder>/questions.parquet` and `<folder>/bm25`, as tasks.data publishes them."""

    def __init__(self, config: QuestionFiles, folder: Path) -> None:
        """Raises DataError when the folder is no published one."""
        table = folder / "questions.parquet"
        if not table.is_file():
            raise DataError(f"{folder} holds no published data ({table.name} is missing): run the prepare-data flow")
        questions = to_questions(pandas.read_parquet(table))
        self._by_split = {split: tuple(q for q in questions if q.split == split) for split in SPLITS}
        self._retriever = BM25.open(folder / "bm25")
        self._top_k = config.top_k
        self._max_words = config.max_passage_words

    def questions(self, split: str) -> Sequence[Question]:
        """All questions of "train", "dev" or "test", in table order; another name raises KeyError."""
        return self._by_split[split]

    def search(self, requests: Sequence[tuple[Question, str]]) -> list[Observation]:
        """One observation a request, in order: numbered passages, or NO_RESULTS. The question itself has no influence."""
        return [Observation(text) for text in self._observations([query for _, query in requests])]

    def _observations(self, queries: Sequence[str]) -> list[str]:
        return [self._render(passages) for passages in self._retriever.search(queries, self._top_k)]

    def _render(self, passages: Sequence[Passage]) -> str:
        """A line for each passage: "1. Title: text", its text cut after max_passage_words words."""
        lines = []
        for number, passage in enumerate(passages, start=1):
            words = passage.text.split()
            cut = [*words[: self._max_words], CUT] if len(words) > self._max_words else words
            lines.append(f"{number}. {' '.join(passage.title.split())}: {' '.join(cut)}")
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
        """Every passage as an observation shows it, then every train question: no dev or test text."""
        for row in range(len(self._retriever)):
            yield self._render([self._retriever.passage(row)])
        for question in self._by_split["train"]:
            yield question.text
