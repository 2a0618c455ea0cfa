"""What the laboratory needs on this machine: MLflow, the Prefect server, the deployments of prefect.yaml, a worker.

    python -m deployments.services up         all of it; what runs already is kept
    python -m deployments.services servers    MLflow and the Prefect server alone
    python -m deployments.services status     what runs, and where
    python -m deployments.services down       end what up and servers started, and nothing else
    python -m deployments.services register   pools, deployments and automations alone, on the server of PREFECT_API_URL
    python -m deployments.services worker     become a worker for the arms of sweeps, here or on another machine

Databases, artifacts, logs and services.json (what was started) lie in IGPO_HOME, .igpo by default. The servers listen
on 127.0.0.1 alone, on MLFLOW_PORT (5000) and PREFECT_PORT (4200).
"""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import yaml
from sqlalchemy.engine import make_url

from deployments import processes
from deployments.processes import Record, StateFile
from igpo_core.errors import IgpoError, ServiceError
from tasks.home import PROJECT, home

POOL = "igpo"
SWEEPS_QUEUE = "sweeps"  # one sweep after another, whoever started them
ARMS_POOL = "igpo-arms"
AT_ONCE = 3  # flow runs of pool `igpo`: a sweep, and what else was asked for
WORKER = f"igpo-{socket.gethostname()}"  # runs carry it: no worker of another machine has the same
START_SECONDS = 120.0  # a server is up in 8 s on two idle cores, in 30 s on busy ones
AUTOMATIONS = PROJECT / "deployments" / "automations"
DEFAULT_PORTS = {"MLFLOW_PORT": 5000, "PREFECT_PORT": 4200}


def say(line: str) -> None:
    print(line, flush=True)


@dataclass(frozen=True)
class Place:
    """Where the services of one folder are."""

    home: Path
    mlflow_port: int
    prefect_port: int
    elsewhere: bool = False  # servers that MLFLOW_TRACKING_URI and PREFECT_API_URL name, instead of those of the folder

    @classmethod
    def from_environment(cls) -> "Place":
        ports = {}
        for variable, default in DEFAULT_PORTS.items():
            text = os.environ.get(variable) or str(default)
            if not text.isdecimal() or not 1024 <= int(text) <= 65535:
                raise ServiceError(f"{variable}={text} is no port: give a number between 1024 and 65535")
            ports[variable] = int(text)
        if ports["MLFLOW_PORT"] == ports["PREFECT_PORT"]:
            raise ServiceError(
                f"MLFLOW_PORT and PREFECT_PORT are both {ports['MLFLOW_PORT']}: give two different ports"
            )
        return cls(home(), ports["MLFLOW_PORT"], ports["PREFECT_PORT"])

    @property
    def mlflow_url(self) -> str:
        if self.elsewhere:
            return _given("MLFLOW_TRACKING_URI")
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        if self.elsewhere:
            return _given("PREFECT_API_URL").removesuffix("/api")
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def state(self) -> StateFile:
        return StateFile(self.home / "services.json")

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """What a service, a worker's flow runs included, finds in its environment."""
        return {
            **os.environ,
            "IGPO_HOME": str(self.home),
            "MLFLOW_PORT": str(self.mlflow_port),
            "PREFECT_PORT": str(self.prefect_port),
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # deployments/automations/end-dead-runs.yaml counts on it
            "PREFECT_CLIENT_MAX_RETRIES": "8",  # some eight minutes without a server
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "TQDM_DISABLE": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # unused here, and seven processes of 240 MB
            "GX_ANALYTICS_ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
        }


