"""Every choice of an arm, with numbers derived by hand."""

import itertools
import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from igpo_core.advantages import (
    Normalization,
    accumulate,
    normalise_gains,
    over_root_mean_square,
    share_below,
    standardiser,
    turn_advantages,
)
from igpo_core.config import ExperimentConfig, reward_of
from igpo_core.config.variants import MatchOutcome
from igpo_core.credit import Credit, TurnRewards, assign_credit, matched_scale, outcome_gates, shuffled

EXACT = 1e-12


def item(*gains: float, outcome: float, answered: bool = True, states: tuple[Any, ...] = ()) -> TurnRewards:
    return TurnRewards(len(gains) + 1, tuple(gains), outcome, answered, states)


def credit(items: list[TurnRewards], groups: str = "", step: int = 0, **choices: Any) -> Credit:
    exact: dict[str, Any] = {} if choices.get("scale") == "none" else {"eps": EXACT}
    kind = choices.get("normalization", "separate")
    divided = choices.get("reward") not in ("outcome_only", "gigpo") and kind not in ("joint", "none")
    if divided and isinstance(kind, str) and exact:
        choices["normalization"] = {"kind": kind, "floor": EXACT}
    config = reward_of({**exact, **choices})
    return assign_credit(items, list(groups or "q" * len(items)), config, seed=0, step=step)


# gains 0.2, 0.0 | 0.4: mean 0.2, std 0.163299 -> z 0, -1.224745 | 1.224745; outcomes 1 | 0 -> z 1 | -1
PAIR = [item(0.2, 0.0, outcome=1.0), item(0.4, outcome=0.0)]
Z = 1.5**0.5


def test_the_default_is_the_door() -> None:
    rewards = [[*one.gains, one.outcome] for one in PAIR]
    assert credit(PAIR, gamma=0.5).turns == turn_advantages(rewards, ["q", "q"], gamma=0.5, eps=EXACT)
    assert credit(PAIR, normalization="joint").turns == turn_advantages(
        rewards, ["q", "q"], normalization="joint", eps=EXACT
    )
    assert credit(PAIR, reward="outcome_only").turns == [pytest.approx([1.0] * 3), pytest.approx([-1.0] * 2)]


@given(
    st.lists(st.tuples(st.lists(st.floats(-3, 3), max_size=5), st.floats(-1, 1)), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_parts_add_up_and_the_default_is_the_door(rows: list[tuple[list[float], float]], gamma: float) -> None:
    items = [item(*gains, outcome=outcome) for gains, outcome in rows]
    groups = [str(i % 2) for i in range(len(items))]
    config = reward_of(
        {"gamma": gamma, "normalization": {"kind": "separate", "floor": 1e-6}}
    )  # the door has one eps for gains and outcomes
    found = assign_credit(items, groups, config, seed=0, step=0)
    assert found.turns == turn_advantages([[*g, o] for g, o in rows], groups, gamma=gamma, eps=config.eps)
    for whole, outcome, gain in zip(found.turns, found.outcome, found.gain, strict=True):
        assert whole == pytest.approx([a + b for a, b in zip(outcome, gain, strict=True)], abs=1e-9)


def test_raw_divides_and_keeps_the_mean() -> None:
    # std of 0.2, 0.0, 0.4 is 0.163299: 1.224745, 0 | 2.449490; then the outcome 1 | -1 beside each turn, gamma 0
    found = credit(PAIR, normalization="raw", gamma=0.0, outcome_credit="broadcast")
    assert found.turns[0] == pytest.approx([1 + Z, 1.0, 1.0]) and found.turns[1] == pytest.approx([2 * Z - 1, -1.0])
    # equal total gain in two turns or four, mean kept: the shorter one is no longer paid 2.8 against -2.8
    short, long = [item(0.5, 0.5, outcome=0.0), item(0.25, 0.25, 0.25, 0.25, outcome=0.0)]
    first = [row[0] for row in credit([short, long], normalization="raw").turns]
    assert first[0] == pytest.approx(first[1])


def test_root_mean_square_keeps_the_mean_and_is_bounded() -> None:
    assert "root_mean_square" in get_args(Normalization)
    # 0.2, 0.0, 0.4: root mean square sqrt((0.04 + 0.16) / 3) = 0.258199 -> 0.774597, 0 | 1.549193; outcomes 1 | -1
    found = credit(PAIR, normalization="root_mean_square")
    assert found.turns[0] == pytest.approx([1.774597, 1.0, 1.0], abs=1e-6)
    assert found.turns[1] == pytest.approx([0.549193, -1.0], abs=1e-6)
    # with a floor of 0.1: 0.2 / 0.358199 = 0.558349
    floored = credit(PAIR, normalization={"kind": "root_mean_square", "floor": 0.1})
    assert floored.gain[0][0] == pytest.approx(0.558349, abs=1e-6)
    # eight gains of 0.9 +- 0.001 are worth 1.0 less the floor's share, 0.9 / 0.91; the mean over the std would be 90
    alike = [item(0.9 + 0.001 * (-1) ** i, outcome=0.0) for i in range(8)]
    values = [row[0] for row in credit(alike, normalization={"kind": "root_mean_square", "floor": 0.01}).gain]
    assert values == pytest.approx([0.9 / 0.91] * 8, abs=2e-3)
    assert credit(alike, normalization={"kind": "raw", "floor": 0.01}).gain[0][0] == pytest.approx(
        0.901 / 0.011, abs=1e-9
    )
    # equal gains keep their worth, and one gain alone is a pool: 0.5 / (0.5 + 0.5)
    assert credit([item(0.5, outcome=0.0)], normalization={"kind": "root_mean_square", "floor": 0.5}).gain == [
        [0.5, 0.0]
    ]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40), st.sampled_from([1e-6, 1e-2, 1.0]))
