"""Curves of what a run takes of its machine: read as they are, written with steps, never in the way of the run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from benchmarks.findings import is_of_the_machine
from igpo_core.config import ExperimentConfig
from igpo_core.environments.lookup import generate
from igpo_core.policies import save_policy
from igpo_core.run import StepDone
from tasks.runs.planned import open_training
from tasks.runs.training import Recorder
from tasks.tracking.outbox import About, Outbox
from tasks.tracking.system import CURVES, Processes, SystemMonitor, monitor
from tests.tasks.planned import planned
from tests.waiting import wait_until

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]
HOLDS = "import sys\nheld = bytearray(b'x') * (256 * 2**20)\nprint('there', flush=True)\nsys.stdin.read()\n"


def test_memory_is_that_of_a_process_and_its_children() -> None:
    """Of a process of its own: that of the tests has servers for children."""
    code = f"""
import os, psutil, subprocess, sys
from tasks.tracking.system import Processes
source = Processes(os.getpid())
seen = [source.read()["system/memory_gib"], psutil.Process().memory_info().rss / 2**30]
command = [sys.executable, "-c", {HOLDS!r}]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
    assert child.stdout.readline() == "there\\n"
    seen.append(source.read()["system/memory_gib"])
seen.append(source.read()["system/memory_gib"])
print(*seen)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, own, held, after = map(float, done.stdout.split())
    assert before == pytest.approx(own, rel=0.1)
    assert 0.25 < held - before < 0.35  # what it allocated, and an interpreter
    assert after < before + 0.1


def test_the_share_of_processors_is_that_of_the_time_between_readings() -> None:
    source, started, spent = Processes(os.getpid()), time.monotonic(), time.process_time()
    while time.process_time() - spent < 0.6:
        sum(range(1000))
    busy, cores = (time.process_time() - spent) / (time.monotonic() - started), os.cpu_count() or 1
    share = source.read()["system/cpu_share"]
    assert share == pytest.approx(busy / cores, rel=0.15)
    time.sleep(0.5)  # the work before is not counted again
    assert source.read()["system/cpu_share"] < 0.3 * share + 0.1


def test_a_process_that_is_gone_is_told() -> None:
    child = subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"there\n"
    source = Processes(child.pid)
    child.communicate()
    with pytest.raises(psutil.NoSuchProcess):
        source.read()


class Scripted:
    """Gives the readings of a list, one after another, and then fails."""

    def __init__(self, readings: list[dict[str, float]]) -> None:
        self._readings: Iterator[dict[str, float]] = iter(readings)

    def read(self) -> Mapping[str, float]:
        found = next(self._readings, None)
        if found is None:
            raise OSError("the sensor is gone")
        return found


def until(told: list[str]) -> None:
    deadline = time.monotonic() + 20
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_has_the_most_memory_and_the_mean_share_and_a_fault_is_told_once() -> None:
    told: list[str] = []
    one = Scripted([{"system/memory_gib": m, "system/cpu_share": s} for m, s in ((1.0, 0.2), (3.0, 0.4), (2.0, 0.9))])
    with SystemMonitor({"memory": lambda: one}, told.append, every=0.01) as system:
        until(told)
        assert system.taken() == {"system/memory_gib": 3.0, "system/cpu_share": pytest.approx(0.5)}
        time.sleep(0.1)
        assert system.taken() == {}
    (line,) = told
    assert line.startswith("warning: memory of this run cannot be read (OSError('the sensor is gone'))")


def test_what_cannot_be_opened_is_told_and_leaves_the_rest() -> None:
    told: list[str] = []

    def missing() -> Scripted:
        raise OSError("no driver")

    sources = {"GPUs": missing, "memory": lambda: Scripted([{"system/memory_gib": 1.5}])}
    with SystemMonitor(sources, told.append, every=3600) as system:
        assert system.taken() == {"system/memory_gib": 1.5}  # a run of a single short step has a value
    assert len(told) == 1 and "GPUs of this run cannot be read (OSError('no driver'))" in told[0]


def test_a_fault_of_our_own_is_raised() -> None:
    monitored = SystemMonitor({"memory": lambda: Scripted([{"system/of_no_curve": 1.0}])}, print, every=3600)
    with monitored as system, pytest.raises(KeyError, match="of_no_curve"):
        system.taken()

    def broken() -> Scripted:
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError, match="a fault of ours"), SystemMonitor({"memory": broken}, print):
        pass


