"""Which accelerator a process trains on: one of its own, or the share of one that training.memory_share says.

Processes of one user on one machine agree by locked files, which a process that dies lets go: runs of a sweep, of other sweeps
and of workers alike. What other users or other programs do on an accelerator is not seen.
"""

import math
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from igpo_core.config import ExperimentConfig, TrainingConfig
from igpo_core.errors import ConfigError
from igpo_core.locks import held, take

Say = Callable[[str], None]
WAIT_SECONDS = 2.0
UNITS = 60  # of an accelerator: halves, thirds, quarters, fifths and sixths are whole numbers of them


@dataclass(frozen=True)
class Held:
    """What a process has of an accelerator, for as long as the locked files are open."""

    place: int
    """Of the accelerator, among those that the process sees."""
    locks: list[IO[str]]

    def release(self) -> None:
        """Leave it to others."""
        for lock in self.locks:
            lock.close()


_taken: list[Held] = []  # this process's own, until it ends


def accelerators() -> list[str]:
    """Return the accelerators that this process sees, by the names that CUDA_VISIBLE_DEVICES has for them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or [str(number) for number in range(count)])[:count]


def units(training: TrainingConfig) -> int:
    """Return how many of an accelerator's UNITS a run takes."""
    return max(1, math.ceil(training.memory_share * UNITS - 1e-6))


def on_a_card(training: TrainingConfig) -> int:
    """Return how many runs an accelerator has room for."""
    return UNITS // units(training)


