"""The contract of an environment: tasks, tools, a rubric, and what some arms need besides.

A new environment is one file: its settings (a subclass of WorldSettings), and its behaviour (a subclass of Environment). It is
named in igpo_core/config/data.py, which unites the worlds that a specification can name. `check` of
igpo_core/environments/contract.py tries everything that stands here on it.

An environment keeps no state of an episode. It is given the calls that were answered so far, and what it returns is a function of
them. So an episode can be branched at any turn boundary, batched with others, and replayed.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from igpo_core.errors import ConfigError
from igpo_core.settings import Settings
from igpo_core.trajectory import Episode, Final, Observation, Question, ToolCall

__all__ = ["Demonstration", "DemonstrationTurn", "Environment", "Episode", "Interface", "Lesson", "Need", "Observation",
           "Parameter", "Tool", "WorldSettings"]  # fmt: skip

Need = Literal["beliefs", "other_answers", "exposure", "states", "demonstrations", "vocabulary", "texts"]
NEEDS: dict[Need, str] = {
    "beliefs": "answers in which a policy's belief can be read (belief_targets)",
    "other_answers": "answers of other tasks that can be told apart in a text (comparable)",
    "exposure": "a way to tell whether an observation shows the answer (exposes)",
    "states": "a way to tell which turns stand at the same state (state_key)",
    "demonstrations": "demonstrations for a warm start",
    "vocabulary": "a closed vocabulary, for one token a word",
    "texts": "texts that a subword tokenizer can be trained on",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a tool. All are required."""

    name: str
    description: str
    kind: Literal["string", "number"] = "string"


@dataclass(frozen=True)
class Tool:
    """A tool that the policy may call."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]

    @property
    def schema(self) -> dict[str, Any]:
        """Return the tool as chat templates take it."""
        properties = {item.name: {"type": item.kind, "description": item.description} for item in self.parameters}
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": properties,
                    "required": [item.name for item in self.parameters],
                },
            },
        }


@dataclass(frozen=True)
class Interface:
    """What a policy is told before its first turn, and what it can do."""

    system_prompt: str
    """Also says how a turn is written: a thought between <think> and </think>, then one tool call, or the final answer between
    <answer> and </answer>."""
    tools: tuple[Tool, ...]
    final_thought: str
    """The thought that stands before the answer where a belief in it is read."""

    def tool(self, name: str) -> Tool | None:
        """Return the tool of that name; None where there is none."""
        return next((tool for tool in self.tools if tool.name == name), None)


class WorldSettings(Settings):
    """The `data` section of a specification: what an environment is, before any data are there."""

    rubric: ClassVar[Mapping[str, str]]
    """Key of each score in [0, 1] of an answer -> its title for people. The first one is the headline: arms are compared on it,
    and the best checkpoint is chosen by it."""
    offers: ClassVar[frozenset[Need]]
    """What arms and policies may ask of it. A plan that asks for more is refused."""

    @property
    def headline(self) -> str:
        """Return the key of the first score."""
        return next(iter(self.rubric))

    @property
    def headline_title(self) -> str:
        """Return the title of the first score."""
        return self.rubric[self.headline]

    @property
    @abstractmethod
    def interface(self) -> Interface:
        """Return what a policy is told and may call."""

    @property
    def observation_words(self) -> int:
        """Return the most words of an observation, for the estimate of memory; 0 where they are few."""
        return 0

    def lacking(self, demonstrations: Any) -> str | None:
        """Return what demonstrations of this kind of data ask for and these settings do not give, with the remedy, as a sentence
        that begins with them: "has .."; None where nothing is lacking."""
        return None

    @abstractmethod
    def open(self, folder: Path, max_turns: int) -> "Environment":
        """Return the environment over published data. max_turns: the most turns of a demonstration, the answer included."""


@dataclass(frozen=True)
class DemonstrationTurn:
    """One turn of a demonstration."""

    thought: str
    action: ToolCall | Final
    observation: str | None = None
    target: tuple[tuple[str, float], ...] = ()
    """Where given, a word of the call is trained towards this distribution over words instead of towards the one that stands
    there (atlas: the key that is not taught)."""
    target_place: int = 0
    """Which word of the call that is, from 0."""
    answer_weight: float = 1.0
    """Loss weight of the answer's own tokens (atlas: geography is lost among easy tokens otherwise)."""


@dataclass(frozen=True)
class Demonstration:
    """A question and turns that end with an answer. An observation follows every call."""

    question: Question
    turns: tuple[DemonstrationTurn, ...]


@dataclass(frozen=True)
class Lesson:
    """A line of plain text to learn, with a loss weight for each word (0: not trained)."""

    words: tuple[str, ...]
    weights: tuple[float, ...]


class Environment(ABC):
    """Tasks by split, the tools, and the rubric. Everything is a pure function of the published data."""

    settings: WorldSettings

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Question]:
        """Return all tasks of "train", "dev" or "test", in table order; another name raises KeyError."""

    @abstractmethod
    def call(self, episode: Episode, call: ToolCall) -> Observation:
        """Return what the tool answers. episode: what came before. A call that makes no sense gets an observation that says so;
        a back end that fails gets failed=True."""

    @abstractmethod
    def rubric(self, episode: Episode) -> dict[str, float]:
        """Return the scores of an episode that ended with an answer: the keys of settings.rubric, in that order, each in
        [0, 1]."""

    @abstractmethod
    def example_call(self, question: Question) -> ToolCall:
        """Return a call that a policy may begin with: the dry run tries it."""

    def step(self, requests: Sequence[tuple[Episode, ToolCall]]) -> list[Observation]:
        """Return one observation for each call, in order: all calls of one turn of a rollout at once."""
        return [self.call(episode, call) for episode, call in requests]

    def metrics(self, episode: Episode) -> dict[str, float]:
        """Return what else there is to tell of an episode; means over the episodes that have a key are logged."""
        return {}

    def evidence(self, episode: Episode) -> Sequence[float] | None:
        """Return the share of what the task needs that had been seen after each observation; None where that is unknown."""
        return None

    def belief_targets(self, question: Question) -> tuple[str, ...]:
        """Return the answers that a belief is read in, the main one first."""
        return question.answers

    def comparable(self, text: str) -> str:
        """Return a form in which an answer stands in a text where it stands there as whole words."""
        raise self._lacks("other_answers")

    def exposes(self, question: Question, observation: str) -> bool:
        """Return whether an observation shows the answer."""
        raise self._lacks("exposure")

    def state_key(self, question: Question, observations: Sequence[str]) -> Hashable:
        """Return what turns of a question have in common that stand at the same state."""
        raise self._lacks("states")

    def demonstrations(self, rng: random.Random, count: int, settings: Any) -> list[Demonstration | Lesson]:
        """Return examples for one supervised step, drawn from train tasks or from worlds of no evaluation split.

        settings: the demonstrations settings of this kind of data (igpo_core.config: LookupDemonstrations, ...)."""
        raise self._lacks("demonstrations")

    def vocabulary(self) -> list[str]:
        """Return every plain word of the world, for a one-token-a-word tokenizer."""
        raise self._lacks("vocabulary")

    def texts(self) -> Iterable[str]:
        """Return texts that a new subword tokenizer is trained on."""
        raise self._lacks("texts")

    def _lacks(self, need: Need) -> ConfigError:
        return ConfigError(f"{type(self).__name__} does not offer {NEEDS[need]}")


def score_zero(settings: WorldSettings) -> dict[str, float]:
    """Return the scores of an episode that ended without an answer."""
    return dict.fromkeys(settings.rubric, 0.0)
