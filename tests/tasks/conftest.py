"""A real MLflow server over SQLite, once for all tests here."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import HANGS, wait_until


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address, which MLFLOW_TRACKING_URI names meanwhile."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address, store = f"http://127.0.0.1:{port}", f"sqlite:///{folder / 'mlflow.db'}"
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # as in deployments.services: seven processes less
    }
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}, **quiet}
    command = [str(Path(sys.executable).with_name("mlflow"))]
    subprocess.run([*command, "db", "upgrade", store], env=environment, check=True, capture_output=True)
    serve = [
        "server",
        "--backend-store-uri",
        store,
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--workers",
        "1",
    ]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, *serve, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    patch = pytest.MonkeyPatch()
    try:
        _wait(address, server, folder / "log")
        patch.setenv("MLFLOW_TRACKING_URI", address)
        for name, value in quiet.items():
            patch.setenv(name, value)
        yield address
    finally:
        patch.undo()
        os.killpg(server.pid, 15)
        server.wait(HANGS)


def _wait(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=30):
                return True
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_until(answers, lambda: server.poll() is None)
    except AssertionError as error:
        raise AssertionError(f"{error}: {log.read_text()}") from error


@pytest.fixture
def signals() -> Any:
    """Puts back what a test, or what it calls, does with the signals to end."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
