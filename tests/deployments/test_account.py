"""The account of the embedded servers, and the .env that Prefect reads."""

import json
import os
import re
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from deployments import processes, servers, shell
from deployments.place import Place
from deployments.registration import client, close_template
from igpo_core.errors import ServiceError
from tasks.lab.account import make_account, mlflow_has_account, read_account
from tasks.lab.home import PROJECT
from tests.waiting import HANGS

SECRETS = (
    "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_URL", "MLFLOW_AUTH_CONFIG_PATH",
    "IGPO_MLFLOW_ACCOUNT", "MLFLOW_BACKEND_STORE_URI",
)  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A laboratory that never ran, with a .env of its own."""
    for variable in SECRETS:
        monkeypatch.delenv(variable, raising=False)
    for variable, value in (("IGPO_HOME", str(tmp_path / "home")), ("MLFLOW_PORT", "5818"), ("PREFECT_PORT", "5819")):
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(shell, "ENV", tmp_path / ".env")
    yield Place.from_environment()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------------------------------------ the account


def test_the_first_start_makes_an_account_that_the_user_alone_reads(place: Place) -> None:
    assert place.account is None and place.environment()["PREFECT_API_AUTH_STRING"] == ""
    assert not (place.home / "account").exists()  # whoever reads it makes none
    account = make_account(place.home)
    name, _, password = account.partition(":")
    assert name == "igpo" and len(password) == 43  # 32 random bytes
    assert mode(place.home / "account") == 0o600
    assert place.account == account
    assert make_account(place.home / "other") != account


def test_a_users_own_account_is_taken(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:own")
    make_account(place.home)
    assert place.server_environment()["PREFECT_SERVER_API_AUTH_STRING"] == "me:own"
    assert place.environment()["PREFECT_API_AUTH_STRING"] == "me:own"


@pytest.mark.parametrize("text", ["name", ":password", "name:", "a:b\nc", "a:${HOME}"])
def test_what_is_no_account_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", text)
    with pytest.raises(ServiceError, match="name:password"):
        make_account(place.home)


def test_an_account_that_others_may_read_is_refused(place: Place) -> None:
    make_account(place.home)
    (place.home / "account").chmod(0o644)
    with pytest.raises(ServiceError, match="0644"):
        read_account(place.home)


def test_an_account_of_another_user_is_asked_for(place: Place) -> None:
    """Of a folder that a group shares."""
    make_account(place.home)
    (place.home / "account").chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root reads every file")
    with pytest.raises(ServiceError, match="set PREFECT_API_AUTH_STRING to it"):
        read_account(place.home)


@pytest.mark.parametrize(("status", "closed"), [(401, True), (200, False), (404, False)])
def test_a_server_of_before_that_asks_for_no_account_is_refused(status: int, closed: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = nullcontext() if closed else pytest.raises(ServiceError, match=f"answered with {status}.*make down")
        with told:
            servers.require_closed("Prefect", f"http://127.0.0.1:{server.server_port}/api/admin/version")
        server.shutdown()


def test_the_account_goes_to_no_other_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect would take it from .env: an empty variable says that there is none."""
    make_account(place.home)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    monkeypatch.setenv("PREFECT_API_URL", "http://lab:4200/api")
    elsewhere = Place(place.home, place.mlflow_port, place.prefect_port, elsewhere=True)
    assert elsewhere.environment()["PREFECT_API_AUTH_STRING"] == ""
    with client(elsewhere) as api:
        assert api.auth is None
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "me:there")
    assert elsewhere.environment()["PREFECT_API_AUTH_STRING"] == "me:there"
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{place.prefect_port}/api")
    monkeypatch.delenv("PREFECT_API_AUTH_STRING")
    assert elsewhere.account == read_account(place.home)


# ------------------------------------------------------------------------------------------------ .env


def prefect_reads(folder: Path) -> list[str | None]:
    """What Prefect's settings are in a process without variables that works in that folder."""
    program = (
        "import json; from prefect.settings import get_current_settings; s = get_current_settings()\n"
        "print(json.dumps([s.api.url, s.api.auth_string and s.api.auth_string.get_secret_value(), str(s.home)]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    found: list[str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("account", "home"), [("igpo:plain", "home"), ("me:it's \\a# \"strange\" $one='x'", "a user's folder #1")]
)
def test_prefect_reads_address_and_account_from_env(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, account: str, home: str
) -> None:
    place = replace(place, home=tmp_path / home)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", account)
    make_account(place.home)
    shell.tell_prefect(place)
    assert mode(shell.ENV) == 0o600
    assert prefect_reads(tmp_path) == ["http://127.0.0.1:5819/api", account, str(place.home / "prefect")]


def test_lines_of_the_user_stay_and_ours_go(place: Place) -> None:
    mine = "# mine\u2028and more\nSEARCH_API_KEY=key\n\n"  # one comment: Prefect ends lines at \n alone
    shell.ENV.write_text(mine)
    shell.tell_prefect(place)
    shell.tell_prefect(place)
    written = shell.ENV.read_text()
    assert written.startswith(mine) and written.count("\n") == 3 + 5 and mode(shell.ENV) == 0o600
    shell.forget(place)
    assert shell.ENV.read_text() == mine


