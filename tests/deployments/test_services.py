"""What `make up` and `make down` may start and end: ports of others, stale state, reused process numbers, whole families."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments import processes, services
from deployments.processes import Record, StateFile
from igpo_core.errors import ServiceError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home with two ports that nobody listens on."""
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    for variable in ("MLFLOW_PORT", "PREFECT_PORT"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            monkeypatch.setenv(variable, str(probe.getsockname()[1]))
    return tmp_path


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of somebody else."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("variable", ["MLFLOW_PORT", "PREFECT_PORT"])
def test_a_port_of_another_program_is_named_and_nothing_starts(
    folder: Path, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv(variable, str(port))
        assert services.main(["up"]) == 1
    message = capsys.readouterr().err
    assert f"port {port}" in message and f"{variable}={port + 1}" in message
    assert StateFile(folder / "services.json").read() == {}


@pytest.mark.parametrize("text", ["many", "80", "70000", "-1"])
def test_a_port_that_is_none(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PREFECT_PORT", text)
    assert services.main(["up"]) == 1
    assert f"PREFECT_PORT={text}" in capsys.readouterr().err


def test_one_port_for_both(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREFECT_PORT", "5123")
    monkeypatch.setenv("MLFLOW_PORT", "5123")
    assert services.main(["up"]) == 1
    assert "5123" in capsys.readouterr().err


def test_down_spares_a_process_that_got_a_number_of_ours(
    folder: Path, bystander: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    state = StateFile(folder / "services.json")
    state.set("mlflow", Record(bystander.pid, "a mark that this process does not bear", 5000))
    assert services.main(["down"]) == 0
    assert bystander.poll() is None
    assert "ended before" in capsys.readouterr().out
    assert state.read() == {}


def test_down_after_the_process_is_gone(folder: Path, bystander: subprocess.Popen[bytes]) -> None:
    bystander.kill()
    bystander.wait()
    state = StateFile(folder / "services.json")
    state.set("worker", Record(bystander.pid, "mark", 0))
    assert services.main(["down"]) == 0
    assert state.read() == {}


def test_down_with_nothing_started(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert services.main(["down"]) == 0
    assert "Nothing" in capsys.readouterr().out


def test_a_damaged_state_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "services.json").write_text('{"mlflow": {"pid":')
    assert services.main(["status"]) == 1
    assert "services.json" in capsys.readouterr().err


def test_ours_on_another_port_is_neither_doubled_nor_moved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _sleeper(folder, port=5999)
    StateFile(folder / "services.json").set("prefect", record)
    try:
        assert services.main(["up"]) == 1
        assert "5999" in capsys.readouterr().err
        assert processes.is_alive(record)
    finally:
        processes.end(record)


def test_end_reaches_children_in_sessions_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(120)\n"
    )
    log = tmp_path / "log"
    record = processes.start(["family"], folder=tmp_path, environment={}, log=log)
    processes.wait_for(
        lambda: bool(log.read_text()), what="family", log=log, alive=lambda: True, seconds=30, say=lambda _: None
    )
    child = int(log.read_text())
    assert processes.end(record) == 2
    assert not processes.is_alive(record)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_end_is_forceful_with_what_ignores_it(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('on', flush=True)\ntime.sleep(120)\n"
    )
    log = tmp_path / "log"
    record = processes.start(["stubborn"], folder=tmp_path, environment={}, log=log)
    processes.wait_for(
        lambda: bool(log.read_text()), what="stubborn", log=log, alive=lambda: True, seconds=30, say=lambda _: None
    )
    started = time.monotonic()
    processes.end(record, patience=0.5)
    assert not processes.is_alive(record) and time.monotonic() - started < 10


def test_a_service_that_dies_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit('no such database')\n")
    log = tmp_path / "log"
    record = processes.start(["broken"], folder=tmp_path, environment={}, log=log)
    with pytest.raises(ServiceError, match="no such database"):
        processes.wait_for(
            lambda: False,
            what="broken",
            log=log,
            alive=lambda: processes.is_alive(record),
            seconds=30,
            say=lambda _: None,
        )


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="does not answer"):
        processes.wait_for(
            lambda: False, what="it", log=tmp_path / "log", alive=lambda: True, seconds=0.3, say=lambda _: None
        )


def test_the_state_file_keeps_the_other_services(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "services.json")
    state.set("mlflow", Record(1, "a", 5000))
    state.set("prefect", Record(2, "b", 4200))
    state.set("mlflow", None)
    assert state.read() == {"prefect": Record(2, "b", 4200)}
    assert list(json.loads(state.path.read_text())) == ["prefect"]


def _sleeper(folder: Path, port: int) -> Record:
    (folder / "sleeper.py").write_text("import time; time.sleep(120)\n")
    return processes.start(["sleeper"], folder=folder, environment={}, log=folder / "log", port=port)
