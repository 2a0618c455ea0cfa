"""IGPO_HOME is its user's alone, or a group's where that is asked for; never everybody's."""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
import requests

from deployments.steps import enter_project
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that IGPO_HOME names, which is not there; umask and current folder as they were, afterwards."""
    before, folder = os.umask(0o022), os.getcwd()
    monkeypatch.setenv("IGPO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("IGPO_SHARED", raising=False)
    yield tmp_path / "home"
    os.umask(before)
    os.chdir(folder)


def write(folder: Path) -> Path:
    """A file below the folder, as some step writes it."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    (folder / "runs" / "result.json").write_text("{}")
    return folder / "runs" / "result.json"


def test_a_flow_run_of_a_worker_writes_for_its_user_alone(place: Path) -> None:
    enter_project()
    written = write(place)
    assert (mode(place), mode(written.parent), mode(written)) == (0o700, 0o700, 0o600)


def test_a_folder_of_before_is_closed(place: Path) -> None:
    write(place)
    assert mode(place) == 0o755
    enter_project()
    assert mode(place) == 0o700


@pytest.mark.parametrize(
    "command", ["deployments.services status", "flows.command", "tasks.runs.pruning", "tasks.tracking.owed"]
)
def test_every_command_makes_the_folder_its_users_alone(place: Path, command: str) -> None:
    module, *arguments = command.split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    code = f"import os; os.umask(0o022); from {module} import main; "
    arguments = ["tiny", "--seeds", "0"] if module == "flows.command" else arguments
    place.mkdir()
    call = "main()" if module == "tasks.tracking.owed" else f"main({arguments})"
    subprocess.run([sys.executable, "-c", code + call], cwd=ROOT, env=environment, capture_output=True, timeout=HANGS)
    assert mode(place) == 0o700


def refusal(monkeypatch: pytest.MonkeyPatch) -> str:
    try:
        enter_project()
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("opened", [0o777, 0o775, 0o757])
def test_a_folder_that_others_may_write_to_is_refused(
    place: Path, opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.mkdir()
    place.chmod(opened)
    assert f"others may write to {place}" in refusal(monkeypatch) and "chmod 700" in refusal(monkeypatch)


def test_a_folder_of_another_user_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert "belongs to another user" in refusal(monkeypatch)


def test_a_shared_folder_is_its_groups_and_nobody_elses(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPO_SHARED", "group")
    enter_project()
    written = write(place)
    assert (mode(place), mode(written)) == (0o2770, 0o660)
    monkeypatch.setattr(os, "geteuid", lambda: place.stat().st_uid + 1)
    assert refusal(monkeypatch) == ""
    place.chmod(0o2777)
    assert f"others may write to {place}" in refusal(monkeypatch)


def test_another_way_to_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IGPO_SHARED", "yes")
    assert "IGPO_SHARED=yes" in refusal(monkeypatch)


def test_who_wants_no_proxy_at_all_gets_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"http_proxy": "http://127.0.0.1:9", "no_proxy": "*", "NO_PROXY": "*"}.items():
        monkeypatch.setenv(name, value)
    enter_project()
    assert requests.utils.get_environ_proxies("http://mlflow.example.net/") == {}


@pytest.mark.parametrize("named", ["", "example.org, 10.0.0.1"])
def test_the_account_goes_to_no_proxy(place: Path, monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    """httpx and requests, which the clients of Prefect and MLflow use, ask a proxy of the environment for 127.0.0.1, too."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *told: object) -> None:
            pass

    proxy = HTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, named)
    enter_project()
    try:
        for address in ("http://127.0.0.1:9/api", "http://localhost:9/api"):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(address, auth=("igpo", "password"))
            with contextlib.suppress(requests.RequestException):
                requests.get(address, auth=("igpo", "password"), timeout=10)
        assert seen == []
        assert httpx.get("http://example.net/").status_code == 200 and seen == ["http://example.net/"]
        assert os.environ["no_proxy"].startswith("example.org,10.0.0.1," if named else "127.0.0.1,")
    finally:
        proxy.shutdown()
        proxy.server_close()
