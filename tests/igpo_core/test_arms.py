"""Every kind of arm makes steps, costs only what it needs, and goes on from a checkpoint to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.config import ExperimentConfig
from igpo_core.diagnostics import belief_metrics
from igpo_core.policies import Policy
from igpo_core.rewards.scoring import explain_trajectories
from igpo_core.training import Trainer
from igpo_core.update import token_advantages
from tests.worlds import WithTools, finds_by_length

ARMS: dict[str, dict[str, Any]] = {
    "outcome_only": {"reward": "outcome_only"},
    "igpo": {},
    "gain_only": {"reward": "gain_only"},
    "gigpo": {"reward": "gigpo", "gamma": 0.9, "gain_weight": 0.5},
    "first_exposure": {"gain": "first_exposure"},
    "leave_one_turn_out": {"gain": "leave_one_turn_out", "gate": "sign"},
    "watermark_root": {"gain": "watermark", "accumulation": "root", "outcome_credit": "broadcast", "gain_weight": 0.3},
    "trace": {
        "gain": "log_ratio_gap",
        "normalization": "none",
        "accumulation": "window",
        "gamma": 0.8,
        "outcome_credit": "broadcast",
        "gain_weight": 0.2,
        "scorer": "frozen",
    },
    "observation": {"credit": "observation"},
    "query": {"credit": "query", "gain_weight": 0.3},
    "query_of_one": {"credit": {"kind": "query", "observations": 1}, "gain_weight": 0.3},
    "belief_return": {"credit": "trajectory", "gain": "prob_diff"},
    "shuffled": {"shuffle": "group", "gain": "prob_diff"},
    "lagged": {"scorer": {"kind": "lagged", "steps": 2}},
    "turn_group": {"normalization": "turn_group", "gain_scale": "match_outcome"},
    "gated": {"gate": "outcome_spread", "penalty_on": "trajectory"},
    "root_mean_square": {"gain": "prob_diff", "normalization": {"kind": "root_mean_square", "floor": 0.01}},
    "contrast": {"gain": {"kind": "log_prob_diff", "contrast": 3}},
    "contrast_lagged": {
        "gain": {"kind": "log_prob_diff", "contrast": 3},
        "scorer": {"kind": "lagged", "steps": 2},
    },
    "rloo": {"baseline": "leave_one_out", "scale": "none", "penalty_on": "apart"},
    "reinforce_pp": {"baseline": "batch_mean"},
}
OF_THE_MODEL = {"outcome_only", "gigpo", "first_exposure"}  # arms that ask no model for a belief


def trainer_of(taught: Any, choices: dict[str, Any], **parts: Any) -> Trainer:
    config, environment, policy = taught
    content = {**config.model_dump(), "reward": choices, "optimizer": {"learning_rate": 1e-3}, **parts}
    own = Policy(copy.deepcopy(policy.model), policy.protocol, policy.window)
    return Trainer(ExperimentConfig.model_validate(content), WithTools(environment, finds_by_length), own)


def weights(trainer: Trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.policy.model.parameters()]


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_learns_and_resumes_to_the_bit(taught: Any, arm: str, tmp_path: Path) -> None:
    """Saved after three steps: a lagged scorer is then a copy of step 2, which only the checkpoint has."""
    whole = trainer_of(taught, ARMS[arm])
    before = weights(whole)
    results = [whole.run_step() for _ in range(3)]
    whole.save(tmp_path / "step-000003")
    results += [whole.run_step() for _ in range(2)]
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(whole), strict=True))
    resumed = trainer_of(taught, ARMS[arm])
    resumed.restore(tmp_path / "step-000003")
    again = [resumed.run_step() for _ in range(2)]
    assert [result.credit for result in again] == [result.credit for result in results[3:]]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    assert any(len(item.trajectory.turns) > 2 for result in results for item in result.scored)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_asks_for_beliefs_only_where_it_needs_them(taught: Any, arm: str) -> None:
    result = trainer_of(taught, ARMS[arm]).run_step()
    assert all((item.beliefs is None) == (arm in OF_THE_MODEL) for item in result.scored)
    assert (result.metrics["time/scoring"] == 0.0) == (arm in OF_THE_MODEL)


def test_arms_of_a_step_see_the_same_rollouts(taught: Any) -> None:
    seen = {
        arm: [item.trajectory.token_ids for item in trainer_of(taught, ARMS[arm]).run_step().scored] for arm in ARMS
    }
    assert all(ids == seen["outcome_only"] for ids in seen.values())
    again = trainer_of(taught, ARMS["igpo"], replicate=1).run_step()
    assert [item.trajectory.token_ids for item in again.scored] != seen["igpo"]  # A/A: another draw
    assert [item.trajectory.question.id for item in again.scored] == [
        item.trajectory.question.id for item in trainer_of(taught, ARMS["igpo"]).run_step().scored
    ]


def test_an_older_scorer_is_the_policy_it_was(taught: Any) -> None:
    """Beliefs of frozen and lagged scorers are the start's in steps 1 and 2; then the lagged one follows."""
    beliefs: dict[str, list[Any]] = {}
    for scorer, steps in (("frozen", None), ("lagged", 2)):
        choices = {"scorer": {"kind": scorer, **({"steps": steps} if steps else {})}}
        trainer = trainer_of(taught, choices)
        beliefs[scorer] = [[item.beliefs for item in trainer.run_step().scored] for _ in range(3)]
    assert beliefs["frozen"][:2] == beliefs["lagged"][:2] and beliefs["frozen"][2] != beliefs["lagged"][2]


