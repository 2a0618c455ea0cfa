"""What a night can bring: processes killed at random moments, servers away, a locked database, a full disk.

python -m benchmarks.faults [--what training worker ...] [--trials N] [--seed N]

Each trial is a small sweep (two arms, one seed) under a name of its own on real servers in a temporary folder. Something is
killed at a random moment; the sweep must end complete, with every metric of every step in MLflow once and equal to the
undisturbed sweep's to the bit, equal weights, and no run left RUNNING. Times are left out of the comparison.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import yaml

ROOT = Path(__file__).resolve().parents[1]
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}
PATIENCE = 420.0  # seconds for a sweep, at the least
UNDISTURBED = 12  # times what the undisturbed sweep took, on a machine that is slow or busy
Moment = Literal["start", "middle", "end"]
SPECIFICATION: dict[str, Any] = {
    "baseline": "outcome_only",
    "seeds": [0],
    "processes": 2,
    "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "prob_diff"}},
    "base": {
        "data": {"kind": "lookup", "hops": 2, "train": 64, "dev": 16, "test": 16},
        "policy": {"kind": "new", "width": 32, "layers": 2, "feed_forward": 64, "window": 512},
        "rollout": {"questions": 4, "group_size": 4, "max_turns": 4, "max_tokens": 256},
        "training": {"epochs": 4, "steps_per_epoch": 3},
        "evaluation": {"every": 3, "dev_questions": 8, "test_questions": 8, "traces": 1},
        "warm_start": {
            "stages": [
                {
                    "steps": 60,
                    "learning_rate": 0.01,
                    "batch_size": 16,
                    "warmup_steps": 5,
                    "demonstrations": {"kind": "lookup"},
                }
            ]
        },
    },
}


def say(line: str) -> None:
    print(line, flush=True)


@dataclass
class Laboratory:
    """Servers, worker and runs in a folder of their own."""

    home: Path
    ports: tuple[int, int]
    rng: random.Random
    took: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        own = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "IGPO_"))}
        return {
            **own,
            "IGPO_HOME": str(self.home),
            "MLFLOW_PORT": str(self.ports[0]),
            "PREFECT_PORT": str(self.ports[1]),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.ports[1]}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports[0]}",
        }

    @property
    def account(self) -> tuple[str, str]:
        """Of the Prefect server: name and password."""
        name, _, password = (self.home / "account").read_text().strip().partition(":")
        return name, password

    def services(self, command: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "deployments.services", command],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"services {command}: {done.stdout[-1000:]}{done.stderr[-2000:]}")

    def record(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "services.json").read_text())[name]
        return content

    def marked(self, name: str) -> list[psutil.Process]:
        """Everything that service started and that still runs."""
        mark, found = self.record(name)["mark"], []
        for process in psutil.process_iter():
            try:
                if process.environ().get("IGPO_SERVICE_MARK") == mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    # ------------------------------------------------------------------------------------------------ sweeps

    def start(self, name: str, **parameters: Any) -> str:
        """The flow run of a sweep under this name."""
        path = self.home / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, **SPECIFICATION}))
        api = self.environment["PREFECT_API_URL"]
        found = httpx.get(f"{api}/deployments/name/ablation/tiny", timeout=30, auth=self.account)
        deployment = found.raise_for_status().json()["id"]
        asked = {
            "parameters": {"preset": str(path), **parameters},
            "state": {"type": "SCHEDULED"},
            "idempotency_key": name,
        }
        while True:  # a busy SQLite answers 503
            made = httpx.post(
                f"{api}/deployments/{deployment}/create_flow_run", json=asked, timeout=30, auth=self.account
            )
            if made.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                return str(made.raise_for_status().json()["id"])
            time.sleep(1)

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """As the server has it; waits while the server is away."""
        while True:
            try:
                page = f"{self.environment['PREFECT_API_URL']}/flow_runs/{run_id}"
                answer = httpx.get(page, timeout=10, auth=self.account)
                found: dict[str, Any] = answer.raise_for_status().json()
                return found
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.5)

    @property
    def patience(self) -> float:
        return max(PATIENCE, UNDISTURBED * self.took.get("running", 0.0))

    def wait(self, run_id: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        patience = self.patience
        deadline = time.monotonic() + patience
        while not done(run := self.flow_run(run_id)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {run['state']['name']} after {patience:.0f} s: {run['state']['message']}")
            time.sleep(0.3)
        return run

    def running(self, run_id: str) -> dict[str, Any]:
        return self.wait(run_id, lambda run: run["state_type"] == "RUNNING" and bool(run["infrastructure_pid"]))

    def finish(self, run_id: str) -> None:
        run = self.wait(run_id, lambda run: run["state_type"] in FINAL)
        if run["state_type"] != "COMPLETED":
            raise RuntimeError(f"{run['state']['name']}: {run['state']['message']}")

    def arms_of(self, run_id: str) -> list[psutil.Process]:
        """The processes that train or make warm starts, forked from the sweep's fork server."""
        sweep = psutil.Process(int(self.flow_run(run_id)["infrastructure_pid"]))
        found = []
        for process in sweep.children(recursive=True):
            try:
                parent = process.parent()
                if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    # --------------------------------------------------------------------------------------------- comparison

    def numbers(self, study: str) -> dict[str, Any]:
        """What MLflow's database holds of a study: arm -> every (metric, step, value), status; and the final weights."""
        with sqlite3.connect(f"file:{self.home / 'mlflow' / 'mlflow.db'}?mode=ro", uri=True) as db:
            rows = db.execute(
                "select r.run_uuid, r.status from runs r join experiments e on e.experiment_id = r.experiment_id "
                "where e.name = ? and r.lifecycle_stage = 'active'",
                (study,),
            ).fetchall()
            found: dict[str, Any] = {"unfinished": [run for run, status in rows if status != "FINISHED"]}
            for run, _ in rows:
                tags = dict(db.execute("select key, value from tags where run_uuid = ?", (run,)).fetchall())
                if tags.get("kind") != "train":
                    continue
                if tags["arm"] in found:
                    raise AssertionError(f"two runs of arm {tags['arm']}")
                points = db.execute(
                    "select key, step, value, is_nan from metrics where run_uuid = ? order by key, step", (run,)
                ).fetchall()
                points = [point for point in points if not point[0].startswith("system/")]  # read by the clock
                kept = [point for point in points if not point[0].startswith("time/") and "seconds" not in point[0]]
                folder = self.home / "runs" / tags["run_key"]
                newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
                weights = hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()
                traces = db.execute(
                    "select count(*) from trace_request_metadata where key = 'mlflow.sourceRun' and value = ?", (run,)
                ).fetchone()[0]
                # timed metrics differ in value, but each (metric, step) must be there once too
                found[tags["arm"]] = (kept, [(k, s) for k, s, *_ in points], newest.name, weights, traces)
        return found

    def compare(self, study: str, reference: dict[str, Any]) -> None:
        found = self.numbers(study)
        if found["unfinished"]:
            raise AssertionError(f"{len(found['unfinished'])} MLflow runs are not FINISHED")
        for arm, expected in reference.items():
            if arm == "unfinished":
                continue
            if arm not in found:
                raise AssertionError(f"no run of {arm}")
            for what, a, b in zip(
                ("metrics", "points", "step", "weights", "traces"), expected, found[arm], strict=True
            ):
                if a != b:
                    differing = sorted(set(map(str, a)) ^ set(map(str, b)))[:4] if isinstance(a, list) else [a, b]
                    raise AssertionError(f"{arm}: {what} differ: {differing}")