def test_no_gain_over_the_root_mean_square_exceeds_the_root_of_the_pool(values: list[float], floor: float) -> None:
    found = over_root_mean_square(values, floor)
    assert max(map(abs, found)) <= math.sqrt(len(values)) * (1 + 1e-12)
    assert all(z * value >= 0 for z, value in zip(found, values, strict=True))


def test_a_pool_of_noise_earns_next_to_nothing() -> None:
    """Gains of +-1e-6 are rounding. Over their std they would be +-0.5; the default floor of 1e-4 leaves +-0.0099."""
    items = [item(1e-6, outcome=0.0), item(-1e-6, outcome=0.0)]
    found = assign_credit(items, "qq", reward_of({"gain": "prob_diff"}), seed=0, step=0)
    assert [row[0] for row in found.gain] == pytest.approx([1e-6 / 1.01e-4, -1e-6 / 1.01e-4])
    assert found.below_floor == 1.0


def test_the_share_of_groups_below_the_floor() -> None:
    # a: std 0.05 below 0.1, root mean square 0.9014 above; b: std 0.5; c has no gain and does not count
    rows, groups = [[0.95], [0.85], [0.5], [-0.5], []], list("aabbc")
    assert share_below(rows, groups, 0.1, about_zero=False) == 0.5
    assert share_below(rows, groups, 0.1, about_zero=True) == 0.0
    assert share_below([[], []], "ab", 0.1, about_zero=False) == 0.0


def test_the_default_charges_the_malformed_turn_alone() -> None:
    """AUDIT A1: seven wrong answers and a malformed one. In the outcomes' pool a penalty of -1 pays every wrong answer
    (0 + 1/8) / sqrt(7)/8 = 0.378; on the turn it pays nobody, and charges the malformed turn 1."""
    items = [item(0.0, outcome=0.0) for _ in range(7)] + [item(0.0, outcome=0.0, answered=False)]
    found = assign_credit(items, "q" * 8, reward_of({"reward": "outcome_only"}), seed=0, step=0)
    assert found.turns == [[0.0, 0.0]] * 7 + [[0.0, -1.0]]
    paper = assign_credit(
        items, "q" * 8, reward_of({"reward": "outcome_only", "penalty_on": "trajectory"}), seed=0, step=0
    )
    assert paper.turns[0][0] == pytest.approx(0.377964, abs=1e-5) and paper.turns[7][0] == pytest.approx(
        -2.645751, abs=1e-4
    )


