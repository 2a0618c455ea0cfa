"""Specifications as files: the presets that are shipped, and YAML files of the user's own."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from igpo_core.config import AblationSpecification, DataConfig, QuestionFiles
from igpo_core.config.changes import put
from igpo_core.config.reasons import nearest
from igpo_core.config.specification import validated
from igpo_core.errors import ConfigError
from igpo_core.folders import read_yaml
from igpo_core.hub import is_hub_name, require_pinned
from igpo_core.rewards.functions import FunctionGain, with_source
from tasks.lab.home import PROJECT
from tasks.runs.processors import decided
from tasks.specification.accelerate_file import take_over

PRESETS = PROJECT / "deployments" / "presets"


@dataclass(frozen=True)
class Request:
    """The sweep that a user asked for: a specification with the chosen arms, seeds and settings."""

    preset: str
    """Its name or path, for the command that asks for it again."""
    specification: AblationSpecification
    """With the chosen arms, seeds and settings."""
    arms: tuple[str, ...] = ()
    """The only arms that were asked for; empty: all."""
    exploratory: tuple[str, ...] = ()
    """How the choice departs from the specification, in words; empty where it does not."""
    added: tuple[int, ...] = ()
    """The seeds among them that `until` added on the way."""

    @property
    def command(self) -> str:
        """Return the command that makes the comparison once more; `until` adds its seeds again."""
        seeds = [seed for seed in self.specification.seeds if seed not in self.added]
        words = [
            *(["--arms", ",".join(self.arms)] if self.arms else []),
            *("--seeds", ",".join(map(str, seeds))),
            *(word for item in self.specification.changes.items() for word in ("--set", _spell_setting(*item))),
        ]
        return shlex.join(["make", "ablation", f"PRESET={self.preset}", f"ARGS={shlex.join(words)}"])

    def with_seeds(self, seeds: Sequence[int]) -> "Request":
        """Return the request with these seeds. They are not exploratory, because their number was fixed beforehand."""
        return replace(self, specification=self.specification.select(None, list(seeds)))

    def go_on(self, more: Sequence[int]) -> "Request":
        """Return the request with the seeds that `until` adds."""
        return replace(self.with_seeds([*self.specification.seeds, *more]), added=(*self.added, *more))


def resolve(
    preset: str,
    changes: Mapping[str, Any] | None = None,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> Request:
    """Read a preset once, and return the sweep that is asked for.

    Raises ConfigError as load_specification, and on an unknown arm.
    """
    whole = load_specification(preset, changes)
    chosen = whole.select(list(arms) if arms else None, list(seeds) if seeds else None)
    return Request(preset, chosen, tuple(arms or ()), tuple(whole.departures(chosen)))


def load_specification(name: str, changes: Mapping[str, Any] | None = None) -> AblationSpecification:
    """Return a preset by name, or a YAML file by path, with other settings in its base where changes name some, and with what
    this machine decides (policy.dtype=auto).

    Raises ConfigError naming file, field and reason.
    """
    specification = _load(name, ())
    if changes:
        specification = specification.with_changes(_read_in_paths(changes, _folder(name), "set"), from_project)
    return decided(specification)


def _load(name: str, above: tuple[Path, ...]) -> AblationSpecification:
    """above: the files whose bases are derived from this one, each from the next."""
    path = PRESETS / f"{name}.yaml" if is_preset(name) else Path(name)
    there = os.path.isfile(path)  # Path's own raises of names that no file can have
    if not there and is_preset(name):
        names = presets()
        raise ConfigError(
            f"no specification {name!r}{nearest(name, names)}: presets are {', '.join(names)}; or give the path of a YAML file"
        )
    if not there:
        raise ConfigError(f"{ascii(str(path))[1:-1]}: no such file (looked for in {Path.cwd()})")
    if path.resolve() in above:
        raise ConfigError(
            f"{path}: its base is derived from itself ({' from '.join(one.name for one in above)}): name another"
        )
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no settings: it needs name, base, arms, baseline and seeds")
    content = with_functions(content, path)
    if isinstance(content.get("base"), dict) and "from" in content["base"]:
        content["base"] = _derived(content["base"], str(path), (*above, path.resolve()))
    if isinstance(content.get("base"), dict):
        content["base"] = take_over(content["base"], str(path))
    return with_project(validated(content, str(path)))


def with_project(specification: AblationSpecification) -> AblationSpecification:
    """Return the specification with data paths that start at the project folder."""
    base = specification.base.model_copy(update={"data": from_project(specification.base.data)})
    return specification.model_copy(update={"base": base})


def with_functions(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return a specification as it was written, with the texts of the functions that its gains name: in arms, base and factors.

    Relative paths begin at the file's folder. Raises ConfigError where there is no such function.
    """
    folder, found = file.parent, dict(content)
    arms, base, factors = content.get("arms"), content.get("base"), content.get("factors")
    if isinstance(arms, dict):
        found["arms"] = {arm: _read_gain(changes, folder, f"{file}: arm {arm}") for arm, changes in arms.items()}
    if isinstance(base, dict) and "from" in base:
        found["base"] = _read_in_paths(base, folder, f"{file}: base")
    elif isinstance(base, dict) and "reward" in base:
        found["base"] = {**base, "reward": _read_gain(base["reward"], folder, f"{file}: base.reward")}
    if isinstance(factors, dict):
        found["factors"] = {
            factor: {
                level: _read_in_paths(settings, folder, f"{file}: {factor}={level}")
                for level, settings in levels.items()
            }
            if isinstance(levels, dict)
            else levels
            for factor, levels in factors.items()
        }
    return found


