"""Contrast gains: what a turn adds to the belief in the gold answer, less what it adds to the belief in other answers.

A finding moves probability away from what was mentioned before, and every absent name gains from that alike. What all
absent names gain tells nothing about the answer; the contrast takes it off.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from igpo_core.environments.base import Environment
from igpo_core.errors import DataError
from igpo_core.rewards.gains import DifferenceGain
from igpo_core.seeds import python_rng
from igpo_core.trajectory import Question


@dataclass(frozen=True)
class Contrast:
    """The other answers that a question's gold answer is compared with."""

    environment: Environment
    pool: tuple[str, ...]
    """Names to draw from: the first accepted answer of every train question, each once."""
    count: int
    """Names that are drawn for a question (the gain's contrast)."""
    seed: int
    step: int
    """With the question's id, `seed` and `step` key the draw."""
    _drawn: dict[str, tuple[str, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def names(self, question: Question) -> tuple[str, ...]:
        """Draw the question's names: none is an accepted answer of it or stands in its text as whole words.

        Raises DataError where the pool has fewer such names than `count`.
        """
        if question.id in self._drawn:
            return self._drawn[question.id]
        comparable = self.environment.comparable
        accepted = {comparable(answer) for answer in question.answers}
        text = comparable(question.text)
        rng = python_rng(self.seed, "contrast", self.step, question.id)
        seen: set[int] = set()
        found: list[str] = []
        while len(seen) < len(self.pool):  # a pool may have tens of thousands of names, of which a few are looked at
            place = rng.randrange(len(self.pool))
            if place in seen:
                continue
            seen.add(place)
            name = self.pool[place]
            if comparable(name) not in accepted and not self.stands_in(name, text):
                found.append(name)
            if len(found) == self.count:
                self._drawn[question.id] = tuple(found)
                return tuple(found)
        raise DataError(
            f"question {question.id!r}: a contrast of {self.count} needs as many other answers, and the train questions "
            f"have {len(found)} that are neither accepted nor named in the question: lower gain.contrast, or give more "
            "questions"
        )

    def stands_in(self, name: str, comparable_text: str) -> bool:
        """Return whether the name stands as whole words in a text in comparable form."""
        return f" {self.environment.comparable(name)} " in f" {comparable_text} "


def contrast_pool(environment: Environment) -> tuple[str, ...]:
    """Return the main answer of every train task, each once, in table order; those without a comparable form are left out."""
    answers = [environment.belief_targets(task)[0] for task in environment.tasks("train")]
    forms = {environment.comparable(answer): answer for answer in answers}
    return tuple(answer for form, answer in forms.items() if form)


def contrast_gains(
    beliefs: Sequence[float],
    others: Sequence[Sequence[float]],
    absent: Sequence[Sequence[bool]],
    gain: DifferenceGain,
) -> tuple[list[float], int]:
    """Return g_1..g_{T-1} and how many of them had nothing to be compared with.

    g_t = f(s_t) - f(s_{t-1}) - mean over k of (f(o_t^k) - f(o_{t-1}^k)), with the gain's own f.
    k goes over the names that are absent from the history at the later cut t, the same at both ends. Where no name is
    left, nothing is subtracted and the gain is counted.

    beliefs: s_0..s_{T-1}, mean log-probabilities of the gold answer. others[t][k]: o_t^k, of name k at the same cut.
    absent[t][k]: whether name k does not stand in the history up to that cut.
    """
    value = gain.value
    gains, alone = [], 0
    for t in range(1, len(beliefs)):
        own = value(beliefs[t]) - value(beliefs[t - 1])
        moved = [value(others[t][k]) - value(others[t - 1][k]) for k, gone in enumerate(absent[t]) if gone]
        alone += not moved
        gains.append(own - (math.fsum(moved) / len(moved) if moved else 0.0))
    return gains, alone