def test_a_fault_of_our_own_in_the_thread_is_raised_with_the_next_step() -> None:
    class Broken:
        reads = 0

        def read(self) -> dict[str, float]:
            self.reads += 1
            if self.reads > 1:
                raise ValueError("a fault of ours")
            return {"system/memory_gib": 1.0}

    source = Broken()
    with SystemMonitor({"memory": lambda: source}, print, every=0.01) as system:
        wait_until(lambda: source.reads > 1)
        with pytest.raises(ValueError, match="a fault of ours"):
            wait_until(lambda: system.taken() is None)


def test_a_fault_after_the_last_step_is_told_and_ends_no_run() -> None:
    class Broken:
        reads = 0

        def read(self) -> dict[str, float]:
            self.reads += 1
            raise ValueError("a fault of ours")

    source, told = Broken(), list[str]()
    with SystemMonitor({"memory": lambda: source}, told.append, every=0.01) as system:
        wait_until(lambda: system._fault is not None)
    assert told == ["warning: the last metrics system/ of this run are missing (ValueError('a fault of ours'))"]


def test_without_a_gpu_there_are_no_curves_of_one_and_nothing_is_imported() -> None:
    code = """
import sys
from igpo_core.config import ExperimentConfig
from tasks.tracking.system import monitor
told = []
with monitor(ExperimentConfig(), "cpu", told.append) as system:
    print(sorted(system.taken()), told, "pynvml" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['system/cpu_share', 'system/memory_gib'] [] False", done.stderr


def test_gpus_are_read_where_there_are_some() -> None:
    """Elsewhere the driver cannot be asked, or its package is absent: the run goes on."""
    told: list[str] = []
    with monitor(ExperimentConfig(), "cuda:0", told.append) as system:
        found = system.taken()
    if torch.cuda.is_available():
        assert told == [] and set(found) == set(CURVES)
        assert 0 < found["system/gpu_memory_gib"] < 2000 and 0 <= found["system/gpu_share"] <= 1
    else:
        assert set(found) == {"system/memory_gib", "system/cpu_share"}
        assert len(told) == 1 and told[0].startswith("warning: GPUs of this run cannot be read")


def test_curves_stand_with_the_steps_and_nowhere_else(taught: Any, tmp_path: Path) -> None:
    """Two runs of a seed, with and without: the same metrics but for the curves, the same identity; and one that goes on from
    its checkpoint writes none twice."""
    config, _, policy = taught
    content = json.loads(config.model_dump_json())
    content["training"] |= {"epochs": 2, "steps_per_epoch": 2}
    content["evaluation"] |= {"every": 2, "dev_questions": 4, "test_questions": 4}
    experiment = ExperimentConfig.model_validate(content)
    lines: dict[str, list[dict[str, Any]]] = {}
    results = {}
    for name in ("with", "without"):
        run = planned(tmp_path / name, experiment)
        run.data.mkdir(parents=True)
        generate(config.data).to_parquet(run.data / "questions.parquet")
        save_policy(policy, run.start)
        told: list[str] = []
        for ended_early in (True, False):
            training = open_training(run, told.append)
            outbox = Outbox(run.folder, About("study", "run", "key", {}, {}))
            watched = SystemMonitor({"m": lambda: Processes(os.getpid())}, told.append, every=0.01)
            with watched if name == "with" else nullcontext() as system:
                recorder = Recorder(run, training, outbox, told.append, system=system.taken if system else dict)
                for event in recorder.events():
                    recorder.write(event)
                    # after the checkpoint of step 2, with a step more in metrics.jsonl
                    if ended_early and isinstance(event, StepDone) and event.step == 3:
                        break
        results[name] = run.spec.run_key, recorder.result
        lines[name] = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    values = {
        name: [(line["step"], metric, value) for line in found for metric, value in line["metrics"].items()]
        for name, found in lines.items()
    }
    curves = [(step, metric) for step, metric, _ in values["with"] if metric.startswith("system/")]
    assert len(set(curves)) == len(curves) and {metric for _, metric in curves} == {
        "system/memory_gib",
        "system/cpu_share",
    }
    assert {step for step, _ in curves} <= {1, 2, 3, 4} and (1, "system/memory_gib") in curves
    kept = {name: [point for point in found if not is_of_the_machine(point[1])] for name, found in values.items()}
    assert kept["with"] == kept["without"] and len(kept["with"]) > 100
    assert results["with"][0] == results["without"][0]
    assert not any(name.startswith("system/") for name in results["with"][1]["metrics"])
