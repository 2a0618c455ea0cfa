"""World `atlas`: a fixed geography, fresh people for every question, and results that narrow the answer hop by hop.

"question : where is the r3 of the r2 of the r1 of F5 ?"; the search "@k of F5" (@k: the tool's key word for r1) returns
"@k of F5 is F9 in K3 .". K3 is a country of the answer's continent; the last result but one names the answer's country,
the last one its city: "@j of F12 is C9 in K7 .", answer "C9 K7". Which key means which relation is fixed, never taught.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

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

SOURCE = "atlas"
ATLAS_RELATIONS = RELATIONS[:6]  # shared by all hops: words of the last hop alone stay unlearned
LESSON_FACTS = 6  # facts in one line of a geography lesson


class AtlasWorld(SearchWorld):
    """World `atlas`: each hop's result narrows the answer (continent, country, city), so belief grows hop by hop.

    The tool understands key words @i; which relation word means which key is fixed and never taught.
    """

    kind: Literal["atlas"] = "atlas"
    hops: int = Field(3, ge=2, le=5)
    names: int = Field(40, ge=6, le=1000)
    key_count: int = Field(
        12, ge=6, le=64, description="Key words the tool knows; a blind hit has chance 1 / key_count."
    )
    continents: int = Field(4, ge=2, le=16)
    branching: int = Field(4, ge=2, le=16, description="Countries in a continent, and cities in a country.")

    def generate(self) -> "pandas.DataFrame":
        """Return the question table (see the function of that name)."""
        return generate(self)

    def open(self, folder: Path, max_turns: int) -> "AtlasEnvironment":
        """Return the environment over the published question table."""
        return AtlasEnvironment(self, published(folder), max_turns)


class AtlasDemonstrations(Settings):
    """How the demonstrator of world `atlas` searches. The key token is trained towards a soft target."""

    kind: Literal["atlas"] = "atlas"
    right_history: tuple[Share, Share] = Field(
        (0.4, 1.0), description="Range of the rate of right keys in the history."
    )
    right_key: Share | None = Field(None, description="Probability of the right key in the target; None: uniform.")
    stop_early: Share = 0.1
    answer_when_done: Share = 0.9
    geography_lines: int = Field(0, ge=0, description="Lines of geography lessons added to each batch.")
    geography_weight: float = Field(5.0, ge=0)


@dataclass(frozen=True)
class Geography:
    """What is the same for every question of a world. country_of: city -> country; continent_of: country -> number;
    key_of: relation word -> the tool's key word for it."""

    country_of: Mapping[str, str]
    continent_of: Mapping[str, int]
    key_of: Mapping[str, str]

    def countries_beside(self, country: str) -> list[str]:
        """The countries of its continent, itself included."""
        return [other for other, continent in self.continent_of.items() if continent == self.continent_of[country]]

    def cities_in(self, countries: Sequence[str]) -> list[str]:
        """The cities of these countries."""
        return [city for city, country in self.country_of.items() if country in countries]


@dataclass(frozen=True)
class AtlasChain:
    """relations: r1 .. rH, distinct; people: the person that each hop asks about, distinct; places: the country that
    each hop's result names, the last two being the answer's own; city: the answer's city."""

    relations: tuple[str, ...]
    people: tuple[str, ...]
    places: tuple[str, ...]
    city: str

    @property
    def text(self) -> str:
        """Return the question."""
        return f"question : where is {nested_of(self.relations, self.people[0])} ?"

    @property
    def answer(self) -> str:
        """Return the answer: city and country."""
        return f"{self.city} {self.places[-1]}"

    def facts(self, key_of: Mapping[str, str]) -> dict[str, str]:
        """Query -> observation, in chain order."""
        queries = [f"{key_of[r]} of {e}" for r, e in zip(self.relations, self.people, strict=True)]
        found = [*self.people[1:], self.city]
        return {q: f"{q} is {x} in {place} ." for q, x, place in zip(queries, found, self.places, strict=True)}


def key_words(config: AtlasWorld) -> list[str]:
    """The key words that the tool knows: @0 .. @{key_count-1}."""
    return [f"@{number}" for number in range(config.key_count)]


def countries(config: AtlasWorld) -> list[str]:
    """K0, K1, ...: `branching` of them a continent."""
    return [f"K{number}" for number in range(config.continents * config.branching)]


def cities(config: AtlasWorld) -> list[str]:
    """C0, C1, ...: `branching` of them a country."""
    return [f"C{number}" for number in range(config.continents * config.branching**2)]


def vocabulary(config: AtlasWorld) -> list[str]:
    """Every plain word of this world, in a stable order (control tokens are the tokenizer's)."""
    return [
        *COMMON_WORDS,
        *("where", "in", "has", "near"),
        *ATLAS_RELATIONS,
        *key_words(config),
        *person_names(config.names),
        *countries(config),
        *cities(config),
    ]


