"""A trajectory while it grows, whichever engine samples it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from igpo_core.config import Decoding, RolloutConfig
from igpo_core.environments.base import Environment
from igpo_core.errors import IgpoError
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe, TurnProtocol
from igpo_core.trajectory import (
    Episode,
    Final,
    Malformed,
    Observation,
    Question,
    RolloutStatus,
    ToolCall,
    Trajectory,
    Turn,
)


@dataclass
class RolloutTimes:
    """Seconds spent in tools, on probes and in the rollout as a whole.

    scoring: reading the probes' values, and that share of each prefill's time which their columns have of all columns.
    tools: of episodes that go on at the same time, the mean of their calls' seconds.
    """

    tools: float = 0.0
    scoring: float = 0.0
    total: float = 0.0


@dataclass
class Row:
    """What a trajectory has so far."""

    question: Question
    group: str
    ids: list[int]
    prompt_length: int
    turns: list[Turn] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    answer_scores: list[tuple[float, ...]] = field(default_factory=list)
    status: RolloutStatus | None = None

    def append_turn(self, policy: Policy, ids: Sequence[int], logprobs: Sequence[float], config: RolloutConfig) -> None:
        """Append a sampled turn; the status is set where the trajectory ends with it.

        Raises IgpoError where a log-probability is no finite number.
        """
        if not all(map(math.isfinite, logprobs)):
            raise IgpoError(
                f"question {self.question.id}, turn {len(self.turns) + 1}: the policy's log-probabilities are no finite numbers. "
                "Its weights are damaged, or too large for bfloat16: take an earlier checkpoint, or compute in float32 "
                "(policy.dtype)"
            )
        action = policy.protocol.parse(ids)
        start = len(self.ids)
        self.ids += ids
        self.turns.append(Turn(start, len(self.ids), len(self.ids), action, tuple(logprobs)))
        if ids[-1] not in policy.end_ids:
            self.status = RolloutStatus.TURN_TRUNCATED
        elif isinstance(action, Malformed):
            self.status = RolloutStatus.MALFORMED
        elif isinstance(action, Final):
            self.status = RolloutStatus.ANSWERED
        elif len(self.turns) == config.max_turns:
            self.status = RolloutStatus.TURN_LIMIT

    def append_observation(self, protocol: TurnProtocol, observation: Observation, config: RolloutConfig) -> list[int]:
        """Append what the tool returned, and return its tokens; [] where no turn would fit behind it, which ends the
        trajectory."""
        ids = protocol.observation(observation.text)
        if len(self.ids) + len(ids) + config.max_new_tokens > config.max_tokens:
            self.status = RolloutStatus.WINDOW_FULL
            return []
        self.ids += ids
        self.turns[-1] = replace(
            self.turns[-1], observation_end=len(self.ids), label=observation.label, failed=observation.failed
        )
        self.observations.append(observation)
        return ids

    def finished(self) -> Trajectory:
        """Return the trajectory. Its status is set."""
        assert self.status is not None
        return Trajectory(
            self.question,
            self.group,
            tuple(self.ids),
            self.prompt_length,
            tuple(self.turns),
            self.status,
            tuple(observation.text for observation in self.observations),
            tuple(self.answer_scores) or None,
        )


def begin(policy: Policy, question: Question, place: int, config: RolloutConfig) -> Row:
    """Raises ValueError for a prompt that leaves no room for a turn."""
    prompt = policy.protocol.prompt(question.text)
    if len(prompt) + config.max_new_tokens > config.max_tokens:
        raise ValueError(
            f"question {question.id}: a prompt of {len(prompt)} tokens and a turn of {config.max_new_tokens} exceed "
            f"rollout.max_tokens={config.max_tokens}: raise it or drop the question"
        )
    return Row(question, f"{place}/{question.id}", list(prompt), len(prompt))


def prompt_fits(policy: Policy, config: RolloutConfig, question: Question) -> bool:
    """Whether the question's prompt leaves room for one whole turn."""
    return len(policy.protocol.prompt(question.text)) + config.max_new_tokens <= config.max_tokens


def unsaid_answers(
    policy: Policy, environment: Environment, config: RolloutConfig, questions: Sequence[Question]
) -> str | None:
    """Return what to tell of questions of which no accepted answer can be given in a turn; None where there are none.

    Such a turn, with the shortest thought, is longer than rollout.max_new_tokens in the policy's tokens, or what is read from it
    is not the answer: the tokenizer lacks its characters, or it holds a tag of the protocol. Nobody can earn the whole reward.
    """
    beyond = [
        (question, length)
        for question in questions
        if (length := _shortest_answer(policy.protocol, environment, question)) is None
        or length > config.max_new_tokens
    ]
    if not beyond:
        return None
    question, length = beyond[0]
    reason = "cannot be read back from the policy's tokens" if length is None else f"takes a turn of {length} tokens"
    return (
        f"{len(beyond)} questions have no accepted answer that a turn can give, so that nobody earns their whole reward. The "
        f"first is {question.id!r}, whose answer {question.answers[0][:60]!r} {reason}: raise "
        f"rollout.max_new_tokens={config.max_new_tokens}, give a shorter answer, or take the rows out"
    )


def _shortest_answer(protocol: TurnProtocol, environment: Environment, question: Question) -> int | None:
    """Tokens of the shortest turn that gives an accepted answer; None where what is read from it does not earn all."""
    lengths = []
    for answer in question.answers:
        ids, _ = protocol.turn("", Final(answer))
        said = protocol.parse(ids)
        if isinstance(said, Final):
            scores = environment.rubric(Episode(question, answer=said.text))
            if scores[environment.settings.headline] >= 1:
                lengths.append(len(ids))
    return min(lengths, default=None)


def call_tools(environment: Environment, rows: Sequence[Row]) -> list[Observation]:
    """Return one observation for each row, whose last turn calls a tool."""
    requests = []
    for row in rows:
        calls = [turn.action for turn in row.turns if isinstance(turn.action, ToolCall)]
        requests.append((Episode(row.question, tuple(calls[:-1]), tuple(row.observations)), calls[-1]))
    found = environment.step(requests) if requests else []
    if len(found) != len(requests):
        raise ValueError(f"the environment answered {len(found)} of {len(requests)} tool calls")
    return found


class Engine(Protocol):
    """What samples trajectories without belief probes: evaluation, and training where beliefs have passes of their own."""

    def __call__(
        self,
        policy: Policy,
        environment: Environment,
        questions: Sequence[Question],
        config: RolloutConfig,
        *,
        members: int,
        key: tuple[int, str, int],
        decoding: Decoding = "sampled",
        times: RolloutTimes | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Trajectory]: ...


class OwnEngine(Engine, Protocol):
    """What samples in this process, with the policy's own weights: it can read belief probes on the way."""

    def __call__(
        self,
        policy: Policy,
        environment: Environment,
        questions: Sequence[Question],
        config: RolloutConfig,
        *,
        members: int,
        key: tuple[int, str, int],
        decoding: Decoding = "sampled",
        probes: Callable[[Question], Sequence[AnswerProbe]] | None = None,
        times: RolloutTimes | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Trajectory]: ...
