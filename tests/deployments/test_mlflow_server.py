"""Who reaches the embedded MLflow reads and writes no other folder of its user's, and runs nothing. Two servers, a minute."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments import processes, servers
from deployments.place import Place
from tasks.lab.account import make_account
from tasks.lab.home import PROJECT
from tests.e2e.conftest import free_ports
from tests.waiting import wait_until


@dataclass(frozen=True)
class Running:
    """A server, and what is its user's."""

    client: httpx.Client
    users: Path


@pytest.fixture(scope="module", params=["off", "on"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """MLflow as `make up` starts it, without and with its account, on a database in which an experiment of an earlier server
    names a folder of the user's."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    users = tmp_path_factory.mktemp("users")
    (users / "account").write_text("igpo:secret\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        patch.setenv("IGPO_MLFLOW_ACCOUNT", str(request.param))
        mlflow, prefect = free_ports()
        place = Place(users / "home", int(mlflow), int(prefect))
        account = make_account(place.home)
        server = servers.mlflow_server(place)
        database = f"sqlite:///{place.home / 'mlflow' / 'mlflow.db'}"
        store: Any = SqlAlchemyStore
        store(database, "mlflow-artifacts:/").create_experiment("before", users.as_uri())
        environment = {**place.server_environment(), **server.variables, "HOME": str(users)}
        log = place.log("mlflow")
        record = processes.start(
            server.arguments, folder=PROJECT, environment=environment, log=log, port=place.mlflow_port
        )
    name, _, password = account.partition(":")
    try:
        with httpx.Client(base_url=place.mlflow_url, auth=(name, password), timeout=60, trust_env=False) as client:
            wait_until(lambda: servers.answers(record, server.health), lambda: processes.is_alive(record))
            yield Running(client, users)
    finally:
        processes.end(record, patience=10)


def run_in(running: Running, experiment: str) -> dict[str, str]:
    """Return what MLflow says of a new run."""
    made = running.client.post("/api/2.0/mlflow/runs/create", json={"experiment_id": experiment}).raise_for_status()
    info: dict[str, str] = made.json()["run"]["info"]
    return info


def test_no_other_program_serves_what_is_not_closed(tmp_path: Path) -> None:
    """MLflow takes gunicorn where this variable is set, with an application of its own."""
    command = [sys.executable, "-m", "deployments.mlflow_server", "--port", free_ports()[0], "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}", "--artifacts-destination", str(tmp_path)]
    environment = {**os.environ, "MLFLOW_GUNICORN_OPTS": "--timeout 60", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    done = subprocess.run(
        [*command, *stores], cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1 and "MLFLOW_GUNICORN_OPTS: this server is run by uvicorn alone" in done.stderr


@pytest.mark.parametrize("field", ["artifact_location", "artifactLocation"])
@pytest.mark.parametrize("where", ["file://{users}", "{users}", "mlflow-artifacts://elsewhere.example/files"])
def test_no_experiment_names_a_place_for_its_files(running: Running, where: str, field: str) -> None:
    body = {"name": f"{where} {field}", field: where.format(users=running.users)}
    for api in ("api", "ajax-api"):
        assert running.client.post(f"/{api}/2.0/mlflow/experiments/create", json=body).status_code == 400


def test_files_elsewhere_are_neither_read_nor_written(running: Running) -> None:
    answer = running.client.get("/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "before"})
    run = run_in(running, answer.raise_for_status().json()["experiment"]["experiment_id"])
    files = running.users / run["run_id"] / "artifacts"
    files.parent.mkdir()
    os.symlink(running.users, files)  # as another user would, in a folder of theirs
    read = running.client.get("/get-artifact", params={"run_uuid": run["run_id"], "path": "account"})
    assert (read.status_code, "secret" in read.text) == (400, False)
    listed = running.client.get("/api/2.0/mlflow/artifacts/list", params={"run_id": run["run_id"]})
    assert (listed.status_code, "account" in listed.json().get("files", "")) == (400, False)
    where = {"run_uuid": run["run_id"], "path": ".bashrc"}
    written = running.client.post("/ajax-api/2.0/mlflow/upload-artifact", params=where, content=b"evil")
    assert written.status_code == 400
    assert not (running.users / ".bashrc").exists()


def test_files_of_its_own_are(running: Running) -> None:
    made = running.client.post("/api/2.0/mlflow/experiments/create", json={"name": "own"}).raise_for_status()
    run = run_in(running, made.json()["experiment_id"])
    at = f"/api/2.0/mlflow-artifacts/artifacts/{run['experiment_id']}/{run['run_id']}/artifacts/report/a.txt"
    running.client.put(at, content=b"fine").raise_for_status()
    read = running.client.get("/get-artifact", params={"run_uuid": run["run_id"], "path": "report/a.txt"})
    assert (read.status_code, read.content) == (200, b"fine")


def test_nobody_has_a_model_run_commands(running: Running) -> None:
    """MLflow's assistant runs what a model answers, and whoever reaches it names the model's server."""
    theirs = {"model": "m", "base_url": "http://127.0.0.1:9", "selected": True, "permissions": {"full_access": True}}
    assistant = "/ajax-api/3.0/mlflow/assistant"
    calls = (
        ("PUT", "/config", {"providers": {"ollama": theirs}}),
        ("POST", "/message", {"message": "x"}),
        ("GET", "/config", None),
    )
    for method, path, body in calls:
        assert running.client.request(method, assistant + path, json=body).status_code == 404, path
    assert not (running.users / ".mlflow").exists()