def test_none_takes_gains_as_they_are() -> None:
    found = credit(PAIR, normalization="none", gain_weight=0.5)
    assert found.turns[0] == pytest.approx([1.1, 1.0, 1.0]) and found.turns[1] == pytest.approx([-0.8, -1.0])


def test_turn_group_compares_turns_of_one_index() -> None:
    # turn 1: 1, 2, 3 -> -1.224745, 0, 1.224745; turn 2: 5 alone (below 2) -> its place among 1, 2, 3, 5:
    # mean 2.75, std sqrt((1.75^2 + 0.75^2 + 0.25^2 + 2.25^2) / 4) = 1.479020 -> 1.521278
    gains = [[1.0], [2.0], [3.0, 5.0]]
    found, share = normalise_gains(gains, "qqq", standardiser(scale="std", eps=EXACT), "turn_group", floor=EXACT)
    assert [row[0] for row in found] == pytest.approx([-Z, 0.0, Z]) and found[2][1] == pytest.approx(1.521278, abs=1e-6)
    assert share == 0.25


def test_a_leave_one_out_baseline_and_no_std_are_rloo() -> None:
    # 1 - mean(0, 4) = -1; 0 - 2.5 = -2.5; 4 - 0.5 = 3.5
    items = [item(outcome=value) for value in (1.0, 0.0, 4.0)]
    found = credit(items, reward="outcome_only", baseline="leave_one_out", scale="none")
    assert [row[0] for row in found.turns] == pytest.approx([-1.0, -2.5, 3.5])


def test_a_batch_mean_sees_all_questions() -> None:
    # 1, 1 | 0, 0 have no spread in their groups; in the batch they are +1 and -1
    items = [item(outcome=value) for value in (1.0, 1.0, 0.0, 0.0)]
    assert [row[0] for row in credit(items, "aabb", reward="outcome_only").turns] == [0.0] * 4
    found = credit(items, "aabb", reward="outcome_only", baseline="batch_mean")
    assert [row[0] for row in found.turns] == pytest.approx([1.0, 1.0, -1.0, -1.0])


def test_accumulation_by_hand() -> None:
    # gains 1, 2, 4; sums from each turn on with gamma 0.5: 1 + 1 + 1 = 3, 2 + 2 = 4, 4
    assert accumulate([1.0, 2.0, 4.0], 0.5, "sum") == [3.0, 4.0, 4.0]
    assert accumulate([1.0, 2.0, 4.0], 0.5, "root") == pytest.approx([3 / 3**0.5, 4 / 2**0.5, 4.0])
    # the next two, weighted 1 and 0.5: (1 + 1) / 1.5, (2 + 2) / 1.5, 4
    assert accumulate([1.0, 2.0, 4.0], 0.5, "window", 2) == pytest.approx([4 / 3, 8 / 3, 4.0])
    found = credit(PAIR, accumulation="root", outcome_credit="broadcast")
    assert found.turns[0] == pytest.approx([1 - Z / 2**0.5, 1 - Z, 1.0])


def test_the_weight_comes_after_normalising_and_moves_linearly() -> None:
    halved = credit(PAIR, gain_weight=0.5)
    assert halved.turns[0] == pytest.approx([1 - Z / 2, 1 - Z / 2, 1.0])
    schedule = {"gain_weight": {"start": 0.1, "end": 0.3, "steps": 200}}
    assert [credit(PAIR, step=step, **schedule).gain_factor for step in (0, 100, 200, 900)] == pytest.approx(
        [0.1, 0.2, 0.3, 0.3]
    )


