"""Environments of tests: another one with other tools, and searches in a few words."""

from collections.abc import Callable
from typing import Any

from igpo_core.environments.base import Environment
from igpo_core.environments.searching import search_for
from igpo_core.trajectory import Episode, Observation, Question

Answering = Callable[[Any], list[Observation]]


class WithTools:
    """An environment whose tools answer otherwise; all else is the other one's."""

    def __init__(self, world: Environment, answer: Answering) -> None:
        self.world, self.step = world, answer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


def finds_by_length(requests: Any) -> list[Observation]:
    """Every search finds a fact of its question's chain, by the length of the query: observations differ."""
    found = []
    for episode, call in requests:
        facts = list(episode.question.facts.values())
        place = len(call.arguments["query"]) % len(facts)
        found.append(Observation(facts[place], f"hop_{place + 1}"))
    return found


def searched(environment: Environment, question: Question, *queries: str) -> list[Observation]:
    """What an environment returns for searches at the beginning of an episode."""
    return environment.step([(Episode(question), search_for(query)) for query in queries])
