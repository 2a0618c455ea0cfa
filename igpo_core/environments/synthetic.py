"""What the two synthetic worlds share: which split a question text belongs to, the question table, and the search tool.

A question of a synthetic world carries its own facts (query -> observation, in chain order), so the tool needs no index
and no state: the observation is a pure function of (question, query).
"""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from pydantic import Field

from igpo_core.environments.base import Interface, Need, WorldSettings
from igpo_core.environments.searching import OFFERS, RUBRIC, SEARCH_IN_A_WORLD, SearchEnvironment, search_for
from igpo_core.errors import ConfigError, DataError
from igpo_core.seeds import python_rng
from igpo_core.trajectory import Episode, Observation, Question, ToolCall

if TYPE_CHECKING:
    import pandas

SPLITS = ("train", "dev", "test")
RELATIONS = ("boss", "teacher", "doctor", "rival", "father", "mother", "brother", "sister")
COMMON_WORDS = ("question", ":", "is", "the", "of", "?", ".", "done", "no", "result")
NO_RESULT = "no result ."
DONE = "done"  # the thought before an answer

# A split is about a tenth of all texts: 3 of the 32 that the smallest world has (one hop, four names). A thousand draws
# miss that once in 1e42, so running out means that the split is empty.
MAX_DRAWS = 1000


class SyntheticSettings(WorldSettings):
    """What the settings of all synthetic worlds have: sizes of the question table, which `generate` makes."""

    offers: ClassVar[frozenset[Need]] = frozenset({"beliefs", "demonstrations", "vocabulary"})

    seed: int = Field(0, description="Seed of the questions; the same for every arm and run seed.")
    train: int = Field(4096, ge=1, description="Training questions.")
    dev: int = Field(512, ge=1)
    test: int = Field(512, ge=1)

    @abstractmethod
    def generate(self) -> "pandas.DataFrame":
        """Return the question table; each row is a pure function of (settings, split, index).

        Raises ConfigError when a split cannot be filled because there are too few question texts.
        """


class SearchWorld(SyntheticSettings):
    """A synthetic world of search questions."""

    rubric: ClassVar[Mapping[str, str]] = RUBRIC
    offers: ClassVar[frozenset[Need]] = OFFERS | SyntheticSettings.offers

    @property
    def interface(self) -> Interface:
        """Return the search tool."""
        return SEARCH_IN_A_WORLD


class WorldDraw(Protocol):
    """A world drawn for one question."""

    @property
    def text(self) -> str:
        """The question's text."""
        ...


Drawn = TypeVar("Drawn", bound=WorldDraw)


def person_names(count: int) -> list[str]:
    """One-word names F0 .. F{count-1}."""
    return [f"F{number}" for number in range(count)]


def nested_of(relations: Sequence[str], person: str) -> str:
    """ "the r2 of the r1 of F5" for relations (r1, r2), which are walked from the person outwards."""
    return " ".join([*(f"the {relation} of" for relation in reversed(relations)), person])


def split_of(text: str) -> str:
    """The one split that may hold this question text: a tenth of all texts is dev, a tenth test, the rest train.

    A hash of the text alone decides: no training world of any seed, the warm start's included, asks a dev or test text.
    """
    tenth = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 10
    return {0: "dev", 1: "test"}.get(tenth, "train")


def draw_in_split(split: str, draw: Callable[[], Drawn], space: str) -> Drawn:
    """Draw worlds until the text of one belongs to `split`.

    space: the settings that span the texts, for the message. Raises ConfigError when no draw belongs to the split.
    """
    for _ in range(MAX_DRAWS):
        world = draw()
        if split_of(world.text) == split:
            return world
    raise ConfigError(
        f"split {split!r} cannot be filled: none of {MAX_DRAWS} question texts drawn with {space} falls into it. "
        "Choose them so that there are more texts (lookup and atlas: raise data.names or data.hops)"
    )


def rows(config: SyntheticSettings) -> Iterator[tuple[str, int]]:
    """(split, index) of every row of the question table, in table order."""
    for split, size in zip(SPLITS, (config.train, config.dev, config.test), strict=True):
        for index in range(size):
            yield split, index


