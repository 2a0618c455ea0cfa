"""Turn advantages by hand (the golden cases are in test_golden.py)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_core.advantages import turn_advantages


def test_two_trajectories_by_hand() -> None:
    # gains 0.2, 0.0 | 0.4: mean 0.2, population std sqrt((0 + 0.04 + 0.04) / 3) = 0.163299 -> z 0, -1.224745 | 1.224745
    # outcomes 1 | 0: mean 0.5, std 0.5 -> z 1 | -1
    result = turn_advantages([[0.2, 0.0, 1.0], [0.4, 0.0]], ["q", "q"], gamma=0.5, eps=1e-12)
    # turn 3: 1; turn 2: -1.224745 + 0.5 * 1 = -0.724745; turn 1: 0 + 0.5 * -0.724745 = -0.362372
    assert result[0] == pytest.approx([-0.362372, -0.724745, 1.0], abs=1e-5)
    # turn 2: -1; turn 1: 1.224745 - 0.5 = 0.724745
    assert result[1] == pytest.approx([0.724745, -1.0], abs=1e-5)


def test_joint_pool_by_hand() -> None:
    # one pool 0, 1 | 0, 1 (gain, outcome): mean 0.5, std 0.5 -> -1, 1 | -1, 1; gamma 1: first turn 0, last 1
    assert turn_advantages([[0.0, 1.0], [0.0, 1.0]], [1, 1], normalization="joint", eps=1e-12) == [
        pytest.approx([0.0, 1.0]), pytest.approx([0.0, 1.0])
    ]  # fmt: skip


def test_outcome_only_gives_every_turn_the_outcome_whatever_the_gains() -> None:
    result = turn_advantages(
        [[9.0, -3.0, 1.0], [0.0], [7.0, 0.0]], list("qqp"), normalization="outcome_only", gamma=0.1
    )
    assert result == [pytest.approx([1.0] * 3, abs=1e-5), pytest.approx([-1.0], abs=1e-5), [0.0, 0.0]]


def test_scale_none_only_centres() -> None:
    assert turn_advantages([[1.0], [4.0]], ["q", "q"], scale="none") == [[-1.5], [1.5]]


def test_a_pool_of_one_value_or_without_spread_gives_zero() -> None:
    assert turn_advantages([[0.3, 1.0]], ["q"]) == [[0.0, 0.0]]
    # 0.1 has no exact binary form: a std of rounding errors must not become unit rewards
    assert turn_advantages([[0.1] * 3 + [0.7]] * 3, ["q"] * 3) == [[0.0] * 4] * 3


def test_a_reward_of_exactly_zero_is_a_reward() -> None:
    result = turn_advantages([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], ["q", "q"], eps=1e-12)
    assert result == [pytest.approx([0.0, 1.0, 0.0]), pytest.approx([0.0, -1.0, 0.0])]


def test_equal_total_gain_in_two_or_four_turns_is_not_paid_equally() -> None:
    # gains [.5, .5] against [.25] * 4, total 1.0 both; mean 1/3, std sqrt(2 * (1/6)^2 / 6 + 4 * (1/12)^2 / 6)
    result = turn_advantages([[0.5, 0.5, 0.0], [0.25] * 4 + [0.0]], ["q", "q"], eps=1e-12)
    assert result[0][0] == pytest.approx(2.828427, abs=1e-5)
    assert result[1][0] == pytest.approx(-2.828427, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rewards": [[math.nan]], "groups": ["q"]}, "reward 0 of trajectory 0 is nan"),
        ({"rewards": [[0.0], [0.0, math.inf]], "groups": ["q", "q"]}, "reward 1 of trajectory 1 is inf"),
        ({"rewards": [[0.0]], "groups": []}, "1 trajectories but 0 group keys"),
        ({"rewards": [[]], "groups": ["q"]}, "has no rewards"),
        (
            {"rewards": [[0.0]], "groups": ["q"], "normalization": "nothing"},
            "separate, joint, raw, root_mean_square, turn_group, none, outcome_only",
        ),
        ({"rewards": [[0.0]], "groups": ["q"], "scale": "max"}, "valid are std, none"),
        ({"rewards": [[0.0]], "groups": ["q"], "gamma": 1.5}, "gamma"),
        ({"rewards": [[0.0]], "groups": ["q"], "eps": 0.0}, "eps"),
    ],
)
def test_bad_input_raises(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        turn_advantages(arguments.pop("rewards"), arguments.pop("groups"), **arguments)


REWARDS = st.lists(st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=5), min_size=2, max_size=8)


@given(REWARDS, st.sampled_from(["separate", "joint", "outcome_only"]), st.sampled_from([0.5, 1.0]))
def test_against_a_direct_sum(rewards: list[list[float]], normalization: str, gamma: float) -> None:
    groups = [i % 2 for i in range(len(rewards))]
    result = turn_advantages(rewards, groups, normalization=normalization, gamma=gamma)
    for i, row in enumerate(rewards):
        mates = [other for other, group in zip(rewards, groups, strict=True) if group == groups[i]]
        gains, outcomes = ([g for mate in mates for g in mate[:-1]], [mate[-1] for mate in mates])

        def z(value: float, pool: list[float]) -> float:
            mean = sum(pool) / len(pool)
            std = (sum((p - mean) ** 2 for p in pool) / len(pool)) ** 0.5
            return 0.0 if len(set(pool)) == 1 else (value - mean) / (std + 1e-6)

        if normalization == "outcome_only":
            expected = [z(row[-1], outcomes)] * len(row)
        else:
            pools = (gains + outcomes,) * 2 if normalization == "joint" else (gains, outcomes)
            own = [*(z(g, pools[0]) for g in row[:-1]), z(row[-1], pools[1])]
            expected = [sum(gamma ** (k - t) * own[k] for k in range(t, len(own))) for t in range(len(own))]
        assert result[i] == pytest.approx(expected, abs=1e-9)


@given(REWARDS)
def test_order_of_trajectories_does_not_matter(rewards: list[list[float]]) -> None:
    groups = [i % 3 for i in range(len(rewards))]
    forward = turn_advantages(rewards, groups)
    backward = turn_advantages(rewards[::-1], groups[::-1])[::-1]
    for one, other in zip(forward, backward, strict=True):
        assert one == pytest.approx(other, abs=1e-9)
