"""Which accelerator a process trains on: one of its own, or the share of one that training.memory_share says.

Processes of one user on one machine agree by locked files, which a process that dies lets go: runs of a sweep, of other sweeps
and of workers alike. What other users or other programs do on an accelerator is not seen.
"""

import fcntl
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from igpo_core.config import ExperimentConfig, TrainingConfig
from igpo_core.errors import ConfigError

Say = Callable[[str], None]
WAIT_SECONDS = 2.0
_held: list[IO[str]] = []  # a lock lasts as long as its file is open: until the process ends
_taken: list[int] = []


def accelerators() -> list[str]:
    """Return the accelerators that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def shares(training: TrainingConfig) -> int:
    """Return how many runs share an accelerator."""
    return int(1 / training.memory_share + 1e-9)


def at_a_time(training: TrainingConfig, asked: int | None, devices: Sequence[str]) -> int:
    """Return how many runs are made at the same time on this machine. asked: None leaves it to what there is.

    Raises ConfigError where more are asked for than have an accelerator, or a share of one, of their own.
    """
    if training.device == "cpu":
        return asked or 2
    if training.world > 1 or not devices:  # such a run takes all there is; without any its own error says so
        return 1
    room = len(devices) * shares(training)
    if asked is not None and asked > room:
        share = len(devices) / asked
        raise ConfigError(
            f"processes={asked} runs at the same time on {len(devices)} accelerators with training.memory_share="
            f"{training.memory_share:g}: {room} of them have room. Lower processes, or say that runs share an accelerator: "
            f"training.memory_share={share:.2g}"
        )
    return asked or room


def device(experiment: ExperimentConfig, say: Say = print) -> str:
    """Return where this process computes, as torch names it. An accelerator is this process's from now on.

    One of several processes of a run has the accelerator of its number, which the run's own process has taken for them.
    Raises ConfigError where this machine has too few. say: told when it has to wait for others.
    """
    training = experiment.training
    if training.device == "cpu":
        return "cpu"
    import torch

    devices = accelerators()
    local = os.environ.get("LOCAL_RANK")
    needed = training.processes if local is None else int(local) + 1
    if needed > len(devices):
        raise ConfigError(
            f"training.device=cuda with processes={training.processes}: this machine has {len(devices)} such devices. Lower "
            "training.processes, or set training.device to cpu"
        )
    if local is not None:
        place = int(local)
    elif training.processes > 1:
        place = take(devices[: training.processes], 1, say, every=True)
    else:
        place = take(devices, shares(training), say)
    torch.cuda.set_per_process_memory_fraction(training.memory_share, place)
    return f"cuda:{place}"


def take(devices: Sequence[str], sharing: int, say: Say, *, every: bool = False, folder: Path | None = None) -> int:
    """Return the place of an accelerator that is this process's from now on, shared with at most sharing - 1 others; the same
    one at each call. Waits while none has room. every: take all of them, and return the first.

    folder: of the locks; None: one of this user on this machine.
    """
    if _taken:
        return _taken[0]
    folder = folder or Path.home() / ".cache" / "igpo-lab" / "devices" / socket.gethostname()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while (found := _all(folder, devices) if every else _first(folder, devices, sharing)) is None:
        if not told:
            say(f"every accelerator ({', '.join(devices)}) is taken by other runs: waiting for one")
            told = True
        time.sleep(WAIT_SECONDS)
    place, locks = found
    _held.extend(locks)
    _taken.append(place)
    return place


def _all(folder: Path, devices: Sequence[str]) -> tuple[int, list[IO[str]]] | None:
    locks: list[IO[str]] = []
    for name in devices:
        lock = _lock(folder / name, fcntl.LOCK_EX)
        if lock is None:
            for taken in locks:
                taken.close()
            return None
        locks.append(lock)
    return 0, locks


def _first(folder: Path, devices: Sequence[str], sharing: int) -> tuple[int, list[IO[str]]] | None:
    """The first share of every accelerator is given before the second share of any."""
    for number in range(sharing):
        for place, name in enumerate(devices):
            whole = _lock(folder / name, fcntl.LOCK_EX if sharing == 1 else fcntl.LOCK_SH)
            if whole is None:
                continue
            if sharing == 1:
                return place, [whole]
            share = _lock(folder / f"{name}.{number}", fcntl.LOCK_EX)
            if share is not None:
                return place, [whole, share]
            whole.close()
    return None


def _lock(path: Path, kind: int) -> IO[str] | None:
    """Return the locked file; None where another process has it."""
    file = path.open("w")
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