def test_match_outcome_by_hand() -> None:
    # mean |z^O| 1, mean |z^IG| (1 + 3) / 2 = 2 -> 0.5; nothing solved: 0.3 / 2; tiny gains: 10 at most
    scale = MatchOutcome()
    assert matched_scale([[1.0], [-3.0]], [1.0, -1.0], scale) == pytest.approx(0.5)
    assert matched_scale([[1.0], [-3.0]], [0.0, 0.0], scale) == pytest.approx(0.15)
    assert matched_scale([[1e-6], [1e-6]], [1.0, -1.0], scale) == 10.0
    assert matched_scale([[], []], [1.0, -1.0], scale) == 1.0
    # nothing solved: 0.8 / 2; tiny gains: 4 at most
    other = MatchOutcome(least_outcome=0.8, most=4.0)
    assert matched_scale([[1.0], [-3.0]], [0.0, 0.0], other) == pytest.approx(0.4)
    assert matched_scale([[1e-6], [1e-6]], [1.0, -1.0], other) == 4.0


def test_parameters_of_a_method_are_its_variants() -> None:
    """Left out they are the paper's, and the name alone is enough."""
    for short, long in (
        ({"credit": "query"}, {"credit": {"kind": "query", "observations": 3}}),
        ({"gain_scale": "match_outcome"}, {"gain_scale": {"kind": "match_outcome", "least_outcome": 0.3, "most": 10}}),
    ):
        assert reward_of(short) == reward_of(long) != reward_of({})
    with pytest.raises(ValueError, match="observations"):
        reward_of({"credit": {"kind": "turn", "observations": 3}})
    with pytest.raises(ValueError, match="most"):
        reward_of({"gain_scale": {"kind": "none", "most": 3}})


def test_a_scale_of_the_arms_own_reaches_the_gains() -> None:
    # outcomes 1, -1: mean |z^O| 1. Gains 0.2, 0.0 | 0.4: z 0, -Z | Z, mean 2 Z / 3
    factor = credit(PAIR, gain_scale="match_outcome").gain_factor
    assert factor == pytest.approx(3 / (2 * Z))
    assert credit(PAIR, gain_scale={"kind": "match_outcome", "most": 0.5}).gain_factor == 0.5


def test_gates_by_hand() -> None:
    # outcomes 1, 0: std 0.5, sigmoid(-0.5 / 0.5) = 1 / (1 + e); equal outcomes: 0.5
    assert outcome_gates([1.0, 0.0, 0.3, 0.3], list("aabb"), 0.5) == pytest.approx([1 / (1 + math.e)] * 2 + [0.5] * 2)
    # gains 0.2, 0.0 | 0.4 -> z 0, -1.22 | 1.22: 0.0 was no loss, so its negative z is dropped
    assert credit(PAIR, gate="sign").turns == [pytest.approx([1.0, 1.0, 1.0]), pytest.approx([Z - 1, -1.0])]


def test_the_penalty_on_the_trajectory_apart_or_on_the_turn() -> None:
    items = [item(outcome=1.0), item(outcome=0.0), item(0.5, outcome=0.0, answered=False)]
    first = {"reward": "outcome_only", "format_penalty": -2.0}
    # 1, 0, -2: mean -1/3, std sqrt((16/9 + 1/9 + 25/9) / 3) = 1.247219
    paper = credit(items, penalty_on="trajectory", **first)
    assert [row[-1] for row in paper.turns] == pytest.approx([1.069045, 0.267261, -1.336306], abs=1e-6)
    apart = credit(items, penalty_on="apart", **first)
    assert [row[-1] for row in apart.turns] == pytest.approx([1.0, -1.0, -2.0]) and apart.turns[2][0] == -2.0
    # 1, 0, 0: mean 1/3, std 0.471405 -> 1.414214, -0.707107, -0.707107; the last turn alone is charged 2 more
    turn = credit(items, penalty_on="turn", **first)
    assert [row[-1] for row in turn.turns] == pytest.approx([2**0.5, -(0.5**0.5), -(0.5**0.5) - 2.0])
    assert turn.turns[2][0] == pytest.approx(-(0.5**0.5))


def test_belief_return_pays_the_total_to_every_turn() -> None:
    # totals 0.2 | 0.4 -> -1 | 1 beside outcomes 1 | -1: nothing is left, in any turn
    found = credit(PAIR, credit="trajectory")
    assert found.turns == [pytest.approx([0.0] * 3, abs=1e-9), pytest.approx([0.0] * 2, abs=1e-9)]
    assert found.gain == [pytest.approx([-1.0] * 3), pytest.approx([1.0] * 2)]


