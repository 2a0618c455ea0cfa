"""What a rollout leaves behind: the token ids as they were sampled, and spans captured at sampling time.

Nothing here is ever re-found in text: training, scoring and tracing all read these spans (token in, token out)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

TURNS_TOLD = 10  # metrics by turn go so far: the paper's most turns


@dataclass(frozen=True)
class Question:
    """One question of a question table.

    facts: synthetic worlds only, the observation that each right query returns; None for a question over a corpus.
    """

    id: str
    """Unique in its table."""
    source: str
    """Name of the data set it comes from."""
    split: str
    """train, dev or test."""
    text: str
    """What the policy is asked."""
    answers: tuple[str, ...]
    """Accepted ones; the first is the answer's own name, the others its aliases."""
    hops: int | None = None
    """Facts that must be found one after another; None: unknown."""
    supporting_titles: tuple[str, ...] = ()
    """Passages that have the evidence."""
    facts: Mapping[str, str] | None = None
    distractors: tuple[str, ...] = ()
    """Synthetic worlds: facts off the chain, which a reply may show besides."""


class RolloutStatus(StrEnum):
    """Every way a rollout can end. Only ANSWERED has an answer; the others get the format penalty as outcome."""

    ANSWERED = "answered"
    MALFORMED = "malformed"  # the last turn is neither one tool call nor one answer
    TURN_TRUNCATED = "turn_truncated"  # the last turn hit max_new_tokens without a stop token
    TURN_LIMIT = "turn_limit"  # max_turns used up on tool calls
    WINDOW_FULL = "window_full"  # the next observation or turn would not fit into max_tokens


@dataclass(frozen=True)
class ToolCall:
    """A well-formed turn that calls a tool of the environment."""

    name: str
    """Of the tool."""
    arguments: Mapping[str, Any]
    """Value by parameter. Text is in one form (igpo_core.text.one_form)."""

    @property
    def text(self) -> str:
        """Return the call for people: the value of its only argument, or all of them as JSON."""
        values = list(self.arguments.values())
        return str(values[0]) if len(values) == 1 else json.dumps(dict(self.arguments), ensure_ascii=False)


@dataclass(frozen=True)
class Final:
    """A well-formed turn that ends the trajectory with an answer."""

    text: str
    """The answer."""


@dataclass(frozen=True)
class Malformed:
    """A turn that is neither."""

    reason: str
    """Why, in words."""


Action = ToolCall | Final | Malformed


@dataclass(frozen=True)
class Observation:
    """What a tool returned."""

    text: str
    """Plain text: no part of it can become a control token."""
    label: str | None = None
    """What the environment says of the call, as part of a metric's name ("hop_1", "miss"); None: nothing."""
    failed: bool = False
    """Whether the tool's back end failed, so that the text is a short error."""


@dataclass(frozen=True)
class Episode:
    """A rollout as its environment sees it: without tokens."""

    question: Question
    calls: tuple[ToolCall, ...] = ()
    """The calls that were answered so far, in order."""
    observations: tuple[Observation, ...] = ()
    """One for each call."""
    answer: str | None = None
    """The final answer; None before it, and where there is no well-formed one."""


@dataclass(frozen=True)
class Turn:
    """Tokens [start, end) were sampled by the policy; [end, observation_end) were returned by a tool.

    observation_end == end: no observation (only the last turn of a trajectory). logprobs: the log-probability of each
    sampled token at the sampling temperature, one for each token in [start, end). label, failed: of the observation.
    """

    start: int
    end: int
    observation_end: int
    action: Action
    logprobs: tuple[float, ...]
    label: str | None = None
    failed: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= self.observation_end:
            raise ValueError(f"turn spans must increase: {self.start}, {self.end}, {self.observation_end}")
        if len(self.logprobs) != self.end - self.start:
            raise ValueError(f"{len(self.logprobs)} log-probs for {self.end - self.start} sampled tokens")


@dataclass(frozen=True)
class Trajectory:
    """One rollout: prompt tokens [0, prompt_length), then turns back to back. `group` names its question's group.

    answer_scores: at each history h_0 .. h_{T-1} the mean log-probability of each accepted answer that was probed for,
    read while rolling out; None where none was asked for. engine_logprobs: of the sampled tokens in order, as the server that
    sampled them computed them; None where the policy itself did, whose numbers stand in the turns.
    """

    question: Question
    group: str
    token_ids: tuple[int, ...]
    prompt_length: int
    turns: tuple[Turn, ...]
    status: RolloutStatus
    observations: tuple[str, ...] = field(default=())
    answer_scores: tuple[tuple[float, ...], ...] | None = None
    engine_logprobs: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("a trajectory has at least one turn")
        edges = [self.prompt_length, *(turn.observation_end for turn in self.turns)]
        if [turn.start for turn in self.turns] != edges[:-1] or edges[-1] != len(self.token_ids):
            raise ValueError("turns must follow the prompt and each other without a gap and end with the last token")
        if any(turn.end == turn.observation_end for turn in self.turns[:-1]):
            raise ValueError("only the last turn can lack an observation")
        if self.turns[-1].observation_end != self.turns[-1].end:
            raise ValueError("the last turn has no observation: it answers, fails or is cut off")
        if self.answer_scores is not None and len(self.answer_scores) != len(self.turns):
            raise ValueError(
                f"{len(self.answer_scores)} histories were scored in a trajectory of {len(self.turns)} turns"
            )

    @property
    def answer(self) -> str | None:
        """The answer's text, or None when the trajectory has no well-formed answer."""
        action = self.turns[-1].action
        return action.text if self.status is RolloutStatus.ANSWERED and isinstance(action, Final) else None

    @property
    def episode(self) -> Episode:
        """Return what the environment sees of it."""
        calls = tuple(turn.action for turn in self.turns[:-1] if isinstance(turn.action, ToolCall))
        seen = tuple(
            Observation(text, turn.label, turn.failed)
            for text, turn in zip(self.observations, self.turns, strict=False)
        )
        return Episode(self.question, calls, seen, self.answer)

    @property
    def cuts(self) -> tuple[int, ...]:
        """History lengths h_0 .. h_{T-1} at which a belief is scored: the prompt, then each turn's observation end."""
        return (self.prompt_length, *(turn.observation_end for turn in self.turns[:-1]))

    @property
    def sampled_tokens(self) -> int:
        """Return how many tokens were sampled, and so are trained."""
        return sum(turn.end - turn.start for turn in self.turns)
