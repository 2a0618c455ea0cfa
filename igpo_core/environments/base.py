"""What training and evaluation ask of an environment, and the demonstrations that a warm start learns from."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from igpo_core.trajectory import Answer, Question, Search


@dataclass(frozen=True)
class Observation:
    """What the search tool returned: plain text (never a control token), the hop it found (synthetic worlds), and whether
    its back end failed, so that the text is a short error."""

    text: str
    hop: int | None = None
    failed: bool = False


@dataclass(frozen=True)
class DemonstrationTurn:
    """One turn of a demonstration. target: where given, the first word of the query is trained towards this
    distribution over words instead of towards the word that stands there (atlas: the key that is not taught).
    answer_weight: loss weight of the answer's own tokens (atlas: geography is lost among easy tokens otherwise)."""

    thought: str
    action: Search | Answer
    observation: str | None = None
    target: tuple[tuple[str, float], ...] = ()
    answer_weight: float = 1.0


@dataclass(frozen=True)
class Demonstration:
    """A question and turns that end with an answer. An observation follows every search."""

    question: Question
    turns: tuple[DemonstrationTurn, ...]


@dataclass(frozen=True)
class Lesson:
    """A line of plain text to learn, with a loss weight for each word (0: not trained)."""

    words: tuple[str, ...]
    weights: tuple[float, ...]


class Environment(Protocol):
    """Questions by split, and a search tool over them. Everything is a pure function of the published data."""

    def questions(self, split: str) -> Sequence[Question]:
        """All questions of "train", "dev" or "test", in table order."""
        ...

    def search(self, requests: Sequence[tuple[Question, str]]) -> list[Observation]:
        """Answer a batch of (question, query): all searches of one turn of a rollout at once."""
        ...

    def demonstrations(self, rng: random.Random, count: int, settings: Any) -> list[Demonstration | Lesson]:
        """Examples for one supervised step, drawn from train questions or from worlds of no evaluation split.

        settings: the demonstrations settings of this kind of data (igpo_core.config: LookupDemonstrations, ...)."""
        ...

    def vocabulary(self) -> list[str]:
        """Every plain word of the world, for a one-token-a-word tokenizer; empty for an environment over files."""
        ...

    def texts(self) -> Iterable[str]:
        """Texts that a new subword tokenizer is trained on; empty for a synthetic world."""
        ...
