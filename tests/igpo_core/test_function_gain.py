"""A turn's reward as a user's function: read with the specification, part of the run, and told of by name when it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.config import reward_of
from igpo_core.config.plan import plan_run
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.rewards.functions import FunctionGain, Played
from igpo_core.rewards.scoring import answer_probes, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Episode, Question
from tasks.runs.planned import Run, write_run
from tasks.specification.presets import load_specification

TEXT = """
import math


def rises(played, scale=1.0):
    beliefs = played.beliefs
    return [scale * (math.exp(after) - math.exp(before)) for before, after in zip(beliefs, beliefs[1:])]


def lengths(played):
    return [float(len(observation.text)) for observation in played.episode.observations]
"""


def gain(text: str = TEXT, name: str = "rises", **choices: Any) -> FunctionGain:
    return FunctionGain(path=f"mine.py:{name}", source=text, **choices)


def preset(folder: Path, text: str = TEXT, path: str = "mine.py:rises", **choices: Any) -> Path:
    (folder / "mine.py").write_text(text)
    content = {
        "name": "own-reward", "baseline": "outcome_only", "seeds": [0],
        "arms": {"outcome_only": {"reward": "outcome_only"}, "mine": {"gain": {"kind": "function", "path": path, **choices}}},
        "base": {"data": {"kind": "lookup"}},
    }  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(content))
    return folder / "own.yaml"


@pytest.fixture(scope="module")
def drawn(taught: Any) -> Any:
    config, environment, policy = taught
    probes = answer_probes(policy, environment, reward_of({}))
    questions = environment.tasks("train")[:4]
    return rollout(policy, environment, questions, config.rollout, members=4, key=(0, "own", 0), probes=probes)


def test_a_function_of_beliefs_earns_what_the_same_gain_earns(taught: Any, drawn: Any) -> None:
    _, environment, policy = taught
    ours = reward_trajectories(policy, environment, drawn, reward_of({"gain": gain()}))
    theirs = reward_trajectories(policy, environment, drawn, reward_of({"gain": "prob_diff"}))
    assert [item.gains for item in ours] == [item.gains for item in theirs]
    doubled = reward_trajectories(policy, environment, drawn, reward_of({"gain": gain(settings={"scale": 2.0})}))
    assert any(map(len, (item.gains or () for item in ours)))
    for one, two in zip(ours, doubled, strict=True):
        assert one.gains is not None and two.gains == tuple(2 * value for value in one.gains)


def test_a_function_without_beliefs_asks_no_model(taught: Any, drawn: Any) -> None:
    _, environment, policy = taught
    reward = reward_of({"gain": gain(name="lengths", beliefs=False)})
    assert not reward.needs_beliefs and not reward.beliefs_while_rolling_out
    for item in reward_trajectories(policy, environment, drawn, reward):
        assert item.gains == tuple(float(len(text)) for text in item.trajectory.observations) and item.beliefs is None
    with pytest.raises(ValueError, match="gain=function ignores aliases"):
        reward_of({"gain": gain(name="lengths", beliefs=False), "aliases": "max"})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return [1.0]", r"returned \[1.0\]: give a list of 2 numbers"),
        ("return 3", "returned 3: give a list of 2 numbers"),
        ("return [float('nan'), 1]", r"returned \[nan, 1\]: every number must be finite"),
        ("return ['a', 1]", r"returned \['a', 1\]: every number must be finite"),
        ("return played.nothing", "raised AttributeError: .*nothing"),
    ],
)
def test_what_a_function_does_wrong_is_told_with_its_task(body: str, said: str) -> None:
    played = Played(Episode(Question("q7", "s", "train", "?", ("a",))), ("a", "b", "c"), (-1.0, -1.0, -1.0), 0.0)
    with pytest.raises(IgpoError, match=rf"mine.py:own, called for task 'q7', {said}"):
        gain(f"def own(played):\n    {body}\n", "own").gains(played)


def test_its_text_is_part_of_the_run_and_goes_with_it(tmp_path: Path) -> None:
    def planned(folder: Path, text: str) -> Run:
        folder.mkdir()
        specification = load_specification(str(preset(folder, text)))
        return Run(plan_run(specification, "mine", 0, "", "version", "sweep"), folder)

    one, same = planned(tmp_path / "a", TEXT), planned(tmp_path / "b", TEXT)
    other = planned(tmp_path / "c", TEXT.replace("scale=1.0", "scale=0.5"))
    assert one.spec.run_key == same.spec.run_key != other.spec.run_key
    write_run(one)
    (tmp_path / "a" / "mine.py").unlink()
    assert (one.folder / "mine.py").read_text() == TEXT
    content = json.loads((one.folder / "run.json").read_text())
    assert content["experiment"]["reward"]["gain"]["source"] == TEXT


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        (TEXT, "other.py:rises", "other.py cannot be read"),
        (TEXT, "mine.py:falls", "there is no function falls in mine.py: it has rises, lengths"),
        ("def rises(:\n", "mine.py:rises", "the module fails with SyntaxError"),
        ("1 / 0\n", "mine.py:rises", "the module fails with ZeroDivisionError"),
        (TEXT, "mine.py", "gain.path: String should match pattern"),
        (TEXT, "no.such.package:rises", "cannot be imported.*install its package"),
        (TEXT, "math:exp", "math has no text of its own"),
        (TEXT, "json:JSONDecoder", "JSONDecoder is not defined in json itself"),
    ],
)
def test_a_function_that_is_not_there_is_refused_before_a_run(tmp_path: Path, text: str, path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_specification(str(preset(tmp_path, text, path)))


def test_a_function_of_an_installed_package(tmp_path: Path) -> None:
    found = load_specification(str(preset(tmp_path, path="json.decoder:py_scanstring", beliefs=False)))
    reward = found.experiment("mine", 0).reward
    assert isinstance(reward.gain, FunctionGain) and "def py_scanstring" in reward.gain.source  # type: ignore[attr-defined]
    changed = reward.gain.model_copy(update={"source": reward.gain.source + "#"})  # type: ignore[attr-defined]
    played = Played(Episode(Question("q", "s", "train", "?", ("a",))), ("a",), None, 0.0)
    with pytest.raises(ConfigError, match="another text here than where the run was planned"):
        changed.gains(played)


def two(folder: Path, **content: Any) -> Path:
    """A specification beside two files whose functions have one name."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        (folder / f"{name}.py").write_text(f"def bonus(played):\n    return [{value}] * (len(played.turns) - 1)\n")
    whole = {
        "name": "two", "baseline": "outcome_only", "seeds": [0], "arms": {"outcome_only": {"reward": "outcome_only"}, "mine": {}},
        "base": {"data": {"kind": "lookup"}, "reward": {"gain": {"kind": "function", "path": "a.py:bonus"}}}, **content,
    }  # fmt: skip
    (folder / "two.yaml").write_text(yaml.safe_dump(whole))
    return folder / "two.yaml"


