"""What the laboratory needs on this machine: MLflow, the Prefect server, the deployments of prefect.yaml, a worker.

    python -m deployments.services up         all of it; what runs already is kept
    python -m deployments.services servers    MLflow and the Prefect server alone
    python -m deployments.services status     what runs, and where
    python -m deployments.services down       end what up and servers started, and nothing else
    python -m deployments.services register   pools, deployments and automations alone, on the server of PREFECT_API_URL
    python -m deployments.services worker     become a worker for the arms of sweeps, here or on another machine
    python -m deployments.services mlflow     become MLflow's server, and
    python -m deployments.services prefect    the Prefect server, in containers: on LISTEN, or on 127.0.0.1

Databases, artifacts, logs and services.json (what was started) lie in IGPO_HOME, .igpo by default. The servers listen
on 127.0.0.1 alone unless LISTEN says otherwise, on MLFLOW_PORT (5000) and PREFECT_PORT (4200).
"""

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from deployments import processes
from deployments.place import Place, own, run_once, say, wait_until_ready
from deployments.registration import ARMS_POOL, NODES_POOL, POOL, client, create_pools, deploy, set_automations
from deployments.servers import LOOPBACK, Server, become, mlflow_server, prefect_server, start_servers
from deployments.shell import exports, forget
from igpo_core.errors import IgpoError, ServiceError
from tasks.lab.account import account_file, drop_what_servers_need
from tasks.lab.home import PROJECT, open_home
from tasks.lab.servers import require_servers
from tasks.runs.locks import SWEEP, free_keys

WORKER = f"igpo-{socket.gethostname()}"  # runs carry it: no worker of another machine has the same


def start_worker(place: Place) -> None:
    """Start the worker, or find it running."""
    if own(place, "worker"):
        say("Worker: runs, reused")
        return
    before = place.state.read().get("worker")  # a killed worker leaves flow runs that go on: they stay ours
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


def servers(place: Place) -> None:
    """Start MLflow and the Prefect server, and settle what died before: nobody else would where `up` was never called."""
    start_servers(place)
    settle_dead(place)


def up(place: Place) -> None:
    """Start all of it: servers, pools, deployments, automations, worker."""
    start_servers(place)
    create_pools(place)
    deploy(place)
    set_automations(place)
    settle_dead(place)
    start_worker(place)
    try:
        run_once(place, "sending", ["tasks.tracking.owed"])  # of runs that died, or that ended while MLflow was away
    except ServiceError as error:  # a run of before is no reason not to work
        say(f"warning: {error}")
    say("")
    say(f"MLflow      {place.mlflow_url}")
    say(f"Prefect     {place.prefect_url}")
    say(f"Logs        {place.home / 'logs'}")
    say(f"Account     in {account_file(place.home)}: Prefect's page asks for it once, `cat` shows it")
    say("For a shell that calls prefect, make or the flows, in any folder:")
    for line in exports(place):
        say(f"  {line}")
    say(f"Start one   {Path(sys.executable).with_name('prefect')} deployment run 'ablation/outcome-vs-igpo'")


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

        named = {"flows": {"name": {"any_": ["ablation", "night"]}}}
        sweeps = api.post("/flows/filter", json=named).raise_for_status().json()
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


