"""The services' processes, with small programs in place of the real servers (tests/e2e starts those)."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from deployments import place as places
from deployments import processes, registration, servers, services, shell
from deployments.place import Place
from deployments.processes import Record, StateFile
from deployments.servers import Server, mlflow_server, prefect_server
from igpo_core.errors import ServiceError
from tests.waiting import HANGS, wait_until

# answers every request with 200, but for one that asks for an account, after starting a child in a session of its own
SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("child", child.pid, flush=True)
class Well(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if self.path == "/closed" else 200)
        self.end_headers()
    def do_POST(self):
        self.do_GET()
        self.wfile.write(b"[]")
HTTPServer(("127.0.0.1", int(sys.argv[1])), Well).serve_forever()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A home of its own with two free ports; whatever is left of its services ends with the test."""
    (tmp_path / "small_server.py").write_text(SERVER)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    for variable, value in (
        ("IGPO_HOME", str(tmp_path / "home")),
        ("MLFLOW_PORT", str(free_port())),
        ("PREFECT_PORT", str(free_port())),
        ("PYTHONPATH", str(tmp_path)),
    ):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(shell, "ENV", tmp_path / ".env")
    place = Place.from_environment()
    monkeypatch.setattr(servers, "prefect_server", lambda _: small_server("prefect", place.prefect_port))
    monkeypatch.setattr(servers, "mlflow_server", lambda _: small_server("mlflow", place.mlflow_port))
    yield place
    if place.state.path.is_file() and place.state.path.read_text().startswith("{"):
        for record in place.state.read().values():
            processes.end(record, patience=1)


