"""What a run takes of its machine: curves `system/..`, read beside the training and written with the line of each step.

They go through the outbox like every other metric. MLflow's own monitor is not used: it sends past the outbox, and stops at its
first fault. They are no part of what a run is: nothing that compares, resumes or reports runs reads them.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import psutil

from igpo_core.config import ExperimentConfig

if TYPE_CHECKING:
    from types import TracebackType

Say = Callable[[str], None]
EVERY_SECONDS = 2.0
GIB = 2**30
# metric -> what a step has of the readings since the step before
CURVES: dict[str, Callable[[Sequence[float]], float]] = {
    "system/memory_gib": max,
    "system/cpu_share": statistics.fmean,
    "system/gpu_memory_gib": max,
    "system/gpu_share": statistics.fmean,
}


# What a machine does that cannot be read. Anything else is a fault of ours, and raised.
UNREADABLE = (OSError, ImportError, psutil.Error)


class Source(Protocol):
    """Something that is read again and again."""

    def read(self) -> Mapping[str, float]:
        """Return values by their metric. Raises one of UNREADABLE."""
        ...


class Processes:
    """A process and all that descend from it: memory that they hold (what they share counts for each), and the share of this
    machine's processors that they kept busy since the reading before."""

    def __init__(self, root: int) -> None:
        """root: a process number."""
        self._root = psutil.Process(root)
        self._cores = psutil.cpu_count() or 1
        self._spent: dict[int, float] = {}
        self._at = time.monotonic()
        self.read()

    def read(self) -> Mapping[str, float]:
        """Return system/memory_gib and system/cpu_share."""
        held, spent, now = 0, {}, time.monotonic()
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                with process.oneshot():
                    held += process.memory_info().rss
                    times = process.cpu_times()
            except psutil.NoSuchProcess:  # it ended while the others were read
                if process is self._root:
                    raise
                continue
            spent[process.pid] = times.user + times.system
        busy = sum(max(0.0, seconds - self._spent.get(pid, 0.0)) for pid, seconds in spent.items())
        share = busy / max(now - self._at, 1e-9) / self._cores
        self._spent, self._at = spent, now
        return {"system/memory_gib": held / GIB, "system/cpu_share": share}


class Accelerators:
    """NVIDIA GPUs: their memory that is taken, by whomever, and the share of the time in which they computed something."""

    def __init__(self, places: Sequence[int]) -> None:
        """places: as torch numbers them. Raises OSError where the driver cannot be asked."""
        import pynvml
        import torch

        self._nvml = pynvml
        with self._asked():
            pynvml.nvmlInit()
            # its own numbers are not torch's, which leaves out what CUDA_VISIBLE_DEVICES hides
            names = [f"GPU-{torch.cuda.get_device_properties(place).uuid}" for place in places]
            self._handles = [pynvml.nvmlDeviceGetHandleByUUID(name) for name in names]

    def read(self) -> Mapping[str, float]:
        """Return system/gpu_memory_gib, of all of them, and system/gpu_share, their mean. Raises OSError."""
        with self._asked():
            taken = sum(self._nvml.nvmlDeviceGetMemoryInfo(handle).used for handle in self._handles)
            busy = [self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in self._handles]
        return {"system/gpu_memory_gib": taken / GIB, "system/gpu_share": statistics.fmean(busy)}

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (self._nvml.NVMLError, RuntimeError, AssertionError) as error:  # the latter are torch's
            raise OSError(f"the driver of the GPUs: {error}") from error


class SystemMonitor:
    """Reads its sources every few seconds, in a thread, for as long as the block lasts.

    A source that fails is told once, as a warning, and left out from then on: the run goes on without its curves.
    """

    def __init__(self, sources: Mapping[str, Callable[[], Source]], say: Say, every: float = EVERY_SECONDS) -> None:
        """sources: what a source reads, in words -> how it is opened. every: seconds."""
        self._openers, self._say, self._every = sources, say, every
        self._sources: dict[str, Source] = {}
        self._readings: dict[str, list[float]] = {}
        self._seen = False
        self._fault: Exception | None = None  # of ours, in the thread
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="system metrics", daemon=True)

    def __enter__(self) -> "SystemMonitor":
        """Open the sources and begin to read."""
        for name, opened in self._openers.items():
            try:
                self._sources[name] = opened()
            except UNREADABLE as error:  # curves are no reason to lose a run
                self._give_up(name, error)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: "TracebackType | None"
    ) -> None:
        """End the thread. A fault of ours since the last `taken` is told, for what the curves are of is done."""
        self._ended.set()
        self._thread.join(5)
        if kind is None and self._fault is not None:
            self._say(f"warning: the last metrics system/ of this run are missing ({self._fault!r})")

    def taken(self) -> dict[str, float]:
        """Return the metrics of what was read since the last call; nothing where that was just now. The first call reads."""
        with self._lock:
            if self._fault is not None:
                raise self._fault
            if not self._seen:
                self._read()
            readings, self._readings = self._readings, {}
        return {name: CURVES[name](values) for name, values in readings.items()}

    def _work(self) -> None:
        while not self._ended.wait(self._every):
            with self._lock:
                try:
                    self._read()
                except Exception as error:  # raised by the next `taken`
                    self._fault = error
                    return

    def _read(self) -> None:
        self._seen = True
        for name, source in list(self._sources.items()):
            try:
                found = source.read()
            except UNREADABLE as error:
                del self._sources[name]
                self._give_up(name, error)
                continue
            for metric, value in found.items():
                self._readings.setdefault(metric, []).append(value)

    def _give_up(self, name: str, error: Exception) -> None:
        self._say(f"warning: {name} of this run cannot be read ({error!r}): it goes on without these curves (system/)")


def monitor(experiment: ExperimentConfig, device: str, say: Say, root: int | None = None) -> SystemMonitor:
    """Return the monitor of a training run.

    device: where this process computes, as torch names it; of a run of several processes all accelerators of this machine are
    read. root: the process that has all the run's processes among its own; None: this one.
    """
    sources: dict[str, Callable[[], Source]] = {
        "memory and processors": lambda: Processes(os.getpid() if root is None else root)
    }
    training = experiment.training
    if device != "cpu":
        place = int(device.partition(":")[2] or 0)
        places = [place] if training.world == 1 else list(range(training.processes))
        sources["GPUs"] = lambda: Accelerators(places)
    return SystemMonitor(sources, say)
