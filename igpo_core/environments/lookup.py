"""World `lookup`: fresh people for every question, a chain of facts that only the search tool knows.

"question : who is the r3 of the r2 of the r1 of F5 ?"; the search "r1 of F5" returns "r1 of F5 is F9 .", and so on to
the answer. A query off the chain returns "no result .". Only the last fact names the answer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from igpo_core.environments.base import Demonstration, DemonstrationTurn, Lesson
from igpo_core.environments.searching import search_for
from igpo_core.environments.synthetic import (
    COMMON_WORDS,
    DONE,
    RELATIONS,
    SearchWorld,
    SyntheticSearch,
    draw_in_split,
    hop_of,
    nested_of,
    observe,
    person_names,
    published,
    question_table,
    rows,
)
from igpo_core.seeds import python_rng
from igpo_core.settings import Settings, Share
from igpo_core.trajectory import Final, Question

if TYPE_CHECKING:
    import pandas

SOURCE = "lookup"

# Off-chain facts stored with a question for each one shown, so that different queries show different ones.
DISTRACTOR_POOL = 4


class LookupWorld(SearchWorld):
    """World `lookup`: a chain of facts that can be known only by searching; the gold is named by the last one alone.

    "who is the r3 of the r2 of the r1 of F5 ?"; a search "r of E" finds the fact when it is on the question's chain.
    """

    kind: Literal["lookup"] = "lookup"
    hops: int = Field(3, ge=1, le=8, description="Facts between the question and its answer.")
    names: int = Field(40, ge=4, le=1000, description="Names in the vocabulary.")
    people: int = Field(32, ge=4, le=1000, description="People in one question's world.")
    distractors: int = Field(0, ge=0, le=8, description="Facts off the chain that each search result carries besides.")

    @model_validator(mode="after")
    def _people_have_names(self) -> "LookupWorld":
        if self.people > self.names:
            raise ValueError(f"people={self.people} exceeds names={self.names}: raise names or lower people")
        if self.people <= self.hops:
            raise ValueError(f"people={self.people} cannot form a chain of {self.hops} hops: raise people")
        return self

    def generate(self) -> "pandas.DataFrame":
        """Return the question table (see the function of that name)."""
        return generate(self)

    def open(self, folder: Path, max_turns: int) -> "LookupEnvironment":
        """Return the environment over the published question table."""
        return LookupEnvironment(self, published(folder), max_turns)


class LookupDemonstrations(Settings):
    """How careful the demonstrator of world `lookup` is; each value is a probability."""

    kind: Literal["lookup"] = "lookup"
    right_query: tuple[Share, Share] = Field((0.2, 1.0), description="Range; each demonstration draws its own rate.")
    stop_early: Share = Field(0.05, description="Answers before the chain is complete.")
    answer_when_done: Share = 0.8
    wrong_answer: Share = Field(0.0, description="Names the person in the question or one mentioned in the results.")
    lazy_query: Share = Field(0.3, description="A wrong query asks the outermost relation of the person named.")


@dataclass(frozen=True)
class LookupChain:
    """relations: r1 .. rH, distinct; people: the person named in the question, then what each hop finds, distinct."""

    relations: tuple[str, ...]
    people: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the question."""
        return f"question : who is {nested_of(self.relations, self.people[0])} ?"

    @property
    def answer(self) -> str:
        """Return the answer: the last person."""
        return self.people[-1]

    @property
    def queries(self) -> tuple[str, ...]:
        """The right query of each hop."""
        return tuple(f"{r} of {e}" for r, e in zip(self.relations, self.people[:-1], strict=True))

    @property
    def facts(self) -> dict[str, str]:
        """Query -> observation, in chain order."""
        return {query: f"{query} is {found} ." for query, found in zip(self.queries, self.people[1:], strict=True)}


def vocabulary(config: LookupWorld) -> list[str]:
    """Every plain word of this world, in a stable order (control tokens are the tokenizer's)."""
    return [*COMMON_WORDS, "who", *RELATIONS, *person_names(config.names)]


def generate(config: LookupWorld) -> "pandas.DataFrame":
    """The question table; each row is a pure function of (config, split, index).

    Raises ConfigError when a split cannot be filled because there are too few question texts.
    """
    questions = []
    for split, index in rows(config):
        rng = python_rng(config.seed, "lookup/question", split, index)
        chain = _draw_chain(config, split, rng)
        questions.append(_question(config, chain, f"{SOURCE}-{split}-{index:05d}", split, rng))
    return question_table(questions)


