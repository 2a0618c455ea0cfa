"""The two servers as deployments/compose starts them, without containers: its commands in its environment, over SQLite."""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.e2e.conftest import ROOT, free_ports
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

SECRETS = {
    "POSTGRES_PASSWORD": "of no database here",
    "PREFECT_ACCOUNT": "somebody:secret",
    "MLFLOW_ADMIN_PASSWORD": "a long enough password",
    "MLFLOW_SECRET_KEY": "a long random text",
}
ELSEWHERE = "127.0.0.2"  # not the address that needs no account, and none that a network reaches
PORTS = {"mlflow": "MLFLOW_PORT", "prefect": "PREFECT_PORT"}
# what only the account may read
PATHS = {
    "mlflow": ("/api/2.0/mlflow/experiments/search?max_results=1", ("admin", SECRETS["MLFLOW_ADMIN_PASSWORD"])),
    "prefect": ("/api/admin/version", ("somebody", "secret")),
}


def of_compose(name: str, home: Path, ports: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return a service's command and environment: its own, but for the databases, which lie in `home`, and the ports."""
    service: dict[str, Any] = yaml.safe_load((ROOT / "deployments" / "compose" / "compose.yaml").read_text())[
        "services"
    ][name]
    environment = {
        key: re.sub(r"\$\{(\w+)[^}]*\}", lambda found: SECRETS[found[1]], str(value))
        for key, value in service["environment"].items()
    }
    (home / "accounts.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{home / 'accounts.db'}\n"
    )
    here = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home / 'mlflow.db'}",
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "accounts.ini"),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": environment.get("MLFLOW_SERVER_ALLOWED_HOSTS", "").replace(
            ":5000", f":{ports['MLFLOW_PORT']}"
        ),
    }
    here["LISTEN"] = ELSEWHERE
    kept = {key: value for key, value in here.items() if key in environment}
    program, *arguments = shlex.split(service["command"])
    assert program == "python"
    return [sys.executable, *arguments], {
        **environment,
        **kept,
        **ports,
        "IGPO_HOME": str(home),
        "PATH": "/usr/bin:/bin",
    }


@pytest.fixture(params=sorted(PORTS))
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, str, Path]]:
    """(name, port, home) of a server that runs."""
    name = request.param
    ports = dict(zip(("MLFLOW_PORT", "PREFECT_PORT"), free_ports(), strict=True))
    command, environment = of_compose(name, tmp_path, ports)
    port = ports[PORTS[name]]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: answers(name, port), lambda: server.poll() is None)
        yield name, port, tmp_path
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # a container's other processes end with its first one
        server.wait()


def get(port: str, path: str, host: str = "127.0.0.1", **given: Any) -> httpx.Response:
    """Ask as somebody who names the server by this host."""
    headers = {"Host": f"{host}:{port}"}
    return httpx.get(f"http://{ELSEWHERE}:{port}{path}", headers=headers, timeout=30, trust_env=False, **given)


def answers(name: str, port: str) -> bool:
    try:
        return get(port, "/health" if name == "mlflow" else "/api/health").is_success
    except httpx.TransportError:
        return False


@pytest.mark.night
def test_a_server_of_compose_answers_its_account_alone(served: tuple[str, str, Path]) -> None:
    name, port, home = served
    path, account = PATHS[name]
    asked = [get(port, path), get(port, path, auth=("somebody", "else")), get(port, path, auth=account)]
    assert [answer.status_code for answer in asked] == [401, 401, 200]
    if name == "mlflow":  # the names that containers call it by, and no other
        hosts = {host: get(port, path, host, auth=account).status_code for host in ("mlflow", "evil.example")}
        assert hosts == {"mlflow": 200, "evil.example": 403}
        assert (home / "mlflow.db").is_file()


@pytest.mark.parametrize(
    ("name", "without"), [("prefect", "PREFECT_API_AUTH_STRING"), ("mlflow", "MLFLOW_AUTH_CONFIG_PATH")]
)
def test_no_server_is_shown_to_a_network_without_an_account(name: str, without: str, tmp_path: Path) -> None:
    ports = dict(zip(("MLFLOW_PORT", "PREFECT_PORT"), free_ports(), strict=True))
    command, environment = of_compose(name, tmp_path, ports)
    del environment[without]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and f"LISTEN={ELSEWHERE}" in done.stderr and without in done.stderr, (
        done.stdout + done.stderr
    )
