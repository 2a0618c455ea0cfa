"""Memory that runs out, as an error that names the setting to lower; and memory of the machine that was freed, given back.

torch has one error for accelerators and a plain RuntimeError for its allocator on a CPU. A process that the system ends for want
of memory, as Linux does, gets neither: a sweep then tells of exit code -9.
"""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from igpo_core.config import ExperimentConfig
from igpo_core.errors import OutOfMemory

Phase = Literal["loading", "warm start", "rollout", "beliefs", "update", "evaluation"]
SAID = (  # by torch in a RuntimeError, on a CPU and from CUDA's libraries
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_STEP = (
    "A checkpoint that the run has is whole: where more memory is free the same command goes on from the last one, or from the "
    "warm start where there is none yet"
)
KEPT: dict[Phase, str] = {  # what there is to go on from
    "loading": "Nothing was trained yet and nothing is lost: where more memory is free start the same command again",
    "warm start": "A warm start keeps a checkpoint now and then: where more memory is free the same command goes on from the "
    "last one, or begins it anew where there is none yet",
    "rollout": _STEP,
    "beliefs": _STEP,
    "update": _STEP,
    "evaluation": "Weights are not touched by it, and a checkpoint that a run has is whole: where more memory is free start the "
    "same command again",
}


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)


@contextmanager
def within_memory(phase: Phase, config: ExperimentConfig, step: int | None = None) -> Iterator[None]:
    """Within the block, turn an error that says that memory ran out into OutOfMemory, which names what to lower; behind it, give
    back what was freed.

    step: the one that is made, from 0; None: outside steps.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        during = phase if step is None else f"{phase} of step {step + 1}"
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OutOfMemory(
            f"out of memory during {during}: lower {remedy(phase, config)}. {KEPT[phase]}; with another setting it is another "
            f"run. ({said})"
        ) from error
    give_back()


class _Heap(ctypes.Structure):
    """What glibc's mallinfo2 returns; free_bytes lie between what is in use and behind it, given back to the system or not."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "free_pieces", "fast_pieces", "mapped_pieces", "mapped_bytes", "unused", "fast_bytes", "used_bytes",
            "free_bytes", "top_bytes",
        )
    ]  # fmt: skip


@functools.cache
def _glibc() -> Any:
    """The C library, None where it is none that can tell what it keeps (macOS, musl, glibc before 2.33)."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Heap
    return library


def give_back(most: int = 2**30) -> bool:
    """Have the C library hand back to the system what was freed, where more than `most` bytes of its heap are free; return
    whether it was asked to.

    It keeps freed blocks of up to 32 MiB for the next ones. Those of a large model's steps differ in size each time and leave
    gaps: a run of preset real-laptop grew from 7.6 GiB to 11.3 in eight steps (2026-11-28). Giving back takes .4 s there, and
    less where it was done before. What the tiny worlds keep is less, and faster kept than asked for again.
    """
    library = _glibc()
    if library is None or library.mallinfo2().free_bytes <= most:
        return False
    library.malloc_trim(0)
    return True


def remedy(phase: Phase, config: ExperimentConfig) -> str:
    """Return the settings that this phase's memory grows with, with their values, in the order in which to try them."""
    rollout, optimizer, training = config.rollout, config.optimizer, config.training
    rows, tokens = (
        f"rollout.batch_size={rollout.batch_size}",
        f"optimizer.tokens_per_batch={optimizer.tokens_per_batch}",
    )
    longest = f"rollout.max_tokens={rollout.max_tokens}"
    if optimizer.tokens_per_batch <= rollout.max_tokens:  # a trajectory is never cut
        tokens = f"{longest} (one trajectory fills a pass: {tokens} makes it no smaller)"
    choices = {
        "loading": ["the size of the model (policy.name)"],
        "warm start": [tokens],
        "rollout": [rows, longest],
        "evaluation": [rows, longest],
        "beliefs": [f"reward.belief_tokens={config.reward.belief_tokens}", longest],
        "update": [tokens],
    }[phase]
    if phase == "loading":
        choices.append("what is trained of it (policy.lora)")
    if phase == "update" and optimizer.gradient_checkpointing is not True:
        choices.append("set optimizer.gradient_checkpointing=true")
    if training.memory_share < 1:
        choices.append(f"give the run more than training.memory_share={training.memory_share:g}")
    return ", or ".join(choices)