def _given(variable: str) -> str:
    """Raises ServiceError when it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise ServiceError(f"{variable} is not set: name the server that this machine shall work for")
    return value


def environment() -> dict[str, str]:
    """What a process needs to reach the services of the folder and ports that this one was told."""
    return Place.from_environment().environment()


# ------------------------------------------------------------------------------------------------------- servers


@dataclass(frozen=True)
class Server:
    """What tells one server from the other. preparation: a command that runs to its end before a new start."""

    name: str
    title: str
    arguments: tuple[str, ...]
    port: int
    variable: str
    health: str
    preparation: tuple[str, ...] = ()


def mlflow_server(place: Place) -> Server:
    folder = place.home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    database = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    address = make_url(database)
    if address.password or "password" in address.query:
        raise ServiceError(
            "MLFLOW_BACKEND_STORE_URI carries a password, which every user of this machine could read in the list of "
            "processes: leave it out and put it into PGPASSWORD or ~/.pgpass"
        )
    accounts: tuple[str, ...] = ()
    if os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        _given("MLFLOW_FLASK_SERVER_SECRET_KEY")
        accounts = ("--app-name", "basic-auth")
    listen = ("--host", "127.0.0.1", "--port", str(place.mlflow_port), "--workers", "1")
    stores = ("--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"))
    return Server(
        name="mlflow",
        title="MLflow",
        arguments=("mlflow", "server", *listen, *stores, *accounts),
        port=place.mlflow_port,
        variable="MLFLOW_PORT",
        health=f"{place.mlflow_url}/health",
        # several processes that first touch a new database at once crash one another
        preparation=("mlflow", "db", "upgrade", database),
    )


def prefect_server(place: Place) -> Server:
    return Server(
        name="prefect",
        title="Prefect",
        arguments=("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(place.prefect_port)),
        port=place.prefect_port,
        variable="PREFECT_PORT",
        health=f"{place.prefect_url}/api/health",
    )


def start_servers(place: Place) -> None:
    """Keep our own running servers, start the others, wait until all answer. What fails to start is ended."""
    wanted = (prefect_server(place), mlflow_server(place))
    for server in wanted:
        require_startable(place, server)
    for server in wanted:
        if own(place, server.name):
            say(f"{server.title}: runs on port {server.port}, reused")
            continue
        say(f"{server.title}: starting on port {server.port}")
        if server.preparation:
            run_once(place, f"{server.name}-preparation", list(server.preparation))
        record = processes.start(
            server.arguments,
            folder=PROJECT,
            environment=place.environment(),
            log=place.log(server.name),
            port=server.port,
        )
        place.state.set(server.name, record)
    for server in wanted:
        record = place.state.read()[server.name]
        wait_until_ready(place, server.name, server.title, record, ready=partial(answers, record, server.health))


def require_startable(place: Place, server: Server) -> None:
    """Raise ServiceError when ours runs on another port, or when the port belongs to another program."""
    record = place.state.read().get(server.name)
    if record and not processes.is_alive(record):
        processes.end(record)  # a killed server leaves children that hold its port
        place.state.set(server.name, None)
    elif record and record.port != server.port:
        raise ServiceError(
            f"{server.title} of {place.home} runs on port {record.port}, not on {server.port}: run `make down` first, "
            f"or set {server.variable}={record.port}"
        )
    elif record:
        return
    processes.require_free_port(server.port, server.variable)


def own(place: Place, name: str) -> Record | None:
    """The service of that name that was started here and still runs."""
    record = place.state.read().get(name)
    return record if record and processes.is_alive(record) else None


def wait_until_ready(place: Place, name: str, title: str, record: Record, *, ready: Callable[[], bool]) -> None:
    try:
        processes.wait_for(
            ready,
            what=title,
            log=place.log(name),
            alive=lambda: processes.is_alive(record),
            seconds=START_SECONDS,
            say=say,
        )
    except ServiceError:
        processes.end(record)
        place.state.set(name, None)
        raise


def answers(record: Record, url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success and processes.listens(record)
    except httpx.TransportError:
        return False


def run_once(place: Place, name: str, arguments: list[str]) -> None:
    """Run `python -m arguments...` to its end. Raises ServiceError with the end of its log."""
    log = place.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=PROJECT,
            env=place.environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise ServiceError(
            f"`{' '.join(arguments[:3])}` ended with exit status {done.returncode}. The end of {log}:\n"
            f"{processes.tail(log)}"
        )


# -------------------------------------------------------------------------------------- pool, deployments, worker


def create_pools(place: Place) -> None:
    """The work pools and the queue of sweeps, once: their settings are the user's from then on."""
    with client(place) as api:
        for pool in (POOL, ARMS_POOL):
            found = api.get(f"/work_pools/{pool}")
            if found.status_code == httpx.codes.NOT_FOUND:
                template = str(PROJECT / "deployments" / "pools" / "process.json")
                created = ["work-pool", "create", pool, "--type", "process", "--base-job-template", template]
                run_once(place, "work-pool", ["prefect", *created])
                # not the worker's own --limit: with one, prefect 3.8's worker dies of a sweep that is started again at once
                # ("this borrower is already holding one of this CapacityLimiter's tokens")
                limit = {"concurrency_limit": AT_ONCE if pool == POOL else None}
                api.patch(f"/work_pools/{pool}", json=limit).raise_for_status()
            say(f"Work pool {pool}: {'created' if found.status_code == httpx.codes.NOT_FOUND else 'there'}")
        if api.get(f"/work_pools/{POOL}/queues/{SWEEPS_QUEUE}").status_code == httpx.codes.NOT_FOUND:
            queue = {
                "name": SWEEPS_QUEUE,
                "concurrency_limit": 1,
                "description": "Sweeps run one after another, whoever started them.",
            }
            api.post(f"/work_pools/{POOL}/queues", json=queue).raise_for_status()


