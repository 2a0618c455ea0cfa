"""Metrics of two or three trajectories, worked out by hand."""

from typing import Any

import pytest

from igpo_core.config import reward_of
from igpo_core.credit import assign_credit
from igpo_core.environments.qa import CorpusEnvironment
from igpo_core.environments.searching import search_for
from igpo_core.evaluation import _slices, of_each_source
from igpo_core.metrics import rollout_metrics
from igpo_core.rewards.scoring import Scored
from igpo_core.trajectory import Final, Malformed, Question, RolloutStatus, Trajectory, Turn


def trajectory(
    group: str, queries: list[str], status: RolloutStatus, labels: list[str | None], **fields: Any
) -> Trajectory:
    """A prompt of two tokens, three sampled ones a turn, two of an observation; log-probabilities -1 throughout."""
    turns, start = [], 2
    for query, label in zip(queries, labels, strict=True):
        turns.append(Turn(start, start + 3, start + 5, search_for(query), (-1.0,) * 3, label))
        start += 5
    last = Final("x") if status is RolloutStatus.ANSWERED else Malformed("cut")
    turns.append(Turn(start, start + 3, start + 3, last, (-1.0,) * 3))
    question = Question("q", "s", "train", "who ?", ("x",), hops=2, facts={}, **fields)
    seen = tuple("1. A: b" for _ in queries)
    return Trajectory(question, group, tuple(range(start + 3)), 2, tuple(turns), status, seen)


def scored(item: Trajectory, gains: tuple[float, ...], outcome: float) -> Scored:
    f1 = max(outcome, 0.0)
    return Scored(item, {"f1": f1, "em": f1}, f1, outcome, None, gains)


def batch() -> list[Scored]:
    """Group a: solved in three turns with gains .5 and 1, a wrong one in two with gain .25 ("gain up, answer wrong").
    Group b: both malformed at once, without a gain."""
    return [
        scored(trajectory("a", ["u", "v"], RolloutStatus.ANSWERED, ["hop_1", "hop_2"]), (0.5, 1.0), 1.0),
        scored(trajectory("a", ["u"], RolloutStatus.ANSWERED, ["miss"]), (0.25,), 0.0),
        scored(trajectory("b", [], RolloutStatus.MALFORMED, []), (), -1.0),
        scored(trajectory("b", [], RolloutStatus.MALFORMED, []), (), -1.0),
    ]


def test_a_step_by_hand() -> None:
    items = batch()
    groups = [item.trajectory.group for item in items]
    config = reward_of({"gain": "prob_diff", "penalty_on": "trajectory"})
    credit = assign_credit([item.turn_rewards() for item in items], groups, config, seed=0, step=0)
    found = rollout_metrics(items, credit, groups)
    assert found["advantage/dead_groups"] == found["advantage/dead_groups_outcome"] == 0.5
    assert found["advantage/dead_groups_gain"] == 0.5
    assert found["train/format_rate"] == 0.5 and found["train/status_malformed"] == 0.5
    assert (found["train/turns_solved"], found["train/turns_unsolved"]) == (3.0, pytest.approx(4 / 3))
    assert (found["train/tokens_solved"], found["train/tokens_unsolved"]) == (15.0, pytest.approx((10 + 5 + 5) / 3))
    assert (found["reward/gain_turn_1"], found["reward/gain_turn_2"]) == (0.375, 1.0)
    assert tuple(found[f"reward/gain_at_{label}"] for label in ("hop_1", "hop_2", "miss")) == (0.5, 1.0, 0.25)
    assert found["reward/gain_up_answer_wrong"] == 0.5 and found["reward/gain_down_answer_right"] == 0.0
    assert found["train/entropy"] == 1.0
    # advantages of the third turns: the one of the solved trajectory alone
    assert found["advantage/std_turn_3"] == 0.0 and found["advantage/std_turn_1"] > 0
    assert "advantage/std_turn_4" not in found


@pytest.mark.parametrize(
    ("observations", "recall"),
    [
        (("1. Bean: a film\n2. Louis: a king",), 1.0),
        (("1. Mr. Bean: a film\n2. St. Louis: a city",), 0.0),  # titles that end in the wanted ones
        (("1. Film: see 2. Bean: a film",), 0.0),  # in the text
        (("1. Louis: x", "1. Bean: y"), 1.0),
    ],
)
def test_evidence_is_a_passage_with_that_title(observations: tuple[str, ...], recall: float) -> None:
    item = trajectory("a", ["u"] * len(observations), RolloutStatus.ANSWERED, [None] * len(observations))
    question = Question("q", "s", "train", "who ?", ("x",), supporting_titles=("Bean", "Louis"))
    seen = Trajectory(question, "a", item.token_ids, 2, item.turns, RolloutStatus.ANSWERED, observations)
    environment = object.__new__(CorpusEnvironment)  # evidence is a function of the episode alone
    assert environment.metrics(seen.episode) == {"evidence_recall": recall}


def test_slices_of_a_source_with_one_length_are_not_doubled() -> None:
    """lookup has two hops throughout; musique has two and three."""
    items = [scored(trajectory("a", ["u"], RolloutStatus.ANSWERED, ["hop_1"]), (0.5,), 1.0) for _ in range(4)]
    questions = [
        Question(str(i), source, "dev", "who ?", ("x",), hops=hops)
        for i, (source, hops) in enumerate([("lookup", 2), ("lookup", 2), ("musique", 2), ("musique", 3)])
    ]
    names = [name for name, _ in _slices(questions, items)]
    assert names == ["all", "lookup", "musique", "musique/hops_2", "musique/hops_3"]


@pytest.mark.parametrize(
    ("sources", "limit", "chosen"),
    [
        ("aaabbc", 4, [0, 1, 3, 5]),  # one of each, then the next of the first
        ("aaabbc", 3, [0, 3, 5]),
        ("aaabbc", 2, [0, 3]),
        ("aaabbc", 5, [0, 1, 3, 4, 5]),
        ("aaabbc", 9, [0, 1, 2, 3, 4, 5]),
        ("aaabbc", None, [0, 1, 2, 3, 4, 5]),
        ("aaaa", 2, [0, 1]),  # of one source its first
        ("abaab", 3, [0, 1, 2]),
    ],
)
def test_questions_are_taken_of_each_source_alike(sources: str, limit: int | None, chosen: list[int]) -> None:
    table = [Question(f"q{place}", source, "dev", "?", ("a",)) for place, source in enumerate(sources)]
    assert [question.id for question in of_each_source(table, limit)] == [f"q{place}" for place in chosen]
