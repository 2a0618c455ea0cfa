"""Which accelerator a run gets. None is here: what is tested is who may have which."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import TrainingConfig
from igpo_core.errors import ConfigError
from tasks import devices
from tasks.devices import at_a_time, shares, take


@pytest.fixture(autouse=True)
def nothing_taken() -> Iterator[None]:
    yield
    for lock in devices._held:
        lock.close()
    devices._held.clear()
    devices._taken.clear()


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
        ({"device": "cuda"}, 4, 0, 1),
    ],
)
def test_a_machine_is_used_whole(training: dict[str, Any], asked: int | None, names: int, expected: int) -> None:
    given = TrainingConfig.model_validate(training)
    assert at_a_time(given, asked, [str(name) for name in range(names)]) == expected


def test_sharing_is_said_and_not_guessed() -> None:
    with pytest.raises(ConfigError, match=r"2 of them have room.*training\.memory_share=0\.5"):
        at_a_time(TrainingConfig(device="cuda"), 4, ["0", "1"])
    assert [shares(TrainingConfig(memory_share=share)) for share in (1.0, 0.5, 0.34, 1 / 3, 0.1)] == [1, 2, 2, 3, 10]


def hold(folder: Path, names: list[str], sharing: int, every: bool, queue: Any, end: Any) -> None:
    said: list[str] = []
    queue.put((take(names, sharing, said.append, every=every, folder=folder), len(said)))
    end.wait(60)


def places(tmp_path: Path, names: list[str], sharing: int, count: int) -> tuple[list[int], Any, Any]:
    context = multiprocessing.get_context("spawn")
    queue, end = context.Queue(), context.Event()
    found = []
    for _ in range(count):
        context.Process(target=hold, args=(tmp_path, names, sharing, False, queue, end), daemon=True).start()
        found.append(queue.get(timeout=60)[0])
    return found, queue, end


def test_each_run_gets_one_of_its_own_and_one_too_many_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _, end = places(tmp_path, ["a", "b"], 1, 2)
    assert sorted(found) == [0, 1]
    said: list[str] = []
    monkeypatch.setattr(devices, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(devices.time, "sleep", lambda seconds: end.set())  # the others end while this one waits
    assert take(["a", "b"], 1, said.append, folder=tmp_path) in (0, 1)
    assert said == ["every accelerator (a, b) is taken by other runs: waiting for one"]
    assert take(["a", "b"], 1, said.append, folder=tmp_path) == devices._taken[0]  # the same one at each call


def test_shares_are_spread_over_all_before_any_is_shared(tmp_path: Path) -> None:
    found, _, end = places(tmp_path, ["a", "b"], 2, 3)
    assert found == [0, 1, 0]
    assert devices._first(tmp_path, ["a", "b"], 1) is None  # whole ones are not free
    last = devices._first(tmp_path, ["a", "b"], 2)
    assert last is not None and last[0] == 1 and devices._first(tmp_path, ["a", "b"], 2) is None
    assert devices._all(tmp_path, ["a", "b"]) is None
    end.set()
