"""Questions of a published data folder, and tools over its passages or the web: a search, and one that opens a passage."""

import functools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from igpo_core.environments.base import Demonstration, DemonstrationTurn, Lesson
from igpo_core.environments.searching import SearchEnvironment, search_for
from igpo_core.environments.synthetic import TableOfTasks, published
from igpo_core.errors import DataError
from igpo_core.retrieval import Found, Library, Passage, Retriever, SearchFailure
from igpo_core.retrieval.titles import Titles, shown_title
from igpo_core.text import first_words
from igpo_core.trajectory import TURNS_TOLD, Episode, Final, Observation, Question, ToolCall

if TYPE_CHECKING:
    from igpo_core.config import FileDemonstrations, QuestionFiles

NO_RESULTS = "No results."
NO_SUCH_TITLE = "There is no passage with this title."
FAILED = "The search failed. Try again or search for something else."
CACHE = "search.sqlite"  # pinned results of web search, beside the published data: all versions share it
WHOLES = "wholes.parquet"  # of a published folder with open_words: passages that the corpus has in parts (Titles)
CUT = "..."  # stands after the last word of a passage that is not shown whole


class CorpusEnvironment(TableOfTasks, SearchEnvironment):
    """Questions of `<folder>/questions.parquet` and search over `<folder>/bm25` or `<folder>/dense`, as
    tasks.data.publishing publishes them, or over the web."""

    def __init__(self, config: "QuestionFiles", folder: Path, max_turns: int = TURNS_TOLD) -> None:
        """max_turns: of a demonstration, the answer included.

        Raises DataError when the folder is no published one, ConfigError where the key of a web search is missing."""
        super().__init__(published(folder))
        self.settings = self._config = config
        self._folder = folder
        self._max_turns = max_turns
        self._retriever = open_retriever(config, folder)
        self._titles = open_titles(cast(Library, self._retriever), folder) if config.open_words else None

    def step(self, requests: Sequence[tuple[Episode, ToolCall]]) -> list[Observation]:
        """Return one observation for each call. All searches are made at once. The question itself has no influence."""
        searches = [call.arguments["query"] for _, call in requests if call.name == "search"]
        found = iter(self.search(searches) if searches else [])
        return [next(found) if call.name == "search" else self.opened(call.arguments["title"]) for _, call in requests]

    def call(self, episode: Episode, call: ToolCall) -> Observation:
        """Return one observation."""
        return self.step([(episode, call)])[0]

    def search(self, queries: Sequence[str]) -> list[Observation]:
        """Return one observation a query, in order: numbered passages, NO_RESULTS, or FAILED where the back end failed."""
        found = self._retriever.search(queries, self._config.top_k)
        return [Observation(self._render(item), failed=isinstance(item, SearchFailure)) for item in found]

    def opened(self, title: str) -> Observation:
        """Return the first data.top_k passages with a title, numbered as a search shows them, each with data.open_words words.
        One that was split for the search is shown in one piece."""
        assert self._titles is not None  # else the interface has no such tool
        passages = self._titles.passages(title, self._config.top_k)
        return Observation(self._lines(passages, self._config.open_words) if passages else NO_SUCH_TITLE)

    def example_call(self, question: Question) -> ToolCall:
        """Return the search for the question's own text."""
        return search_for(question.text)

    def metrics(self, episode: Episode) -> dict[str, float]:
        """Return evidence_recall: the share of the question's supporting titles that were shown."""
        if not episode.question.supporting_titles:
            return {}
        return {"evidence_recall": [0.0, *(self.evidence(episode) or ())][-1]}

    def evidence(self, episode: Episode) -> Sequence[float] | None:
        """Return the share of the question's supporting titles that were shown as a passage's title, "1. Title: text", after each
        observation; None where a question names none."""
        wanted = [f". {shown_title(title)}: " for title in episode.question.supporting_titles]
        if not wanted:
            return None
        shown = [False] * len(wanted)
        shares = []
        for observation in episode.observations:
            for line in observation.text.split("\n"):
                number = line.partition(".")[0]
                if number.isdecimal():
                    shown = [
                        was or line.startswith(f"{number}{title}") for was, title in zip(shown, wanted, strict=True)
                    ]
            shares.append(sum(shown) / len(shown))
        return shares

    def _render(self, found: Found) -> str:
        """A line for each passage: "1. Title: text", its text cut after max_passage_words words."""
        if isinstance(found, SearchFailure):
            return FAILED
        return self._lines(found, self._config.max_passage_words)

    @staticmethod
    def _lines(passages: Sequence[Passage], most: int) -> str:
        lines = []
        for number, passage in enumerate(passages, start=1):
            cut = first_words(passage.text, most)
            text = " ".join(passage.text.split()) if cut is None else f"{cut} {CUT}"
            lines.append(f"{number}. {shown_title(passage.title)}: {text}")
        return "\n".join(lines) or NO_RESULTS

    def demonstrations(
        self, rng: random.Random, count: int, settings: "FileDemonstrations"
    ) -> list[Demonstration | Lesson]:
        """`count` of them drawn with replacement: trajectories of experts as they are, or train questions, each searched for its
        supporting titles, or for its own text where these are not known, then answered with its main answer. Observations of
        those are the real search results."""
        if settings.use == "trajectories":
            return [rng.choice(self._trajectories) for _ in range(count)]
        train = self.tasks("train")
        drawn = [rng.choice(train) for _ in range(count)]
        queries = [(question.supporting_titles or (question.text,))[: settings.max_searches] for question in drawn]
        found = iter(self.search([query for several in queries for query in several]))
        return [
            Demonstration(
                question,
                (
                    *(
                        DemonstrationTurn(f"I look for {query}", search_for(query), next(found).text)
                        for query in several
                    ),
                    DemonstrationTurn("I can answer now.", Final(question.answers[0])),
                ),
            )
            for question, several in zip(drawn, queries, strict=True)
        ]

    @functools.cached_property
    def _trajectories(self) -> list[Demonstration]:
        """The published trajectories. Raises DataError where none has at most rollout.max_turns turns."""
        import pandas

        from igpo_core.data.trajectories import to_turns

        frame = pandas.read_parquet(self._folder / "trajectories.parquet")
        found = [
            Demonstration(
                Question(row["id"], "custom", "train", row["question"], (row["answer"],)), to_turns(row["turns"])
            )
            for row in frame.to_dict("records")
        ]
        short = [item for item in found if len(item.turns) <= self._max_turns]
        if not short:
            raise DataError(
                f"none of the {len(found)} trajectories has at most rollout.max_turns={self._max_turns} turns: raise it to "
                f"{min(len(item.turns) for item in found)} or more"
            )
        return short

    def texts(self) -> Iterable[str]:
        """Every passage of the corpus as an observation shows it, then every train question: no dev or test text."""
        import pandas

        corpus = self._folder / "corpus.parquet"
        if corpus.is_file():
            frame = pandas.read_parquet(corpus, columns=["passage_id", "title", "text"])
            for row in frame.itertuples(index=False):
                yield self._lines([Passage(*row)], self._config.max_passage_words)
        for question in self.tasks("train"):
            yield question.text


def open_retriever(config: "QuestionFiles", folder: Path) -> Retriever:
    """The search over a published folder that the settings name. Raises DataError and ConfigError (see the retrievers)."""
    match config.search.kind:
        case "bm25":
            from igpo_core.retrieval.bm25 import BM25

            return BM25.open(folder / "bm25")
        case "dense":
            from igpo_core.retrieval.dense import Dense

            return Dense.open(folder / "dense", config.search)
        case "web":
            from igpo_core.retrieval.web import WebRetriever

            return WebRetriever(config.search, folder.parents[1] / CACHE)


def open_titles(library: Library, folder: Path) -> Titles:
    """The passages of a published folder by title."""
    import pyarrow.parquet

    wholes = folder / WHOLES
    return Titles(library.passages, pyarrow.parquet.read_table(wholes) if wholes.is_file() else None)
