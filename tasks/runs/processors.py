"""What a run was computed on. The same seed rounds otherwise on another kind of processor, which is another draw of the whole
run, and a kind was seen to shift an arm's mean (docs/results.md): arms are compared on one."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.report.sweeps import RunData

BETWEEN = " + "  # a run that went on elsewhere has several


def processor(device: str) -> str:
    """The accelerator's name, or the CPU's with the instructions that torch uses of it. device: "cpu", or as "cuda:0"."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu() -> str:
    told = Path("/proc/cpuinfo")  # Linux; platform knows the name elsewhere
    names = [line for line in told.read_text().splitlines() if line.startswith("model name")] if told.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def joined(before: str | None, now: str) -> str:
    """The processors of a run that goes on, each once, in the order in which it met them."""
    return BETWEEN.join(dict.fromkeys([*(before.split(BETWEEN) if before else []), now]))


def mixed(runs: "Sequence[RunData]") -> list[str]:
    """A loud line where runs of one sweep were computed on several kinds of processor, with the runs of each."""
    kinds: dict[str, list[str]] = {}
    for run in (run for run in runs if run.processor):  # older runs do not say
        kinds.setdefault(run.processor, []).append(f"{run.arm} seed {run.seed}")
    if len(kinds) < 2:
        return []
    parts = "; ".join(f"{kind}: {', '.join(named)}" for kind, named in kinds.items())
    return [f"!! DIFFERENT PROCESSORS, pairs share a seed but no longer their rounding: {parts}"]
