"""What a run was computed on. The same seed rounds otherwise on another kind of processor, which is another draw of the whole
run, and a kind was seen to shift an arm's mean (docs/results.md): arms are compared on one. So what `policy.dtype: auto` means is
decided once, by the machine that plans."""

import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Literal

from igpo_core.config import AblationSpecification, ExperimentConfig, PretrainedPolicy
from igpo_core.errors import ConfigError

BETWEEN = " + "  # a run that went on elsewhere has several
CPUINFO = Path("/proc/cpuinfo")  # of Linux
HALF = ("avx512_bf16", "amx_bf16")  # its names of the instructions that multiply matrices in bfloat16
DTYPE = "policy.dtype"


def processor(device: str) -> str:
    """The accelerator's name, or the CPU's with the instructions that torch uses of it. device: "cpu", or as "cuda:0"."""
    import torch

    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{_cpu()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu() -> str:
    return _told("model name") or platform.processor() or platform.machine()


def _told(key: str) -> str:
    """What CPUINFO says of the first core; "" where it says nothing, as on other systems than Linux."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def half_instructions() -> list[str]:
    """Return those of HALF that this machine's processor has."""
    flags = _told("flags").split()
    return [name for name in HALF if name in flags]


def best_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """Return what `policy.dtype: auto` means on this machine. device: training.device.

    Raises ConfigError where an accelerator is asked for and none is seen.
    """
    half = bool(half_instructions()) if device == "cpu" else _accelerator_has_half()
    if half is None:
        raise ConfigError(
            f"{DTYPE}=auto with training.device={device}: the accelerator decides, and this machine has none: set {DTYPE} to "
            "bfloat16 (every one from the A100's generation on has it) or float32"
        )
    return "bfloat16" if half else "float32"


@cache
def _accelerator_has_half() -> bool | None:
    """Whether the first accelerator that is seen computes in bfloat16; None where none is seen. Another process asks it: this one
    may be none that trains, and would hold a context there."""
    import torch

    if not torch.cuda.is_available():  # takes no context
        return None
    ask = "import torch; print(torch.cuda.is_bf16_supported(including_emulation=False))"
    asked = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise ConfigError(f"{DTYPE}=auto: the accelerator cannot be asked: {asked.stderr.strip()[-500:]}")
    return asked.stdout.split()[-1] == "True"


def decided(specification: AblationSpecification) -> AblationSpecification:
    """Return a comparison whose policy has a dtype where it had `auto`: one for all arms, seeds and cells.

    Raises ConfigError where a factor's level says auto, and as best_dtype.
    """
    policy = specification.base.policy
    if isinstance(policy, PretrainedPolicy) and policy.dtype == "auto":
        dtype = best_dtype(specification.base.training.device)
        base = specification.base.model_copy(update={"policy": policy.model_copy(update={"dtype": dtype})})
        told = {path: _with_dtype(path, value, dtype) for path, value in specification.changes.items()}
        specification = specification.model_copy(update={"base": base, "changes": told})
    for cell in specification.cells:
        of_cell = specification.cell_base(cell).policy
        if isinstance(of_cell, PretrainedPolicy) and of_cell.dtype == "auto":
            raise ConfigError(
                f"cell {cell!r} of {specification.name} has {DTYPE}=auto: a level says float32 or bfloat16, or leaves it to base"
            )
    return specification


def _with_dtype(path: str, value: Any, dtype: str) -> Any:
    """Return a setting of a base as it is told once its dtype is decided: that of the policy, alone or in its section."""
    if path == DTYPE:
        return dtype
    return {**value, "dtype": dtype} if path == "policy" else value


def computed_in(experiment: ExperimentConfig) -> str:
    """Return in words what the policy is computed in; on a CPU also whether this one has instructions for bfloat16."""
    half = isinstance(experiment.policy, PretrainedPolicy) and experiment.policy.half
    words = f"computed in {'bfloat16' if half else 'float32'}"
    if experiment.training.device != "cpu" or not isinstance(experiment.policy, PretrainedPolicy):
        return words
    return f"{words} (this processor has {' and '.join(half_instructions()) or f'neither {HALF[0]} nor {HALF[1]}'})"


def unsuited(experiment: ExperimentConfig) -> list[str]:
    """Return a warning where a run on a CPU was planned in bfloat16 and this one has no instructions for it."""
    half = isinstance(experiment.policy, PretrainedPolicy) and experiment.policy.half
    if not half or experiment.training.device != "cpu" or half_instructions():
        return []
    return [
        f"warning: this run was planned with {DTYPE}=bfloat16, for which this processor has no instructions: it is slower here "
        "than float32 would be, and rounds otherwise than where it was planned"
    ]


def joined(before: str | None, now: str) -> str:
    """The processors of a run that goes on, each once, in the order in which it met them."""
    return BETWEEN.join(dict.fromkeys([*(before.split(BETWEEN) if before else []), now]))


def mixed(computed: Iterable[tuple[str, str]]) -> list[str]:
    """Return a loud line where what is compared was computed on several kinds of processor, with what was on each.

    computed: (name, its processor; "" where it is not known, as of older runs).
    """
    kinds: dict[str, dict[str, None]] = {}
    for name, kind in computed:
        if kind:
            kinds.setdefault(kind, {})[name] = None
    if len(kinds) < 2:
        return []
    parts = "; ".join(f"{kind}: {', '.join(named)}" for kind, named in kinds.items())
    return [f"!! DIFFERENT PROCESSORS, pairs share a seed but no longer their rounding: {parts}"]
