"""One process at a time on a run, a warm start or a sweep: locks by key in a home's folder."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from igpo_core.locks import held, take

# and the id of its flow run: the key of the lock that a sweep's process holds from its start to its end
SWEEP = "sweep-"


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


def free_keys(home: Path, beginning: str) -> list[str]:
    """Return the keys with this beginning whose locks some process held once and none holds now."""
    found = []
    for file in sorted((home / "locks").glob(f"{beginning}*")):
        with locked_if_free(home, file.name) as free:
            if free:
                found.append(file.name)
    return found


def _file(home: Path, key: str) -> Path:
    (home / "locks").mkdir(parents=True, exist_ok=True)
    return home / "locks" / key
