"""Trajectories in, what they earned out: outcome, beliefs where they were asked for, gains g_1..g_{T-1}.

In training the beliefs were read while rolling out (igpo_core.rollout.probes); score_trajectories reads them afterwards,
for replays, for an older scorer and for trajectories of an evaluation. Both give the same values up to rounding: in float32
within 1e-6 of log p, in bfloat16 (policy.dtype) within 0.002 of it on the tests' policy; tests hold both.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from igpo_core.config.reward import Gigpo, Reward, TurnGains
from igpo_core.config.variants import ObservationCredit, QueryCredit
from igpo_core.credit import TurnRewards
from igpo_core.environments.base import Environment, score_zero
from igpo_core.policies import Policy
from igpo_core.protocol import AnswerProbe, behind_prefix, with_shared_prefix
from igpo_core.rewards.contrast import Contrast, contrast_gains
from igpo_core.rewards.counterfactual import with_others_observations, without_each_turn, without_observations
from igpo_core.rewards.functions import FunctionGain, Played
from igpo_core.rewards.gains import (
    BoundaryGain,
    DifferenceGain,
    FirstExposure,
    LeaveOneTurnOut,
    LogProbDiff,
    belief,
)
from igpo_core.rewards.information_gain import score_beliefs
from igpo_core.trajectory import Question, Trajectory


@dataclass(frozen=True)
class Scored:
    """A trajectory with what it earned."""

    trajectory: Trajectory
    scores: Mapping[str, float]
    """The environment's rubric, the headline first; all 0 without an answer."""
    reward: float
    """The score that reward.outcome names, 0 without an answer."""
    outcome: float
    """The same, or the format penalty without a well-formed answer."""
    beliefs: tuple[float, ...] | None = None
    """s_0..s_{T-1}; None where none were asked for (outcome_only makes no scoring pass at all)."""
    gains: tuple[float, ...] | None = None
    """g_1..g_{T-1}; None where turns earn nothing of their own."""
    without_contrast: int | None = None
    """Gains for which no other answer was absent from the history, so that nothing was subtracted; None where the arm has no
    contrast."""
    states: tuple[Hashable, ...] = ()
    """For each turn the state that it stood at, where the arm asks for states."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What else the environment tells of the episode."""

    @property
    def score(self) -> float:
        """Return the headline score."""
        return next(iter(self.scores.values()))

    @property
    def em(self) -> float:
        """Return the exact match, or the headline score where the rubric has none."""
        return self.scores.get("em", self.score)

    def turn_rewards(self) -> TurnRewards:
        """Return what assign_credit takes."""
        return TurnRewards(
            turns=len(self.trajectory.turns),
            gains=self.gains or (),
            outcome=self.reward,
            answered=self.trajectory.answer is not None,
            states=self.states,
        )


Probes = Callable[[Question], list[AnswerProbe]]
Scores = Sequence[Sequence[float]]  # of one trajectory, [cut][answer]


def answers_asked(environment: Environment, question: Question, config: Reward) -> tuple[str, ...]:
    """Return the answers that beliefs are read in, as the arm's aliases have it."""
    targets = environment.belief_targets(question)
    return targets[:1] if config.belief_aliases == "first" else targets


def answer_probes(policy: Policy, environment: Environment, config: Reward, contrast: Contrast | None = None) -> Probes:
    """Return what makes the probes of a question: one for each answer that the arm's aliases look at, then one for each other
    answer of the contrast. Each is rendered once."""
    rendered: dict[str, AnswerProbe] = {}

    def render(answer: str) -> AnswerProbe:
        if answer not in rendered:
            rendered[answer] = policy.protocol.probe(answer)
        return rendered[answer]

    def probes(question: Question) -> list[AnswerProbe]:
        own = with_shared_prefix([render(answer) for answer in answers_asked(environment, question, config)])
        names = contrast.names(question) if contrast else ()
        return [*own, *(behind_prefix(render(name), own[0].prefix_ids) for name in names)]

    return probes


def reward_trajectories(
    policy: Policy,
    environment: Environment,
    trajectories: Sequence[Trajectory],
    config: Reward,
    *,
    key: Any = (0, 0),
    served: bool = False,
    contrast: Contrast | None = None,
) -> list[Scored]:
    """Outcomes of all trajectories, and gains where the reward has them. served: they come from a server, which reads no
    beliefs.

    Beliefs that were read while rolling out cost nothing here; other ones (of older weights, which the policy's model has
    while this is called, and of counterfactual histories) cost passes of their own. key = (seed, step): keys the draw of
    counterfactual observations. contrast: the other answers, the same as in the rollout's probes. Raises ValueError when the
    reward needs beliefs of the rollout and a trajectory was rolled out without probes.
    """
    outcomes = [_score(environment, item, config) for item in trajectories]
    if not isinstance(config, TurnGains):
        return outcomes
    if not config.needs_beliefs:
        return _without_beliefs(policy, environment, outcomes, config)
    if config.beliefs_while_rolling_out and not served:
        scores: Sequence[Scores | None] = [item.answer_scores for item in trajectories]
    else:
        scores = answer_scores(policy, environment, trajectories, config, contrast)
    return _with_gains(policy, environment, outcomes, scores, config, key, contrast)


