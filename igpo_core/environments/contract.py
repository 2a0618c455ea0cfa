"""What every environment keeps to, tried on one: `check(environment)` belongs into the test of a new environment."""

import random
import re
from collections.abc import Hashable
from dataclasses import replace
from itertools import islice
from typing import Any, get_args

from igpo_core.config.faults import ARM
from igpo_core.environments.base import NEEDS, Demonstration, Environment, Episode, Interface, Need
from igpo_core.trajectory import Final, Observation, Question, RolloutStatus, ToolCall, Trajectory

SPLITS = ("train", "dev", "test")
# keys of scores and labels of observations are part of MLflow's metric names, which are written hours later
_AS_METRIC = "{!r} is part of a metric's name: at most 64 letters, digits and . - _ alone, which MLflow takes"
TRIED = 8  # tasks of each split


class ContractError(AssertionError):
    """An environment does not keep to the contract. Its text says where."""


def check(environment: Environment, demonstrations: Any = None) -> None:
    """Try an environment on its first tasks. demonstrations: settings of its demonstrations, where it offers any.

    Raises ContractError where something is not as igpo_core/environments/base.py says.
    """
    settings, interface = environment.settings, environment.settings.interface
    _require(settings.rubric, "settings.rubric names no score")
    for key in settings.rubric:
        _require(re.fullmatch(ARM, key), f"settings.rubric: {_AS_METRIC.format(key)}")
    _require(settings.offers <= {*get_args(Need)}, f"settings.offers has other names than {', '.join(NEEDS)}")
    _check_interface(interface)
    texts: dict[str, str] = {}
    kind = settings.model_dump().get("kind")
    for split in SPLITS:
        tasks = environment.tasks(split)
        _require(len({task.id for task in tasks}) == len(tasks), f"{split}: two tasks have one id")
        for task in tasks:
            sound = task.source == kind or not hasattr(settings, "generate")
            _require(sound, f"task {task.id}: its source is {task.source!r}: of a generated table it is {kind!r}")
            _require(texts.setdefault(task.text, split) == split, f"a task's text is in two splits: {task.text!r}")
        for task in islice(tasks, TRIED):
            _check_task(environment, task)
    _check_purity(environment)
    if "vocabulary" in settings.offers:
        words = environment.vocabulary()
        _require(len({*words}) == len(words), "vocabulary() repeats a word")
        spoken = {
            "tasks": [*texts],
            "final_thought": [interface.final_thought],
            "what a call returns": _seen(environment),
        }
        if "demonstrations" in settings.offers and demonstrations is not None:
            spoken["demonstrations"] = _said(environment, demonstrations)
        for what, said in spoken.items():
            lacking = {word for text in said for word in text.split()} - {*words}
            _require(not lacking, f"vocabulary() lacks words of {what}: {sorted(lacking)[:5]}")
    if "texts" in settings.offers:
        _require(next(iter(environment.texts()), None) is not None, "texts() is empty")
    if "demonstrations" in settings.offers and demonstrations is not None:
        _check_demonstrations(environment, demonstrations)


def replay(environment: Environment, trajectory: Trajectory) -> list[Observation]:
    """Return what the environment answers when the calls of a trajectory are made again, one after another.

    Equal to what was observed, unless a back end changed. A trajectory can be continued from any of these turn boundaries.
    """
    episode = trajectory.episode
    seen: list[Observation] = []
    for t, call in enumerate(episode.calls):
        before = Episode(episode.question, episode.calls[:t], tuple(seen))
        seen += environment.step([(before, call)])
    return seen


def _require(holds: Any, words: str) -> None:
    if not holds:
        raise ContractError(words)


def _check_interface(interface: Interface) -> None:
    names = [tool.name for tool in interface.tools]
    _require(names and len({*names}) == len(names), f"tools need names of their own: {names}")
    for marker in ("<think>", "<answer>"):
        _require(
            marker in interface.system_prompt, f"the system prompt does not say how a turn is written: no {marker}"
        )
    _require(interface.final_thought.strip(), "final_thought is empty")


def _check_call(interface: Interface, call: ToolCall, where: str) -> None:
    tool = interface.tool(call.name)
    _require(tool is not None, f"{where} calls {call.name!r}, which is no tool of the interface")
    assert tool is not None
    names = [parameter.name for parameter in tool.parameters]
    _require([*call.arguments] == names, f"{where} gives {[*call.arguments]}, and {tool.name} takes {names}")