# ---------------------------------------------------------------------------------------------------- what happens


def kill(process: psutil.Process) -> bool:
    try:
        process.kill()
        return True
    except psutil.NoSuchProcess:
        return False


KILLS = 3  # of training processes in a sweep; a child is started again as often


def kill_training(lab: Laboratory, run_id: str) -> str:
    """Three times one of the processes that train or make the warm start; the sweep starts it again."""
    killed = 0
    for _ in range(KILLS):
        deadline = time.monotonic() + lab.rng.uniform(0, lab.took["running"] / 2)
        while time.monotonic() < deadline or not lab.arms_of(run_id):
            if lab.flow_run(run_id)["state_type"] != "RUNNING":
                return f"killed {killed}"
            time.sleep(0.05)
        killed += kill(lab.rng.choice(lab.arms_of(run_id)))
    return f"killed {killed}"


def kill_flow(lab: Laboratory, run_id: str) -> str:
    time.sleep(lab.rng.uniform(0, lab.took["running"]))
    run = lab.flow_run(run_id)
    if run["state_type"] != "RUNNING":
        return "missed"
    return "killed" if kill(psutil.Process(int(run["infrastructure_pid"]))) else "missed"


def kill_service(name: str) -> Callable[[Laboratory, str], str]:
    def happen(lab: Laboratory, run_id: str) -> str:
        time.sleep(lab.rng.uniform(0, lab.took["running"]))
        hit = lab.flow_run(run_id)["state_type"] == "RUNNING"
        for process in [psutil.Process(lab.record(name)["pid"])] if name == "worker" else lab.marked(name):
            kill(process)
        time.sleep(lab.rng.uniform(0, 8))
        lab.services("up")
        return "killed" if hit else "missed"

    return happen


