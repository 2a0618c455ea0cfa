"""The servers on a real PostgreSQL, MLflow and Prefect with accounts, a sweep whose arms run on a work pool of two workers
of which one is killed: what deployments/compose describes, without its containers."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.e2e.conftest import ROOT, Servers, free_ports
from tests.waiting import HANGS

pytestmark = [pytest.mark.night, pytest.mark.timeout(3600)]

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
PASSWORD = "only for this test"


@pytest.fixture(scope="module")
def postgres() -> Iterator[int]:
    """The port of a server of our own, which asks for a password."""
    if not BINARIES:
        pytest.skip("no PostgreSQL: apt-get install postgresql (Debian's package; it need not run)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
    owner = {"user": "postgres"} if os.getuid() == 0 else {}  # PostgreSQL refuses to run as root
    if owner:
        shutil.chown(folder, "postgres")
    (folder / "password").write_text(PASSWORD)
    port, _ = free_ports()
    data = str(folder / "data")
    tools = BINARIES[-1]

    def call(*command: str) -> None:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANGS, **owner)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    asked = ["-U", "igpo", "-A", "scram-sha-256", "--pwfile", str(folder / "password"), "--no-sync"]
    call(str(tools / "initdb"), "-D", data, *asked)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    call(str(tools / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        sql = ROOT / "deployments" / "compose" / "databases.sql"
        made = subprocess.run(
            [str(tools / "psql"), "-h", "127.0.0.1", "-p", port, "-U", "igpo", "-d", "postgres"],
            input=sql.read_text(),
            env={**os.environ, "PGPASSWORD": PASSWORD},
            text=True,
            capture_output=True,
        )
        assert made.returncode == 0 and "ERROR" not in made.stderr, made.stderr
        yield int(port)
    finally:
        call(str(tools / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def servers(postgres: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home = tmp_path_factory.mktemp("on-postgres")
    mlflow_port, prefect_port = free_ports()
    place = f"igpo@127.0.0.1:{postgres}"
    (home / "accounts.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = postgresql+psycopg2://{place}/mlflow_accounts\n"
    )
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "IGPO_"))},
        "IGPO_HOME": str(home),
        "MLFLOW_PORT": mlflow_port,
        "PREFECT_PORT": prefect_port,
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
        "PGPASSWORD": PASSWORD,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{place}/prefect",
        "PREFECT_SERVER_API_AUTH_STRING": "somebody:secret",
        "PREFECT_API_AUTH_STRING": "somebody:secret",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://{place}/mlflow",
        "MLFLOW_AUTH_CONFIG_PATH": str(home / "accounts.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a long enough password",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a long random text",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": "a long enough password",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    service = [sys.executable, "-m", "deployments.services"]
    try:
        up = subprocess.run([*service, "up"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)
        assert up.returncode == 0, up.stdout + up.stderr
        yield Servers(home, environment, up.stdout)
    finally:
        down = subprocess.run(
            [*service, "down"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS
        )
        assert down.returncode == 0, down.stdout + down.stderr


def specification(servers: Servers, name: str) -> str:
    """Preset tiny with more steps, under a name of its own."""
    content = yaml.safe_load((ROOT / "deployments" / "presets" / "tiny.yaml").read_text())
    content["base"]["training"] = {"epochs": 4, "steps_per_epoch": 4}
    content["base"]["evaluation"]["every"] = 4
    path = servers.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, "name": name, "seeds": [0]}))
    return str(path)


def run(servers: Servers, **parameters: Any) -> "subprocess.Popen[str]":
    command = ["prefect", "deployment", "run", "ablation/tiny", "--params", json.dumps(parameters), "--watch"]
    return subprocess.Popen(
        command, cwd=ROOT, env=servers.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def numbers(servers: Servers, name: str) -> dict[str, Any]:
    """Run name -> metrics without times, by step; and the hash of the last weights."""
    found = {}
    for folder in sorted((servers.home / "runs").iterdir()):
        about = json.loads((folder / "tracking.json").read_text())
        if about["experiment"] != name:
            continue
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        values = {
            (metric, line["step"]): str(value)
            for line in lines
            for metric, value in line["metrics"].items()
            if not metric.startswith(("time/", "system/")) and "seconds" not in metric
        }
        newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
        weights = hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()
        found[about["run_name"]] = (values, newest.name, weights, (folder / "result.json").is_file())
    return found


def start_worker(servers: Servers) -> psutil.Process:
    environment = {**servers.environment, "LIMIT": "1"}
    with (servers.home / "logs" / "arms.log").open("a") as log:
        command = [sys.executable, "-m", "deployments.services", "worker"]
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    return psutil.Process(started.pid)


def kill_whole(process: psutil.Process) -> None:
    for item in [*process.children(recursive=True), process]:
        item.kill()


def test_no_secret_is_in_the_list_of_processes(servers: Servers) -> None:
    lines = [" ".join(process.cmdline()) for process in psutil.process_iter()]
    assert any("basic-auth" in line for line in lines)
    for secret in (PASSWORD, "a long enough password", "somebody:secret", "a long random text"):
        assert not any(secret in line for line in lines)


def test_a_password_in_the_url_is_refused(servers: Servers) -> None:
    environment = {**servers.environment, "MLFLOW_BACKEND_STORE_URI": "postgresql://igpo:secret@127.0.0.1/mlflow"}
    command = [sys.executable, "-m", "deployments.services", "servers"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 1 and "PGPASSWORD" in done.stderr and "secret" not in done.stdout + done.stderr


def notice_dead_runs_sooner(servers: Servers) -> None:
    """After 50 s without a heartbeat instead of two minutes: they come every 30 s."""
    account = httpx.BasicAuth("somebody", "secret")
    with httpx.Client(base_url=servers.environment["PREFECT_API_URL"], auth=account, timeout=30) as api:
        (found,) = [a for a in api.post("/automations/filter", json={}).json() if a["name"] == "igpo: end dead runs"]
        kept = ("name", "description", "enabled", "trigger", "actions", "actions_on_trigger", "actions_on_resolve")
        changed = {**{name: found[name] for name in kept}, "trigger": {**found["trigger"], "within": 50}}
        api.put(f"/automations/{found['id']}", json=changed).raise_for_status()


def test_two_workers_share_a_sweep_and_one_is_killed(servers: Servers) -> None:
    """The same sweep in processes and on the pool: equal to the bit, though a worker dies with its arm half-way."""
    notice_dead_runs_sooner(servers)
    workers = [start_worker(servers) for _ in range(2)]
    try:
        plain = run(servers, preset=specification(servers, "in-processes"))
        pooled = run(servers, preset=specification(servers, "on-a-pool"), where="pool")
        deadline = time.monotonic() + HANGS
        while True:  # until an arm of the pool has trained for a while
            assert time.monotonic() < deadline and pooled.poll() is None, (
                servers.home / "logs" / "arms.log"
            ).read_text()
            busy = [w for w in workers if w.children() and checkpoints(servers, "on-a-pool")]
            if busy:
                break
            time.sleep(0.1)
        kill_whole(busy[0])
        workers.remove(busy[0])
        output, _ = pooled.communicate(timeout=HANGS)
        assert pooled.returncode == 0, output
        output, _ = plain.communicate(timeout=HANGS)
        assert plain.returncode == 0, output
    finally:
        for worker in workers:
            kill_whole(worker)
    expected = numbers(servers, "in-processes")
    assert len(expected) == 2 and numbers(servers, "on-a-pool") == expected


def checkpoints(servers: Servers, name: str) -> list[Path]:
    return [
        checkpoint
        for about in (servers.home / "runs").glob("*/tracking.json")
        if json.loads(about.read_text())["experiment"] == name
        for checkpoint in about.parent.glob("checkpoints/step-*")
    ]
