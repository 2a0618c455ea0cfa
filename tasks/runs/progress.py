"""How far a sweep is, and what is left of it in minutes."""

import statistics
import threading
from typing import Literal

from tasks.runs.planning import spell

Kind = Literal["warm_start", "train"]
WORDS: dict[Kind, str] = {"warm_start": "warm start", "train": "run"}


class Progress:
    """Counts what is done. Called from the threads that wait for runs.

    What is left is told from the mean seconds of what was done, before that from what was expected, and not at all where
    neither is known.
    """

    def __init__(self, *, warm_starts: int, runs: int, there: int, workers: int) -> None:
        """warm_starts, runs: to be made; there: runs that were finished before."""
        self._left: dict[Kind, int] = {"warm_start": warm_starts, "train": runs}
        self._all: dict[Kind, int] = {"warm_start": warm_starts, "train": runs + there}
        self._expected: dict[Kind, float] = {}
        self._seconds: dict[Kind, list[float]] = {"warm_start": [], "train": []}
        self._workers = workers
        self._lock = threading.Lock()

    def expect(self, warm_start: float, run: float) -> None:
        """Seconds of each, before any was made."""
        with self._lock:
            self._expected = {"warm_start": warm_start, "train": run}

    def done(self, kind: Kind, seconds: float | None) -> str:
        """Count one, and tell how far it all is: "5 of 21 runs · about 4 min left". seconds: None of one that failed."""
        with self._lock:
            self._left[kind] -= 1
            if seconds is not None:
                self._seconds[kind].append(seconds)
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
            total += left * each
        return total / max(1, min(self._workers, sum(self._left.values())))