def _check_task(environment: Environment, task: Question) -> None:
    settings, where = environment.settings, f"task {task.id}"
    call = environment.example_call(task)
    _check_call(settings.interface, call, f"{where}: example_call")
    (observation,) = environment.step([(Episode(task), call)])
    _require(not observation.failed, f"{where}: the example call failed: {observation.text}")
    label = observation.label
    _require(label is None or re.fullmatch(ARM, label), f"{where}: label: {_AS_METRIC.format(label)}")
    seen = Episode(task, (call,), (observation,))
    evidence = environment.evidence(seen)
    _require(evidence is None or len(evidence) == 1, f"{where}: evidence has not one value for each observation")
    told = environment.metrics(seen)
    _require(all(isinstance(value, float) for value in told.values()), f"{where}: metrics are no floats: {told}")
    if "beliefs" in settings.offers:
        targets = environment.belief_targets(task)
        _require(targets and all(targets), f"{where}: belief_targets has no answer")
        scores = environment.rubric(Episode(task, answer=targets[0]))
        _require(
            [*scores] == [*settings.rubric], f"{where}: rubric gives {[*scores]}, settings say {[*settings.rubric]}"
        )
        _require(scores[settings.headline] == 1.0, f"{where}: its own answer {targets[0]!r} earns {scores}")
    wrong = environment.rubric(Episode(task, answer="\ufffd"))
    _require(all(0 <= value <= 1 for value in wrong.values()), f"{where}: scores outside [0, 1]: {wrong}")
    _require(wrong[settings.headline] < 1, f"{where}: any answer earns the whole score")
    if "exposure" in settings.offers:
        _require(isinstance(environment.exposes(task, observation.text), bool), f"{where}: exposes gives no bool")
    if "states" in settings.offers:
        _require(isinstance(environment.state_key(task, (observation.text,)), Hashable), f"{where}: state_key")
    if "other_answers" in settings.offers:
        form = environment.comparable(task.text)
        _require(environment.comparable(form) == form, f"{where}: comparable() of a comparable text is another one")


def _check_purity(environment: Environment) -> None:
    """The same calls alone, together, in another order and again: what is seen depends on the episode alone."""
    requests = []
    for task in islice(environment.tasks("train"), TRIED):
        call = environment.example_call(task)
        (first,) = environment.step([(Episode(task), call)])
        requests += [(Episode(task), call), (Episode(task, (call,), (first,)), call)]
    alone = [environment.step([request])[0] for request in requests]
    _require(environment.step(requests) == alone, "calls that are made together are answered otherwise")
    backwards = environment.step(requests[::-1])
    _require(backwards[::-1] == alone, "calls in another order are answered otherwise: a state was kept")
    for (episode, call), observation in zip(requests[1::2], alone[1::2], strict=True):
        trajectory = _played(Episode(episode.question, (*episode.calls, call), (*episode.observations, observation)))
        _require(
            tuple(replay(environment, trajectory)) == trajectory.episode.observations, "a replay sees other things"
        )


def _seen(environment: Environment) -> list[str]:
    """What the first calls of tasks return."""
    tasks = [task for split in SPLITS for task in islice(environment.tasks(split), TRIED)]
    return [
        observation.text
        for task in tasks
        for observation in environment.step([(Episode(task), environment.example_call(task))])
    ]


def _said(environment: Environment, settings: Any) -> list[str]:
    """What a policy writes in demonstrations. What it is shown may hold words that no token stands for: a wrong call's result."""
    shown = environment.demonstrations(random.Random(0), TRIED, settings)
    turns = [turn for item in shown if isinstance(item, Demonstration) for turn in item.turns]
    actions = [turn.action for turn in turns]
    texts = [action.text for action in actions if isinstance(action, Final)]
    texts += [str(value) for action in actions if isinstance(action, ToolCall) for value in action.arguments.values()]
    return [*texts, *(turn.thought for turn in turns)]


def _played(episode: Episode) -> Trajectory:
    """A trajectory of these calls, of one token each."""
    from igpo_core.trajectory import Turn

    turns, texts = [], []
    for t, (call, observation) in enumerate(zip(episode.calls, episode.observations, strict=True)):
        turns.append(Turn(1 + 2 * t, 2 + 2 * t, 3 + 2 * t, call, (0.0,), observation.label, observation.failed))
        texts.append(observation.text)
    start = 1 + 2 * len(turns)
    turns.append(Turn(start, start + 1, start + 1, Final("x"), (0.0,)))
    ids = tuple(range(start + 1))
    return Trajectory(episode.question, "g", ids, 1, tuple(turns), RolloutStatus.ANSWERED, tuple(texts))


def _check_demonstrations(environment: Environment, settings: Any) -> None:
    def draw() -> list[Any]:
        return environment.demonstrations(random.Random(0), TRIED, settings)

    shown = draw()
    _require(shown == draw(), "demonstrations are not a function of the generator")
    evaluated = {task.text for split in ("dev", "test") for task in environment.tasks(split)}
    solved, exposed = 0, 0
    for item in shown:
        if not isinstance(item, Demonstration):
            continue
        where = f"the demonstration of {item.question.text!r}"
        _require(item.question.text not in evaluated, f"{where} is of an evaluation split")
        _require(isinstance(item.turns[-1].action, Final), f"{where} does not end with an answer")
        episode = Episode(item.question)
        for turn in item.turns[:-1]:
            assert isinstance(turn.action, ToolCall)
            _check_call(environment.settings.interface, turn.action, where)
            (observation,) = environment.step([(episode, turn.action)])
            _require(observation.text == turn.observation, f"{where} shows what its tool would not answer")
            calls, seen = (*episode.calls, turn.action), (*episode.observations, observation)
            episode = Episode(item.question, calls, seen)
        scores = environment.rubric(replace(episode, answer=item.turns[-1].action.text))
        if "exposure" in environment.settings.offers and scores[environment.settings.headline] == 1.0:
            solved += 1
            exposed += any(environment.exposes(item.question, seen.text) for seen in episode.observations)
    _require(exposed or not solved, "exposes is true of no observation in any right demonstration")