def question_table(questions: Sequence[Question]) -> "pandas.DataFrame":
    """One row a question; `facts` is a JSON object whose keys keep the chain's order."""
    import pandas

    return pandas.DataFrame(
        {
            "id": [question.id for question in questions],
            "source": [question.source for question in questions],
            "split": [question.split for question in questions],
            "question": [question.text for question in questions],
            "answers": [list(question.answers) for question in questions],
            "supporting_titles": [list(question.supporting_titles) for question in questions],
            "hops": pandas.array([question.hops for question in questions], dtype="Int64"),
            "facts": [json.dumps(dict(question.facts or {})) for question in questions],
            "distractors": [list(question.distractors) for question in questions],
            "answerable": True,
        }
    )


def published(folder: Path) -> list[Question]:
    """Return the questions of a published data folder. Raises DataError when it is none."""
    import pandas

    from igpo_core.data import to_questions

    table = folder / "questions.parquet"
    if not table.is_file():
        raise DataError(f"{folder} holds no published data ({table.name} is missing): run the prepare-data flow")
    return to_questions(pandas.read_parquet(table))


def hop_of(question: Question, query: str) -> int | None:
    """Return the 0-based place in the question's chain of the fact that a query finds; None where it finds none.

    Raises DataError when the question carries no facts.
    """
    if question.facts is None:
        raise DataError(
            f"question {question.id!r} carries no facts: only questions of a synthetic world can be searched"
        )
    key = " ".join(query.split())  # the words count, not how a tokenizer spaced them
    return list(question.facts).index(key) if key in question.facts else None


def observe(question: Question, query: str, seed: int, distractors: int = 0) -> Observation:
    """Return what the search tool answers: the chain's fact for exactly this query, else "no result ."; then `distractors`
    facts off the chain, drawn from the question's own by (seed, question id, query).

    Its label is "hop_1", "hop_2", .. by the place of the fact in the chain, or "miss". Raises DataError when the question carries
    no facts, or fewer distractors than asked for.
    """
    hop = hop_of(question, query)
    assert question.facts is not None
    if distractors > len(question.distractors):
        raise DataError(
            f"question {question.id!r} carries {len(question.distractors)} distractors, {distractors} are asked for: "
            "generate the data again with the same data.distractors"
        )
    key = " ".join(query.split())
    found = NO_RESULT if hop is None else question.facts[key]
    others: list[str] = []
    if distractors:
        others = python_rng(seed, "observation", question.id, key).sample(question.distractors, distractors)
    # Best match first: a small policy does not learn to pick it out of a random order.
    return Observation(" ".join([found, *others]), "miss" if hop is None else f"hop_{hop + 1}")


class TableOfTasks:
    """Tasks by split, of a table in memory."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._by_split = {split: tuple(q for q in questions if q.split == split) for split in SPLITS}

    def tasks(self, split: str) -> Sequence[Question]:
        """Return all tasks of "train", "dev" or "test", in table order; another name raises KeyError."""
        return self._by_split[split]


class SyntheticSearch(TableOfTasks, SearchEnvironment):
    """Questions by split and the search tool: the part of a search world that does not depend on which one it is."""

    def __init__(self, questions: Sequence[Question], seed: int, distractors: int = 0) -> None:
        super().__init__(questions)
        self._seed = seed
        self._distractors = distractors

    def call(self, episode: Episode, call: ToolCall) -> Observation:
        """Return the fact that the query finds."""
        return observe(episode.question, call.arguments["query"], self._seed, self._distractors)

    def example_call(self, question: Question) -> ToolCall:
        """Return the search for the first fact."""
        return search_for(next(iter(question.facts or {"": ""})))

    def metrics(self, episode: Episode) -> dict[str, float]:
        """Return by hop whether its fact was found: EM alone hides lucky guesses."""
        seen = {observation.label for observation in episode.observations}
        hops = range(1, (episode.question.hops or 0) + 1)
        return {f"reached_hop_{hop}": float(f"hop_{hop}" in seen) for hop in hops}
