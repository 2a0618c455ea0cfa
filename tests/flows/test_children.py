"""Which children are started again, and what ends them."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from flows import children
from flows.sweep import require_progress
from igpo_core.errors import IgpoError
from tasks.lab.prefect_runs import Ended
from tasks.runs.children import RESTARTS, run_to_end
from tests.tasks.planned import planned
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]


class Scripted:
    """Children that end as told, one outcome after another."""

    def __init__(self, *outcomes: Ended) -> None:
        self.outcomes = list(outcomes)
        self.started: list[tuple[str, str]] = []

    def run(self, name: Any, run_key: str) -> Ended:
        self.started.append((name, run_key))
        return self.outcomes.pop(0)

    def end(self) -> None: ...


DIED = Ended("the process of this run ended with exit code -9", crashed=True)


@pytest.mark.parametrize(
    ("outcomes", "starts", "reason"),
    [
        ([Ended("")], 1, ""),
        ([DIED, Ended("")], 2, ""),
        ([DIED] * 3 + [Ended("")], 4, ""),
        ([DIED] * 4, 4, DIED.reason),
        ([Ended("ConfigError: no such arm")], 1, "ConfigError: no such arm"),  # it would fail again
        ([DIED, Ended("IgpoError: step 3: the loss is not finite")], 2, "IgpoError: step 3: the loss is not finite"),
    ],
)
def test_only_a_child_that_died_is_started_again(
    tmp_path: Path, outcomes: list[Ended], starts: int, reason: str
) -> None:
    assert RESTARTS == 3
    scripted, said = Scripted(*outcomes), []
    run = planned(tmp_path)
    assert run_to_end(scripted, "train", run, said.append) == reason
    assert scripted.started == [("train", run.spec.run_key)] * starts
    assert len(said) == starts - 1 and all("goes on from its last checkpoint" in line for line in said)


def test_a_sweep_that_always_dies_is_not_started_for_ever() -> None:
    require_progress(10)
    with pytest.raises(IgpoError, match="crashed 10 times"):
        require_progress(11)


def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """The parent forks a child from the fork server, as sweeps do, and is killed: the child gets SIGTERM."""
    code = f"""
    import os, signal, sys, threading, time
    from flows import children

    def child(path):
        def told(number, frame):
            open(path, "w").write(str(number))
            os._exit(0)
        signal.signal(signal.SIGTERM, told)
        children.end_with_parent()
        print("ready", flush=True)
        time.sleep(60)

    if __name__ == "__main__":
        children.FORKED.Process(target=child, args=({str(tmp_path / "told")!r},)).start()
        time.sleep(60)
    """
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(code))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.kill()
    wait_until((tmp_path / "told").is_file)
    assert (tmp_path / "told").read_text() == "15"
    parent.stdout.close()
    parent.wait()


def test_children_come_from_a_fork_server() -> None:
    assert children.FORKED.get_start_method() == "forkserver"
    assert multiprocessing.get_start_method(allow_none=True) != "forkserver"  # of nobody else's processes
