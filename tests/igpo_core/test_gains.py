"""Gains by hand, and the histories that did not happen."""

import math
from typing import Any, Literal

import pytest

from igpo_core.config import reward_of
from igpo_core.rewards.counterfactual import with_others_observations, without_each_turn, without_observations
from igpo_core.rewards.gains import (
    BoundaryGain,
    FirstExposure,
    LeaveOneTurnOut,
    LogProbDiff,
    LogRatioGap,
    ProbDiff,
    Watermark,
)
from igpo_core.rewards.information_gain import answer_log_likelihoods
from igpo_core.rewards.scoring import explain_trajectories, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Question
from tests.worlds import WithTools, finds_by_length


def test_watermark_pays_nothing_twice() -> None:
    # -3, -1, -2, -1, -0.5: +2; fell; back to the mark; +0.5 above it
    assert Watermark().gains([-3.0, -1.0, -2.0, -1.0, -0.5]) == [2.0, 0.0, 0.0, 0.5]


def test_log_ratio_gap_by_hand() -> None:
    # gaps 0.1 + 0.9 = 1.0, 0.5, 0.1: log 2, log 5; a belief above 0 (several aliases) has the smallest gap, 0.1
    assert LogRatioGap().gains([-0.9, -0.4, 0.0, 0.3]) == pytest.approx([math.log(2), math.log(5), 0.0])


def test_gains_against_other_observations() -> None:
    assert LogProbDiff().against([-1.0, -2.0], [[-3.0, -1.0], [-2.0]]) == [1.0, 0.0]
    assert ProbDiff().against([0.0], [[math.log(0.5), math.log(0.1)]]) == [pytest.approx(0.7)]


def test_leave_one_turn_out_by_hand() -> None:
    assert LeaveOneTurnOut().gains(-0.5, [-2.0, -0.25]) == [1.5, -0.25]


def test_first_exposure_counts_the_first_observation_that_holds_an_answer(taught: Any) -> None:
    def gains(seen: list[str], *answers: str) -> list[float]:
        question = Question("q", "s", "train", "Where?", answers)
        return FirstExposure().gains([taught[1].exposes(question, text) for text in seen])

    assert gains(["The Parisian", "It is in Paris, France.", "paris again"], "London", "Paris") == [0.0, 1.0, 0.0]
    assert gains(["yes, indeed", "no"], "yes") == [0.0, 0.0]  # in most texts
    assert gains([], "Paris") == []


@pytest.fixture(scope="module")
def drawn(taught: Any) -> tuple[Any, Any, list[Any]]:
    config, environment, policy = taught
    questions = environment.tasks("train")[:6]

    world: Any = WithTools(environment, finds_by_length)
    found = rollout(policy, world, questions, config.rollout, members=4, key=(0, "test", 0))
    assert sum(len(item.turns) > 2 for item in found) >= 3
    return world, policy, found


def test_histories_without_a_turn(drawn: tuple[Any, Any, list[Any]]) -> None:
    for item in drawn[2]:
        rows = without_each_turn(item)
        assert len(rows) == len(item.turns) - 1
        for turn, ids in zip(item.turns, rows, strict=False):
            gone = turn.observation_end - turn.start
            assert len(ids) == item.cuts[-1] - gone and ids[: turn.start] == list(item.token_ids[: turn.start])


@pytest.mark.parametrize("count", [1, 3, 5])
def test_other_questions_observations(drawn: tuple[Any, Any, list[Any]], count: int) -> None:
    _, _, found = drawn
    rows = with_others_observations(found, count, (0, 0))
    assert rows == with_others_observations(found, count, (0, 0))
    compared, most = 0, 0
    for item, row in zip(found, rows, strict=True):
        own = {
            other.token_ids[turn.end : turn.observation_end]
            for other in found
            if other.question.id == item.question.id
            for turn in other.turns[:-1]
        }
        for turn, several in zip(item.turns, row, strict=False):
            assert len(several) <= count
            most = max(most, len(several))
            for ids in several:
                assert ids[: turn.end] == list(item.token_ids[: turn.end]) and tuple(ids[turn.end :]) not in own
                compared += 1
    assert compared > 5 and most == count


def test_fewer_other_observations_are_the_nearest_of_more(drawn: tuple[Any, Any, list[Any]]) -> None:
    more, fewer = (with_others_observations(drawn[2], count, (0, 0)) for count in (5, 2))
    assert fewer == [[several[:2] for several in row] for row in more]


CHOICES = [
    {"gain": "leave_one_turn_out"},
    {"credit": "observation"},
    {"credit": "query", "gain": "prob_diff"},
    {"credit": {"kind": "query", "observations": 5}},
]


@pytest.mark.parametrize("choices", CHOICES)
def test_counterfactual_gains_equal_plain_forwards(drawn: tuple[Any, Any, list[Any]], choices: dict[str, Any]) -> None:
    """Each belief again by one forward of its own history."""
    world, policy, found = drawn
    config = reward_of(choices)
    result = reward_trajectories(policy, world, found, config, key=(0, 0))
    checked = 0

    def believe(item: Any, ids: Any) -> float:
        probe = policy.protocol.probe(item.question.answers[0])
        return answer_log_likelihoods(policy.model, [list(ids)], [[len(ids)]], [probe])[0][0]

    histories = None
    if config.credit.kind == "observation":
        histories = [[[ids] for ids in row] for row in without_observations(policy.protocol, found)]
    elif config.credit.kind == "query":
        histories = with_others_observations(found, config.credit.observations, (0, 0))
    for i, (item, scored) in enumerate(zip(found, result, strict=True)):
        assert len(item.question.answers) == 1 and scored.gains is not None
        for t, gain in enumerate(scored.gains):
            if histories is None:
                whole, without = item.token_ids[: item.cuts[-1]], without_each_turn(item)[t]
                expected = believe(item, whole) - believe(item, without)
            else:
                value = config.gain.value
                others = [value(believe(item, ids)) for ids in histories[i][t]]
                own = value(believe(item, item.token_ids[: item.turns[t].observation_end]))
                expected = own - sum(others) / len(others) if others else 0.0
            assert gain == pytest.approx(expected, abs=1e-4)
            checked += 1
    assert checked > 5


def test_an_explanation_has_beliefs_for_every_arm(drawn: tuple[Any, Any, list[Any]]) -> None:
    world, policy, found = drawn
    for choices in ({"reward": "outcome_only"}, {"gain": "first_exposure"}, {"reward": "gigpo"}, {}):
        for item in explain_trajectories(policy, world, found, reward_of(choices)):
            assert item.beliefs is not None and item.gains is not None
            assert len(item.beliefs) == len(item.gains) + 1 == len(item.trajectory.turns)


def test_a_gain_without_a_unit_is_refused_as_it_is_made() -> None:
    """A report would end on it after all training."""
    with pytest.raises(TypeError, match="Unnamed needs a unit"):

        class Unnamed(BoundaryGain):
            kind: Literal["unnamed"] = "unnamed"
