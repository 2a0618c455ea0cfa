"""Threads that call tools for the engine with continuous batching."""

import gc
import time
import weakref
from concurrent.futures import wait

import pytest

from igpo_core.rollout.tool_threads import ToolThreads
from tests.waiting import HANGS


class Call:
    """A call that is part of something large."""

    def __call__(self) -> str:
        return "found"


class Failing(Call):
    def __call__(self) -> str:
        raise LookupError


@pytest.mark.parametrize("kind", [Call, Failing])
def test_a_call_is_gone_with_its_future(kind: type[Call]) -> None:
    """Its thread waits for the next one, and holds nothing of it meanwhile, though nothing is collected."""
    threads, call = ToolThreads(1), kind()
    held = weakref.ref(call)
    future = threads.submit(call)
    del call
    gc.disable()
    try:
        assert wait([future], HANGS).done
        if kind is Call:  # an error has its call in its traceback
            assert future.result() == "found" and held() is None
        del future
        until = time.monotonic() + HANGS
        while held() is not None and time.monotonic() < until:  # its thread may take a moment to wait
            time.sleep(0.001)
        assert held() is None
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
