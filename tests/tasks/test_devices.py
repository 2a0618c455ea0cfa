"""Which accelerator a run gets. None is here: what is tested is who may have which."""

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import ablation, night
from flows.children import children_of
from igpo_core.config import ExperimentConfig, TrainingConfig
from igpo_core.errors import ConfigError
from tasks.runs import devices
from tasks.runs.devices import UNITS, at_a_time, borrowed_device, units
from tests.tasks.planned import planned
from tests.waiting import HANGS


@pytest.mark.parametrize(
    ("training", "asked", "names", "expected"),
    [
        ({}, None, 0, 2),
        ({}, 5, 0, 5),
        ({"device": "cuda"}, None, 8, 8),
        ({"device": "cuda"}, 3, 8, 3),
        ({"device": "cuda", "memory_share": 0.5}, None, 8, 16),
        ({"device": "cuda", "memory_share": 0.3}, None, 1, 3),
        ({"device": "cuda", "processes": 8}, None, 8, 1),
        ({"device": "cuda"}, 4, 0, 4),  # none is here: a dry run counts for where they are
        ({"device": "cuda", "memory_share": 0.5}, None, 0, 2),
    ],
)
def test_a_machine_is_used_whole(training: dict[str, Any], asked: int | None, names: int, expected: int) -> None:
    given = TrainingConfig.model_validate(training)
    assert at_a_time(given, asked, [str(name) for name in range(names)]) == expected


def test_a_machine_without_accelerators_is_told_before_any_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, by a sweep and by a night, and by no run: none is left to fail."""
    monkeypatch.setattr(devices, "accelerators", lambda: [])
    monkeypatch.setattr("flows.ablation.mark_whole", lambda *_: None)
    run = planned(tmp_path, ExperimentConfig.model_validate({"training": {"device": "cuda"}}))
    for made in (lambda: ablation.make_runs([run], "processes", 1, print), lambda: night.train_all([run], 1, print)):
        with pytest.raises(ConfigError, match=r"this machine has 0 such devices\. Start it on a machine that has them"):
            made()
    on_the_cpu = planned(tmp_path)
    with pytest.raises(ConfigError, match="this machine has 0 such devices"):  # one of several, of another cell
        children_of("", "processes", [on_the_cpu, run])
    children_of("", "processes", [on_the_cpu])
    devices.require_accelerators(TrainingConfig())
    monkeypatch.setattr(devices, "accelerators", lambda: ["0"])
    devices.require_accelerators(TrainingConfig(device="cuda"))
    with pytest.raises(ConfigError, match=r"has 1 such devices\. Lower training.processes, or"):
        devices.require_accelerators(TrainingConfig(device="cuda", processes=2))


def test_sharing_is_said_and_not_guessed() -> None:
    with pytest.raises(ConfigError, match=r"2 of them have room.*training\.memory_share=0\.5"):
        at_a_time(TrainingConfig(device="cuda"), 4, ["0", "1"])
    assert UNITS == 60
    shares = (1.0, 0.5, 0.34, 1 / 3, 0.1, 0.001)
    assert [units(TrainingConfig(memory_share=share)) for share in shares] == [60, 30, 21, 20, 6, 1]


def hold(folder: Path, names: list[str], needed: int, queue: Any, end: Any) -> None:
    held = devices._first(folder, names, needed)
    queue.put(None if held is None else (held.place, len(held.locks)))
    end.wait(HANGS)


class Others:
    """Processes that take what they need of some accelerators, one after another, and keep it until `end`."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder, self.names = folder, names
        self.context = multiprocessing.get_context("spawn")
        self.queue, self.ended, self.processes = self.context.Queue(), self.context.Event(), []

    def take(self, needed: int) -> Any:
        """Return (place, units) of what another process got; None where none has room."""
        arguments = (self.folder, self.names, needed, self.queue, self.ended)
        self.processes.append(self.context.Process(target=hold, args=arguments, daemon=True))
        self.processes[-1].start()
        return self.queue.get(timeout=HANGS)

    def end(self) -> None:
        self.ended.set()
        for process in self.processes:
            process.join()


def test_each_run_gets_one_of_its_own_until_it_ends(tmp_path: Path) -> None:
    others = Others(tmp_path, ["a", "b"])
    assert [others.take(60), others.take(60), others.take(1)] == [(0, 60), (1, 60), None]
    assert devices._all(tmp_path, ["a", "b"]) is None
    others.end()
    held = devices._all(tmp_path, ["a", "b"])
    assert held is not None and devices._first(tmp_path, ["a", "b"], 1) is None
    held.release()
    assert devices._first(tmp_path, ["a", "b"], 1) is not None


def test_shares_of_any_size_fill_an_accelerator_and_no_more(tmp_path: Path) -> None:
    """Two halves on two accelerators, then quarters where most room is: four fill what is left, a fifth has none."""
    others = Others(tmp_path, ["a", "b"])
    assert [others.take(30), others.take(30)] == [(0, 30), (1, 30)]
    assert devices._first(tmp_path, ["a", "b"], 60) is None  # a whole one is not free
    assert [others.take(15) for _ in range(4)] == [(0, 15), (1, 15), (0, 15), (1, 15)]
    assert others.take(15) is None
    others.end()


def test_one_that_waits_says_so_and_an_evaluation_gives_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On however many accelerators a run of the preset trains, an evaluation takes one."""
    import torch

    asked = ExperimentConfig.model_validate({"training": {"device": "cuda", "processes": 2, "memory_share": 0.5}})
    said: list[str] = []
    waits: list[float] = []
    monkeypatch.setattr(devices.Path, "home", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, place: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=80 * 2**30))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    folder = tmp_path / ".cache" / "igpo-lab" / "devices" / devices.socket.gethostname()
    folder.mkdir(parents=True)
    other = devices._first(folder, ["0"], 60)
    assert other is not None

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        other.release()

    monkeypatch.setattr(devices.time, "sleep", sleep)
    with borrowed_device(asked, said.append) as place:
        assert place == "cuda:0" and len(waits) == 1
        left = devices._first(folder, ["0"], 30)
        assert left is not None and devices._first(folder, ["0"], 1) is None
        left.release()
    assert devices._first(folder, ["0"], 60) is not None
    assert said == ["every accelerator (0) is taken by other runs: waiting for one"]
