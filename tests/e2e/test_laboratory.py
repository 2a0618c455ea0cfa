"""The whole laboratory with real servers: a tiny sweep, its numbers in MLflow, deployments, schedules, refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tasks.runs.processors import processor
from tests.e2e.conftest import ROOT, Servers
from tests.waiting import HANGS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]


def mlflow(servers: Servers) -> MlflowClient:
    return MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])


def all_runs(servers: Servers) -> list[dict[str, Any]]:
    """The runs of study tiny as MLflow has them, with two curves."""
    client = mlflow(servers)
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None

    def history(run_id: str, name: str) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in client.get_metric_history(run_id, name)]

    return [
        {
            "id": run.info.run_id, "status": run.info.status, "tags": run.data.tags, "metrics": run.data.metrics,
            "f1": history(run.info.run_id, "train/f1"), "dev": history(run.info.run_id, "eval/all/f1"),
        }
        for run in client.search_runs([experiment.experiment_id], max_results=100)
    ]  # fmt: skip


def prefect(servers: Servers, path: str, body: dict[str, Any]) -> Any:
    """What the Prefect server answers to a POST."""
    return servers.ask("POST", path, body)


def asked_runs(servers: Servers) -> int:
    """Flow runs that somebody asked for: all but those of a schedule."""
    return sum(not run["auto_scheduled"] for run in prefect(servers, "/flow_runs/filter", {}))


def query(servers: Servers, code: str) -> Any:
    """Run code in a process that reaches the servers; it prints one JSON value last."""
    done = servers.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def of_minutes(servers: Servers, name: str) -> Path:
    """The file of a specification whose two arms train for minutes."""
    content = yaml.safe_load((ROOT / "deployments" / "presets" / "tiny.yaml").read_text())
    content["base"]["training"] = {"epochs": 2, "steps_per_epoch": 5000}
    content["base"]["evaluation"]["every"] = 5000
    path = servers.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**content, "name": name, "seeds": [0]}))
    return path


@pytest.fixture(scope="module")
def sweep(servers: Servers) -> str:
    done = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_prefect_server_module_imports(servers: Servers) -> None:
    assert servers.run(sys.executable, "-c", "import prefect.server.api.server").returncode == 0


def test_the_sweep_ends_with_a_table_and_links(sweep: str) -> None:
    table = sweep[sweep.index("\narm ") :]
    assert "outcome_only" in table and "igpo" in table
    assert "/#/experiments/" in table
    assert sweep.count("\nmaking the report\n") == 1  # a minute, which nothing was said of


def test_terminal_and_flow_run_log_end_with_answer_and_next_commands(servers: Servers, sweep: str) -> None:
    (link,) = re.findall(r"^Prefect  (\S+)$", sweep, re.M)
    asked = {"logs": {"flow_run_id": {"any_": [link[-36:]]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
    logged = "\n".join(line["message"] for line in prefect(servers, "/logs/filter", asked))
    for told in (sweep, logged):
        assert told.index("\nANSWER\n") < told.index("\nReport   http") < told.index("\nNEXT\n  another world")


def test_the_page_of_a_sweep_can_be_opened_in_a_fresh_browser(servers: Servers, sweep: str) -> None:
    ui = servers.environment["PREFECT_API_URL"].removesuffix("/api")
    (link,) = re.findall(r"^Prefect  (\S+)$", sweep, re.M)
    assert re.fullmatch(re.escape(f"{ui}/login?redirect=/runs/flow-run/") + "[0-9a-f-]{36}", link)
    assert f"\nAccount  cat {servers.home / 'account'}; a browser that knows it opens {ui}/runs/flow-run/" in sweep
    assert servers.account[1] not in sweep


def test_mlflow_holds_equal_runs_and_one_report(servers: Servers, sweep: str) -> None:
    runs = all_runs(servers)
    trained = [run for run in runs if run["tags"].get("kind") == "train"]
    assert sorted((run["tags"]["arm"], run["tags"]["seed"]) for run in trained) == [
        ("igpo", "0"), ("igpo", "1"), ("outcome_only", "0"), ("outcome_only", "1")
    ]  # fmt: skip
    for run in trained:
        assert run["status"] == "FINISHED"
        assert [step for step, _ in run["f1"]] == [1, 2, 3, 4]  # every step once
        assert [step for step, _ in run["dev"]] == [0, 1, 2, 3, 4]
        assert run["metrics"]["progress/rollouts"] == 4 * 2 * 2
        assert run["metrics"]["progress/questions"] == 4 * 2
    starts = {run["tags"]["seed"]: run["dev"][0] for run in trained if run["tags"]["arm"] == "outcome_only"}
    for run in trained:  # one warm start a seed: equal evaluations before the first step
        assert run["dev"][0] == starts[run["tags"]["seed"]]
    assert {run["tags"]["processor"] for run in trained} == {processor("cpu")}
    assert sum(run["tags"].get("kind") == "report" for run in runs) == 1
    assert sum(run["tags"].get("kind") == "data" for run in runs) == 1


def test_the_report_can_be_recomputed_from_the_runs(servers: Servers, sweep: str, tmp_path: Path) -> None:
    runs = all_runs(servers)
    mean = {}
    for arm in ("outcome_only", "igpo"):
        values = [r["metrics"]["test/all/f1"] for r in runs if r["tags"].get("arm") == arm]
        mean[arm] = sum(values) / len(values)
    report = next(run for run in runs if run["tags"].get("kind") == "report")
    table = json.loads(Path(mlflow(servers).download_artifacts(report["id"], "table.json", str(tmp_path))).read_text())
    assert {row["arm"]: row["score"] for row in table} == pytest.approx(mean)


def test_a_second_sweep_reuses_everything_and_sends_again_what_mlflow_lost(servers: Servers, sweep: str) -> None:
    before = all_runs(servers)
    lost = next(run for run in before if run["tags"].get("arm") == "outcome_only")
    mlflow(servers).delete_run(lost["id"])
    done = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    printed = done.stdout + done.stderr
    assert done.returncode == 0
    assert (
        "every run was there" in printed and "holds: nothing" not in printed
    )  # the report names the run that was lost
    assert printed.count(f"sent {lost['tags']['run_key']}: ") == 1
    asked = asked_runs(servers)
    third = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    assert "every run was there" in third.stdout and "holds: nothing" in third.stdout
    assert asked_runs(servers) == asked + 1  # nothing is started for what is there
    assert third.stdout[third.stdout.index("\narm ") :] == done.stdout[done.stdout.index("\narm ") :]
    after = all_runs(servers)
    again = [run for run in after if run["tags"].get("run_key") == lost["tags"]["run_key"]]
    assert [run["metrics"]["test/all/f1"] for run in again] == [lost["metrics"]["test/all/f1"]]
    assert again[0]["dev"] == lost["dev"] and again[0]["f1"] == lost["f1"]
    assert sorted(run["id"] for run in after if run not in again) == sorted(
        run["id"] for run in before if run is not lost
    )


def test_a_deployed_ablation_runs_through_the_worker(servers: Servers, sweep: str) -> None:
    parameters = json.dumps({"seeds": [2]})
    done = servers.run("prefect", "deployment", "run", "ablation/tiny", "--params", parameters, "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    seeds = [run["tags"].get("seed") for run in all_runs(servers) if run["tags"].get("kind") == "train"]
    assert seeds.count("2") == 2
    (found,) = [
        run for run in prefect(servers, "/flow_runs/filter", {"sort": "START_TIME_DESC"})
        if run["parameters"].get("seeds") == [2] and run["parameters"].get("preset") == "tiny"
    ]  # fmt: skip
    logged = [line["message"] for line in prefect(servers, "/logs/filter", {
        "logs": {"flow_run_id": {"any_": [found["id"]]}}, "sort": "TIMESTAMP_ASC"})]  # fmt: skip
    assert found["name"] == "tiny" and sum(" of 2 runs" in line and "seed 2: test F1" in line for line in logged) == 2
    (end,) = [line for line in logged if "ANSWER" in line]
    assert (
        "Test F1 of each seed" in end
        and "Exploratory: seed 2 added; seeds 0, 1 left out, against the preset." in " ".join(end.split())
    )
    assert "Finished in state Completed()" not in logged[:-1]
    # a part of a sweep has a report of its own: the whole one's stays
    reports = [run for run in all_runs(servers) if run["tags"].get("kind") == "report"]
    assert {run["tags"]["seeds"]: run["metrics"]["report/igpo/pairs"] for run in reports} == {
        "0,1": 2,
        "2": 1,
    }


@pytest.mark.parametrize(
    ("deployment", "parameters", "named"),
    [
        ("train/outcome-vs-igpo", {"preset": "tiny", "arm": "outcome_only", "seed": -1}, "seed"),
        ("ablation/outcome-vs-igpo", {"processes": 0}, "processes"),
        ("evaluate/outcome-vs-igpo", {"model": "x", "preset": "tiny", "split": "validation"}, "split"),
    ],
)
def test_bad_parameters_are_refused_before_a_run_exists(
    servers: Servers, deployment: str, parameters: dict, named: str
) -> None:
    before = asked_runs(servers)
    done = servers.run("prefect", "deployment", "run", deployment, "--params", json.dumps(parameters))
    assert done.returncode != 0 and named in done.stdout + done.stderr
    assert asked_runs(servers) == before


def test_bad_input_ends_with_a_message(servers: Servers) -> None:
    done = servers.run(sys.executable, "-m", "flows.ablation", "nowhere")
    assert done.returncode == 1
    assert "outcome-vs-igpo" in done.stderr and "Traceback" not in done.stderr


def test_seeds_are_not_added_for_a_verdict_that_cannot_be(servers: Servers, tmp_path: Path) -> None:
    """The example's warm start shows its 20 train questions 160 times each."""
    content = yaml.safe_load((ROOT / "examples" / "own-data.yaml").read_text())
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump({**content, "name": "by-heart", "until": {"width": 0.1, "seeds": 8}}))
    done = servers.run(sys.executable, "-m", "flows.ablation", str(mine))
    told = " ".join((done.stdout + done.stderr).split())
    assert (
        done.returncode == 1 and "until adds seeds for the sake of a verdict. THE WARM START IS LEARNT BY HEART" in told
    )
    assert not [
        path for path in servers.home.glob("runs/*/run.json") if json.loads(path.read_text())["study"] == "by-heart"
    ]