def geography(config: AtlasWorld) -> Geography:
    """The world's fixed part, a pure function of (seed, continents, branching, key_count)."""
    rng = python_rng(config.seed, "atlas/geography")
    shuffled_cities = rng.sample(cities(config), len(cities(config)))
    shuffled_countries = rng.sample(countries(config), len(countries(config)))
    return Geography(
        country_of={city: f"K{place // config.branching}" for place, city in enumerate(shuffled_cities)},
        continent_of={country: place // config.branching for place, country in enumerate(shuffled_countries)},
        key_of=dict(zip(ATLAS_RELATIONS, rng.sample(key_words(config), len(ATLAS_RELATIONS)), strict=True)),
    )


def generate(config: AtlasWorld) -> "pandas.DataFrame":
    """The question table; each row is a pure function of (config, split, index).

    Raises ConfigError when a split cannot be filled because there are too few question texts.
    """
    world = geography(config)
    questions = []
    for split, index in rows(config):
        rng = python_rng(config.seed, "atlas/question", split, index)
        chain = _draw_chain(config, world, split, rng)
        questions.append(_question(chain, world, f"{SOURCE}-{split}-{index:05d}", split))
    return question_table(questions)


def possible_cities(world: Geography, chain: AtlasChain, hop: int) -> list[str]:
    """The cities that the results of the first `hop` hops leave possible, all equally likely."""
    if hop == len(chain.relations):
        return [chain.city]
    if hop == len(chain.relations) - 1:
        return world.cities_in(chain.places[-1:])
    if hop > 0:
        return world.cities_in(world.countries_beside(chain.places[0]))
    return list(world.country_of)


def _draw_chain(config: AtlasWorld, world: Geography, split: str, rng: random.Random) -> AtlasChain:
    names = person_names(config.names)
    all_cities = list(world.country_of)

    def draw() -> AtlasChain:
        city = rng.choice(all_cities)
        country = world.country_of[city]
        beside = world.countries_beside(country)
        return AtlasChain(
            relations=tuple(rng.sample(ATLAS_RELATIONS, config.hops)),
            people=tuple(rng.sample(names, config.hops)),
            places=(*(rng.choice(beside) for _ in range(config.hops - 2)), country, country),
            city=city,
        )

    return draw_in_split(split, draw, f"data.hops={config.hops}, data.names={config.names}")


def _question(chain: AtlasChain, world: Geography, identity: str, split: str) -> Question:
    return Question(
        id=identity,
        source=SOURCE,
        split=split,
        text=chain.text,
        answers=(chain.answer,),
        hops=len(chain.relations),
        facts=chain.facts(world.key_of),
    )


class AtlasEnvironment(SyntheticSearch):
    """Environment of world `atlas`. max_turns: the most turns of a demonstration, the answer included."""

    def __init__(self, config: AtlasWorld, questions: Sequence[Question], max_turns: int) -> None:
        super().__init__(questions, config.seed)
        self.settings = self._config = config
        self._world = geography(config)
        self._keys = key_words(config)
        self._max_turns = max_turns

    def exposes(self, question: Question, observation: str) -> bool:
        """Return whether the observation names the answer's city and its country: "C9 in K7" shows "C9 K7"."""
        return any({*answer.split()} <= {*observation.split()} for answer in question.answers)

    def vocabulary(self) -> list[str]:
        """Every plain word of this world (see the function of that name)."""
        return vocabulary(self._config)

    def demonstrations(
        self, rng: random.Random, count: int, settings: AtlasDemonstrations
    ) -> list[Demonstration | Lesson]:
        """`count` demonstrations, each in a fresh world whose question text belongs to the train split, then
        settings.geography_lines lessons."""
        shown = [self._demonstration(rng, settings) for _ in range(count)]
        return [*shown, *(self._lesson(rng, settings.geography_weight) for _ in range(settings.geography_lines))]

    def _demonstration(self, rng: random.Random, settings: AtlasDemonstrations) -> Demonstration:
        chain = _draw_chain(self._config, self._world, "train", rng)
        question = _question(chain, self._world, f"{SOURCE}-demonstration-{rng.getrandbits(64):016x}", "train")
        right_rate = rng.uniform(*settings.right_history)
        hop = 0  # facts found so far
        turns: list[DemonstrationTurn] = []
        while len(turns) < self._max_turns - 1:
            done = hop == len(chain.relations)
            if rng.random() < (settings.answer_when_done if done else settings.stop_early):
                break
            goal = min(hop, len(chain.relations) - 1)
            relation, person = chain.relations[goal], chain.people[goal]
            right_key = self._world.key_of[relation]
            key = right_key if rng.random() < right_rate else rng.choice(self._keys)
            query = f"{key} of {person}"
            turns.append(
                DemonstrationTurn(
                    thought=f"{relation} of {person}",
                    action=search_for(query),
                    observation=observe(question, query, self._config.seed).text,
                    target=self._key_target(right_key, settings.right_key),
                )
            )
            found = hop_of(question, query)
            if found is not None:
                hop = found + 1
        city = rng.choice(possible_cities(self._world, chain, hop))
        answer = Final(f"{city} {self._world.country_of[city]}")
        turns.append(DemonstrationTurn(DONE, answer, answer_weight=settings.geography_weight))
        return Demonstration(question, tuple(turns))

    def _key_target(self, right_key: str, probability: float | None) -> tuple[tuple[str, float], ...]:
        """A distribution over the keys: `probability` on the right one, the rest spread evenly; None: uniform."""
        right = 1 / len(self._keys) if probability is None else probability
        wrong = (1 - right) / (len(self._keys) - 1)
        return tuple((key, right if key == right_key else wrong) for key in self._keys)

    def _lesson(self, rng: random.Random, weight: float) -> Lesson:
        """Facts of three kinds, "C in K .", "K has C ." and "K near K .", a third each.

        Only the last word of a fact is trained: what follows from the geography, not which fact comes next.
        """
        all_cities = list(self._world.country_of)
        words: list[str] = []
        for _ in range(LESSON_FACTS):
            city = rng.choice(all_cities)
            country = self._world.country_of[city]
            kind = rng.randrange(3)
            if kind == 0:
                words += [city, "in", country, "."]
            elif kind == 1:
                words += [country, "has", city, "."]
            else:
                words += [country, "near", rng.choice(self._world.countries_beside(country)), "."]
        return Lesson(tuple(words), (0.0, 0.0, weight, 0.0) * LESSON_FACTS)