def test_query_credit_stays_beside_the_outcome() -> None:
    found = credit(PAIR, credit="query", gain_weight=0.3)
    assert found.turns == [pytest.approx([1.0] * 3), pytest.approx([-1.0] * 2)]
    assert found.queries == [pytest.approx([0.0, -0.3 * Z], abs=1e-9), pytest.approx([0.3 * Z])]


def test_gigpo_compares_turns_that_had_seen_the_same() -> None:
    """Both start at state {}: returns 0.5^2 * 1 and 0.5 * 0 -> z 1, -1. {a} is shared by turn 2 of both: 0.5 and 0 -> 1, -1.
    {a, b} is nobody else's: 0."""
    items = [
        item(0.0, 0.0, outcome=1.0, states=("", "a", "ab")),
        item(0.0, outcome=0.0, states=("", "a")),
    ]
    found = credit(items, reward="gigpo", gamma=0.5, gain_weight=0.5)
    assert found.turns == [pytest.approx([1.5, 1.5, 1.0]), pytest.approx([-1.5, -1.5])]


def test_gigpo_pays_an_unanswered_trajectory_less_than_a_wrong_one() -> None:
    """One shared state, gamma 1: outcomes 1, 0 and the penalty -1 -> z 1.2247, 0, -1.2247 in both parts."""
    items = [
        item(outcome=1.0, states=("",)),
        item(outcome=0.0, states=("",)),
        item(outcome=0.0, answered=False, states=("",)),
    ]
    found = credit(items, reward="gigpo", format_penalty=-1.0, penalty_on="trajectory")
    assert [row[0] for row in found.turns] == pytest.approx([2 * 1.5**0.5, 0.0, -2 * 1.5**0.5])


def test_gains_shuffled_within_a_trajectory_keep_its_total() -> None:
    """Sums stay, so the first turn of each trajectory keeps its whole return; inner turns do not."""
    items = [item(*(float(i + t) for t in range(4)), outcome=0.0) for i in range(6)]
    plain = credit(items, normalization="none", gain="prob_diff")
    mixed = credit(items, normalization="none", gain="prob_diff", shuffle="trajectory")
    assert [row[0] for row in mixed.turns] == pytest.approx([row[0] for row in plain.turns])
    assert mixed.turns != plain.turns
    across = credit(items, normalization="none", gain="prob_diff", shuffle="group")
    assert [row[0] for row in across.turns] != pytest.approx([row[0] for row in plain.turns])


