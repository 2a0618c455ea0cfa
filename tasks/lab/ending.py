"""How processes that were started here end: told to, waited for, killed where they do not; and with the process they work for."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import psutil

KILLED_SECONDS = 10.0  # until a killed process is gone: it holds locks and ports until then


def end(
    asked: Sequence[psutil.Process], family: Callable[[], Iterable[psutil.Process]], seconds: float
) -> list[psutil.Process]:
    """Tell processes to end and kill what has not ended in time; return what runs all the same.

    asked: told to end, by SIGTERM.
    family: all that has to be gone, as it is now: what those start while they end belongs to it. Asked for again and again.
    """
    watched = {
        *asked,
        *family(),
    }  # a process that ends may lose what the family is found by before it lets go of its port
    for process in asked:
        _send(process.terminate)
    left = _left(watched, family, seconds)
    for process in left:
        _send(process.kill)
    return _left(set(left), family, KILLED_SECONDS) if left else []


def end_when(gone: Callable[[], object]) -> None:
    """Send this process SIGTERM once gone(), which waits for the end of the process it works for, returns: nobody would see its
    result, and whoever goes on waits for its lock."""

    def wait() -> None:
        gone()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def _left(
    watched: set[psutil.Process], family: Callable[[], Iterable[psutil.Process]], seconds: float
) -> list[psutil.Process]:
    """Return those that still run: none, or when the time is over."""
    deadline = time.monotonic() + seconds
    while left := [process for process in watched | {*family()} if _runs(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return left


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _send(signal_sent: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself: what was asked for
        signal_sent()
