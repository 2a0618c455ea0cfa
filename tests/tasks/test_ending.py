"""Processes end when they are told to, by force where they do not, with what they start while they end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tasks.lab.ending import end
from tests.waiting import wait_until

WILLING = "import time; print('ready', flush=True); time.sleep(600)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
# told to end, it leaves another one that does not hear SIGTERM, and ends
HEIR = f"""
import os, signal, subprocess, sys, time
def told(number, frame):
    heir = subprocess.Popen([sys.executable, "-c", {DEAF!r}], stdout=subprocess.PIPE)
    heir.stdout.readline()
    open(sys.argv[1] + ".new", "w").write(str(heir.pid))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    os._exit(0)
signal.signal(signal.SIGTERM, told)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[bytes]"]]:
    every: list[subprocess.Popen[bytes]] = []
    yield every
    for one in every:
        one.kill()
        one.wait()
        assert one.stdout is not None
        one.stdout.close()


def start(code: str, started: list["subprocess.Popen[bytes]"], *arguments: str) -> psutil.Process:
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE)
    started.append(child)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    return psutil.Process(child.pid)


def test_one_that_ends_is_not_killed_and_one_that_does_not_is(started: list["subprocess.Popen[bytes]"]) -> None:
    family = [start(WILLING, started), start(DEAF, started)]
    before = time.monotonic()
    assert end(family, lambda: family, 0.5) == []
    assert time.monotonic() - before >= 0.5
    assert [one.wait() for one in started] == [-15, -9]


def test_those_that_are_not_asked_get_their_time_and_no_signal_before(started: list["subprocess.Popen[bytes]"]) -> None:
    asked, child = start(WILLING, started), start(WILLING, started)
    assert end([asked], lambda: [child], 0.5) == []
    assert [one.wait() for one in started] == [-15, -9]


def test_what_is_started_while_ending_belongs_to_the_family(
    started: list["subprocess.Popen[bytes]"], tmp_path: Path
) -> None:
    path = tmp_path / "heir"
    parent = start(HEIR, started, str(path))

    def family() -> list[psutil.Process]:
        return (
            [psutil.Process(int(path.read_text()))]
            if path.is_file() and psutil.pid_exists(int(path.read_text()))
            else []
        )

    assert end([parent], family, 1.0) == []
    assert started[0].wait() == 0
    wait_until(lambda: not family() or family()[0].status() == psutil.STATUS_ZOMBIE)


def test_one_that_has_ended_already_is_no_fault(started: list["subprocess.Popen[bytes]"]) -> None:
    gone = start(WILLING, started)
    started[0].kill()
    started[0].wait()
    assert end([gone], lambda: [gone], 5.0) == []
