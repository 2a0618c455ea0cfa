"""Threads in which tools are called while the device samples."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any


class ToolThreads:
    """At most so many threads for tool calls. They are daemons, which those of concurrent.futures are not: a run that fails or is
    told to end does not wait for a tool that hangs."""

    def __init__(self, most: int) -> None:
        self._most, self._started = most, 0
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Return the future of a call."""
        future: Future[Any] = Future()
        self._work.put((future, call))
        if self._started < self._most:
            threading.Thread(target=self._run, name=f"tool_{self._started}", daemon=True).start()
            self._started += 1
        return future

    def close(self) -> None:
        """Drop the calls that have not begun, and let every thread end after its own."""
        try:
            while True:
                self._work.get_nowait()
        except Empty:
            for _ in range(self._started):
                self._work.put(None)

    def _run(self) -> None:
        while (taken := self._work.get()) is not None:
            future, call = taken
            del taken
            try:
                found = call()
            except BaseException as error:  # whoever asks for the result gets it
                # the call is gone before anyone goes on: it has the engine's cache. A thread that waits keeps this frame, and an
                # error has it in its traceback
                del call
                future.set_exception(error)
            else:
                del call
                future.set_result(found)
                del found
            del future