def _read_gain(reward: Any, folder: Path, where: str) -> Any:
    """Return the choices of a reward, with the text of the function where its gain is one."""
    gain = reward.get("gain") if isinstance(reward, Mapping) else None
    if not isinstance(gain, Mapping) or gain.get("kind") != "function":
        return reward
    if "source" in gain:
        raise ConfigError(f"{where}: leave gain.source out: it is read from what gain.path names")
    try:
        checked = FunctionGain.model_validate(gain)
    except ValidationError:
        return reward  # told with every other fault of the specification
    return {**reward, "gain": {**gain, "source": with_source(checked, folder).source}}


def _read_in_paths(settings: Any, folder: Path, where: str) -> Any:
    """Do the same for settings that are named by their path, as in factors and `set`."""
    if not isinstance(settings, Mapping):
        return settings
    found = dict(settings)
    for path, value in settings.items():
        if path in ("reward.gain.path", "reward.gain.source") or (path, value) == ("reward.gain.kind", "function"):
            raise ConfigError(f"{where} sets {path}: give reward.gain as a whole, {{kind: function, path: ...}}")
        if path == "reward":
            found[path] = _read_gain(value, folder, f"{where}: {path}")
        if path == "reward.gain":
            found[path] = _read_gain({"gain": value}, folder, f"{where}: {path}")["gain"]
    return found


def _folder(name: str) -> Path:
    return PRESETS if is_preset(name) else Path(name).parent


def is_preset(name: str) -> bool:
    """Whether it names a preset, not a file."""
    return "/" not in name and not name.endswith((".yaml", ".yml"))


def presets() -> list[str]:
    """The names of those that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def study_name(preset: str) -> str:
    """What the specification is called in Prefect and MLflow. Where its file cannot be read, the file's name: the error comes
    where it is needed."""
    try:
        return load_specification(preset).name
    except ConfigError:
        return Path(preset).stem


def setting(text: str) -> tuple[str, Any]:
    """Return (path, value) of "optimizer.learning_rate=1e-5". A value is read as JSON, and is a text where it is none."""
    path, equals, value = text.partition("=")
    if not path or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} sets nothing: give it as optimizer.learning_rate=1e-5")
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def _spell_setting(path: str, value: Any) -> str:
    """Return what `setting` reads as these: a text that would be read as something else has quotes."""
    plain = f"{path}={value}"
    if isinstance(value, str) and setting(plain) == (path, value):
        return plain
    return f"{path}={json.dumps(value, separators=(',', ':'))}"


def _derived(given: dict[str, Any], where: str, above: tuple[Path, ...]) -> dict[str, Any]:
    """The base of another preset with some settings changed: {from: core-arms, rollout.group_size: 4}."""
    changes = dict(given)
    content: dict[str, Any] = json.loads(
        _load(str(changes.pop("from")), above).base.model_dump_json(exclude_unset=True)
    )
    faults = []
    for path, value in changes.items():
        try:
            put(content, str(path), value)
        except ValueError as error:
            faults.append(f"  base: {error}")
    if faults:
        raise ConfigError("\n".join([f"{where} does not describe an ablation:", *faults]))
    return content


def from_project(data: DataConfig) -> DataConfig:
    """Relative paths start at the project folder, wherever the flow runs; names of the hub stay. Raises ConfigError where one
    names no commit."""
    if not isinstance(data, QuestionFiles):
        return data

    def placed(path: Path) -> Path:
        if is_hub_name(path):
            require_pinned(path)
            return path
        if "\0" in str(path):
            raise ConfigError(f"{str(path)!a} is no path of a file: it holds a NUL character")
        return (PROJECT / path).resolve()

    return data.placed(placed)


def main(arguments: list[str]) -> int:
    """python -m tasks.specification.presets PRESET: says what is wrong with a preset, before any server is started for it."""
    try:
        load_specification(arguments[0])
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