def small_server(name: str, port: int) -> Server:
    address = f"http://127.0.0.1:{port}/"
    arguments = ("small_server", str(port))
    return Server(name, name.title(), arguments, port, f"{name.upper()}_PORT", address, closed=f"{address}closed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def child_of(place: Place, name: str) -> int:
    found = re.search(r"child (\d+)", place.log(name).read_text())
    assert found
    return int(found[1])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_servers_start_are_reused_and_end_with_all_they_started(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert services.main(["servers"]) == 0
        first = place.state.read()
        assert set(first) == {"mlflow", "prefect"}
        children = [child_of(place, name) for name in first]

        assert services.main(["servers"]) == 0
        assert place.state.read() == first
        assert capsys.readouterr().out.count("reused") == 2

        assert services.main(["status"]) == 0
        assert f"http://127.0.0.1:{place.mlflow_port}" in capsys.readouterr().out

        assert services.main(["down"]) == 0
        assert place.state.read() == {}
        assert all(gone(pid) for pid in [*children, *(record.pid for record in first.values())])
        assert bystander.poll() is None

        assert services.main(["down"]) == 0
        assert "Nothing" in capsys.readouterr().out
    finally:
        bystander.kill()
        bystander.wait()


def test_a_taken_port_is_named_with_its_holder_and_the_variable_to_change(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", place.prefect_port))
        other.listen()
        assert services.main(["servers"]) == 1
    message = capsys.readouterr().err
    assert f"port {place.prefect_port}" in message
    assert f"process {os.getpid()}" in message
    assert f"PREFECT_PORT={place.prefect_port + 1}" in message
    assert place.state.read() == {}  # the other server was not started either


def test_ours_on_another_port_is_neither_doubled_nor_taken_for_the_one_asked(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert services.main(["servers"]) == 0
    before = place.state.read()
    monkeypatch.setattr(servers, "mlflow_server", lambda _: small_server("mlflow", free_port()))
    assert services.main(["servers"]) == 1
    assert f"MLFLOW_PORT={place.mlflow_port}" in capsys.readouterr().err
    assert place.state.read() == before


def test_ours_that_another_version_started_is_not_reused(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow of before runs as `mlflow server`, which anybody of the machine can have write files."""
    assert services.main(["servers"]) == 0
    before = place.state.read()
    described = replace(small_server("mlflow", place.mlflow_port), arguments=("another", str(place.mlflow_port)))
    monkeypatch.setattr(servers, "mlflow_server", lambda _: described)
    assert services.main(["servers"]) == 1
    said = capsys.readouterr().err
    assert "Mlflow" in said and "another version of this project" in said and "`make down`" in said
    assert place.state.read() == before
    assert services.main(["down"]) == 0 and services.main(["status"]) == 0


@pytest.mark.parametrize("host", ["", "0.0.0.0"])
def test_nothing_becomes_a_prefect_server_without_an_account(
    place: Place, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Prefect's own variable for it is not the one that this command reads: the server would ask for none."""
    for name, value in (
        ("PREFECT_API_URL", "http://prefect:4200/api"),
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000"),
        ("PREFECT_SERVER_API_AUTH_STRING", "somebody:secret"),
        ("LISTEN", host),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    became: list[str] = []
    monkeypatch.setattr(os, "execve", lambda *given: became.append(given[2]["PREFECT_SERVER_API_AUTH_STRING"]))
    with pytest.raises(ServiceError, match="set PREFECT_API_AUTH_STRING=name:password"):
        services.serve(place, prefect_server)
    assert became == []
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:secret")
    services.serve(place, prefect_server)
    assert became == ["somebody:secret"]


def test_nothing_becomes_an_mlflow_of_an_account_that_is_not_there(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("PREFECT_API_URL", "http://prefect:4200/api"),
        ("MLFLOW_TRACKING_URI", "http://mlflow:5000"),
        ("IGPO_MLFLOW_ACCOUNT", "on"),
    ):
        monkeypatch.setenv(name, value)
    for name in ("PREFECT_API_AUTH_STRING", "MLFLOW_AUTH_CONFIG_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ServiceError, match="there is none: set PREFECT_API_AUTH_STRING=name:password"):
        services.serve(replace(place, elsewhere=True), mlflow_server)
    assert not (place.home / "mlflow" / "accounts.ini").exists()


def test_down_settles_the_runs_of_its_own_server_alone(place: Place, tmp_path: Path) -> None:
    """Told another port than the one that ours was started on, it must not touch whoever is there."""
    servers.start_servers(place)
    log = tmp_path / "asked"
    port = free_port()
    program = (
        "import sys\nfrom http.server import BaseHTTPRequestHandler, HTTPServer\n"
        "class Other(BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        open(sys.argv[2], 'a').write(self.path)\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'[]')\n"
        "HTTPServer(('127.0.0.1', int(sys.argv[1])), Other).serve_forever()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(port), str(log)])
    try:
        wait_until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), lambda: other.poll() is None)
        services.down(replace(place, prefect_port=port))
        assert not log.exists()
        assert place.state.read() == {}
    finally:
        other.kill()
        other.wait()


def test_what_a_background_job_starts_can_be_interrupted(place: Place) -> None:
    """Such a job of a shell ignores SIGINT and hands that on; Prefect's worker ends by SIGINT."""
    program = (
        "import signal, subprocess, sys\nfrom deployments.services import main\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\nassert main(['status']) == 0\n"
        "subprocess.run([sys.executable, '-c', 'import signal; print(signal.getsignal(signal.SIGINT))'], check=True)\n"
    )
    environment = {**os.environ, "IGPO_HOME": str(place.home)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "default_int_handler" in done.stdout, done.stdout + done.stderr


def test_a_busy_server_is_asked_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 twice, then the answer; a server that stays busy is told as it is."""
    asked: list[bytes] = []

    class Busy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if len(asked) % 10 < 3 else 201)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(registration, "PAUSES", (0.0, 0.0, 0.0))
    server = HTTPServer(("127.0.0.1", place.prefect_port), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with registration.client(place) as api:
            assert api.post("/x", json={"a": 1}).status_code == 201
            assert asked == [b'{"a":1}'] * 3
            asked.extend([b""] * 7)  # the next four are refused again
            monkeypatch.setattr(registration, "PAUSES", (0.0,))
            assert api.post("/x", json={}).status_code == 503
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_dies_at_its_start_shows_the_end_of_its_log(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Server("mlflow", "MLflow", ("no_such_module",), place.mlflow_port, "MLFLOW_PORT", "http://127.0.0.1:9/")
    monkeypatch.setattr(servers, "mlflow_server", lambda _: broken)
    assert services.main(["servers"]) == 1
    message = capsys.readouterr().err
    assert "MLflow ended while it was starting" in message and "no_such_module" in message
    assert "mlflow" not in place.state.read()


def test_another_programs_answer_is_not_taken_for_ours(place: Place, tmp_path: Path) -> None:
    """Two folders started at once on one port: only one of the servers gets it."""
    port = place.mlflow_port
    environment = place.environment()
    first, second = (
        processes.start(("small_server", str(port)), folder=tmp_path, environment=environment, log=log, port=port)
        for log in (tmp_path / "first.log", tmp_path / "second.log")
    )
    try:
        url = f"http://127.0.0.1:{port}/"
        wait_until(lambda: servers.answers(first, url) or servers.answers(second, url))
        assert servers.answers(first, url) != servers.answers(second, url)
    finally:
        processes.end(first, patience=1)
        processes.end(second, patience=1)


def test_a_killed_servers_leftovers_do_not_hold_its_port(place: Place) -> None:
    assert services.main(["servers"]) == 0
    record = place.state.read()["mlflow"]
    child = child_of(place, "mlflow")
    server = psutil.Process(record.pid)
    server.kill()
    server.wait(HANGS)
    assert services.main(["servers"]) == 0
    assert place.state.read()["mlflow"].pid != record.pid
    assert gone(child)


def test_a_stale_state_is_replaced(place: Place) -> None:
    """After a restart of the machine the file names processes that are gone."""
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    place.state.set("mlflow", Record(finished.pid, "0" * 32, place.mlflow_port))
    assert services.main(["servers"]) == 0
    assert place.state.read()["mlflow"].pid != finished.pid


def test_a_reused_process_number_is_never_ended(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        place.state.set("worker", Record(stranger.pid, "0" * 32, 0))
        assert not processes.is_alive(place.state.read()["worker"])
        assert services.main(["down"]) == 0
        assert "worker: had ended before" in capsys.readouterr().out
        assert stranger.poll() is None
        assert place.state.read() == {}
    finally:
        stranger.kill()
        stranger.wait()


def test_a_process_that_ignores_the_request_is_ended_by_force(place: Place, tmp_path: Path) -> None:
    log = tmp_path / "stubborn.log"
    record = processes.start(("stubborn",), folder=tmp_path, environment=place.environment(), log=log)
    wait_until(lambda: "ready" in log.read_text(), lambda: processes.is_alive(record))
    assert processes.end(record, patience=0.5) == 1
    assert gone(record.pid)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MLFLOW_PORT", "web", "MLFLOW_PORT=web is no port"),
        ("PREFECT_PORT", "80", "PREFECT_PORT=80 is no port"),
        ("PREFECT_PORT", "70000", "PREFECT_PORT=70000 is no port"),
    ],
)
def test_a_bad_port_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ServiceError, match=message):
        Place.from_environment()


def test_equal_ports_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "5055")
    monkeypatch.setenv("PREFECT_PORT", "5055")
    with pytest.raises(ServiceError, match="two different ports"):
        Place.from_environment()


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"mlflow": {"pid": 1}})])
def test_a_damaged_state_file_is_named(tmp_path: Path, text: str) -> None:
    state = StateFile(tmp_path / "services.json")
    state.path.write_text(text)
    with pytest.raises(ServiceError, match=r"services\.json cannot be read"):
        state.read()


def test_child_processes_are_told_where_the_services_are_and_to_be_quiet(place: Place) -> None:
    told = places.environment()
    assert told["PREFECT_API_URL"] == f"http://127.0.0.1:{place.prefect_port}/api"
    assert told["MLFLOW_TRACKING_URI"] == f"http://127.0.0.1:{place.mlflow_port}"
    assert told["PREFECT_HOME"] == str(place.home / "prefect")
    assert (told["PREFECT_SERVER_ANALYTICS_ENABLED"], told["GX_ANALYTICS_ENABLED"]) == ("false", "false")
    assert (told["PREFECT_SERVER_UI_V2_ENABLED"], told["PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT"]) == (
        "false",
        "false",
    )
    assert (told["DO_NOT_TRACK"], told["MLFLOW_DISABLE_TELEMETRY"]) == ("true", "true")