def settle_dead(place: Place) -> None:
    """Settle the flow runs of this home whose process is gone: those of a worker that died, and sweeps of a terminal with their
    arms. A sweep holds a lock while it runs, on this machine or another; who dies lets go."""
    before = place.state.read().get("worker")
    working = before is not None and processes.is_alive(before)
    alive = {str(process.pid) for process in processes.members(before)} if before else set()
    dead = {key.removeprefix(SWEEP) for key in free_keys(place.home, SWEEP)}
    with client(place) as api:
        asked = {"state": {"type": {"any_": UNFINISHED}}, "parent_flow_run_id": {"any_": sorted(dead)}}
        arms = api.post("/flow_runs/filter", json={"flow_runs": asked}).raise_for_status().json() if dead else []
    dead |= {arm["id"] for arm in arms if not arm["deployment_id"]}  # workers have the others

    def lost(run: dict[str, Any]) -> bool:
        worker = run["labels"].get("prefect.worker.name")
        if worker is None:
            return run["id"] in dead
        return worker == WORKER and not working and run["infrastructure_pid"] not in alive

    settle_lost(place, lost, "their process was gone")


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
                ours = replace(
                    place, prefect_port=record.port
                )  # whatever port this call was told: another's may be there
                settle_lost(ours, lambda run: True, reason, since)
            except (httpx.HTTPError, IgpoError) as error:  # a server that no longer answers is ended all the same
                say(f"prefect: unfinished flow runs could not be settled ({error}); cancel those that stay Running")
        count = processes.end(record)
        place.state.set(name, None)
        if name == "prefect":
            forget(place)
        say(f"{name}: {f'ended ({count} processes)' if count else 'had ended before'}")
    if not records:
        say(f"Nothing of {place.home} runs")


def worker(place: Place) -> None:
    """Become a worker of the arms' pool, or of the one that POOL names, until Ctrl-C: on this machine, or on another one that
    reaches both servers and shares IGPO_HOME."""
    place = replace(place, elsewhere=True)
    drop_what_servers_need()
    os.environ.update(place.environment())
    require_servers()
    limit = os.environ.get("LIMIT") or "2"
    pool = os.environ.get("POOL") or ARMS_POOL
    taken = {
        ARMS_POOL: "arms of sweeps with `where: pool`",
        NODES_POOL: "this machine's part of runs with training.nodes",
    }
    if pool not in taken:
        raise ServiceError(f"POOL={pool} is no pool for other machines: give one of {', '.join(taken)}")
    say(f"Pool {pool}: {taken[pool]}, {limit} at a time, until Ctrl-C; files go to {place.home}")
    arguments = ["worker", "start", "--pool", pool, "--type", "process", "--limit", limit]
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *arguments])


def serve(place: Place, describe: Callable[[Place, str], Server]) -> None:
    """Become a server, until it is told to end; its address for others is the one of MLFLOW_TRACKING_URI or PREFECT_API_URL."""
    place, host = replace(place, elsewhere=True), os.environ.get("LISTEN") or LOOPBACK
    become(place, describe(place, host), host)


BECOME: dict[str, Callable[[Place], None]] = {
    "worker": worker,
    "mlflow": partial(serve, describe=mlflow_server),
    "prefect": partial(serve, describe=prefect_server),
}


def register(place: Place) -> None:
    """Pools, deployments and automations on servers that were started in another way."""
    place = replace(place, elsewhere=True)
    create_pools(place)
    deploy(place)
    set_automations(place)


def status(place: Place) -> None:
    """Print what runs, and where."""
    records = place.state.read()
    for name in ("mlflow", "prefect", "worker"):
        record = records.get(name)
        running = record is not None and processes.is_alive(record)
        where = f" on http://127.0.0.1:{record.port}" if record and record.port else ""
        say(f"{name:8} {f'runs{where} (process {record.pid})' if record and running else 'does not run'}")


COMMANDS = {"up": up, "servers": servers, "status": status, "down": down, "register": register}


def main(arguments: list[str] | None = None) -> int:
    """Run a command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m deployments.services", description="Local MLflow, Prefect server, deployments and worker."
    )
    parser.add_argument("command", choices=sorted(COMMANDS | BECOME))
    command = parser.parse_args(arguments).command
    # a shell's background job ignores SIGINT, and so would the worker, which ends by it: `down` had to kill it after 30 s
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        open_home()
        place = Place.from_environment()
        if command in BECOME:
            BECOME[command](place)
        with processes.one_at_a_time(place.home / "services.lock", say):
            COMMANDS[command](place)
    # OSError names its file: a full disk, a folder that cannot be written; httpx's the address of a server that fails
    except (IgpoError, OSError, httpx.HTTPError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