def client(place: Place) -> httpx.Client:
    """Of the Prefect server's REST API."""
    account = os.environ.get("PREFECT_API_AUTH_STRING")  # user:password, where the server asks for it
    auth = httpx.BasicAuth(*account.split(":", 1)) if account else None
    return httpx.Client(base_url=f"{place.prefect_url}/api", timeout=30, trust_env=False, auth=auth)


def set_automations(place: Place) -> None:
    """Those of deployments/automations, made once under their name: switched on or off, or changed, they stay the user's."""
    with client(place) as api:
        known = {entry["name"] for entry in api.post("/automations/filter", json={}).raise_for_status().json()}
        for path in sorted(AUTOMATIONS.glob("*.yaml")):
            automation = yaml.safe_load(path.read_text())
            if automation["name"] not in known:
                api.post("/automations/", json=automation).raise_for_status()
                known.add(automation["name"])
    say(f"Automations: {', '.join(sorted(name for name in known if name.startswith('igpo')))}")


def deploy(place: Place) -> None:
    say("Deployments: registering those of prefect.yaml")
    run_once(place, "deploy", ["prefect", "--no-prompt", "deploy", "--all"])


def start_worker(place: Place) -> None:
    if own(place, "worker"):
        say("Worker: runs, reused")
        return
    before = place.state.read().get("worker")  # a killed worker leaves flow runs that go on: they stay ours
    alive = {process.pid for process in processes.members(before)} if before else set()
    settle_lost(
        place,
        lambda run: (
            run["labels"].get("prefect.worker.name") == WORKER and run["infrastructure_pid"] not in map(str, alive)
        ),
        "its worker and its process had died",
    )
    say("Worker: starting")
    since = time.time()
    record = processes.start(
        ("prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", WORKER),
        folder=PROJECT,
        environment=place.environment(),
        log=place.log("worker"),
        mark=before.mark if before else None,
    )
    place.state.set("worker", record)
    wait_until_ready(place, "worker", "the worker", record, ready=lambda: worker_heard_of(place, since))


def worker_heard_of(place: Place, since: float) -> bool:
    """Whether the server has had a heartbeat of our worker since then."""
    with client(place) as api:
        workers = api.post(f"/work_pools/{POOL}/workers/filter", json={}).raise_for_status().json()
    return any(
        worker["name"] == WORKER and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= since
        for worker in workers
    )


# ------------------------------------------------------------------------------------------------------ commands


def up(place: Place) -> None:
    start_servers(place)
    create_pools(place)
    deploy(place)
    set_automations(place)
    start_worker(place)
    try:
        run_once(place, "sending", ["tasks.sending"])  # of runs that died, or that ended while MLflow was away
    except ServiceError as error:  # a run of before is no reason not to work
        say(f"warning: {error}")
    say("")
    say(f"MLflow      {place.mlflow_url}")
    say(f"Prefect     {place.prefect_url}")
    say(f"Logs        {place.home / 'logs'}")
    ports = {"MLFLOW_PORT": place.mlflow_port, "PREFECT_PORT": place.prefect_port}
    if ports != DEFAULT_PORTS:
        say("Other ports than the default: give these to a shell that calls prefect or the flows")
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "IGPO_HOME"):
            say(f"  export {name}={place.environment()[name]}")
    say("Start one   .venv/bin/prefect deployment run 'ablation/outcome-vs-igpo'")


UNFINISHED = ["RUNNING", "PENDING", "CANCELLING"]


