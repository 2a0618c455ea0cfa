"""Which secrets of the environment reach whom: each process gets its own, and none besides."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments import place as places
from deployments import processes, servers
from deployments.place import Place
from deployments.processes import Record


class Enough(Exception):
    """Both servers were looked at."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    for variable, value in (("IGPO_HOME", str(tmp_path / "home")), ("MLFLOW_PORT", "5818"), ("PREFECT_PORT", "5819")):
        monkeypatch.setenv(variable, value)
    return Place.from_environment()


OF_SERVERS = {
    "PGPASSWORD": "1", "PGPASSFILE": "2", "MLFLOW_AUTH_ADMIN_PASSWORD": "3", "MLFLOW_FLASK_SERVER_SECRET_KEY": "4",
    "PREFECT_SERVER_DATABASE_CONNECTION_URL": "5", "PREFECT_SERVER_DATABASE_PASSWORD": "6",
    "PREFECT_API_DATABASE_PASSWORD": "7", "MLFLOW_BACKEND_STORE_URI": "8",
}  # fmt: skip
OF_RUNS = {"SEARCH_API_KEY": "a", "JUDGE_API_KEY": "b", "MY_OWN_API_KEY": "c", "HF_TOKEN": "d"}


def test_worker_and_flows_get_no_secret_of_the_servers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OF_SERVERS, **OF_RUNS}.items():
        monkeypatch.setenv(name, value)
    told = places.environment()
    assert set(OF_SERVERS) & set(told) == set()
    assert {name: told[name] for name in OF_RUNS} == OF_RUNS


def test_a_sweep_of_the_terminal_drops_them_before_it_starts_a_process(place: Place) -> None:
    program = (
        "import os, flows.command as command\n"
        "def seen():\n    print(sorted(set(os.environ) & {'PGPASSWORD', 'MLFLOW_AUTH_ADMIN_PASSWORD', 'SEARCH_API_KEY'}))\n"
        "    raise SystemExit\n"
        "command.require_servers = seen\ncommand.main(['tiny'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **OF_SERVERS, **OF_RUNS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['SEARCH_API_KEY']", done.stdout + done.stderr


def test_the_servers_get_no_key_of_a_search_or_a_judge(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "small.py").write_text("import time\ntime.sleep(600)\n")
    for name, value in {**OF_SERVERS, **OF_RUNS, "PYTHONPATH": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    for name in ("prefect_server", "mlflow_server"):
        small = servers.Server(name, name, ("small",), 0, "", "http://127.0.0.1/")
        monkeypatch.setattr(servers, name, lambda _, small=small: small)
    seen: list[set[str]] = []

    def look(place: Place, name: str, title: str, record: Record, **_: object) -> None:
        for _ in range(200):
            if told := psutil.Process(record.pid).environ():
                break
        seen.append(set(told))
        if len(seen) == 2:
            raise Enough

    monkeypatch.setattr(servers, "wait_until_ready", look)
    monkeypatch.setattr(processes, "require_free_port", lambda *_: None)
    try:
        with pytest.raises(Enough):
            servers.start_servers(place)
    finally:
        for record in place.state.read().values():
            processes.end(record, patience=1)
    assert len(seen) == 2
    for told in seen:
        assert told & set(OF_RUNS) == set()
        assert "PGPASSWORD" in told
