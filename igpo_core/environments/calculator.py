"""World `calculator`: a number that operations change one after another, and a calculator that reads Python's arithmetic.

"question : start with 17 , plus 25 , times 2 ; what is it ?"; the call "17 + 25" returns "42 .", then "42 * 2" returns "84 .".
Which sign an operation's word means is fixed, and no demonstration teaches it to a new policy.
"""

import ast
import operator
import random
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from igpo_core.environments.base import (
    Demonstration,
    DemonstrationTurn,
    Environment,
    Interface,
    Lesson,
    Need,
    Parameter,
    Tool,
)
from igpo_core.environments.synthetic import (
    COMMON_WORDS,
    DONE,
    SyntheticSettings,
    TableOfTasks,
    draw_in_split,
    published,
    question_table,
    rows,
)
from igpo_core.seeds import python_rng
from igpo_core.settings import Settings, Share
from igpo_core.trajectory import Episode, Final, Observation, Question, ToolCall

if TYPE_CHECKING:
    import pandas

Number = int | float

SOURCE = "calculator"
SIGNS: Mapping[str, str] = MappingProxyType(
    {"plus": "+", "minus": "-", "times": "*", "over": "//", "modulo": "%", "or": "|", "and": "&", "xor": "^"}
)
OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = MappingProxyType(
    {
        ast.Add: operator.add,
        ast.Sub: operator.sub,
        ast.Mult: operator.mul,
        ast.Div: operator.truediv,
        ast.FloorDiv: operator.floordiv,
        ast.Mod: operator.mod,
        ast.BitOr: operator.or_,
        ast.BitAnd: operator.and_,
        ast.BitXor: operator.xor,
    }
)
NOT_AN_EXPRESSION, BY_ZERO, TOO_LARGE, UNKNOWN = "no expression", "division by zero", "too large", "unknown name"
LONGEST, LARGEST = 200, 10**18  # characters of an expression, size of a number
INTERFACE = Interface(
    """You solve arithmetic tasks with a calculator. In every turn think first, between <think> and </think>.
Then either call the calculator once, or give the final answer between <answer> and </answer>.
The answer is a number alone.""",
    (
        Tool(
            "calculate",
            "Evaluate a Python expression of numbers, + - * / // % | & ^ and parentheses. A name can be given to a value "
            "(x = 3 + 4) and used later; _ is the last result.",
            (Parameter("expression", "What to evaluate."),),
        ),
    ),
    DONE,
)


class CalculatorWorld(SyntheticSettings):
    """World `calculator`: operations on a number, one tool call each, and an answer that is a number."""

    rubric: ClassVar[Mapping[str, str]] = MappingProxyType({"accuracy": "accuracy", "closeness": "closeness"})
    offers: ClassVar[frozenset[Need]] = SyntheticSettings.offers | {"other_answers", "exposure", "states"}

    kind: Literal["calculator"] = "calculator"
    operations: int = Field(2, ge=1, le=6, description="Operations between the first number and the answer.")
    numbers: int = Field(100, ge=16, le=1000, description="Values of a question are whole and below this.")

    @property
    def interface(self) -> Interface:
        """Return the calculator."""
        return INTERFACE

    def generate(self) -> "pandas.DataFrame":
        """Return the question table; `facts` of a question are its right expressions with their values, in order."""
        questions = []
        for split, index in rows(self):
            chain = draw_chain(self, split, python_rng(self.seed, "calculator/question", split, index))
            questions.append(chain.question(f"{SOURCE}-{split}-{index:05d}", split))
        return question_table(questions)

    def open(self, folder: Path, max_turns: int) -> "CalculatorEnvironment":
        """Return the environment over the published question table."""
        return CalculatorEnvironment(self, published(folder), max_turns)


class CalculatorDemonstrations(Settings):
    """How the demonstrator of world `calculator` works. The sign is trained towards a soft target."""

    kind: Literal["calculator"] = "calculator"
    right_history: tuple[Share, Share] = Field(
        (0.4, 1.0), description="Range of the rate of right signs in the history."
    )
    right_sign: Share | None = Field(None, description="Probability of the right sign in the target; None: uniform.")
    stop_early: Share = Field(0.05, description="Answers before the last operation.")


@dataclass(frozen=True)
class Chain:
    """A task: the words and operands of its operations, and its value before the first and after each."""

    words: tuple[str, ...]
    operands: tuple[int, ...]
    values: tuple[int, ...]

    @property
    def text(self) -> str:
        """Return the question."""
        steps = "".join(f", {word} {operand} " for word, operand in zip(self.words, self.operands, strict=True))
        return f"question : start with {self.values[0]} {steps}; what is it ?"

    def question(self, identity: str, split: str) -> Question:
        """Return the chain as a task."""
        called = [
            f"{value} {SIGNS[word]} {operand}"
            for value, word, operand in zip(self.values, self.words, self.operands, strict=False)
        ]
        facts = dict(zip(called, map(str, self.values[1:]), strict=True))
        answer = str(self.values[-1])
        return Question(identity, SOURCE, split, self.text, (answer,), hops=len(self.words), facts=facts)


