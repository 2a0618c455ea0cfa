"""How far a sweep is, and what is left of it in minutes."""

import statistics
import threading
import time
from collections.abc import Callable
from typing import Literal

from tasks.runs.planning import spell

Kind = Literal["warm_start", "train"]
WORDS: dict[Kind, str] = {"warm_start": "warm start", "train": "run"}

LEAST = 0.1  # of what one takes, that is left of it as long as it goes on


class Progress:
    """Counts what is done. Called from the threads that wait for runs.

    What is left is told from the mean seconds of what was done, before that from what was expected, and not at all where
    neither is known. Of what goes on, the seconds that it has had are no longer left.
    """

    def __init__(
        self,
        *,
        warm_starts: int,
        runs: int,
        there: int,
        workers: int,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """warm_starts, runs: to be made; there: runs that were finished before; now: seconds of a clock."""
        self._left: dict[Kind, int] = {"warm_start": warm_starts, "train": runs}
        self._all: dict[Kind, int] = {"warm_start": warm_starts, "train": runs + there}
        self._expected: dict[Kind, float] = {}
        self._seconds: dict[Kind, list[float]] = {"warm_start": [], "train": []}
        self._begun: dict[Kind, list[float]] = {"warm_start": [], "train": []}
        self._workers, self._now = workers, now
        self._lock = threading.Lock()

    def expect(self, warm_start: float, run: float) -> None:
        """Seconds of each, before any was made."""
        with self._lock:
            self._expected = {"warm_start": warm_start, "train": run}

    def begin(self, kind: Kind) -> float:
        """Count one that goes on from now. Returns this moment, which `done` is given."""
        with self._lock:
            begun = self._now()
            self._begun[kind].append(begun)
            return begun

    def done(self, kind: Kind, begun: float, failed: bool = False) -> str:
        """Count one that is done, and tell how far it all is: "5 of 21 runs · about 4 min left"."""
        with self._lock:
            self._begun[kind].remove(begun)
            self._left[kind] -= 1
            if not failed:
                self._seconds[kind].append(self._now() - begun)
            left = self._seconds_left()
            told = f"{self._all[kind] - self._left[kind]} of {self._all[kind]} {WORDS[kind]}s"
            over = not any(self._left.values())
        return told if left is None or over else f"{told} · about {spell(left)} left"

    def _seconds_left(self) -> float | None:
        total = 0.0
        for kind, left in self._left.items():
            if left and not self._seconds[kind] and kind not in self._expected:
                return None
            each = statistics.fmean(self._seconds[kind]) if self._seconds[kind] else self._expected.get(kind, 0.0)
            going = [min(self._now() - begun, (1 - LEAST) * each) for begun in self._begun[kind]]
            total += left * each - sum(going)
        return total / max(1, min(self._workers, sum(self._left.values())))
