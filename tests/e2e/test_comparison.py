"""Models compared with real servers: a list through a deployment, found again, linked to their runs; a registered winner."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.e2e.conftest import ROOT, Servers

pytestmark = [pytest.mark.e2e, pytest.mark.night, pytest.mark.timeout(1800)]
STUDY = "compared"


@pytest.fixture(scope="module")
def preset(servers: Servers) -> str:
    """Preset tiny with a warm start that learns something, else every score were zero and every test of them empty."""
    content = yaml.safe_load((ROOT / "deployments" / "presets" / "tiny.yaml").read_text())
    content["base"]["warm_start"]["stages"][0] |= {"steps": 200, "batch_size": 32}
    path = servers.home / "compared.yaml"
    path.write_text(yaml.safe_dump({**content, "name": STUDY}))
    return str(path)


@pytest.fixture(scope="module")
def sweep(servers: Servers, preset: str) -> str:
    """What a sweep prints that ends with a comparison of its warm starts and its last checkpoints."""
    done = servers.run(sys.executable, "-m", "flows.ablation", preset, "--evaluate", "start,last")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def runs(servers: Servers, kind: str) -> list[Any]:
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    found: list[Any] = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    return found


def artifact(servers: Servers, run_id: str, name: str, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text()


def test_a_sweep_ends_with_what_it_was_asked_to_compare(servers: Servers, sweep: str, tmp_path: Path) -> None:
    """Every score of the table is computed again from the records of MLflow's evaluation runs."""
    table = sweep[sweep.index("\nmodel ") :]
    assert "start" in table and "outcome_only last" in table and "2 training" in table
    (comparison,) = runs(servers, "comparison")
    told = json.loads(artifact(servers, comparison.info.run_id, "comparison.json", tmp_path))
    scores: dict[str, list[float]] = {}
    for run in runs(servers, "evaluation"):
        lines = artifact(servers, run.info.run_id, "records.jsonl", tmp_path / run.info.run_id).splitlines()
        sampled = [line for line in map(json.loads, lines) if line["decoding"] == "sampled"]
        assert len(sampled) == 2 * 16  # sampling seeds and questions
        name = run.info.run_name.removeprefix("evaluate ").partition(" seed ")[0]
        scores.setdefault(name, []).append(sum(line["f1"] for line in sampled) / len(sampled))
    assert {name: len(own) for name, own in scores.items()} == {"start": 2, "outcome_only last": 2, "igpo last": 2}
    assert {row["model"]: row["score"] for row in told} == {
        name: pytest.approx(sum(own) / 2) for name, own in scores.items()
    }
    assert sum(map(sum, scores.values())) > 0
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    named = {item.path for item in client.list_artifacts(comparison.info.run_id)}
    assert named == {"comparison.json", "comparison.md", "comparison.png", "table.csv", "slices.csv"}


def test_an_evaluation_leads_to_its_training_run_data_and_checkpoint(servers: Servers, sweep: str) -> None:
    trained = {run.info.run_id: run for run in runs(servers, "train")}
    evaluated = [run for run in runs(servers, "evaluation") if " last " in run.info.run_name]
    assert len(evaluated) == 4
    for run in evaluated:
        source = trained[run.data.tags["trained_run"]]
        assert run.info.run_name == f"evaluate {source.data.tags['arm']} last seed {source.data.tags['seed']}"
        (data,) = run.inputs.dataset_inputs
        assert data.dataset.digest == source.inputs.dataset_inputs[0].dataset.digest
        assert [tag.value for tag in data.tags] == ["evaluation"]
        client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
        (found,) = client.get_run(run.info.run_id).inputs.model_inputs  # a search leaves them out
        model = client.get_logged_model(found.model_id)
        assert model.source_run_id == source.info.run_id
        assert model.tags["policy_sha256"] == run.data.tags["weights"]
        assert {"test/all/f1", "test_greedy/all/f1"} <= {metric.key for metric in model.metrics}


def test_a_list_of_models_through_a_deployment(servers: Servers, sweep: str, preset: str) -> None:
    """The base, a run and a registered model; asked for again, nothing is measured and no run is made."""
    client = MlflowClient(servers.environment["MLFLOW_TRACKING_URI"])
    key = next(run.data.tags["run_key"] for run in runs(servers, "train") if run.data.tags["arm"] == "igpo")
    code = (
        "from tasks.lab.home import home; from tasks.specification.presets import load_specification; "
        "from tasks.report.winner import Winner; "
        "from tasks.runs.planned import open_run; from tasks.tracking.registry import register_winner; "
        f"run = open_run(home(), {key!r}); won = Winner('', 'igpo', 'outcome_only', .1, .05, .2, .03, 6, .03); "
        f"register_winner(won, [run], load_specification({preset!r}).model_dump(mode='json'), 'none', [])"
    )
    done = servers.run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    version = client.get_model_version_by_alias(STUDY, "best")
    assert version.tags["arm"] == "igpo" and version.tags["run_key"] == key
    models = json.dumps(["base", f"{key}@last", f"models:/{STUDY}@best"])
    command = ["prefect", "deployment", "run", "evaluate/outcome-vs-igpo", "--param", f"model={models}", "--param",
               f"preset={preset}", "--param", "split=dev", "--param", "limit=8", "--watch"]  # fmt: skip
    before = {run.info.run_id for kind in ("comparison", "evaluation") for run in runs(servers, kind)}
    done = servers.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    after = {run.info.run_id: run for kind in ("comparison", "evaluation") for run in runs(servers, kind)}
    new = {after[run_id].info.run_name for run_id in after.keys() - before}
    last = next(name for name in new if name.startswith("evaluate igpo seed"))
    assert new == {
        "evaluate base", last, f"evaluate models:/{STUDY}@best",
        f"compare base, {last.removeprefix('evaluate ')}, models:/{STUDY}@best",
    }  # fmt: skip
    # a measurement is written to a file of its own and moved; its time of change only says that it is in use
    kept = {path: path.stat().st_ino for path in (servers.home / "evaluations").iterdir()}
    done = servers.run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_ino for path in (servers.home / "evaluations").iterdir()} == kept
    assert {run.info.run_id for kind in ("comparison", "evaluation") for run in runs(servers, kind)} == after.keys()


def test_what_is_not_there_is_told_before_anything_is_measured(servers: Servers, sweep: str, preset: str) -> None:
    kept = sorted((servers.home / "evaluations").iterdir())
    code = f"from flows.evaluate import evaluate; evaluate(['base', 'models:/{STUDY}@worst'], {preset!r}, 'train')"
    done = servers.run(sys.executable, "-c", code)
    assert done.returncode != 0 and "has none of this name" in done.stderr
    assert sorted((servers.home / "evaluations").iterdir()) == kept