def _draw_chain(config: LookupWorld, split: str, rng: random.Random) -> LookupChain:
    names = person_names(config.names)

    def draw() -> LookupChain:
        return LookupChain(tuple(rng.sample(RELATIONS, config.hops)), tuple(rng.sample(names, config.hops + 1)))

    return draw_in_split(split, draw, f"data.hops={config.hops}, data.names={config.names}")


def _question(config: LookupWorld, chain: LookupChain, identity: str, split: str, rng: random.Random) -> Question:
    return Question(
        id=identity,
        source=SOURCE,
        split=split,
        text=chain.text,
        answers=(chain.answer,),
        hops=config.hops,
        facts=chain.facts,
        distractors=_draw_distractors(config, chain, rng) if config.distractors else (),
    )


def _draw_distractors(config: LookupWorld, chain: LookupChain, rng: random.Random) -> tuple[str, ...]:
    """Facts off the chain among the world's people. None names the answer, which would leak it before it is found:
    a gain without a cause."""
    strangers = [name for name in person_names(config.names) if name not in chain.people]
    people = [*chain.people[:-1], *rng.sample(strangers, config.people - len(chain.people))]
    on_chain = set(zip(chain.relations, chain.people[:-1], strict=True))
    free = [(r, e) for e in people for r in RELATIONS if (r, e) not in on_chain]
    chosen = rng.sample(free, min(DISTRACTOR_POOL * config.distractors, len(free)))
    return tuple(f"{r} of {e} is {rng.choice([p for p in people if p != e])} ." for r, e in chosen)


class LookupEnvironment(SyntheticSearch):
    """Environment of world `lookup`. max_turns: the most turns of a demonstration, the answer included."""

    def __init__(self, config: LookupWorld, questions: Sequence[Question], max_turns: int) -> None:
        super().__init__(questions, config.seed, config.distractors)
        self.settings = self._config = config
        self._max_turns = max_turns

    def vocabulary(self) -> list[str]:
        """Every plain word of this world (see the function of that name)."""
        return vocabulary(self._config)

    def demonstrations(
        self, rng: random.Random, count: int, settings: LookupDemonstrations
    ) -> list[Demonstration | Lesson]:
        """`count` demonstrations, each in a fresh world whose question text belongs to the train split."""
        return [self._demonstration(rng, settings) for _ in range(count)]

    def _demonstration(self, rng: random.Random, settings: LookupDemonstrations) -> Demonstration:
        chain = _draw_chain(self._config, "train", rng)
        identity = f"{SOURCE}-demonstration-{rng.getrandbits(64):016x}"
        question = _question(self._config, chain, identity, "train", rng)
        right_query = rng.uniform(*settings.right_query)
        names = set(person_names(self._config.names))
        mentioned = [chain.people[0]]  # every mention counts, so that people named often are chosen often
        last = chain.people[0]  # what the last hit found; before any, the person of the question
        hop = 0  # facts found so far
        turns: list[DemonstrationTurn] = []
        while len(turns) < self._max_turns - 1:
            if hop == len(chain.relations):
                answers_now = rng.random() < settings.answer_when_done
            else:
                answers_now = bool(turns) and rng.random() < settings.stop_early
            if answers_now:
                break
            goal = min(hop, len(chain.relations) - 1)
            if hop < len(chain.relations) and rng.random() < right_query:
                query = chain.queries[hop]
            elif rng.random() < settings.lazy_query:
                query = f"{chain.relations[-1]} of {chain.people[0]}"  # the outermost relation of the person named
            else:
                query = _stray_query(chain, hop, mentioned, rng)
            observation = observe(question, query, self._config.seed, self._config.distractors)
            turns.append(DemonstrationTurn(chain.queries[goal], search_for(query), observation.text))
            mentioned += [word for word in observation.text.split() if word in names]
            found = hop_of(question, query)
            if found is not None:
                last = chain.people[found + 1]
                hop = max(hop, found + 1)
        if rng.random() < settings.wrong_answer:
            # Careless, not always wrong: a mention can be of the answer itself, as in the measured warm start.
            last = chain.people[0] if rng.random() < 0.5 else rng.choice(mentioned)
        turns.append(DemonstrationTurn(DONE, Final(last)))
        return Demonstration(question, tuple(turns))


def _stray_query(chain: LookupChain, hop: int, mentioned: Sequence[str], rng: random.Random) -> str:
    """Half and half: any relation of the current entity, or the current relation of any entity mentioned. It may happen
    to be the right query."""
    if rng.random() < 0.5:
        return f"{rng.choice(RELATIONS)} of {chain.people[hop]}"
    return f"{chain.relations[min(hop, len(chain.relations) - 1)]} of {rng.choice(mentioned)}"
