"""The regression watch on real servers: an effect that left its earlier interval is said, and an automation reacts to it."""

import time

import pytest
from mlflow import MlflowClient

from tests.e2e.conftest import Servers
from tests.waiting import HANGS

pytestmark = [pytest.mark.night, pytest.mark.timeout(3600)]


def test_an_effect_that_moved_pauses_its_deployment(servers: Servers) -> None:
    def sweep() -> None:
        done = servers.run("prefect", "deployment", "run", "ablation/tiny", "--watch")
        assert done.returncode == 0, done.stdout + done.stderr

    automations = servers.ask("POST", "/automations/filter", {})
    (example,) = [found for found in automations if "pause when the effect moved" in found["name"]]
    assert not example["enabled"]
    sweep()
    # as if the sweep before, of other code, had seen a large effect
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    study = client.get_experiment_by_name("tiny")
    assert study is not None
    reports = client.search_runs([study.experiment_id], "tags.kind = 'report' and tags.seeds = '0,1'")
    client.set_tag(reports[0].info.run_id, "sweep", "tiny-before")
    for name, value in (("low", 0.9), ("high", 0.95)):
        client.log_metric(reports[0].info.run_id, f"report/igpo/{name}", value)
    servers.ask("PATCH", f"/automations/{example['id']}", {"enabled": True})
    sweep()
    deadline = time.monotonic() + HANGS
    while not servers.ask("GET", "/deployments/name/ablation/tiny")["paused"]:
        assert time.monotonic() < deadline, "the deployment was not paused"
        time.sleep(1)
    logs = servers.ask("POST", "/logs/filter", {"logs": {"level": {"ge_": 30}}})
    said = [entry["message"] for entry in logs if "EFFECT MOVED: igpo" in entry["message"]]
    assert len(said) == 1 and "outside [+0.900, +0.950] of the sweep before" in said[0] and "tiny-before" in said[0]
