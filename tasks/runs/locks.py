"""One process at a time on a run, a warm start or a sweep: locks by key in a home's folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from igpo_core.locks import held, take


@contextlib.contextmanager
def locked(home: Path, key: str, say: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold the lock; wait for a process that holds it. Another process that is given the file holds it too."""
    with held(_file(home, key), lambda: say(f"{key} is being made by another process: waiting for it")) as lock:
        yield lock


@contextlib.contextmanager
def locked_if_free(home: Path, key: str) -> Iterator[bool]:
    """Hold the lock if nobody does; says whether."""
    lock = take(_file(home, key))
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.close()


def _file(home: Path, key: str) -> Path:
    (home / "locks").mkdir(parents=True, exist_ok=True)
    return home / "locks" / key
