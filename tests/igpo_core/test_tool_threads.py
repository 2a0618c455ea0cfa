"""Threads that call tools for the engine with continuous batching."""

import gc
import time
import weakref

import pytest

from igpo_core.rollout.tool_threads import ToolThreads


class Call:
    """A call that is part of something large."""

    def __call__(self) -> str:
        return "found"


class Failing(Call):
    def __call__(self) -> str:
        raise LookupError


def gone(held: "weakref.ref[Call]", seconds: float = 60.0) -> bool:
    """Whether it goes without the collector; a thread may take a moment to wait for the next call."""
    until = time.monotonic() + seconds
    while held() is not None and time.monotonic() < until:
        time.sleep(0.001)
    return held() is None


def test_a_call_is_gone_once_its_result_is_there() -> None:
    """Its thread waits for the next one, and holds nothing of it meanwhile."""
    threads, call = ToolThreads(1), Call()
    held = weakref.ref(call)
    future = threads.submit(call)
    del call
    gc.disable()
    try:
        assert future.result(timeout=60) == "found" and held() is None
    finally:
        gc.enable()
        threads.close()


def test_a_call_that_raised_is_gone_with_its_error() -> None:
    threads, call = ToolThreads(1), Failing()
    held = weakref.ref(call)
    future = threads.submit(call)
    del call
    gc.disable()
    try:
        assert isinstance(future.exception(timeout=60), LookupError)
        del future
        assert gone(held)
    finally:
        gc.enable()
        threads.close()


def test_a_call_that_raises_tells_whoever_asks_and_leaves_its_thread_for_the_next() -> None:
    threads = ToolThreads(1)
    failed = threads.submit(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        failed.result(timeout=60)
    assert threads.submit(lambda: 7).result(timeout=60) == 7
    threads.close()