def test_a_cron_deployment_gets_a_scheduled_run(servers: Servers) -> None:
    scheduled = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    deadline = time.monotonic() + HANGS
    while not any(run["auto_scheduled"] for run in prefect(servers, "/flow_runs/filter", scheduled)):
        assert time.monotonic() < deadline, f"no scheduled run appeared for the cron deployment within {HANGS:.0f} s"
        time.sleep(1)


def test_an_evaluation_of_a_finished_run(servers: Servers, sweep: str) -> None:
    run_key = next(r["tags"]["run_key"] for r in all_runs(servers) if r["tags"].get("kind") == "train")
    code = (
        f"import json; from flows.evaluate import evaluate; print(json.dumps(evaluate({run_key!r}, 'tiny', 'dev', 8)))"
    )
    metrics = query(servers, code)
    assert 0 <= metrics["dev/all/f1"] <= 1 and metrics["dev/all/questions"] == 8


@pytest.mark.night
def test_a_cancelled_sweep_leaves_checkpoints_and_ends(servers: Servers) -> None:
    """Its arms train for minutes when they are told to end."""
    path = of_minutes(servers, "long")
    asked = servers.run("prefect", "deployment", "run", "ablation/tiny", "--params", json.dumps({"preset": str(path)}))
    run_id = re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", asked.stdout)[0]

    def state() -> str:
        return str(servers.ask("GET", f"/flow_runs/{run_id}")["state_type"])

    def folders() -> list[Path]:
        found = [about.parent for about in (servers.home / "runs").glob("*/tracking.json")]
        return [f for f in found if json.loads((f / "tracking.json").read_text())["experiment"] == "long"]

    def steps(folder: Path) -> int:
        file = folder / "metrics.jsonl"
        return file.read_text().count('"progress/seconds"') if file.is_file() else 0

    deadline = time.monotonic() + HANGS
    while len(folders()) < 2 or min(map(steps, folders())) < 5:
        assert time.monotonic() < deadline and state() != "FAILED"
        time.sleep(0.2)
    assert servers.run("prefect", "flow-run", "cancel", run_id).returncode == 0
    cancelled = time.monotonic()
    while state() != "CANCELLED":
        assert time.monotonic() - cancelled < 40, state()
        time.sleep(0.2)
    for folder in folders():
        assert json.loads((folder / "status.json").read_text())["status"] == "KILLED"
        (checkpoint,) = (folder / "checkpoints").iterdir()
        assert 5 <= int(checkpoint.name.removeprefix("step-")) <= steps(folder)
    client = mlflow(servers)
    experiment = client.get_experiment_by_name("long")
    assert experiment is not None
    states = [run.info.status for run in client.search_runs([experiment.experiment_id], "tags.kind = 'train'")]
    assert states == ["KILLED", "KILLED"]


