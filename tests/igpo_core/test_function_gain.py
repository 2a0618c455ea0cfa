"""A turn's reward as a user's function: read with the specification, part of the run, and told of by name when it fails."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.presets import load_specification
from igpo_core.config import reward_of
from igpo_core.config.plan import plan_run
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.rewards.functions import FunctionGain, Played
from igpo_core.rewards.scoring import answer_probes, reward_trajectories
from igpo_core.rollout.transformers_engine import rollout
from igpo_core.trajectory import Episode, Question
from tasks.runs.planned import Run, write_plan

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
    write_plan(one)
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