def test_only_the_query_is_paid_for_its_gain(taught: Any) -> None:
    trainer = trainer_of(taught, ARMS["query"])
    result = trainer.run_step()
    assert result.credit.queries is not None
    checked = 0
    for item, turns, queries in zip(result.scored, result.credit.turns, result.credit.queries, strict=True):
        values = iter(token_advantages(trainer.policy.protocol, item.trajectory, turns, queries))
        for t, turn in enumerate(item.trajectory.turns):
            own = [next(values) for _ in range(turn.start, turn.end)]
            ids = item.trajectory.token_ids[turn.start : turn.end]
            words = [trainer.policy.protocol.words[index] for index in ids]  # type: ignore[attr-defined]
            if t < len(queries):
                inside = slice(words.index("<tool_call>") + 1, words.index("</tool_call>"))
                extra = [value - turns[t] for value in own]
                assert sum(extra) == pytest.approx(queries[t]) == pytest.approx(sum(extra[inside]))
                checked += queries[t] != 0
            else:
                assert own == [turns[t]] * len(own)
    assert checked > 3


def test_diagnostics_split_a_gain_into_thought_and_observation(taught: Any) -> None:
    """Summed over all turns the two parts are the whole gain in log-probability, s_{T-1} - s_0."""
    trainer = trainer_of(taught, ARMS["outcome_only"])
    result = trainer.run_step()
    explained = explain_trajectories(
        trainer.policy, trainer.environment, [item.trajectory for item in result.scored], trainer.config.reward
    )
    metrics = belief_metrics(trainer.policy, trainer.environment, explained, trainer.config.reward)
    total = sum(item.beliefs[-1] - item.beliefs[0] for item in explained if item.beliefs)
    turns = sum(len(item.trajectory.turns) - 1 for item in explained)
    assert (metrics["diagnostics/gain_thought"] + metrics["diagnostics/gain_observation"]) * turns == pytest.approx(
        total, abs=1e-4
    )
    assert 0 <= metrics["diagnostics/belief_turn_0"] <= 1 and "diagnostics/belief_turn_1" in metrics


def test_a_budget_of_tokens_ends_with_the_step_that_reaches_it(taught: Any) -> None:
    training = {"epochs": 5, "steps_per_epoch": 2, "budget": "sampled_tokens", "amount": 500.0}
    trainer = trainer_of(taught, ARMS["outcome_only"], training=training)
    while not trainer.done:
        before = trainer.counters["sampled_tokens"]
        trainer.run_step()
    assert before < 500 <= trainer.counters["sampled_tokens"] and trainer.step < 10
    with pytest.raises(ValueError, match="need an amount"):
        trainer_of(taught, ARMS["outcome_only"], training={"budget": "seconds"})


def test_a_contrast_is_read_in_the_rollout_as_it_is_afterwards(taught: Any) -> None:
    """Scores of the accepted answer and of three others ride in the prefills. A belief stays that of the accepted answer,
    and reading them from the finished trajectories gives the same gains."""
    trainer = trainer_of(taught, ARMS["contrast"])
    contrast = trainer.contrast(0)
    result = trainer_of(taught, ARMS["contrast"]).run_step()
    plain = trainer_of(taught, ARMS["igpo"]).run_step()
    again = explain_trajectories(
        trainer.policy,
        trainer.environment,
        [item.trajectory for item in result.scored],
        trainer.config.reward,
        contrast=contrast,
    )
    differing = 0
    for own, other, without in zip(result.scored, again, plain.scored, strict=True):
        assert own.trajectory.answer_scores is not None and {len(row) for row in own.trajectory.answer_scores} == {4}
        assert own.beliefs == pytest.approx(without.beliefs, abs=1e-5)
        assert own.gains == pytest.approx(other.gains, abs=1e-4)
        differing += own.gains != without.gains
    assert differing > len(plain.scored) // 2
    assert result.metrics["reward/gains_without_contrast"] < 1.0