def score_outcomes(environment: Environment, trajectories: Sequence[Trajectory], config: Reward) -> list[Scored]:
    """Return what trajectories earn with their answers alone. Makes no scoring pass."""
    return [_score(environment, item, config) for item in trajectories]


def explain_trajectories(
    policy: Policy,
    environment: Environment,
    trajectories: Sequence[Trajectory],
    config: Reward,
    *,
    key: tuple[int, int] = (0, 0),
    contrast: Contrast | None = None,
) -> list[Scored]:
    """What reward_trajectories gives, for people to look at: beliefs are the policy's of now and scored afterwards, for
    every arm alike; gains are the arm's own, or log_prob_diff where it has none. Costs scoring passes."""
    outcomes = [_score(environment, item, config) for item in trajectories]
    if isinstance(config, TurnGains) and config.needs_beliefs:
        scores = answer_scores(policy, environment, trajectories, config, contrast)
        return _with_gains(policy, environment, outcomes, scores, config, key, contrast)
    if "beliefs" not in environment.settings.offers:
        return _without_beliefs(policy, environment, outcomes, config) if isinstance(config, TurnGains) else outcomes
    beliefs = score_trajectories(policy, environment, trajectories, config)
    if isinstance(config, TurnGains):
        explained = _without_beliefs(policy, environment, outcomes, config)
    else:
        explained = [
            replace(item, gains=tuple(LogProbDiff().gains(seen))) for item, seen in zip(outcomes, beliefs, strict=True)
        ]
    return [replace(item, beliefs=seen) for item, seen in zip(explained, beliefs, strict=True)]


def _without_beliefs(
    policy: Policy, environment: Environment, outcomes: Sequence[Scored], config: TurnGains
) -> list[Scored]:
    """Add the gains that read none."""
    gain, found = config.gain, []
    for item in outcomes:
        trajectory = item.trajectory
        if isinstance(gain, FirstExposure):
            own = gain.gains([environment.exposes(trajectory.question, seen) for seen in trajectory.observations])
        else:
            assert isinstance(gain, FunctionGain)
            own = gain.gains(_played(policy, item, None))
        found.append(replace(item, gains=tuple(own)))
    return found


def _played(policy: Policy, item: Scored, beliefs: tuple[float, ...] | None) -> Played:
    trajectory = item.trajectory
    turns = tuple(policy.protocol.decode(trajectory.token_ids[turn.start : turn.end]) for turn in trajectory.turns)
    return Played(trajectory.episode, turns, beliefs, item.reward)


def _with_gains(
    policy: Policy,
    environment: Environment,
    outcomes: Sequence[Scored],
    scores: Sequence[Scores | None],
    config: TurnGains,
    key: tuple[int, int],
    contrast: Contrast | None,
) -> list[Scored]:
    """Add beliefs and gains to the outcomes; scores: of the accepted answers, then of the contrast's."""
    trajectories = [item.trajectory for item in outcomes]
    probes = answer_probes(policy, environment, config, contrast)
    beliefs = [_beliefs(environment, item, own, probes, config) for item, own in zip(trajectories, scores, strict=True)]
    if config.others:
        if contrast is None:
            raise ValueError(f"a contrast of {config.others} compares with other answers, and none were given")
        return [
            _contrasted(policy, environment, item, seen, own, config, contrast)
            for item, seen, own in zip(outcomes, beliefs, scores, strict=True)
        ]
    gains = _gains(policy, environment, outcomes, beliefs, config, key)
    return [
        replace(item, beliefs=seen, gains=tuple(own)) for item, seen, own in zip(outcomes, beliefs, gains, strict=True)
    ]


def _contrasted(
    policy: Policy,
    environment: Environment,
    item: Scored,
    beliefs: tuple[float, ...],
    scores: Scores | None,
    config: TurnGains,
    contrast: Contrast,
) -> Scored:
    gain = config.gain
    assert scores is not None and isinstance(gain, DifferenceGain)  # _beliefs raised before
    trajectory = item.trajectory
    names, asked = contrast.names(trajectory.question), len(answers_asked(environment, trajectory.question, config))
    histories = [environment.comparable(policy.protocol.plain(trajectory.token_ids[:cut])) for cut in trajectory.cuts]
    absent = [[not contrast.stands_in(name, history) for name in names] for history in histories]
    gains, alone = contrast_gains(beliefs, [row[asked:] for row in scores], absent, gain)
    return replace(item, beliefs=beliefs, gains=tuple(gains), without_contrast=alone)


