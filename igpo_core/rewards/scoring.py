"""Trajectories in, their rewards out: [g_1, .., g_{T-1}, outcome] for each.

In training the beliefs were read while rolling out (igpo_core.rollout.probes); score_trajectories reads them afterwards,
for replays and for trajectories of an evaluation. Both give the same values up to float32 rounding, and a test holds it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from igpo_core.config import ExperimentConfig, RewardConfig
from igpo_core.errors import ConfigError
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rewards.information_gain import belief, information_gains, score_beliefs
from igpo_core.rewards.outcome import exact_match, f1_score, paper_f1_score
from igpo_core.trajectory import Question, Trajectory


@dataclass(frozen=True)
class Scored:
    """A trajectory with what it earned.

    f1, em: of the answer, 0 without one. outcome: the configured F1, or the format penalty without a well-formed answer.
    beliefs: s_0..s_{T-1}, None where no belief was asked for (outcome_only makes no scoring pass at all).
    """

    trajectory: Trajectory
    f1: float
    em: float
    outcome: float
    beliefs: tuple[float, ...] | None

    def gains(self, config: RewardConfig) -> list[float]:
        """g_1..g_{T-1}. Raises ValueError where beliefs and turns do not fit together: no gain is ever dropped."""
        if self.beliefs is None or len(self.beliefs) != len(self.trajectory.turns):
            raise ValueError(
                f"{self.trajectory.question.id}: {self.beliefs and len(self.beliefs)} beliefs for "
                f"{len(self.trajectory.turns)} turns"
            )
        return information_gains(self.beliefs, config.gain)

    def rewards(self, config: RewardConfig) -> list[float]:
        """What turn_advantages takes. gain_only: the outcome is 0 for all, so its pool has no spread."""
        if not config.needs_gain:
            return [0.0] * (len(self.trajectory.turns) - 1) + [self.outcome]
        return [*self.gains(config), 0.0 if config.reward == "gain_only" else self.outcome]


Probes = Callable[[Question], list[AnswerProbe]]


def answer_probes(policy: Policy, config: RewardConfig) -> Probes:
    """The probes of a question: one for each accepted answer that config.aliases looks at, rendered once."""
    rendered: dict[str, AnswerProbe] = {}

    def probes(question: Question) -> list[AnswerProbe]:
        answers = question.answers[:1] if config.aliases == "first" else question.answers
        for answer in answers:
            if answer not in rendered:
                rendered[answer] = policy.protocol.probe(answer)
        return [rendered[answer] for answer in answers]

    return probes


def reward_trajectories(policy: Policy, trajectories: Sequence[Trajectory], config: RewardConfig) -> list[Scored]:
    """Outcomes of all trajectories, and beliefs where the reward needs them. Makes no pass through the model.

    Raises ValueError when the reward needs beliefs and a trajectory was rolled out without probes.
    """
    beliefs: list[tuple[float, ...] | None] = [None] * len(trajectories)
    if config.needs_gain:
        probes = answer_probes(policy, config)
        beliefs = [_beliefs(item, item.answer_scores, probes, config) for item in trajectories]
    return [_score(item, seen, config) for item, seen in zip(trajectories, beliefs, strict=True)]


def longest_probe(policy: Policy, question: Question, config: RewardConfig) -> int:
    """Tokens that the longest probe of this question adds to a history."""
    return max(len(probe.prefix_ids) + len(probe.answer_ids) for probe in answer_probes(policy, config)(question))


def require_room(policy: Policy, questions: Sequence[Question], config: ExperimentConfig) -> None:
    """Raise ConfigError when a history of rollout.max_tokens and a probe exceed the policy's window."""
    if not config.reward.needs_gain:
        return
    for question in questions:
        longest = longest_probe(policy, question, config.reward)
        if config.rollout.max_tokens + longest > policy.window:
            raise ConfigError(
                f"question {question.id!r}: a history of rollout.max_tokens={config.rollout.max_tokens} and the probe of "
                f"its longest answer ({longest} tokens) exceed the policy's window of {policy.window}: lower "
                "rollout.max_tokens or data.max_answer_words, or give a longer window"
            )


def score_trajectories(
    policy: Policy, trajectories: Sequence[Trajectory], config: RewardConfig
) -> list[tuple[float, ...]]:
    """Beliefs s_0..s_{T-1} of each trajectory in its question's accepted answers: its history once, then all probes."""
    probes = answer_probes(policy, config)
    scores = score_beliefs(
        policy.model,
        [item.token_ids for item in trajectories],
        [item.cuts for item in trajectories],
        [probes(item.question) for item in trajectories],
        max_tokens=config.belief_tokens,
    )
    return [_beliefs(item, own, probes, config) for item, own in zip(trajectories, scores, strict=True)]


def _beliefs(
    item: Trajectory, scores: Sequence[Sequence[float]] | None, probes: Probes, config: RewardConfig
) -> tuple[float, ...]:
    if scores is None:
        raise ValueError(f"{item.question.id}: a gain needs beliefs, but this trajectory was rolled out without probes")
    lengths = [len(probe.answer_ids) for probe in probes(item.question)]
    return tuple(belief(values, lengths, config.aliases) for values in scores)


def _score(item: Trajectory, beliefs: tuple[float, ...] | None, config: RewardConfig) -> Scored:
    if item.answer is None:
        return Scored(item, 0.0, 0.0, config.format_penalty, beliefs)
    answers = item.question.answers
    f1 = f1_score(item.answer, answers)
    outcome = f1 if config.outcome == "f1" else paper_f1_score(item.answer, answers)
    return Scored(item, f1, exact_match(item.answer, answers), outcome, beliefs)
