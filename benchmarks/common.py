"""Alternating measurements and their tables."""

import contextlib
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Side:
    """Seconds of one side of a comparison, one for each repeat."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def text(self) -> str:
        return f"{self.median:.3f} s ({min(self.seconds):.3f} to {max(self.seconds):.3f})"


def alternate(sides: dict[str, Callable[[], object]], repeats: int) -> list[Side]:
    """Time each side once a repeat, in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, call in sides.items():
            started = time.perf_counter()
            call()
            if repeat:
                times[name].append(time.perf_counter() - started)
    return [Side(name, tuple(seconds)) for name, seconds in times.items()]


def ratios(one: Side, other: Side) -> tuple[float, ...]:
    """one / other, repeat by repeat."""
    return tuple(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return (
        f"{', '.join(sorted(names))}, {torch.get_num_threads()} torch threads, {device}; Python "
        f"{platform.python_version()}, {packages}; {time.strftime('%Y-%m-%d')}"
    )


def show(question: str, goal: str, rows: Sequence[tuple[str, str]], repeats: int) -> None:
    """One table: what was asked, the goal, the figures, and what they were measured on."""
    width = max(len(name) for name, _ in rows)
    lines = [f"\n== {question}", f"   goal: {goal}", *(f"   {name.ljust(width)}  {value}" for name, value in rows)]
    print("\n".join([*lines, f"   medians (ranges) of {repeats} repeats; {machine()}"]), flush=True)


@contextlib.contextmanager
def scripted(script: Sequence[int]) -> Iterator[None]:
    """Within it every turn of a rollout consists of these tokens, whatever the model says: a random model searches on.

    All that a real choice costs is still paid: logits, softmax, cumulative sum, search.
    """
    from igpo_core.rollout import slots
    from igpo_core.rollout import transformers_engine as engine

    choose, choose_in_slot = engine._Stream._choose, slots.SlotModel._choose

    def forced(self: Any, logits: torch.Tensor, uniforms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        token, logprobs = choose(self, logits, uniforms)
        self.said = getattr(self, "said", -1) + 1
        return torch.full_like(token, script[self.said % len(script)]), logprobs

    def forced_in_slot(
        self: Any, logits: torch.Tensor, place: torch.Tensor, sampling: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        _, logprobs = choose_in_slot(self, logits, place, sampling)
        return said.to(logits.device)[place[:, 0]], logprobs

    said = torch.tensor(script, device="cuda" if torch.cuda.is_available() else "cpu")
    engine._Stream._choose = forced  # type: ignore[method-assign]
    slots.SlotModel._choose = forced_in_slot  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine._Stream._choose = choose  # type: ignore[method-assign]
        slots.SlotModel._choose = choose_in_slot  # type: ignore[method-assign]
