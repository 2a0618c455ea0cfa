"""The embedded servers refuse whoever does not have the account: another page, another host, another user of this machine."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.e2e.conftest import ROOT, Servers, free_ports
from tests.waiting import HANGS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

COMES_FROM = {
    "here": {},
    "another page": {"Origin": "http://evil.example"},
    "a file": {"Origin": "null"},
    "another host": {"Host": "evil.example"},
    "its own page": {"Origin": "{own}", "Host": "{host}"},
    "a wrong account": {"Authorization": "Basic aWdwbzp3cm9uZw=="},  # igpo:wrong
    "a token": {"Authorization": "Bearer anything"},
}
CALLS = (
    ("POST", "/deployments/filter", {}),
    ("POST", "/block_documents/filter", {"include_secrets": True}),
    ("POST", "/flows/", {"name": "planted"}),
    ("GET", "/admin/settings", None),
    ("GET", "/deployments/name/ablation/tiny", None),
    ("POST", "/health", None),
    ("GET", "/collections/../health/../admin/version", None),
)


@pytest.mark.parametrize("where", COMES_FROM)
def test_every_call_without_the_account_is_refused(servers: Servers, where: str) -> None:
    api = servers.environment["PREFECT_API_URL"]
    own = api.removesuffix("/api")
    headers = {name: value.format(own=own, host=own.split("//")[1]) for name, value in COMES_FROM[where].items()}
    for method, path, body in CALLS:
        answer = httpx.request(method, api + path, json=body, headers=headers, timeout=30)
        assert answer.status_code == 401, (method, path, answer.status_code)
        assert answer.headers.get("access-control-allow-origin") in (None, own)
    blind = httpx.post(f"{api}/flows/", content=b'{"name": "planted"}', headers=headers, timeout=30)  # no Content-Type
    assert blind.status_code == 401


def test_with_the_account_it_serves(servers: Servers) -> None:
    api = servers.environment["PREFECT_API_URL"]
    assert httpx.post(f"{api}/flows/", json={"name": "planted"}, timeout=30).status_code == 401
    found = servers.ask("POST", "/flows/filter", {})
    assert "ablation" in [flow["name"] for flow in found]
    assert "planted" not in [flow["name"] for flow in found]


def test_events_and_logs_are_not_streamed_without_it(servers: Servers) -> None:
    api = servers.environment["PREFECT_API_URL"].replace("http:", "ws:")
    for stream in ("events/out", "logs/out"):
        assert not admitted(f"{api}/{stream}", "d3Jvbmc="), f"{stream} took a wrong account"
        assert not admitted(f"{api}/{stream}", None), f"{stream} took none"


def admitted(stream: str, token: str | None) -> bool:
    try:
        with connect(stream, subprotocols=["prefect"], open_timeout=HANGS) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "auth", "token": token}))
            return "auth_success" in str(socket.recv(timeout=20))
    except (ConnectionClosed, InvalidStatus):
        return False


def test_prefect_works_by_the_env_file_alone(servers: Servers, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from deployments import shell; from deployments.place import Place\n"
        "shell.ENV = Path(sys.argv[1]); shell.tell_prefect(Place.from_environment())"
    )
    written = servers.run(sys.executable, "-c", program, str(tmp_path / ".env"))
    assert written.returncode == 0, written.stderr
    bare = {name: value for name, value in servers.environment.items() if not name.startswith("PREFECT_")}
    command = ["prefect", "deployment", "inspect", "ablation/tiny"]
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0 and "tiny" in done.stdout, done.stdout + done.stderr


def test_a_flow_run_cannot_choose_its_command(servers: Servers, tmp_path: Path) -> None:
    """Nor its folder: job variables that the pool's template does not have change nothing."""
    planted = tmp_path / "planted"
    deployment = servers.ask("GET", "/deployments/name/prepare-data/outcome-vs-igpo")["id"]
    asked = {
        "state": {"type": "SCHEDULED"},
        "parameters": {"preset": "tiny"},
        "job_variables": {"command": f"touch {planted}", "working_dir": str(tmp_path)},
    }
    run = servers.ask("POST", f"/deployments/{deployment}/create_flow_run", asked)["id"]
    deadline = time.monotonic() + HANGS
    while servers.ask("GET", f"/flow_runs/{run}")["state_type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        assert not planted.exists(), "the command of a flow run was executed"
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert not planted.exists(), "the command of a flow run was executed"
    assert servers.ask("GET", f"/flow_runs/{run}")["state_type"] == "COMPLETED"


# ------------------------------------------------------------------------------------------------ MLflow


@pytest.fixture
def with_mlflow(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    ports = dict(zip(("MLFLOW_PORT", "PREFECT_PORT"), free_ports(), strict=True))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "IGPO_"))},
        **ports,
        "IGPO_HOME": str(tmp_path / "home"),
        "IGPO_MLFLOW_ACCOUNT": "on",
    }
    service = [sys.executable, "-m", "deployments.services"]
    try:
        up = subprocess.run(
            [*service, "servers"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS
        )
        assert up.returncode == 0, up.stdout + up.stderr
        yield tmp_path / "home", environment
    finally:
        subprocess.run([*service, "down"], cwd=ROOT, env=environment, check=True, capture_output=True, timeout=HANGS)


@pytest.mark.night
def test_mlflow_asks_for_the_account_too_where_it_was_told_to(with_mlflow: tuple[Path, dict[str, str]]) -> None:
    home, environment = with_mlflow
    name, _, password = (home / "account").read_text().strip().partition(":")
    search = f"http://127.0.0.1:{environment['MLFLOW_PORT']}/api/2.0/mlflow/experiments/search"
    for account in (None, (name, "wrong")):
        assert httpx.post(search, json={"max_results": 5}, auth=account, timeout=60).status_code == 401
    assert httpx.post(search, json={"max_results": 5}, auth=(name, password), timeout=60).status_code == 200
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert password not in shown
    wrong = {**environment, "IGPO_MLFLOW_ACCOUNT": "off"}  # another shell, where nobody set it
    wrong["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{environment['MLFLOW_PORT']}"
    program = "from tasks.tracking.server import experiment_id; experiment_id('x')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=wrong, capture_output=True, text=True)
    assert done.returncode == 1 and "set IGPO_MLFLOW_ACCOUNT=on where the servers were" in done.stderr, done.stderr
    program = "from tasks.tracking.server import client; print(len(client().search_experiments()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"\d+", done.stdout.splitlines()[-1]), done.stdout + done.stderr
