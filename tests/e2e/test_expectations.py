"""What is expected of runs, through a whole sweep: an arm that is stopped, one that is warned of, and both gone on with."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.e2e.conftest import Servers

pytestmark = [pytest.mark.e2e, pytest.mark.night, pytest.mark.timeout(600)]

NO_GAIN = {"metric": "reward/gain_std", "most": -1, "otherwise": "stop"}  # an arm without gains has none
NO_TURNS = {"metric": "train/turns", "most": 0.5}  # every rollout has one


def preset(folder: Path, *expected: object) -> str:
    base = {"from": "tiny", "expect": list(expected)}
    arms = {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "log_prob_diff"}}
    content = {"name": "expected", "baseline": "outcome_only", "seeds": [0], "arms": arms, "base": base}
    path = folder / "expected.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_an_arm_is_stopped_and_goes_on_with_another_bound(servers: Servers, tmp_path: Path) -> None:
    stopped = servers.run(sys.executable, "-m", "flows.ablation", preset(tmp_path, NO_GAIN, NO_TURNS))
    told = stopped.stdout + stopped.stderr
    assert stopped.returncode != 0 and "reward/gain_std at most -1" in told, told[-3000:]
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("expected")
    assert experiment is not None

    def runs() -> dict[str, Any]:
        found = client.search_runs([experiment.experiment_id], "tags.kind = 'train'")
        return {run.data.tags["arm"]: run for run in found}

    igpo, plain = runs()["igpo"], runs()["outcome_only"]
    assert (igpo.info.status, plain.info.status) == ("FAILED", "FINISHED")
    assert "reward/gain_std at most -1" in igpo.data.tags["unexpected"]
    assert plain.data.tags["unexpected"].startswith("train/turns at most 0.5")
    for run in (igpo, plain):
        named = [file.path for file in client.list_artifacts(run.info.run_id, "data_docs")]
        assert "data_docs/index.html" in named
    again = servers.run(sys.executable, "-m", "flows.ablation", preset(tmp_path, {**NO_GAIN, "otherwise": "warn"}))
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "NOT AS EXPECTED in igpo seed 0: reward/gain_std at most -1" in again.stdout
    assert "NOT AS EXPECTED in outcome_only seed 0: train/turns at most 0.5" in again.stdout
    assert runs()["igpo"].info.run_id == igpo.info.run_id
    (folder,) = {path.parent for path in servers.home.glob("runs/*/stopped.json")}
    assert json.loads((folder / "result.json").read_text())["arm"] == "igpo"