def test_lines_behind_ours_stay_also_where_our_last_one_is_gone(place: Place) -> None:
    shell.tell_prefect(place)
    ours = shell.ENV.read_text().splitlines()
    shell.ENV.write_text("\n".join([*ours[:-1], "SEARCH_API_KEY=key"]) + "\n")
    shell.forget(place)
    assert shell.ENV.read_text() == "SEARCH_API_KEY=key\n"


def test_an_address_or_account_of_the_users_own_is_not_shadowed(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "export PREFECT_API_AUTH_STRING=me:mine\n"
    shell.ENV.write_text(own)
    shell.tell_prefect(place)
    assert shell.ENV.read_text() == own
    assert "PREFECT_API_AUTH_STRING of your own" in capsys.readouterr().out


def test_another_laboratory_that_runs_keeps_the_file(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    other = Place(place.home.parent / "other", 5816, 5817)
    log = other.home / "log"
    record = processes.start(
        ("http.server", "--help"), folder=place.home.parent, environment=os.environ, log=log
    )  # ends by itself
    other.state.set("prefect", record)
    for process in processes.members(record):
        process.wait(HANGS)
    shell.tell_prefect(other)
    shell.tell_prefect(place)  # the other one has ended
    assert f"for {place.home}\n" in shell.ENV.read_text()

    sleeping = "import time; time.sleep(600)"
    (place.home.parent / "asleep.py").write_text(sleeping)
    record = processes.start(
        ("asleep",), folder=place.home.parent, environment={**os.environ, "PYTHONPATH": "."}, log=log
    )
    try:
        other.state.set("prefect", record)
        shell.tell_prefect(other)
        capsys.readouterr()
        shell.tell_prefect(place)
        assert f"for {other.home}\n" in shell.ENV.read_text()
        assert f"belongs to {other.home}, which runs" in capsys.readouterr().out
    finally:
        processes.end(record, patience=1)


def test_what_is_printed_for_a_shell_shows_no_password(place: Place) -> None:
    password = make_account(place.home).partition(":")[2]
    lines = shell.exports(place)
    assert not any(password in line for line in lines)
    program = "\n".join([*lines, 'printf "%s" "$PREFECT_API_AUTH_STRING"'])
    told = subprocess.run(["sh", "-c", program], capture_output=True, text=True, check=True).stdout
    assert told == place.account


def test_a_shells_flows_live_as_those_of_make_do(place: Place) -> None:
    """A heartbeat every 30 s, which the automation counts on: Prefect's own three minutes have healthy runs end as Crashed."""
    make_account(place.home)
    makefile = (PROJECT / "Makefile").read_text()
    named = re.findall(r"^export ((?:PREFECT|DO_NOT|MLFLOW_DISABLE|GX)\w*) := (\w+)$", makefile, re.MULTILINE)
    lines = shell.exports(place)
    assert (
        len(named) == 6
        and [f"export {name}={value}" for name, value in named if f"export {name}={value}" not in lines] == []
    )


# ------------------------------------------------------------------------------------------------ MLflow, pools


def test_mlflow_has_the_account_when_it_is_asked_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--app-name" not in servers.mlflow_server(place).arguments
    monkeypatch.setenv("IGPO_MLFLOW_ACCOUNT", "on")
    name, _, password = make_account(place.home).partition(":")
    server = servers.mlflow_server(place)
    assert server.arguments[-2:] == ("--app-name", "basic-auth")
    assert server.variables["MLFLOW_AUTH_ADMIN_PASSWORD"] == password
    assert not any(password in argument for argument in server.arguments)
    told = place.environment()
    assert (told["MLFLOW_TRACKING_USERNAME"], told["MLFLOW_TRACKING_PASSWORD"]) == (name, password)


@pytest.mark.parametrize(("value", "own"), [("yes", ""), ("on", "accounts.ini")])
def test_the_switch_is_on_or_off_and_alone(place: Place, monkeypatch: pytest.MonkeyPatch, value: str, own: str) -> None:
    monkeypatch.setenv("IGPO_MLFLOW_ACCOUNT", value)
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", own)
    with pytest.raises(ServiceError, match="IGPO_MLFLOW_ACCOUNT"):
        mlflow_has_account()


def test_a_pool_of_an_earlier_version_is_closed(capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[tuple[str, object]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append((request.url.path, json.loads(request.content)))
        return httpx.Response(204)

    template = {
        "job_configuration": {"command": "{{ command }}", "env": "{{ env }}", "working_dir": "{{ working_dir }}"},
        "variables": {"properties": {"command": {}, "working_dir": {}, "env": {"default": {"MINE": "1"}}}},
    }
    with httpx.Client(base_url="http://server/api", transport=httpx.MockTransport(answer)) as api:
        close_template(api, {"name": "igpo", "base_job_template": template})
        close_template(api, {"name": "igpo", "base_job_template": template})  # nothing more to do
    closed = {
        "job_configuration": {"env": "{{ env }}"},
        "variables": {"properties": {"env": {"default": {"MINE": "1"}}}},
    }
    assert sent == [("/api/work_pools/igpo", {"base_job_template": closed})]
