"""The contrast gain: names drawn, what is taken off, and at which cut a name is absent."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_core.config import LookupWorld, NewPolicy
from igpo_core.config.reward import OutcomeAndGain
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.errors import DataError
from igpo_core.policies import Policy, chat_tokenizer, protocol_for
from igpo_core.rewards.contrast import Contrast, contrast_gains
from igpo_core.rewards.gains import LogProbDiff, ProbDiff
from igpo_core.rewards.scoring import reward_trajectories
from igpo_core.trajectory import Final, Question, RolloutStatus, Trajectory, Turn

WORLD = LookupEnvironment(LookupWorld(), [], 4)
QUESTION = Question("q1", "s", "train", "Did Ann Lee know Bob ?", ("Cid", "El Cid"))
POOL = ("Ann Lee", "Bob", "cid", "Dora", "Eve", "Ann", "Fay")


def test_names_are_drawn_by_key_and_are_neither_accepted_nor_in_the_question() -> None:
    names = Contrast(WORLD, POOL, 3, seed=0, step=4).names(QUESTION)
    assert sorted(names) == ["Dora", "Eve", "Fay"]  # Ann Lee, Bob and Ann stand in the question, cid is accepted
    assert names == Contrast(WORLD, POOL, 3, seed=0, step=4).names(QUESTION)
    wide = tuple(f"N{i}" for i in range(40))
    draws = {Contrast(WORLD, wide, 3, seed, step).names(QUESTION) for seed in (0, 1) for step in range(5)}
    assert len(draws) == 10
    with pytest.raises(DataError, match=r"q1.*a contrast of 4.*have 3"):
        Contrast(WORLD, POOL, 4, seed=0, step=0).names(QUESTION)


def test_a_name_stands_in_a_text_as_whole_words_alone() -> None:
    contrast = Contrast(WORLD, POOL, 3, seed=0, step=0)
    assert contrast.stands_in("The Bob", "did bob know") and not contrast.stands_in("Bob", "did bobby know")


def test_gains_by_hand() -> None:
    """Beliefs log .1 -> log .4 -> log .8; names x: .2 -> .1 -> .1 and y: .1 -> .3 -> .5, which the second result names.

    prob_diff: turn 1: .3 - ((-.1) + .2) / 2 = .25; turn 2, x alone: .4 - 0 = .4.
    log_prob_diff: turn 1: log 4 - (log .5 + log 3) / 2; turn 2: log 2 - log 1.
    """
    log = math.log
    beliefs = [log(0.1), log(0.4), log(0.8)]
    others = [[log(0.2), log(0.1)], [log(0.1), log(0.3)], [log(0.1), log(0.5)]]
    absent = [[True, True], [True, True], [True, False]]
    assert contrast_gains(beliefs, others, absent, ProbDiff()) == (pytest.approx([0.25, 0.4]), 0)
    expected = [log(4) - (log(0.5) + log(3)) / 2, log(2)]
    assert contrast_gains(beliefs, others, absent, LogProbDiff()) == (pytest.approx(expected), 0)


def test_without_an_absent_name_nothing_is_taken_off_and_it_is_counted() -> None:
    gains, alone = contrast_gains([math.log(0.1), math.log(0.4)], [[-1.0], [-3.0]], [[True], [False]], ProbDiff())
    assert gains == pytest.approx([0.3]) and alone == 1


def test_a_name_is_absent_up_to_the_cut_whatever_comes_later() -> None:
    """Beliefs .1 -> .4 -> .8, and of Dora, whom the second result alone names, .2 -> .1 -> .4.

    Turn 1: .3 - (-.1) = .4, for Dora stands nowhere up to its cut. Turn 2: .4, with nothing to compare with.
    """
    texts = ["Bob knew Cid", "Dora met Ann Lee", "Who knew Bob ?"] * 20
    policy_config = NewPolicy(architecture="qwen2", tokenizer="chat", vocabulary=400, key_value_heads=2)
    protocol = protocol_for(chat_tokenizer(texts, policy_config), SEARCH)
    question = Question("q1", "s", "train", "Who knew Bob ?", ("Ann Lee",))
    ids, turns = protocol.prompt(question.text), []
    for action, seen in ((search_for("Bob"), texts[0]), (search_for("Cid"), texts[1]), (Final("Ann Lee"), None)):
        start = len(ids)
        ids += protocol.turn("look", action)[0]
        end = len(ids)
        ids += [] if seen is None else protocol.observation(seen)
        turns.append(Turn(start, end, len(ids), action, (-1.0,) * (end - start)))
    beliefs = ((0.1, 0.2), (0.4, 0.1), (0.8, 0.4))
    scores = tuple((math.log(own), math.log(dora)) for own, dora in beliefs)
    trajectory = Trajectory(
        question, "q1", tuple(ids), turns[0].start, tuple(turns), RolloutStatus.ANSWERED, (texts[0], texts[1]), scores
    )
    reward = OutcomeAndGain.model_validate({"gain": {"kind": "prob_diff", "contrast": 1}})
    contrast = Contrast(WORLD, ("Dora",), 1, seed=0, step=0)
    policy = Policy(None, protocol, 1024)
    (found,) = reward_trajectories(policy, WORLD, [trajectory], reward, contrast=contrast)
    assert found.gains == (pytest.approx(0.4), pytest.approx(0.4)) and found.without_contrast == 1


@given(st.lists(st.floats(-9, 0), min_size=1, max_size=6), st.integers(1, 4))
def test_what_every_name_gains_alike_is_worth_nothing(beliefs: list[float], names: int) -> None:
    """The gold answer moves as each absent name does: every gain is 0."""
    others = [[value] * names for value in beliefs]
    absent = [[True] * names for _ in beliefs]
    gains, alone = contrast_gains(beliefs, others, absent, LogProbDiff())
    assert gains == pytest.approx([0.0] * (len(beliefs) - 1), abs=1e-12) and alone == 0
