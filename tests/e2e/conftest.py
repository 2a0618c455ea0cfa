"""Real servers for the whole session: `deployments.services up` in a temporary home on free ports."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.registration import Patient
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Servers:
    """A running laboratory: its folder and the environment that commands need to reach it."""

    home: Path
    environment: dict[str, str]
    printed: str

    @property
    def account(self) -> tuple[str, str]:
        """Of the Prefect server: name and password."""
        name, _, password = self.environment["PREFECT_API_AUTH_STRING"].partition(":")
        return name, password

    def run(self, *command: str, timeout: float = HANGS) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """What the Prefect server answers; asked again while SQLite's lock keeps it busy, as Prefect's own client does."""
        url = self.environment["PREFECT_API_URL"]
        with httpx.Client(base_url=url, auth=self.account, timeout=60, trust_env=False, transport=Patient()) as api:
            answer = api.request(method, path, json=body).raise_for_status()
        return answer.json() if answer.content else None


def free_ports() -> tuple[str, str]:
    """Two ports that nobody listens on; held together, or the system may give one port twice."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return str(first.getsockname()[1]), str(second.getsockname()[1])


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("laboratory")
    ports = dict(zip(("MLFLOW_PORT", "PREFECT_PORT"), free_ports(), strict=True))
    tools = str(Path(sys.executable).parent)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "IGPO_"))},
        **ports,
        "IGPO_HOME": str(home),
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }
    environment |= {
        "PREFECT_API_URL": f"http://127.0.0.1:{ports['PREFECT_PORT']}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{ports['MLFLOW_PORT']}",
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GX_ANALYTICS_ENABLED": "false",
    }
    service = [sys.executable, "-m", "deployments.services"]
    try:
        up = subprocess.run([*service, "up"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)
        assert up.returncode == 0, up.stdout + up.stderr
        account = home / "account"
        environment["PREFECT_API_AUTH_STRING"] = account.read_text().strip() if account.is_file() else ""
        yield Servers(home, environment, up.stdout)
    finally:
        down = subprocess.run(
            [*service, "down"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS
        )
        assert down.returncode == 0, down.stdout + down.stderr