def source(specification: Any, cell: str = "") -> str:
    return str(specification.experiment("mine", 0, cell).reward.gain.source)


def test_every_place_that_names_a_function_gets_its_own_text(tmp_path: Path) -> None:
    """In factors and at the start of a sweep as in the base: never the text of another path."""
    levels = {name: {"reward.gain": {"kind": "function", "path": f"{name}.py:bonus"}} for name in ("a", "b")}
    factored = load_specification(str(two(tmp_path, factors={"file": levels})))
    assert "[1.0]" in source(factored, "file=a") and "[2.0]" in source(factored, "file=b")
    plain = str(two(tmp_path))
    other = load_specification(plain, {"reward.gain": {"kind": "function", "path": "b.py:bonus"}})
    assert "[1.0]" in source(load_specification(plain)) and "[2.0]" in source(other)
    told = {"kind": "function", "path": "b.py:bonus", "beliefs": True, "settings": {}}  # whole, and without the text
    assert other.changes == {"reward.gain": told} and other.select(None, None).changes == other.changes
    derived = tmp_path / "derived.yaml"
    content = yaml.safe_load((tmp_path / "two.yaml").read_text())
    derived.write_text(yaml.safe_dump({**content, "name": "derived", "base": {"from": plain}}))
    assert "[1.0]" in source(load_specification(str(derived)))


def test_a_path_alone_or_a_text_by_hand_is_refused(tmp_path: Path) -> None:
    """Either would run another text than the one that is named."""
    plain = str(two(tmp_path))
    with pytest.raises(ConfigError, match=r"give reward\.gain as a whole"):
        load_specification(plain, {"reward.gain.path": "b.py:bonus"})
    with pytest.raises(ConfigError, match=r"give reward\.gain as a whole"):
        load_specification(str(two(tmp_path, factors={"f": {"x": {"reward.gain.path": "b.py:bonus"}, "y": {}}})))
    by_hand = {"kind": "function", "path": "a.py:bonus", "source": "def bonus(played): ..."}
    with pytest.raises(ConfigError, match=r"leave gain\.source out"):
        load_specification(
            str(two(tmp_path, arms={"outcome_only": {"reward": "outcome_only"}, "mine": {"gain": by_hand}}))
        )


def test_a_module_may_hold_dataclasses_and_lambdas(tmp_path: Path) -> None:
    text = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Kept:
    value: float

bonus = lambda played: [Kept(1.0).value] * (len(played.turns) - 1)
"""
    found = load_specification(str(preset(tmp_path, text, "mine.py:bonus"))).experiment("mine", 0).reward
    played = Played(Episode(Question("q", "s", "train", "?", ("a",))), ("a", "b"), (-1.0, -1.0), 0.0)
    assert found.gain.gains(played) == [1.0]  # type: ignore[attr-defined]


def test_a_function_of_another_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sqrt is not defined in mine\.py itself"):
        load_specification(str(preset(tmp_path, "# def sqrt\nfrom math import sqrt\n", "mine.py:sqrt")))
