"""World `calculator`: its arithmetic against Python's own, its tasks, its rubric by hand."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_core.config import CalculatorDemonstrations, CalculatorWorld, ExperimentConfig
from igpo_core.environments.base import Demonstration
from igpo_core.environments.calculator import (
    LARGEST,
    SIGNS,
    CalculatorEnvironment,
    CalculatorError,
    Number,
    draw_chain,
    evaluate,
    to_number,
)
from igpo_core.errors import ConfigError
from igpo_core.policies import word_tokenizer
from igpo_core.protocol import WordProtocol
from igpo_core.trajectory import Episode, Final, Observation, Question, ToolCall
from igpo_core.warmstart import render

SMALL = CalculatorWorld(train=40, dev=10, test=10)
QUESTION = Question(
    "q", "calculator", "train", "question : start with 17 , plus 25 , times 2 ; what is it ?", ("84",),
    hops=2, facts={"17 + 25": "42", "42 * 2": "84"},
)  # fmt: skip


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> CalculatorEnvironment:
    folder: Path = tmp_path_factory.mktemp("calculator")
    SMALL.generate().to_parquet(folder / "questions.parquet")
    return SMALL.open(folder, 5)


def calculate(*expressions: str) -> list[str]:
    """What the tool answers to one call after another."""
    tool = CalculatorEnvironment(SMALL, [], 5)
    episode = Episode(QUESTION)
    for expression in expressions:
        call = ToolCall("calculate", {"expression": expression})
        seen = tool.call(episode, call)
        episode = Episode(QUESTION, (*episode.calls, call), (*episode.observations, seen))
    return [observation.text for observation in episode.observations]


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("17 + 25", "42 ."), ("7 / 2", "3.5 ."), ("7 // 2", "3 ."), ("-7 % 3", "2 ."), ("( 1 + 2 ) * -3", "-9 ."),
        ("12 | 3", "15 ."), ("12 & 10", "8 ."), ("12 ^ 10", "6 ."), ("0.5 * 4", "2.0 ."), (" 5 ", "5 ."),
        ("1 / 0", "error : division by zero ."), ("1 // 0", "error : division by zero ."), ("1.5 | 2", "error : no expression ."),
        ("2 ** 3", "error : no expression ."), ("x", "error : unknown name ."), ("True", "error : no expression ."),
        ("1 ; 2", "error : no expression ."), ("1\n2", "error : no expression ."), ("x = y = 1", "error : no expression ."),
        ("f ( 1 )", "error : no expression ."), ("( 1 ) . real", "error : no expression ."), ("[ 1 ]", "error : no expression ."),
        ("1e5", "error : no expression ."), ("0x10", "error : no expression ."), ("1_000", "error : no expression ."),
        ("'a' * 9", "error : no expression ."), ("١ + ١", "error : no expression ."), ("", "error : no expression ."),
        ("9" * 201, "error : no expression ."), ("(" * 150, "error : no expression ."), ("9" * 19, "error : too large ."),
        ("999999999 * 999999999 * 999999999", "error : too large ."), ("-" * 150 + "1", "1 ."),
    ],
)  # fmt: skip
def test_an_expression_by_hand(expression: str, shown: str) -> None:
    assert calculate(expression) == [shown]


def test_names_hold_the_values_of_earlier_calls() -> None:
    """The state of an episode follows from its calls: 7, then 7 * 2, an error that changes nothing, 14 + 7."""
    assert calculate("x = 3 + 4", "_ * 2", "x / 0", "_ + x") == ["7 .", "14 .", "error : division by zero .", "21 ."]


NUMBERS = st.integers(0, 99).map(str)
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "%", "|", "&", "^"]), inner).map(
        lambda parts: f"( {' '.join(parts)} )"
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_arithmetic_is_pythons(expression: str) -> None:
    try:
        expected: Any = eval(expression)
    except ZeroDivisionError:
        expected = None
    try:
        found: Any = evaluate(expression, {})
    except CalculatorError as error:
        found = None
        if str(error) != "division by zero":
            assert len(expression) > 200 or abs(expected or LARGEST) >= LARGEST or "large" in str(error)
            return
    assert found == expected


@given(st.text(max_size=60))
def test_any_text_has_a_value_or_a_reason(text: str) -> None:
    names: dict[str, Number] = {}
    try:
        assert abs(evaluate(text, names)) < LARGEST
    except CalculatorError as error:
        assert str(error) and names == {}


def test_following_the_question_word_by_word_reaches_the_answer(environment: CalculatorEnvironment) -> None:
    for question in environment.tasks("train"):
        words = question.text.replace(",", "").split()
        value, steps = words[4], words[5:-5]
        assert len(steps) == 2 * SMALL.operations and value not in question.answers
        episode = Episode(question)
        for number, (word, operand) in enumerate(zip(steps[::2], steps[1::2], strict=True), start=1):
            call = ToolCall("calculate", {"expression": f"{value} {SIGNS[word]} {operand}"})
            seen = environment.call(episode, call)
            assert seen.label == f"step_{number}"
            value = seen.text.split()[0]
            episode = Episode(question, (*episode.calls, call), (*episode.observations, seen))
        assert question.answers == (value,) and value not in question.text.split()
        assert environment.evidence(episode) == [0.5, 1.0]
        assert environment.metrics(episode) == {"reached_step_1": 1.0, "reached_step_2": 1.0}
        assert environment.exposes(question, episode.observations[-1].text)
        assert not environment.exposes(question, episode.observations[0].text)


def test_a_value_counts_once_and_a_wrong_one_not_at_all(environment: CalculatorEnvironment) -> None:
    first = Observation("42 .", "step_1")
    again = environment.call(
        Episode(QUESTION, (ToolCall("calculate", {"expression": "17 + 25"}),), (first,)),
        ToolCall("calculate", {"expression": "25 + 17"}),
    )
    assert (again.text, again.label) == ("42 .", "miss")
    assert environment.call(Episode(QUESTION), ToolCall("calculate", {"expression": "17 - 25"})).label == "miss"


@pytest.mark.parametrize(
    ("answer", "accuracy", "closeness"),
    [
        ("84", 1.0, 1.0), (" 84.0 ", 1.0, 1.0), ("84.", 1.0, 1.0), ("+84", 1.0, 1.0), ("63", 0.0, 0.75), ("0", 0.0, 0.0),
        ("200", 0.0, 0.0), ("-84", 0.0, 0.0), ("eighty four", 0.0, 0.0), ("84 or 85", 0.0, 0.0), ("8 4", 0.0, 0.0),
        ("NaN", 0.0, 0.0), ("1e2", 0.0, 0.0), ("9" * 41, 0.0, 0.0),
    ],
)  # fmt: skip
def test_the_rubric_by_hand(environment: CalculatorEnvironment, answer: str, accuracy: float, closeness: float) -> None:
    """63 is a quarter of 84 away from it."""
    assert environment.rubric(Episode(QUESTION, answer=answer)) == {"accuracy": accuracy, "closeness": closeness}


def test_numbers_are_exact() -> None:
    third = to_number("0.1")
    assert third is not None and third * 3 == to_number("0.3")  # not so in floating point
    assert to_number("1,234") == 1234 and to_number("½") is None


def test_a_demonstration_teaches_all_but_the_sign(environment: CalculatorEnvironment) -> None:
    protocol = WordProtocol(word_tokenizer(environment.vocabulary()), SMALL.interface)
    shown = environment.demonstrations(random.Random(1), 200, CalculatorDemonstrations(right_sign=0.3))
    spread = set()
    for item in shown:
        assert isinstance(item, Demonstration)
        example = render(protocol, item)
        assert "<unk>" not in protocol.decode(example.ids).replace("<unk> .", "")  # of a result alone
        called = [turn for turn in item.turns if isinstance(turn.action, ToolCall)]
        assert len(example.soft) == len(called)
        for place, target in example.soft.items():
            assert protocol.words[example.ids[place]] in SIGNS.values()
            assert sum(share for _, share in target) == pytest.approx(1.0)
            assert sorted({round(share, 6) for _, share in target}) == [0.1, 0.3]  # seven wrong signs share .7
        assert isinstance(item.turns[-1].action, Final)
        spread.add(len(called))
    assert spread >= {1, 2}


def test_a_chat_policy_is_refused_for_want_of_texts() -> None:
    with pytest.raises(ValueError, match=r"tokenizer=chat is trained on texts, which data\.kind=calculator lacks"):
        ExperimentConfig.model_validate(
            {"data": {"kind": "calculator"}, "policy": {"kind": "new", "tokenizer": "chat"}}
        )


@pytest.mark.parametrize(("operations", "numbers"), [(6, 16), (5, 16), (6, 24)])
def test_a_chain_that_cannot_go_on_is_begun_anew(operations: int, numbers: int) -> None:
    """With few numbers some chains have no next operation (399 of 2,000 with six operations below 16)."""
    world = CalculatorWorld(operations=operations, numbers=numbers, train=300, dev=10, test=10)
    for n in range(300):
        chain = draw_chain(world, "train", random.Random(n))
        assert len(chain.words) == operations and len({*chain.values}) == operations + 1


def test_a_float_that_is_the_value_is_found() -> None:
    question = Question("q", "calculator", "train", "?", ("42",), hops=1, facts={"84 // 2": "42"})
    environment = CalculatorEnvironment(CalculatorWorld(), [question], 3)
    seen = environment.call(Episode(question), ToolCall("calculate", {"expression": "84 / 2"}))
    assert (seen.text, seen.label) == ("42.0 .", "step_1") and environment.exposes(question, seen.text)


@pytest.mark.parametrize(
    ("text", "form"), [("84-42", "84 42"), ("84 - 42", "84 42"), ("-42 .", "-42"), ("x-1.5", "x 1.5")]
)
def test_a_sign_stands_before_a_number_alone(text: str, form: str) -> None:
    environment = CalculatorEnvironment(CalculatorWorld(), [], 3)
    assert environment.comparable(text) == form == environment.comparable(form)


def test_a_soft_target_needs_one_token_a_word(chat_policy: Any) -> None:
    """In a chat turn the place of a word among the tokens is another one: the target would teach whatever stands there."""
    world = CalculatorEnvironment(CalculatorWorld(), [], 4)
    (shown,) = world.demonstrations(random.Random(0), 1, CalculatorDemonstrations(stop_early=0.0))
    with pytest.raises(ConfigError, match="one token a word"):
        render(chat_policy.protocol, shown)