def test_runs_of_a_dead_terminal_are_crashed_when_the_servers_are_wanted_again(servers: Servers) -> None:
    """After a power cut a sweep and two arms stayed Running for an hour, whatever was started. A living one is let alone."""
    path = of_minutes(servers, "cut-off")
    started = datetime.now(UTC).isoformat()

    def states() -> dict[str, str]:
        asked = {"flow_runs": {"start_time": {"after_": started}}}
        return {run["name"]: run["state_type"] for run in prefect(servers, "/flow_runs/filter", asked)}

    def running() -> set[str]:
        return {name for name, state in states().items() if state == "RUNNING"}

    command = [sys.executable, "-m", "flows.ablation", str(path)]
    quiet = subprocess.DEVNULL
    sweep = subprocess.Popen(command, cwd=ROOT, env=servers.environment, start_new_session=True, stdout=quiet)
    try:
        deadline = time.monotonic() + HANGS
        while len(running()) < 3:  # the sweep and its two arms
            assert sweep.poll() is None and time.monotonic() < deadline
            time.sleep(0.5)
        alive = running()
        kept = servers.run(sys.executable, "-m", "deployments.services", "servers")
        assert kept.returncode == 0 and "crashed" not in kept.stdout and running() == alive
    finally:
        os.killpg(sweep.pid, signal.SIGKILL)  # arms and fork server with it: nobody can say a last word
        sweep.wait()
    again = servers.run(sys.executable, "-m", "deployments.services", "servers")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("Prefect: 3 other flow runs crashed (their process was gone)") == 1, again.stdout
    assert {states()[name] for name in alive} == {"CRASHED"}