def kill_all(lab: Laboratory, run_id: str) -> str:
    time.sleep(lab.rng.uniform(0, lab.took["running"]))
    hit = lab.flow_run(run_id)["state_type"] == "RUNNING"
    for name in ("worker", "prefect", "mlflow"):
        for process in lab.marked(name):
            kill(process)
    lab.services("up")
    return "killed" if hit else "missed"


def terminate_training(lab: Laboratory, run_id: str) -> str:
    """SIGTERM, as a scheduler or a shutdown sends it: the process must be gone within 30 s."""
    deadline = time.monotonic() + lab.rng.uniform(0, lab.took["running"])
    while time.monotonic() < deadline or not lab.arms_of(run_id):
        if lab.flow_run(run_id)["state_type"] != "RUNNING":
            return "missed"
        time.sleep(0.05)
    process = lab.rng.choice(lab.arms_of(run_id))
    process.terminate()
    process.wait(30)
    return "terminated"


def away(name: str, seconds: float, moment: Moment) -> Callable[[Laboratory, str], str]:
    """The server's processes are killed and started again after so many seconds. MLflow alone is taken at the start and at
    the end too: a sweep cannot start, nor be seen to end, without Prefect."""

    def happen(lab: Laboratory, run_id: str) -> str:
        if moment == "middle":
            time.sleep(lab.rng.uniform(0.2, 0.8) * lab.took["running"])
        elif moment == "end":  # both arms trained: what is left is their test, the report, and what is owed
            last = "runs/*/checkpoints/step-000012"
            wanted = len(list(lab.home.glob(last))) + len(SPECIFICATION["arms"])
            lab.wait(run_id, lambda run: run["state_type"] in FINAL or len(list(lab.home.glob(last))) >= wanted)
        hit = lab.flow_run(run_id)["state_type"] == "RUNNING"
        for process in lab.marked(name):
            kill(process)
        time.sleep(seconds)
        lab.services("servers")
        return f"away for {seconds:.0f} s" if hit else "missed"

    return happen


def mlflow_locked(lab: Laboratory, run_id: str) -> str:
    """Another writer holds MLflow's database for 30 s."""
    time.sleep(lab.rng.uniform(0, lab.took["running"] / 2))
    with sqlite3.connect(lab.home / "mlflow" / "mlflow.db", timeout=30, isolation_level=None) as db:
        db.execute("begin exclusive")
        time.sleep(30)
        db.execute("rollback")
    return "locked for 30 s"


def hang(name: str, seconds: float) -> Callable[[Laboratory, str], str]:
    """The server does not end but answers nobody (SIGSTOP)."""

    def happen(lab: Laboratory, run_id: str) -> str:
        time.sleep(lab.rng.uniform(0, lab.took["running"] / 2))
        stopped = lab.marked(name)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        for process in stopped:
            process.send_signal(signal.SIGCONT)
        return f"hung for {seconds:.0f} s"

    return happen


def disk_full(lab: Laboratory, run_id: str) -> str:
    """The runs' folder is a disk of 400 KiB, too small for the checkpoints: every arm must fail and say so. Then it grows,
    and the sweep is retried as a user would on its page."""
    runs = lab.home / "runs"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(runs)], check=True)
    run = lab.wait(run_id, lambda run: run["state_type"] in FINAL)
    if run["state_type"] != "FAILED" or "No space left" not in run["state"]["message"]:
        return f"not failed by name: {run['state']['message']}"
    half = [path for path in runs.glob("*/checkpoints/step-*") if not (path / "manifest.json").is_file()]
    subprocess.run(["mount", "-o", "remount,size=100m", str(runs)], check=True)
    state = {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True}
    page = f"{lab.environment['PREFECT_API_URL']}/flow_runs/{run_id}"
    httpx.post(f"{page}/set_state", json=state, auth=lab.account).raise_for_status()
    return f"failed by name, {len(half)} half-written checkpoints, retried"


