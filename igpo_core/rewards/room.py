"""Whether histories and the probes behind them fit the policy's window, asked before anything is rolled out."""

from collections.abc import Sequence

from igpo_core.config import ExperimentConfig
from igpo_core.config.reward import Reward, TurnGains
from igpo_core.environments.base import Environment
from igpo_core.errors import ConfigError
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe
from igpo_core.rewards.contrast import Contrast
from igpo_core.rewards.scoring import answer_probes
from igpo_core.trajectory import Question


def longest_probe(
    policy: Policy,
    environment: Environment,
    question: Question,
    config: Reward,
    contrast: Contrast | None = None,
) -> int:
    """Return the tokens that the longest probe of this question adds to a history."""
    return max(map(_tokens, answer_probes(policy, environment, config, contrast)(question)))


def _tokens(probe: AnswerProbe) -> int:
    return len(probe.prefix_ids) + len(probe.answer_ids)


def longest_history(policy: Policy, config: ExperimentConfig) -> int:
    """The most tokens that a history can have behind which a probe stands.

    A trajectory goes on only where a whole turn still fits (rollout/rows.py), so that h_0 .. h_{T-1} leave
    rollout.max_new_tokens of rollout.max_tokens, as they do with a turn left out. credit=observation puts an empty observation
    behind a turn that ended before that; credit=query other questions' ones, up to the batch's longest trajectory.
    """
    rollout, reward = config.rollout, config.reward
    credit = reward.credit.kind if isinstance(reward, TurnGains) else "turn"
    if credit == "query":
        return rollout.max_tokens
    boundary = rollout.max_tokens - rollout.max_new_tokens
    return boundary + len(policy.protocol.observation("")) if credit == "observation" else boundary


def require_room(
    policy: Policy,
    environment: Environment,
    questions: Sequence[Question],
    config: ExperimentConfig,
    contrast: Contrast | None = None,
) -> None:
    """Raise ConfigError when the longest history that can be scored and a probe exceed the policy's window. Any name of the
    contrast may be drawn for any question."""
    if not config.reward.needs_beliefs:
        return
    history = longest_history(policy, config)
    others = max((_tokens(policy.protocol.probe(name)) for name in contrast.pool), default=0) if contrast else 0
    for question in questions:
        longest = max(others, longest_probe(policy, environment, question, config.reward))
        if history + longest > policy.window:
            raise ConfigError(
                f"question {question.id!r}: with rollout.max_tokens={config.rollout.max_tokens} a history that is scored has up "
                f"to {history} tokens, and with the probe of its longest answer ({longest} tokens) it exceeds the policy's "
                f"window of {policy.window}: lower rollout.max_tokens or data.max_answer_words, or give a longer window"
            )
