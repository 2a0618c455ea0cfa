"""What rollout, scoring and warm start ask of a way to write turns, and the answer probes that it makes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from igpo_core.environments.base import Interface
from igpo_core.errors import DataError
from igpo_core.trajectory import Action, Final, ToolCall

MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<answer>",
    "</answer>",
)


@dataclass(frozen=True)
class AnswerProbe:
    """Token ids appended to a history to read the belief in an answer; only answer_ids are scored."""

    prefix_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...] = ()

    def __init__(self, prefix_ids: Sequence[int], answer_ids: Sequence[int], suffix_ids: Sequence[int] = ()) -> None:
        object.__setattr__(self, "prefix_ids", tuple(prefix_ids))
        object.__setattr__(self, "answer_ids", tuple(answer_ids))
        object.__setattr__(self, "suffix_ids", tuple(suffix_ids))
        if not self.answer_ids:
            raise ValueError("an answer probe needs at least one answer token")


def with_shared_prefix(probes: list[AnswerProbe]) -> list[AnswerProbe]:
    """Return the same probes with the prefix tokens that all of them begin with, which are fed once for all.

    Prefixes differ only where a tokenizer merges the prefix's last characters into one answer and not into another. What the
    others have there in their prefix is then scored with their answer.
    """
    if all(probe.prefix_ids == probes[0].prefix_ids for probe in probes):
        return probes
    places = zip(*(probe.prefix_ids for probe in probes), strict=False)
    shared = [ids[0] for ids in itertools.takewhile(lambda ids: len(set(ids)) == 1, places)]
    return [
        AnswerProbe(shared, (*probe.prefix_ids[len(shared) :], *probe.answer_ids), probe.suffix_ids) for probe in probes
    ]


def behind_prefix(probe: AnswerProbe, prefix: Sequence[int]) -> AnswerProbe:
    """Return the probe with this prefix, which another answer of the question has, so that it changes no score of that one.

    Raises DataError where the tokenizer merges the answer with what stands before it, so that it has no such prefix.
    """
    shared = tuple(prefix)
    if probe.prefix_ids[: len(shared)] != shared:
        raise DataError(
            f"the tokenizer merges the first characters of an answer (tokens {list(probe.answer_ids)}) with the text before "
            "it, so that it cannot be compared with another answer: leave gain.contrast at 0 for this model"
        )
    return AnswerProbe(shared, (*probe.prefix_ids[len(shared) :], *probe.answer_ids), probe.suffix_ids)


class TurnProtocol(Protocol):
    """What rollout, scoring and warm start ask of a way to write turns."""

    tokenizer: Any
    interface: Interface
    stop_ids: tuple[int, ...]
    pad_id: int

    def prompt(self, question: str) -> list[int]:
        """Return the tokens of a trajectory before its first turn."""

    def parse(self, ids: Sequence[int]) -> Action:
        """Return what a sampled turn does, its stop token included."""

    def observation(self, text: str) -> list[int]:
        """Return the tokens of a tool's result; none of its text becomes a control token."""

    def turn(self, thought: str, action: ToolCall | Final) -> tuple[list[int], slice]:
        """Return a demonstrated turn's tokens, and where in them the call or the answer is."""

    def probe(self, answer: str) -> AnswerProbe:
        """Return the tokens by which the belief in an answer is read."""

    def lesson(self, words: Sequence[str]) -> list[int]:
        """Return a text to learn from that is no trajectory."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return tokens as text for people, control tokens shown."""

    def plain(self, ids: Sequence[int]) -> str:
        """Return tokens as text in which the words of questions and results can be looked for."""

    def call_tokens(self, ids: Sequence[int]) -> slice:
        """Return where in a turn's tokens its call is."""


def between(ids: Sequence[int], opening: int, closing: int) -> slice:
    """The place between the last `opening` and the last `closing`; empty where ids hold only one of them, or none."""
    backwards = list(ids)[::-1]
    if opening not in backwards or closing not in backwards:
        return slice(0, 0)
    return slice(len(ids) - backwards.index(opening), len(ids) - 1 - backwards.index(closing))
