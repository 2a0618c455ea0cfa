"""One process at a time on a run or a warm start. A process that dies lets go; on a network folder (NFS 4) as well."""

import contextlib
import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def locked(home: Path, key: str, say: Callable[[str], None]) -> Iterator[IO[str]]:
    """Hold the lock; wait for a process that holds it. Another process that is given the file holds it too."""
    with _file(home, key).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{key} is being made by another process: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


@contextlib.contextmanager
def locked_if_free(home: Path, key: str) -> Iterator[bool]:
    """Hold the lock if nobody does; says whether."""
    with _file(home, key).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _file(home: Path, key: str) -> Path:
    (home / "locks").mkdir(parents=True, exist_ok=True)
    return home / "locks" / key
