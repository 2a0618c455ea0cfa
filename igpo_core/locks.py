"""Locks between processes: one file each, held while it is open. A process that dies lets go, on a network folder (NFS 4) too.

The library filelock cannot hand a lock on to processes that train together, which inherit the open file.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

SHARED = 0o666  # less the umask, which decides whether several users share a folder
PRIVATE = 0o600


def take(path: Path, mode: int = SHARED) -> IO[str] | None:
    """Return the open file whose lock is held now, until it is closed; None where another process holds it.

    What the file holds stays, and a link is not followed. mode: of a file that is new, before the umask. Raises OSError where
    it cannot be opened.
    """
    file = _open(path, mode)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[IO[str]]:
    """Hold the lock of a file; wait for a process that holds it, which `waiting` is called before.

    Another process that is given the open file holds the lock too.
    """
    with _open(path, SHARED) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _open(path: Path, mode: int) -> IO[str]:
    number = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    return os.fdopen(number, "r+")