def _gains(
    policy: Policy,
    environment: Environment,
    outcomes: Sequence[Scored],
    beliefs: Sequence[tuple[float, ...]],
    config: TurnGains,
    key: Any,
) -> list[list[float]]:
    gain, trajectories = config.gain, [item.trajectory for item in outcomes]
    if isinstance(gain, FunctionGain):
        return [gain.gains(_played(policy, item, seen)) for item, seen in zip(outcomes, beliefs, strict=True)]
    if isinstance(gain, LeaveOneTurnOut):
        shorter = [without_each_turn(item) for item in trajectories]
        without = score_histories(policy, environment, trajectories, shorter, config)
        return [gain.gains(seen[-1], row) for seen, row in zip(beliefs, without, strict=True)]
    if isinstance(config.credit, ObservationCredit):
        assert isinstance(gain, DifferenceGain)
        empty = without_observations(policy.protocol, trajectories)
        called = score_histories(policy, environment, trajectories, empty, config)
        return [
            gain.against(seen[1:], [[after_call] for after_call in row])
            for seen, row in zip(beliefs, called, strict=True)
        ]
    if isinstance(config.credit, QueryCredit):
        assert isinstance(gain, DifferenceGain)
        histories = with_others_observations(trajectories, config.credit.observations, key)
        flat = [[ids for several in row for ids in several] for row in histories]
        scores = [iter(row) for row in score_histories(policy, environment, trajectories, flat, config)]
        # where no other task called a tool there is nothing to compare with: the turn gains nothing against itself
        others = [
            [[next(own) for _ in several] or [seen[t + 1]] for t, several in enumerate(row)]
            for row, own, seen in zip(histories, scores, beliefs, strict=True)
        ]
        return [gain.against(seen[1:], row) for seen, row in zip(beliefs, others, strict=True)]
    assert isinstance(gain, BoundaryGain)
    return [gain.gains(seen) for seen in beliefs]


def answer_scores(
    policy: Policy,
    environment: Environment,
    trajectories: Sequence[Trajectory],
    config: Reward,
    contrast: Contrast | None = None,
) -> list[list[list[float]]]:
    """Return what Trajectory.answer_scores has, read from finished trajectories: each history once, then all probes.

    The result is indexed [trajectory][cut][answer], in mean log-probability; answers in the order of answer_probes.
    """
    probes = answer_probes(policy, environment, config, contrast)
    with policy.precision():
        return score_beliefs(
            policy.model,
            [item.token_ids for item in trajectories],
            [item.cuts for item in trajectories],
            [probes(item.question) for item in trajectories],
            max_tokens=config.belief_tokens,
        )


def score_trajectories(
    policy: Policy, environment: Environment, trajectories: Sequence[Trajectory], config: Reward
) -> list[tuple[float, ...]]:
    """Return the beliefs s_0..s_{T-1} of each trajectory in its question's answers."""
    probes = answer_probes(policy, environment, config)
    scores = answer_scores(policy, environment, trajectories, config)
    return [_beliefs(environment, item, own, probes, config) for item, own in zip(trajectories, scores, strict=True)]


def score_histories(
    policy: Policy,
    environment: Environment,
    trajectories: Sequence[Trajectory],
    histories: Sequence[Sequence[Sequence[int]]],
    config: Reward,
) -> list[list[float]]:
    """The belief at the end of each history; histories[i]: any token sequences that belong to trajectory i's question."""
    probes = answer_probes(policy, environment, config)
    flat = [(item, list(ids)) for item, row in zip(trajectories, histories, strict=True) for ids in row]
    with policy.precision():
        scores = score_beliefs(
            policy.model,
            [ids for _, ids in flat],
            [[len(ids)] for _, ids in flat],
            [probes(item.question) for item, _ in flat],
            max_tokens=config.belief_tokens,
        )
    found = iter(
        belief(by_cut[0], [len(probe.answer_ids) for probe in probes(item.question)], config.belief_aliases)
        for (item, _), by_cut in zip(flat, scores, strict=True)
    )
    return [[next(found) for _ in row] for row in histories]


def _beliefs(
    environment: Environment, item: Trajectory, scores: Scores | None, probes: Probes, config: Reward
) -> tuple[float, ...]:
    if scores is None:
        raise ValueError(f"{item.question.id}: a gain needs beliefs, but this trajectory was rolled out without probes")
    asked = len(answers_asked(environment, item.question, config))
    lengths = [len(probe.answer_ids) for probe in probes(item.question)[:asked]]
    return tuple(belief(values[:asked], lengths, config.belief_aliases) for values in scores)


def _score(environment: Environment, item: Trajectory, config: Reward) -> Scored:
    episode, settings = item.episode, environment.settings
    scores = score_zero(settings) if episode.answer is None else environment.rubric(episode)
    reward = scores[config.outcome or settings.headline]
    seen = item.observations
    states = (
        tuple(environment.state_key(item.question, seen[:t]) for t in range(len(item.turns)))
        if isinstance(config, Gigpo)
        else ()
    )
    outcome = config.format_penalty if episode.answer is None else reward
    return Scored(item, scores, reward, outcome, states=states, metrics=environment.metrics(episode))
