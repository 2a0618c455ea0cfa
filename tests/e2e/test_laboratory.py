"""The whole laboratory with real servers: a tiny sweep, its numbers in MLflow, deployments, schedules, refusals."""

import json
import sys
import time
from typing import Any

import pytest

from tests.e2e.conftest import Servers

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


def query(servers: Servers, code: str) -> Any:
    """Run code in a process that reaches the servers; it prints one JSON value last."""
    done = servers.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


RUNS = """
import json
from tasks.tracking import client, experiment_id
mlflow, experiment = client(), experiment_id("tiny")
def history(run, name): return [(m.step, m.value) for m in mlflow.get_metric_history(run, name)]
runs = mlflow.search_runs([experiment], max_results=100)
print(json.dumps([{"tags": r.data.tags, "metrics": r.data.metrics, "status": r.info.status, "id": r.info.run_id,
                   "f1": history(r.info.run_id, "train/f1"), "dev": history(r.info.run_id, "eval/all/f1")} for r in runs]))
"""


@pytest.fixture(scope="module")
def sweep(servers: Servers) -> str:
    done = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_prefect_server_module_imports(servers: Servers) -> None:
    assert servers.run(sys.executable, "-c", "import prefect.server.api.server").returncode == 0


def test_the_sweep_ends_with_a_table_and_links(sweep: str) -> None:
    table = sweep[sweep.index("\narm ") :]
    assert "outcome_only" in table and "igpo_prob_diff" in table
    assert "/#/experiments/" in table


def test_mlflow_holds_equal_runs_and_one_report(servers: Servers, sweep: str) -> None:
    runs = query(servers, RUNS)
    trained = [run for run in runs if run["tags"].get("kind") == "train"]
    assert sorted((run["tags"]["arm"], run["tags"]["seed"]) for run in trained) == [
        ("igpo_prob_diff", "0"), ("igpo_prob_diff", "1"), ("outcome_only", "0"), ("outcome_only", "1")
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
    assert sum(run["tags"].get("kind") == "report" for run in runs) == 1
    assert sum(run["tags"].get("kind") == "data" for run in runs) == 1


def test_the_report_can_be_recomputed_from_the_runs(servers: Servers, sweep: str) -> None:
    runs = query(servers, RUNS)
    mean = {}
    for arm in ("outcome_only", "igpo_prob_diff"):
        values = [r["metrics"]["test/all/f1"] for r in runs if r["tags"].get("arm") == arm]
        mean[arm] = sum(values) / len(values)
    report = next(run for run in runs if run["tags"].get("kind") == "report")
    table = query(
        servers,
        "import json; from tasks.tracking import client\n"
        f"path = client().download_artifacts({report['id']!r}, 'table.json')\n"
        "print(json.dumps(json.load(open(path))))",
    )
    assert {row["arm"]: row["f1"] for row in table} == pytest.approx(mean)


def test_a_second_sweep_reuses_everything(servers: Servers, sweep: str) -> None:
    before = query(servers, RUNS)
    done = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    assert done.returncode == 0
    assert done.stdout.count("finished before") + done.stderr.count("finished before") == 4
    after = query(servers, RUNS)
    assert sorted(run["id"] for run in after) == sorted(run["id"] for run in before)


def test_a_run_that_mlflow_lost_is_sent_again(servers: Servers, sweep: str) -> None:
    lost = next(run for run in query(servers, RUNS) if run["tags"].get("arm") == "outcome_only")
    query(servers, f"from tasks.tracking import client; client().delete_run({lost['id']!r}); print(0)")
    done = servers.run(sys.executable, "-m", "flows.ablation", "tiny")
    assert done.returncode == 0 and "metrics were sent again" in done.stdout + done.stderr
    again = [r for r in query(servers, RUNS) if r["tags"].get("run_key") == lost["tags"]["run_key"]]
    assert [run["metrics"]["test/all/f1"] for run in again] == [lost["metrics"]["test/all/f1"]]
    assert again[0]["dev"] == lost["dev"] and again[0]["f1"] == lost["f1"]


def test_a_deployed_ablation_runs_through_the_worker(servers: Servers, sweep: str) -> None:
    parameters = json.dumps({"seeds": [2]})
    done = servers.run("prefect", "deployment", "run", "ablation/tiny", "--params", parameters, "--watch")
    assert done.returncode == 0, done.stdout + done.stderr
    seeds = [run["tags"].get("seed") for run in query(servers, RUNS) if run["tags"].get("kind") == "train"]
    assert seeds.count("2") == 2
    # a part of a sweep has a report of its own: the whole one's stays
    reports = [run for run in query(servers, RUNS) if run["tags"].get("kind") == "report"]
    assert {run["tags"]["seeds"]: run["metrics"]["report/igpo_prob_diff/pairs"] for run in reports} == {
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
    count = "import json; from prefect.client.orchestration import get_client\n"
    count += "with get_client(sync_client=True) as c: runs = c.read_flow_runs()\n"
    count += "print(json.dumps(sum(not run.auto_scheduled for run in runs)))"
    before = query(servers, count)
    done = servers.run("prefect", "deployment", "run", deployment, "--params", json.dumps(parameters))
    assert done.returncode != 0 and named in done.stdout + done.stderr
    assert query(servers, count) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "outcome-vs-igpo"),
        (["tiny", "--arms", "igpo_magic"], "igpo_prob_diff"),
    ],
)
def test_bad_input_ends_with_a_message(servers: Servers, arguments: list[str], message: str) -> None:
    done = servers.run(sys.executable, "-m", "flows.ablation", *arguments)
    assert done.returncode == 1
    assert message in done.stderr and "Traceback" not in done.stderr


def test_a_cron_deployment_gets_a_scheduled_run(servers: Servers) -> None:
    code = """
import json
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import StateType
scheduled = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
with get_client(sync_client=True) as c:
    runs = c.read_flow_runs(flow_run_filter=scheduled)
    print(json.dumps([r.auto_scheduled for r in runs]))
"""
    deadline = time.monotonic() + 120
    while not any(query(servers, code)):
        assert time.monotonic() < deadline, "no scheduled run appeared for the cron deployment within 120 s"
        time.sleep(3)


def test_an_evaluation_of_a_finished_run(servers: Servers, sweep: str) -> None:
    run_key = next(r["tags"]["run_key"] for r in query(servers, RUNS) if r["tags"].get("kind") == "train")
    code = (
        f"import json; from flows.evaluate import evaluate; print(json.dumps(evaluate({run_key!r}, 'tiny', 'dev', 8)))"
    )
    metrics = query(servers, code)
    assert 0 <= metrics["dev/all/f1"] <= 1 and metrics["dev/all/questions"] == 8


def test_runs_that_lose_their_server_are_marked_crashed(servers: Servers) -> None:
    code = """
import json, os
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Running
from deployments.services import crash_unfinished
@flow
def lost(): pass
with get_client(sync_client=True) as c:
    run = c.create_flow_run(lost, state=Running())
    crash_unfinished(os.environ["PREFECT_API_URL"])
    after = c.read_flow_run(run.id)
print(json.dumps([after.state.type.value, after.state.message]))
"""
    assert query(servers, code) == ["CRASHED", "ended by `make down`"]
