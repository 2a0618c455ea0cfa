"""What a sample of training trajectories shows about beliefs, in every arm alike: measured beside training, never trained on."""

import math
from collections.abc import Sequence

from igpo_core.config.reward import Reward
from igpo_core.environments.base import Environment
from igpo_core.metrics import SOLVED, mean, std
from igpo_core.policies import Policy
from igpo_core.rewards.contrast import Contrast
from igpo_core.rewards.counterfactual import without_observations
from igpo_core.rewards.room import longest_probe
from igpo_core.rewards.scoring import Scored, score_histories
from igpo_core.trajectory import TURNS_TOLD


def fits_window(
    policy: Policy, environment: Environment, item: Scored, config: Reward, contrast: Contrast | None = None
) -> bool:
    """Return whether the longest answer that is probed for fits behind the trajectory; without beliefs none is."""
    if "beliefs" not in environment.settings.offers:
        return True
    room = policy.window - len(item.trajectory.token_ids)
    return room >= longest_probe(policy, environment, item.trajectory.question, config, contrast)


def belief_metrics(
    policy: Policy, environment: Environment, explained: Sequence[Scored], config: Reward
) -> dict[str, float]:
    """diagnostics/: beliefs (as probabilities) by turn, of the trajectories that got so far, for solved and unsolved ones too;
    and whence a turn's gain in
    log-probability comes: gain_thought, what the policy wrote itself (the belief after the call with an empty result,
    minus the belief before the turn), and gain_observation, what the result added to that.

    explained: from explain_trajectories, with beliefs.
    """
    metrics: dict[str, float] = {}
    parts = {
        "": explained,
        "_solved": [item for item in explained if item.score >= SOLVED],
        "_unsolved": [item for item in explained if item.score < SOLVED],
    }
    for name, items in parts.items():
        beliefs = [item.beliefs for item in items if item.beliefs is not None]
        for t in range(min(max(map(len, beliefs), default=0), TURNS_TOLD)):
            values = [math.exp(row[t]) for row in beliefs if len(row) > t]
            metrics[f"diagnostics/belief{name}_turn_{t}"] = mean(values)
            metrics[f"diagnostics/belief_std{name}_turn_{t}"] = std(values)
    trajectories = [item.trajectory for item in explained]
    thought, observation = [], []
    if "beliefs" in environment.settings.offers:
        histories = without_observations(policy.protocol, trajectories)
        called = score_histories(policy, environment, trajectories, histories, config)
        for item, row in zip(explained, called, strict=True):
            assert item.beliefs is not None
            for t, after_call in enumerate(row):
                thought.append(after_call - item.beliefs[t])
                observation.append(item.beliefs[t + 1] - after_call)
    if thought:
        metrics["diagnostics/gain_thought"], metrics["diagnostics/gain_observation"] = mean(thought), mean(observation)
    shares = [shown for item in trajectories if (shown := environment.evidence(item.episode)) is not None]
    for t in range(min(max(map(len, shares), default=0), TURNS_TOLD)):
        so_far = [shown[min(t, len(shown) - 1)] if shown else 0.0 for shown in shares]
        metrics[f"diagnostics/evidence_recall_turn_{t + 1}"] = mean(so_far)
    return metrics