def test_shuffled_gains_are_the_same_gains() -> None:
    gains = [[float(i), float(i) + 0.5] for i in range(8)]
    groups = ["a"] * 4 + ["b"] * 4
    found = shuffled(gains, groups, seed=1, step=3)
    assert found == shuffled(gains, groups, seed=1, step=3) != shuffled(gains, groups, seed=1, step=4)
    for rows in (slice(0, 4), slice(4, 8)):
        before, after = (sorted(itertools.chain(*part[rows])) for part in (gains, found))
        assert before == after
    assert found != gains and [len(row) for row in found] == [2] * 8


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        ({"reward": "outcome_only", "gain": "prob_diff"}, "reward=outcome_only ignores gain"),
        ({"reward": "outcome_only", "gain_weight": 0.5}, "ignores gain_weight"),
        ({"reward": "gigpo", "scorer": "frozen"}, "reward=gigpo ignores scorer"),
        ({"gain": "first_exposure", "aliases": "max"}, "gain=first_exposure ignores aliases"),
        ({"credit": "trajectory", "gamma": 0.9}, "credit=trajectory ignores gamma"),
        ({"normalization": "raw", "gate": "sign"}, "changes no sign, ignores gate"),
        ({"turn_group_size": 5}, "another place now: write normalization: {kind: turn_group, smallest"),
        ({"gain_weight_steps": 10}, "another place now: write gain_weight: {start"),
        ({"gain_weight": {"start": 0.3, "end": 0.3, "steps": 9}}, "give the weight as one number"),
        ({"scorer_steps": 3}, "another place now: write scorer: {kind: lagged"),
        ({"scorer": {"kind": "lagged", "steps": 1}}, "greater than or equal to 2"),
        ({"penalty_on": "apart", "format_penalty": 0.0}, "format_penalty=0 ignores penalty_on"),
        ({"normalization": {"kind": "joint", "floor": 0.01}}, "Extra inputs"),
        ({"normalization": {"kind": "none", "floor": 0.01}}, "Extra inputs"),
        (
            {"scale": "none", "normalization": {"kind": "separate", "floor": 0.01}},
            "divided by the floor, ignores normalization",
        ),
        ({"reward": "outcome_only", "normalization": "joint"}, "reward=outcome_only ignores normalization"),
        ({"contrast": 4}, "another place now: write gain: {kind"),
        ({"gain": {"kind": "watermark", "contrast": 4}}, "Extra inputs"),
        ({"credit": "query", "gain": {"kind": "prob_diff", "contrast": 4}}, "without a contrast"),
        ({"normalization": "root_mean_square", "gate": "sign"}, "changes no sign, ignores gate"),
        ({"reward": "gain_only", "normalization": "raw", "scale": "none"}, "ignores scale"),
        ({"scale": "none", "eps": 1e-3}, "scale=none ignores eps"),
        ({"gate": {"kind": "sign", "temperature": 0.1}}, "Extra inputs"),
        (
            {"accumulation": {"kind": "window", "gains": 1}, "outcome_credit": "broadcast", "gamma": 0.5},
            "a window of one gain ignores gamma",
        ),
        ({"credit": "trajectory", "shuffle": "group"}, "credit=trajectory ignores shuffle"),
        ({"reward": "gain_only", "penalty_on": "apart"}, "reward=gain_only"),
        ({"accumulation": "root"}, "set outcome_credit=broadcast"),
        ({"credit": "query", "gain": "watermark"}, "use gain=log_prob_diff or prob_diff"),
        ({"credit": "query", "normalization": "joint"}, "has no such pool"),
        ({"normalization": "joint", "penalty_on": "apart"}, "one pool for all"),
        ({"normalization": "median"}, "'separate', 'joint', 'raw', 'root_mean_square', 'turn_group', 'none'"),
    ],
)
def test_inert_and_impossible_choices_are_refused(choices: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        reward_of(choices)


def test_a_gate_of_any_temperature_is_finite() -> None:
    assert outcome_gates([0.0, 1.0], "aa", 1e-6) == [0.0, 0.0]
    # std 0.5 over temperature 0.5: 1 / (1 + e)
    assert outcome_gates([0.0, 1.0], "aa", 0.5) == pytest.approx([1 / (1 + math.e)] * 2)


@pytest.mark.parametrize("name, value", [("ratio", "turn"), ("clip_low", 0.1), ("clip_high", 0.28), ("dual_clip", 3.0)])
def test_clipping_with_one_update_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=rf"updates_per_step=1 ignores {name}: the ratio is 1"):
        ExperimentConfig.model_validate({"optimizer": {name: value}})
    ExperimentConfig.model_validate({"optimizer": {name: value, "updates_per_step": 2}})


@pytest.mark.parametrize("bound", [-3.0, 0.0, 1.0])
def test_a_dual_clip_is_more_than_one(bound: float) -> None:
    """A smaller one would take the gradient from tokens whose ratio is 1."""
    with pytest.raises(ValidationError, match=r"optimizer\.dual_clip\s.*greater than 1"):
        ExperimentConfig.model_validate({"optimizer": {"dual_clip": bound, "updates_per_step": 2}})
    ExperimentConfig.model_validate({"optimizer": {"dual_clip": 1.001, "updates_per_step": 2}})


def test_gains_that_do_not_fit_the_turns_raise() -> None:
    with pytest.raises(ValueError, match="3 turns but 1 gains"):
        credit([TurnRewards(3, (0.1,), 1.0, True)])
    with pytest.raises(ValueError, match="reward 0 of trajectory 0 is nan"):
        credit([item(math.nan, outcome=1.0)])
