"""A micro-batch's loss: what the settings say reaches it."""

from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.training import Trainer


def test_the_dual_clip_reaches_the_loss(lookup_setup: tuple[ExperimentConfig, Any, Any]) -> None:
    config, environment, policy = lookup_setup
    made = rollout(
        policy, environment, environment.tasks("train")[:1], config.rollout, members=2, key=(0, "rollout", 0)
    )
    advantages = [[-1.0] * trajectory.sampled_tokens for trajectory in made]
    count = sum(trajectory.sampled_tokens for trajectory in made)

    def total(**settings: Any) -> float:
        given = config.model_dump() | {"optimizer": {"updates_per_step": 2, **settings}}
        learner: Any = Trainer(ExperimentConfig.model_validate(given), environment, policy).learner
        _, now = learner._loss(made, advantages, [1 / count] * 2, None, None)
        # the policy of the step's first update gave each token a fifth of what it has now: every ratio is 5
        terms, _ = learner._loss(made, advantages, [1 / count] * 2, now - now.new_tensor(5.0).log(), None)
        found: float = terms.total.item()
        return found

    assert total() == pytest.approx(5, rel=1e-4)
    assert total(dual_clip=3.0) == pytest.approx(3, rel=1e-4)