def draw_chain(config: CalculatorWorld, split: str, rng: random.Random) -> Chain:
    """Draw a task whose text belongs to the split. Every value is positive, and all differ."""

    def draw() -> Chain:
        words: list[str] = []
        operands: list[int] = []
        values = [rng.randrange(1, config.numbers)]
        tried: set[str] = set()
        while len(words) < config.operations:
            if len(tried) == len(SIGNS):  # no operation leads on from here
                return draw()
            word = rng.choice(list(SIGNS))
            tried.add(word)
            known = {*values, *operands}  # no number of the text is the answer
            results = _results(values[-1], word, config.numbers)
            fitting = [(n, value) for n, value in results if n not in known and value not in known and n != value]
            if fitting:
                value = rng.choice(sorted({value for _, value in fitting}))  # else most quotients would be 1
                words.append(word)
                operands.append(rng.choice([n for n, found in fitting if found == value]))
                values.append(value)
                tried = set()
        return Chain(tuple(words), tuple(operands), tuple(values))

    return draw_in_split(split, draw, f"data.operations={config.operations}, data.numbers={config.numbers}")


@lru_cache(maxsize=8192)
def _results(value: int, word: str, numbers: int) -> tuple[tuple[int, int], ...]:
    """Each operand with which the operation makes another positive value below `numbers`, and that value."""
    results = ((n, int(evaluate(f"{value} {SIGNS[word]} {n}", {}))) for n in range(1, numbers))
    return tuple((n, found) for n, found in results if 0 < found < numbers)


class CalculatorError(Exception):
    """An expression that has no value. Its text is what the tool answers."""