def settle_lost(
    place: Place, lost: Callable[[dict[str, Any]], bool], reason: str, since: datetime | None = None
) -> None:
    """Flow runs that lost their process would stay Running for ever, and a sweep would keep its queue's slot.

    Sweeps that were deployed wait to be started again and go on where they were; others, children included, are marked
    Crashed. A run that was being cancelled is cancelled. since: also sweeps that crashed since then.
    """
    count = {"sweeps to go on": 0, "other flow runs crashed": 0}
    with client(place) as api:

        def runs(states: list[str], **filters: Any) -> list[dict[str, Any]]:
            asked = {"flow_runs": {"state": {"type": {"any_": states}}, **filters}}
            found: list[dict[str, Any]] = api.post("/flow_runs/filter", json=asked).raise_for_status().json()
            return found

        def set_state(run: dict[str, Any], **state: str) -> None:
            asked = {"state": {"message": reason, **state}, "force": True}
            api.post(f"/flow_runs/{run['id']}/set_state", json=asked).raise_for_status()

        sweeps = api.post("/flows/filter", json={"flows": {"name": {"any_": ["ablation"]}}}).raise_for_status().json()
        found = [run for run in runs(UNFINISHED) if lost(run)]
        if since:
            found += runs(["CRASHED"], end_time={"after_": since.isoformat()})
        for run in found:
            for child in runs(UNFINISHED, parent_flow_run_id={"any_": [run["id"]]}):
                if not child["deployment_id"]:
                    set_state(child, type="CRASHED")
            if run["state"]["type"] == "CANCELLING":
                set_state(run, type="CANCELLED")
            elif run["deployment_id"] and run["flow_id"] in {flow["id"] for flow in sweeps}:
                set_state(run, type="SCHEDULED", name="AwaitingRetry")
                count["sweeps to go on"] += 1
            elif run["state"]["type"] in UNFINISHED:
                set_state(run, type="CRASHED")
                count["other flow runs crashed"] += 1
    for what, number in count.items():
        if number:
            say(f"Prefect: {number} {what} ({reason})")


def down(place: Place) -> None:
    """End the worker first, for its runs report to the servers."""
    records = place.state.read()
    since = datetime.now(UTC)
    for name in ("worker", "prefect", "mlflow"):
        record = records.get(name)
        if record is None:
            continue
        if name == "prefect" and record.port and processes.is_alive(record):
            try:
                reason = "ended by `make down`; a sweep goes on at the next `make up`, unless it is cancelled"
                settle_lost(place, lambda run: True, reason, since)
            except httpx.HTTPError as error:  # a server that no longer answers is ended all the same
                say(f"prefect: unfinished flow runs could not be settled ({error}); cancel those that stay Running")
        count = processes.end(record)
        place.state.set(name, None)
        say(f"{name}: {f'ended ({count} processes)' if count else 'had ended before'}")
    if not records:
        say(f"Nothing of {place.home} runs")


def worker(place: Place) -> None:
    """Become a worker of the arms' pool, until Ctrl-C: on this machine, or on another one that reaches both servers and
    shares IGPO_HOME."""
    from tasks.servers import require_servers

    place = replace(place, elsewhere=True)
    os.environ.update(place.environment())
    require_servers()
    limit = os.environ.get("LIMIT") or "2"
    say(f"Arms of sweeps with `where: pool` run here, {limit} at a time, until Ctrl-C; files go to {place.home}")
    arguments = ["worker", "start", "--pool", ARMS_POOL, "--type", "process", "--limit", limit]
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *arguments])


def register(place: Place) -> None:
    """Pools, deployments and automations on servers that were started in another way."""
    place = replace(place, elsewhere=True)
    create_pools(place)
    deploy(place)
    set_automations(place)


def status(place: Place) -> None:
    records = place.state.read()
    for name in ("mlflow", "prefect", "worker"):
        record = records.get(name)
        running = record is not None and processes.is_alive(record)
        where = f" on http://127.0.0.1:{record.port}" if record and record.port else ""
        say(f"{name:8} {f'runs{where} (process {record.pid})' if record and running else 'does not run'}")


COMMANDS = {"up": up, "servers": start_servers, "status": status, "down": down, "worker": worker, "register": register}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deployments.services", description="Local MLflow, Prefect server, deployments and worker."
    )
    parser.add_argument("command", choices=sorted(COMMANDS))
    command = parser.parse_args(arguments).command
    try:
        place = Place.from_environment()
        if command == "worker":
            worker(place)
        with processes.one_at_a_time(place.home / "services.lock", say):
            COMMANDS[command](place)
    except (IgpoError, OSError) as error:  # OSError names its file: a full disk, a folder that cannot be written
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