@dataclass(frozen=True)
class Spread:
    """Runs that are made at the same time, and the accelerators that they are spread over; 0 on a CPU."""

    runs: int
    cards: int = 0
    assumed: bool = False
    """Whether they are as many as the runs need, and not those that this machine has."""

    @property
    def slower(self) -> int:
        """Return how many times as long as alone a run takes at most: as many as are on the fullest accelerator. Runs on one
        count one after the other: updates there were seen to take as long as one after the other (docs/scale.md)."""
        return -(-self.runs // self.cards) if self.cards else 1

    @property
    def side_by_side(self) -> float:
        """Return how many of them count as if each were alone."""
        return self.runs / self.slower

    @property
    def shared(self) -> str:
        """Return what is assumed where runs share an accelerator, in words; "" where none does."""
        if self.slower == 1:
            return ""
        where = "all on one card" if self.cards == 1 else f"up to {self.slower} on each of {self.cards} cards"
        needed = " (as many as they need)" if self.assumed else ""
        return f", {where}{needed} and counted there one after the other, an upper estimate"

    def __str__(self) -> str:
        alone = ", each on a card of its own" if self.cards and self.runs > 1 else ""
        return f"{self.runs} at a time{self.shared or alone}"


def spread(training: TrainingConfig, runs: int, devices: Sequence[str]) -> Spread:
    """Return how so many runs at a time are spread: on a GPU over the accelerators that are here, or, where these have too little
    room (on a work pool, or where none is here), over as many as are needed."""
    if training.device == "cpu":
        return Spread(runs)
    needed = -(-runs // on_a_card(training))
    return Spread(runs, len(devices)) if needed <= len(devices) else Spread(runs, needed, assumed=True)


def at_a_time(training: TrainingConfig, asked: int | None, devices: Sequence[str]) -> int:
    """Return how many runs are made at the same time on this machine. asked: None leaves it to what there is.

    Raises ConfigError where more are asked for than have an accelerator, or a share of one, of their own.
    """
    if training.device == "cpu":
        return asked or 2
    if training.world > 1:  # such a run takes all there is
        return 1
    if not devices:  # a sweep is refused (require_accelerators); a dry run counts for the machine that has them
        return asked or on_a_card(training)
    room = len(devices) * on_a_card(training)
    if asked is not None and asked > room:
        share = len(devices) / asked
        raise ConfigError(
            f"processes={asked} runs at the same time on {len(devices)} accelerators with training.memory_share="
            f"{training.memory_share:g}: {room} of them have room. Lower processes, or say that runs share an accelerator: "
            f"training.memory_share={share:.2g}"
        )
    return asked or room


def device(experiment: ExperimentConfig, say: Say = print) -> str:
    """Return where this process computes for a run, as torch names it. An accelerator, or its share of one, is this process's
    until it ends.

    One of several processes of a run has the accelerator of its number; the process that launches them takes them all, and
    computes on none. Raises ConfigError where this machine has too few. say: told when it has to wait for others.
    """
    training = experiment.training
    if training.device == "cpu":
        return "cpu"
    devices = accelerators()
    local = os.environ.get("LOCAL_RANK")
    _require(devices, training.processes if local is None else int(local) + 1, training)
    if local is not None:
        return _limited(int(local), training)
    if training.world > 1:
        if not _taken:
            _taken.append(_wait(lambda folder: _all(folder, devices[: training.processes]), devices, say))
        return f"cuda:{_taken[0].place}"
    if not _taken:
        _taken.append(_wait(lambda folder: _first(folder, devices, units(training)), devices, say))
    return _limited(_taken[0].place, training)


@contextmanager
def borrowed_device(experiment: ExperimentConfig, say: Say) -> Iterator[str]:
    """Give one accelerator, or the experiment's share of one, for the block: what evaluates needs no more, on however many a run
    trains."""
    training = experiment.training
    if training.device == "cpu":
        yield "cpu"
        return
    devices = accelerators()
    _require(devices, 1, training)
    held = _wait(lambda folder: _first(folder, devices, units(training)), devices, say)
    try:
        yield _limited(held.place, training)
    finally:
        held.release()


def require_accelerators(training: TrainingConfig) -> None:
    """Raise ConfigError where runs want accelerators and this machine has too few for one of them."""
    if training.device != "cpu":
        _require(accelerators(), training.processes, training)


def _require(devices: Sequence[str], needed: int, training: TrainingConfig) -> None:
    if needed > len(devices):
        raise ConfigError(
            f"training.device=cuda with processes={training.processes}: this machine has {len(devices)} such devices. "
            + ("Lower training.processes, or set" if devices else "Start it on a machine that has them, or set")
            + " training.device to cpu"
        )


def _limited(place: int, training: TrainingConfig) -> str:
    import torch

    from igpo_core.estimates import CONTEXT

    # torch limits what it allocates; CUDA's context lies beside it and is of the share, too
    beside = CONTEXT / torch.cuda.get_device_properties(place).total_memory
    if training.memory_share <= beside:
        raise ConfigError(
            f"training.memory_share={training.memory_share:g} of cuda:{place} is less than CUDA's own {beside:.3f} of it: raise "
            "it, and run fewer at a time"
        )
    torch.cuda.set_per_process_memory_fraction(training.memory_share - beside, place)
    return f"cuda:{place}"


def _wait(take: Callable[[Path], Held | None], devices: Sequence[str], say: Say) -> Held:
    """Take what `take` gives, waiting while it gives nothing."""
    folder = Path.home() / ".cache" / "igpo-lab" / "devices" / socket.gethostname()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = False
    while (held := take(folder)) is None:
        if not told:
            say(f"every accelerator ({', '.join(devices)}) is taken by other runs: waiting for one")
            told = True
        time.sleep(WAIT_SECONDS)
    return held


def _all(folder: Path, devices: Sequence[str]) -> Held | None:
    """Every one of these accelerators, whole."""
    locks: list[IO[str]] = []
    for name in devices:
        found = _some(folder, name, UNITS)
        if found is None:
            Held(0, locks).release()
            return None
        locks += found
    return Held(0, locks)


def _first(folder: Path, devices: Sequence[str], needed: int) -> Held | None:
    """The accelerator that has most room, if it is enough."""
    best: Held | None = None
    for place, name in enumerate(devices):
        found = _some(folder, name, needed, every=True)
        if found is not None and (best is None or len(found) > len(best.locks)):
            if best is not None:
                best.release()
            best = Held(place, found)
        elif found is not None:
            Held(place, found).release()
    if best is not None:
        Held(best.place, best.locks[needed:]).release()
        del best.locks[needed:]
    return best


def _some(folder: Path, name: str, needed: int, *, every: bool = False) -> list[IO[str]] | None:
    """Lock units of an accelerator, as many as are needed, or every free one; None where fewer are free. One process at a
    time looks, so that two do not keep each other out."""
    with held(folder / name):
        locks: list[IO[str]] = []
        for number in range(UNITS):
            if len(locks) == needed and not every:
                break
            lock = take(folder / f"{name}.{number}")
            if lock is not None:
                locks.append(lock)
    if len(locks) >= needed:
        return locks
    Held(0, locks).release()
    return None
