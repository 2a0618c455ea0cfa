"""Calls to servers that training does not wait for."""

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

Result = TypeVar("Result")


class Background:
    """Calls made one after another in a thread of their own. What one of them raises, the next `submit` or `wait` raises."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._calls: deque[Future[Any]] = deque()
        self._lock = threading.Lock()  # it may be called from several threads

    @property
    def busy(self) -> bool:
        """Return whether some call has not ended."""
        return any(not call.done() for call in self._calls)

    def submit(self, call: Callable[[], Result]) -> "Future[Result]":
        """Make this call when those before it are done, in the context of now. Its result can be waited for."""
        with self._lock:
            while self._calls and self._calls[0].done():
                self._calls.popleft().result()
            future = self._thread.submit(contextvars.copy_context().run, call)
            self._calls.append(future)
        return future

    def give_up(self, patience: float) -> None:
        """Wait for so many seconds; what has not begun by then is dropped."""
        wait(self._calls, timeout=patience)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def wait(self) -> None:
        """Until every call is done."""
        while self._calls:
            self._calls.popleft().result()
