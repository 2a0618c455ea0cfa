"""Rules of sources on top of SQuAD's F1, by hand; the golden cases of the plain metrics are in test_golden.py."""

from dataclasses import replace
from typing import Any

import pytest

from igpo_core.config import LookupWorld, reward_of
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.rewards.outcome import exact_match, f1_score
from igpo_core.rewards.scoring import reward_trajectories
from igpo_core.trajectory import Final, Question, RolloutStatus, Trajectory, Turn

ENVIRONMENT = LookupEnvironment(LookupWorld(), [], 4)  # one that scores by the rule of the question's source


def answered(source: str, text: str, answers: tuple[str, ...]) -> Trajectory:
    """A trajectory of one turn that answers at once."""
    question = Question("q", source, "test", "Is it?", answers)
    turn = Turn(1, 2, 2, Final(text), (-1.0,))
    return Trajectory(question, "g", (0, 1), 1, (turn,), RolloutStatus.ANSWERED)


def scored(item: Trajectory) -> Any:
    (found,) = reward_trajectories(None, ENVIRONMENT, [item], reward_of({"reward": "outcome_only"}))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("text", "answers", "plain", "closed"),
    [
        # two words, one of them right: precision 1/2, recall 1, F1 2/3
        ("yes no", ("yes",), 2 / 3, 0.0),
        ("Yes, indeed", ("yes",), 2 / 3, 0.0),
        ("Yes.", ("yes",), 1.0, 1.0),
        ("no", ("yes",), 0.0, 0.0),
        # the prediction is a closed answer and the gold one is not: 1 of 3 words, F1 1/2
        ("No", ("Dr. No film",), 0.5, 0.0),
        ("No", ("Dr. No film", "no"), 1.0, 1.0),  # the maximum over answers
        ("Marie Curie", ("Curie",), 2 / 3, 2 / 3),  # neither is closed
    ],
)
def test_yes_and_no_earn_nothing_in_part_where_the_source_says_so(
    text: str, answers: tuple[str, ...], plain: float, closed: float
) -> None:
    for source, expected in (("hotpotqa", closed), ("2wikimultihopqa", closed), ("nq", plain), ("custom", plain)):
        found = scored(answered(source, text, answers))
        assert found.score == found.outcome == found.reward == pytest.approx(expected)
    assert f1_score(text, answers) == pytest.approx(plain)  # the public door is SQuAD's


def test_the_rule_is_the_sources_and_not_the_authors() -> None:
    """paper_f1 compares with the authors' numbers, which are without it: sets {yes, no} and {yes}."""
    item = answered("hotpotqa", "yes no", ("yes",))
    (found,) = reward_trajectories(
        None, ENVIRONMENT, [item], reward_of({"reward": "outcome_only", "outcome": "paper_f1"})
    )  # type: ignore[arg-type]
    assert (found.outcome, found.score) == (pytest.approx(2 / 3), 0.0)
    assert scored(replace(item, status=RolloutStatus.MALFORMED)).score == 0.0


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The The", ("The The",), 1.0),
        (" the  the", ("The The",), 1.0),
        ("a", ("The The",), 0.0),  # all three normalise to nothing
        ("?", ("The The",), 0.0),
        ("", ("The The",), 0.0),
        ("The The", ("A", "The The"), 1.0),
        ("?", ("?",), 1.0),
        ("The The", ("Matt Johnson",), 0.0),
    ],
)
def test_an_answer_of_articles_is_compared_as_it_stands(text: str, answers: tuple[str, ...], expected: float) -> None:
    assert f1_score(text, answers) == exact_match(text, answers) == expected
