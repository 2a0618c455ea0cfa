"""Calls that nobody waits for: in order, and their errors are not lost."""

import contextvars
import threading

import pytest

from tasks.tracking.background import Background
from tests.waiting import HANGS

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_calls_are_made_in_order_while_others_go_on() -> None:
    background, gate = Background(), threading.Event()
    seen: list[str] = []
    background.submit(lambda: seen.append(f"first {gate.wait(HANGS)}"))
    background.submit(lambda: seen.append("second"))
    assert background.busy and seen == []  # submit did not wait
    gate.set()
    background.wait()
    assert seen == ["first True", "second"] and not background.busy


def test_an_error_is_raised_once_and_later_calls_are_made() -> None:
    background, gate = Background(), threading.Event()
    seen: list[str] = []

    def fail() -> None:
        gate.wait(HANGS)
        raise ValueError("no server")

    background.submit(fail)
    background.submit(lambda: seen.append("later"))
    gate.set()
    with pytest.raises(ValueError, match="no server"):
        background.wait()
    background.wait()
    assert seen == ["later"]


def test_a_call_sees_the_context_it_was_submitted_in() -> None:
    background = Background()
    VARIABLE.set("caller's")
    assert background.submit(VARIABLE.get).result() == "caller's"
