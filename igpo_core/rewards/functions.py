"""A turn's reward as a user's function: `gain: {kind: function, path: "my_reward.py:bonus"}`.

The function gets a Played and returns one number for each turn but the last. Its text is part of the run: it stands in the
specification once that was read, so that it decides the run's key, and goes with the run to whatever process trains it.
A specification that names a function is a program (docs/security.md).
"""

import hashlib
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

from pydantic import Field

from igpo_core.environments.base import Need
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.rewards.gains import Gain
from igpo_core.trajectory import Episode

PATH = r"^[^:\x00]+:[A-Za-z_]\w*$"


@dataclass(frozen=True)
class Played:
    """A finished rollout of T turns, as a function sees it."""

    episode: Episode
    """Task, calls and observations, T - 1 each, and the answer (None where there is none)."""
    turns: tuple[str, ...]
    """What the policy wrote, by turn."""
    beliefs: tuple[float, ...] | None
    """s_0..s_{T-1}, mean log-probabilities of the gold answer; None where the gain asks for none."""
    outcome: float
    """The score of the answer, 0 without one."""


class FunctionGain(Gain):
    """g_1..g_{T-1} from a function of one's own."""

    kind: Literal["function"] = "function"
    unit: ClassVar[str] = "the function's unit"
    path: str = Field(
        pattern=PATH,
        description="file.py:function, beside the specification, or package.module:function, of an installed package.",
    )
    beliefs: bool = Field(True, description="Whether the function reads beliefs; without them no scoring pass is made.")
    settings: dict[str, Any] = Field({}, description="Given to the function by name.")
    source: str = Field("", description="The module's text. It is filled in when the specification is read.")

    @property
    def needs(self) -> frozenset[Need]:
        """Return beliefs, where the function reads them."""
        return frozenset({"beliefs"}) if self.beliefs else frozenset()

    @property
    def in_file(self) -> bool:
        """Return whether the path names a file."""
        return self.path.partition(":")[0].endswith(".py")

    def gains(self, played: Played) -> list[float]:
        """Return what the function gives. Raises IgpoError where that is not a finite number for each turn but the last."""
        function = load_function(self.path, self.source, self.in_file)
        wanted = len(played.turns) - 1
        where = f"{self.path}, called for task {played.episode.question.id!r},"
        try:
            given = function(played, **self.settings)
        except Exception as error:  # somebody else's program: whatever it raises ends the run, with its name
            raise IgpoError(f"{where} raised {type(error).__name__}: {error}") from error
        if not isinstance(given, Sequence) or len(given) != wanted:
            raise IgpoError(
                f"{where} returned {given!r}: give a list of {wanted} numbers, one for each turn but the last"
            )
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in given):
            raise IgpoError(f"{where} returned {given!r}: every number must be finite")
        return [float(value) for value in given]


def with_source(gain: FunctionGain, folder: Path) -> FunctionGain:
    """Return the gain with its module's text. folder: of the specification, where a relative path begins.

    Raises ConfigError where there is no such module or function.
    """
    name = gain.path.partition(":")[0]
    if gain.in_file:
        path = folder / name
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"gain.path={gain.path}: {path} cannot be read ({error})") from error
    else:
        source = _text_of(_imported(gain.path, name), gain.path)
    found = gain.model_copy(update={"source": source})
    load_function(found.path, found.source, found.in_file)
    return found


@lru_cache(maxsize=64)
def load_function(path: str, source: str, in_file: bool) -> Callable[..., Any]:
    """Return the function of a module. in_file: the text is the module; else an installed one, which has to have this text.

    Raises ConfigError where that fails.
    """
    name, _, function = path.partition(":")
    if in_file:
        if not source:
            raise ConfigError(f"gain.path={path}: the text of {name} was not read: give the specification as a file")
        # known by a name of its own, as dataclasses and pickle want it
        known = f"igpo_function_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
        module = sys.modules[known] = ModuleType(known)
        module.__file__ = name
        try:
            exec(compile(source, name, "exec"), vars(module))
        except Exception as error:  # somebody else's program
            del sys.modules[known]
            raise ConfigError(f"gain.path={path}: the module fails with {type(error).__name__}: {error}") from error
    else:
        module = _imported(path, name)
        if _text_of(module, path) != source:
            raise ConfigError(
                f"gain.path={path}: {name} is another text here than where the run was planned: install the same on all machines"
            )
    found = getattr(module, function, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"gain.path={path}: there is no function {function} in {name}: it has {', '.join(names) or 'none'}"
        )
    if getattr(found, "__module__", None) != module.__name__:
        raise ConfigError(
            f"gain.path={path}: {function} is not defined in {name} itself, so that its text could change unseen: name the "
            "module that defines it"
        )
    called: Callable[..., Any] = found
    return called


def _imported(path: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # somebody else's program
        raise ConfigError(
            f"gain.path={path}: {name} cannot be imported ({type(error).__name__}: {error}): install its package, or name a file "
            "as my_reward.py:function"
        ) from error


def _text_of(module: ModuleType, path: str) -> str:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ConfigError(f"gain.path={path}: {module.__name__} has no text of its own: name a module that is a file")
    return Path(file).read_text(encoding="utf-8")