def evaluate(expression: str, names: dict[str, Number]) -> Number:
    """Return the value of an expression or an assignment; names: values by name, to which it adds.

    Raises CalculatorError. No function is called and no attribute is read; a number is below LARGEST.
    """
    if len(expression) > LONGEST or re.search(r"[^\w\s+*/%|&^=().-]|\d[^\W\d]", expression) or not expression.isascii():
        raise CalculatorError(NOT_AN_EXPRESSION)
    try:
        tree = ast.parse(expression.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a number of thousands of digits
        raise CalculatorError(NOT_AN_EXPRESSION) from None
    match tree.body:
        case [ast.Expr(value)]:
            name = "_"
        case [ast.Assign([ast.Name(name)], value)]:
            pass
        case _:
            raise CalculatorError(NOT_AN_EXPRESSION)
    found = _value(value, names)
    names["_"] = names[name] = found
    return found


def _value(node: ast.expr, names: Mapping[str, Number]) -> Number:
    match node:
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            found: Number = number
        case ast.Name(name):
            if name not in names:
                raise CalculatorError(UNKNOWN)
            found = names[name]
        case ast.UnaryOp(ast.USub(), operand):
            found = -_value(operand, names)
        case ast.UnaryOp(ast.UAdd(), operand):
            found = _value(operand, names)
        case ast.BinOp(left, sign, right):
            found = _combine(type(sign), _value(left, names), _value(right, names))
        case _:
            raise CalculatorError(NOT_AN_EXPRESSION)
    if not abs(found) < LARGEST:
        raise CalculatorError(TOO_LARGE)
    return found


def _combine(sign: type[ast.operator], left: Number, right: Number) -> Number:
    if sign not in OPERATORS:
        raise CalculatorError(NOT_AN_EXPRESSION)
    try:
        found: Number = OPERATORS[sign](left, right)
    except ZeroDivisionError:
        raise CalculatorError(BY_ZERO) from None
    except TypeError:  # | & ^ of a number that is not whole
        raise CalculatorError(NOT_AN_EXPRESSION) from None
    return found


def to_number(text: str) -> Fraction | None:
    """Return the number that an answer is, exactly; None where it is none. "1,234", "-0.5" and "7." are numbers."""
    plain = text.strip().removesuffix(".").replace(",", "")
    return Fraction(plain) if re.fullmatch(r"[-+]?\d{1,40}(\.\d{1,40})?", plain, re.ASCII) else None


class CalculatorEnvironment(TableOfTasks, Environment):
    """Environment of world `calculator`. max_turns: the most turns of a demonstration, the answer included."""

    def __init__(self, config: CalculatorWorld, questions: Sequence[Question], max_turns: int) -> None:
        super().__init__(questions)
        self.settings = self._config = config
        self._max_turns = max_turns

    def call(self, episode: Episode, call: ToolCall) -> Observation:
        """Return the expression's value. Names have the values that the episode's earlier calls gave them."""
        names: dict[str, Number] = {}
        for earlier in episode.calls:
            try:
                evaluate(earlier.arguments["expression"], names)
            except CalculatorError:
                continue
        try:
            value = evaluate(call.arguments["expression"], names)
        except CalculatorError as error:
            return Observation(f"error : {error} .", "miss")
        return Observation(f"{value} .", self._label(episode, to_number(str(value))))

    @staticmethod
    def _label(episode: Episode, value: Fraction | None) -> str:
        """Label the result by the operation whose right value it is, unless that value was found before. 42.0 counts as 42."""
        seen = {observation.label for observation in episode.observations}
        wanted = enumerate((episode.question.facts or {}).values(), start=1)
        return next(
            (f"step_{n}" for n, right in wanted if to_number(right) == value and f"step_{n}" not in seen), "miss"
        )

    def rubric(self, episode: Episode) -> dict[str, float]:
        """Return whether the answer is the number, and 1 less the distance to it in its own size, 0 at the least."""
        assert episode.answer is not None
        given, wanted = to_number(episode.answer), to_number(episode.question.answers[0])
        if given is None or wanted is None:
            return {"accuracy": 0.0, "closeness": 0.0}
        distance = abs(given - wanted) / (abs(wanted) or 1)
        return {"accuracy": float(given == wanted), "closeness": float(1 - min(distance, Fraction(1)))}

    def metrics(self, episode: Episode) -> dict[str, float]:
        """Return by operation whether its value was found."""
        seen = {observation.label for observation in episode.observations}
        return {f"reached_step_{n}": float(f"step_{n}" in seen) for n in range(1, (episode.question.hops or 0) + 1)}

    def evidence(self, episode: Episode) -> Sequence[float] | None:
        """Return the share of the operations' values that had been found after each observation."""
        steps = max(1, episode.question.hops or 1)
        found = [str(observation.label).startswith("step_") for observation in episode.observations]
        return [sum(found[: t + 1]) / steps for t in range(len(found))]

    def example_call(self, question: Question) -> ToolCall:
        """Return the first right expression."""
        return ToolCall("calculate", {"expression": next(iter(question.facts or {"1 + 1": ""}))})

    def comparable(self, text: str) -> str:
        """Return the text's words and numbers. A sign is one where no number or word stands right before it."""
        return " ".join(re.findall(r"(?:(?<![\w.])-)?\d+(?:\.\d+)?|[^\W\d]+", text.lower()))

    def exposes(self, question: Question, observation: str) -> bool:
        """Return whether the observation is the answer."""
        return to_number(observation.split()[0]) == to_number(question.answers[0])

    def state_key(self, question: Question, observations: Sequence[str]) -> Hashable:
        """Return the values that are known."""
        return frozenset(observations)

    def vocabulary(self) -> list[str]:
        """Return every plain word of this world, in a stable order (control tokens are the tokenizer's)."""
        errors = dict.fromkeys(f"error {NOT_AN_EXPRESSION} {BY_ZERO} {TOO_LARGE} {UNKNOWN}".split())
        words = dict.fromkeys((*COMMON_WORDS, "start", "with", ",", ";", "what", "it", "=", "_", *errors))
        return [
            *words,
            *(word for word in SIGNS if word not in words),
            *SIGNS.values(),
            *map(str, range(self._config.numbers)),
        ]

    def demonstrations(
        self, rng: random.Random, count: int, settings: CalculatorDemonstrations
    ) -> list[Demonstration | Lesson]:
        """Return `count` demonstrations, each of a fresh task whose text belongs to the train split."""
        return [self._demonstration(rng, settings) for _ in range(count)]

    def _demonstration(self, rng: random.Random, settings: CalculatorDemonstrations) -> Demonstration:
        chain = draw_chain(self._config, "train", rng)
        question = chain.question(f"{SOURCE}-demonstration-{rng.getrandbits(64):016x}", "train")
        right_rate, value = rng.uniform(*settings.right_history), chain.values[0]
        turns: list[DemonstrationTurn] = []
        for word, operand in zip(chain.words, chain.operands, strict=True):
            if len(turns) == self._max_turns - 1 or rng.random() < settings.stop_early:
                break
            sign = SIGNS[word] if rng.random() < right_rate else rng.choice(list(SIGNS.values()))
            expression = f"{value} {sign} {operand}"
            observation = self.call(Episode(question), ToolCall("calculate", {"expression": expression}))
            turns.append(
                DemonstrationTurn(
                    thought=f"{word} {operand}",
                    action=ToolCall("calculate", {"expression": expression}),
                    observation=observation.text,
                    target=self._target(SIGNS[word], settings.right_sign),
                    target_place=1,
                )
            )
            found = to_number(observation.text.split()[0])
            if found is None or not 0 <= found < self._config.numbers:
                break  # no word stands for it
            value = int(found)
        return Demonstration(question, (*turns, DemonstrationTurn(DONE, Final(str(value)))))

    @staticmethod
    def _target(right_sign: str, probability: float | None) -> tuple[tuple[str, float], ...]:
        """A distribution over the signs: `probability` on the right one, the rest spread evenly; None: uniform."""
        right = 1 / len(SIGNS) if probability is None else probability
        wrong = (1 - right) / (len(SIGNS) - 1)
        return tuple((sign, right if sign == right_sign else wrong) for sign in SIGNS.values())