def every_minute(lab: Laboratory, run_id: str) -> str:
    """A schedule of a minute for five, whose first sweep takes longer than a minute: never two at once, none left out."""
    lab.finish(run_id)
    path = lab.home / "cron.yaml"
    longer = {**SPECIFICATION["base"], "training": {"epochs": 8, "steps_per_epoch": 120}}
    path.write_text(yaml.safe_dump({"name": "cron", **SPECIFICATION, "base": longer}))
    api = lab.environment["PREFECT_API_URL"]
    found = httpx.get(f"{api}/deployments/name/ablation/tiny", auth=lab.account)
    deployment = found.raise_for_status().json()["id"]
    wanted = {"schedule": {"cron": "* * * * *"}, "active": True, "parameters": {"preset": str(path)}}
    schedules = f"{api}/deployments/{deployment}/schedules"
    made = httpx.post(schedules, json=[wanted], auth=lab.account).raise_for_status().json()
    most, deadline = 0, time.monotonic() + 300
    seen: dict[str, str] = {}
    late: dict[str, float] = {}
    took: dict[str, float] = {}
    while time.monotonic() < deadline:
        asked = {"flow_runs": {"deployment_id": {"any_": [deployment]}}, "limit": 100}
        answer = httpx.post(f"{api}/flow_runs/filter", json=asked, timeout=30, auth=lab.account)
        if answer.is_success:
            runs = [run for run in answer.json() if run["auto_scheduled"] and run["state_name"] != "Scheduled"]
            most = max(most, sum(run["state_type"] == "RUNNING" for run in runs))
            seen |= {run["id"]: run["state_name"] for run in runs}
            late |= {run["id"]: run["estimated_start_time_delta"] for run in runs if run["start_time"]}
            took |= {run["id"]: run["total_run_time"] for run in runs}
        time.sleep(1)
    httpx.delete(f"{schedules}/{made[0]['id']}", auth=lab.account).raise_for_status()
    states = [*seen.values()]
    counts = ", ".join(f"{states.count(name)} {name}" for name in sorted(set(states)))
    return (
        f"five minutes: {counts}; {most} at once at most; the longest took {max(took.values()):.0f} s, the latest waited "
        f"{max(late.values()):.0f} s"
    )


FAULTS: dict[str, Callable[[Laboratory, str], str]] = {
    "training": kill_training,
    "terminated": terminate_training,
    "worker": kill_service("worker"),
    "flow": kill_flow,
    "prefect": kill_service("prefect"),
    "mlflow": kill_service("mlflow"),
    "all": kill_all,
    "mlflow-away-start": away("mlflow", 60, "start"),
    "mlflow-away": away("mlflow", 60, "middle"),
    "mlflow-away-end": away("mlflow", 60, "end"),
    "prefect-away": away("prefect", 150, "middle"),
    "mlflow-locked": mlflow_locked,
    "mlflow-hangs": hang("mlflow", 40),
    "disk-full": disk_full,
    "cron": every_minute,
}


def trial(lab: Laboratory, what: str, number: int, reference: dict[str, Any]) -> tuple[str, str]:
    """(what happened, "" or what went wrong)."""
    study, happened = f"{what}-{number}", "not started"
    try:
        run_id = lab.start(study)
        lab.running(run_id)  # Late, where the sweep before has not ended
        happened = FAULTS[what](lab, run_id)
        lab.finish(run_id)
        lab.compare(study, reference)
    except (AssertionError, RuntimeError, TimeoutError) as error:
        return happened, f"{type(error).__name__}: {error}"
    finally:
        if os.path.ismount(lab.home / "runs"):
            subprocess.run(["umount", "--lazy", str(lab.home / "runs")], check=True)
    return happened, ""


def free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--what", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        lab = Laboratory(Path(name), free_ports(), random.Random(chosen.seed))
        say(f"laboratory in {name}")
        try:
            lab.services("up")
            for study in ("warming", "reference"):  # the first start reads everything from disk
                run_id = lab.start(study)
                lab.running(run_id)
                started = time.monotonic()
                lab.finish(run_id)
                lab.took["running"] = 0.9 * (time.monotonic() - started)
            reference = lab.numbers("reference")
            points = sum(len(reference[arm][1]) for arm in SPECIFICATION["arms"])
            say(f"undisturbed: {lab.took['running'] / 0.9:.0f} s from Running to Completed, {points} points of metrics")
            for what in chosen.what:
                happened: dict[str, int] = {}
                wrong: list[str] = []
                started = time.monotonic()
                for number in range(chosen.trials):
                    outcome, problem = trial(lab, what, number, reference)
                    happened[outcome] = happened.get(outcome, 0) + 1
                    if problem:
                        wrong.append(problem)
                        say(f"   {what} {number}: {outcome}: {problem}")
                counts = ", ".join(f"{count} {outcome}" for outcome, count in happened.items())
                whole = chosen.trials - len(wrong)
                say(
                    f"{what}: {chosen.trials} sweeps ({counts}); {whole} complete and equal ({time.monotonic() - started:.0f} s)"
                )
                failures += len(wrong)
        finally:
            lab.services("down")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