CHILDREN = """
import json
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.states import Completed, Running
from tasks.lab.prefect_runs import settle_child

@flow(name="settled parent")
def parent(): ...

@flow(name="settled child")
def child(number: int): ...

@task
def asks(): ...

told = {}
with get_client(sync_client=True) as client:
    over = client.create_flow_run(parent, state=Running())
    asked = client.create_task_run(asks, over.id, dynamic_key="0", state=Running())
    of = dict(parent_task_run_id=asked.id)
    died = client.create_flow_run(child, parameters={"number": 1}, state=Running(), **of)
    done = client.create_flow_run(child, parameters={"number": 2}, state=Completed(), **of)
    for number in (1, 2, 3):
        told[number] = vars(settle_child(str(over.id), "settled child", {"number": number}, -9))
    told["states"] = [client.read_flow_run(run.id).state.type.value for run in (died, done)]
print(json.dumps(told))
"""


def test_a_child_whose_process_died_is_crashed_with_its_exit_code(servers: Servers) -> None:
    """Child 1 was running, 2 had completed, 3 never began."""
    told = query(servers, CHILDREN)
    assert told["states"] == ["CRASHED", "COMPLETED"]
    assert [(told[n]["reason"], told[n]["crashed"]) for n in ("1", "2", "3")] == [
        ("the process of this run ended with exit code -9", True),
        ("", False),
        ("its process ended with exit code -9 before the run began", True),
    ]


def test_a_key_comes_from_a_secret_block(servers: Servers) -> None:
    settings = {"questions": [{"path": "q"}], "search": {"kind": "web", "api": "serper", "url": "http://127.0.0.1:1"}}
    code = (
        "import json, os; from igpo_core.config import QuestionFiles; from prefect.blocks.system import Secret; "
        "from tasks.lab.secrets import provide; Secret(value='hush').save('search-api-key'); "
        "os.environ.pop('SEARCH_API_KEY', 0); "
        f"provide(QuestionFiles.model_validate({settings!r})); print(json.dumps(os.environ['SEARCH_API_KEY']))"
    )
    assert query(servers, code) == "hush"
