"""Where MLflow is, links to its pages, and which errors say that it is away."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, TEMPORARILY_UNAVAILABLE

from igpo_core.errors import ConfigError, ServiceError
from tasks.tracking import server as tracking
from tasks.tracking.mlflow_runs import log_data
from tasks.tracking.server import client, experiment_id, flatten, tag_filter


def answer(status: int) -> requests.Response:
    response = requests.Response()
    response.status_code = status
    return response


def test_uri_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    assert tracking.tracking_uri() == "http://elsewhere:1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_PORT", "5123")
    assert tracking.tracking_uri() == "http://127.0.0.1:5123"
    monkeypatch.delenv("MLFLOW_PORT")
    assert tracking.tracking_uri() == "http://127.0.0.1:5000"


def test_links_decode_to_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:1")
    training = {"workflowType": ["machine_learning"]}  # else MLflow shows its pages for agents
    for url, path, query in (
        (
            tracking.view_url("7", "a b&c"),
            "/experiments/7/runs",
            {"viewStateShareKey": ["a b&c"], "compareRunsMode": ["CHART"]},
        ),
        (tracking.run_url("7", "r1"), "/experiments/7/runs/r1", {}),
        (tracking.artifact_url("7", "r1", "report.html"), "/experiments/7/runs/r1/artifacts/report.html", {}),
        (tracking.trace_url("7", "t1"), "/experiments/7/traces", {"selectedEvaluationId": ["t1"]}),
    ):
        assert url.startswith("http://host:1/#/") and len(url) < 150
        fragment = urlsplit(urlsplit(url).fragment)
        assert fragment.path == path and parse_qs(fragment.query) == {**query, **training}


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [0.2, 1], "f": [{"g": "x"}, {"g": True}], "h": {}}
    assert flatten(nested) == {"a.b": "1", "a.c.d": "null", "e": "[0.2, 1]", "f.0.g": "x", "f.1.g": "true"}


def test_a_value_that_cannot_be_quoted_is_refused() -> None:
    assert tag_filter(sweep="x-1", kind="train") == "tags.sweep = 'x-1' and tags.kind = 'train'"
    with pytest.raises(ConfigError, match=r"sweep.*quotation mark"):
        tag_filter(sweep="it's")


def test_experiment_is_found_again_and_a_deleted_one_named(mlflow_server: str) -> None:
    made = experiment_id("gone")
    assert experiment_id("gone") == made
    client().delete_experiment(made)
    with pytest.raises(ServiceError, match="'gone' was deleted"):
        experiment_id("gone")


def test_a_data_run_that_was_cut_off_is_completed(mlflow_server: str, tmp_path: Path) -> None:
    """A sweep killed while it logged its data left a run RUNNING for ever, and the next start made another."""
    (tmp_path / "data_docs").mkdir()
    (tmp_path / "data_docs" / "index.html").write_text("docs")
    (tmp_path / "quarantine.jsonl").write_text("")
    (tmp_path / "summary.json").write_text('{"counts": {"train": 4, "dev": 2}, "quarantined": 1}')
    whole = log_data("cut-off", "v1", tmp_path)
    mlflow, experiment = client(), experiment_id("cut-off")
    run = whole.split("/runs/")[1].split("/")[0]
    assert f"/runs/{run}/artifacts/data_docs/index.html?" in whole
    mlflow.update_run(run, status="RUNNING")
    assert log_data("cut-off", "v1", tmp_path) == whole
    only = mlflow.search_runs([experiment])
    assert [(found.info.run_id, found.info.status) for found in only] == [(run, "FINISHED")]
    assert only[0].data.metrics == {"data/train_questions": 4, "data/dev_questions": 2, "data/quarantined": 1}
    assert len(mlflow.get_metric_history(run, "data/train_questions")) == 1


def test_what_a_suite_found_is_a_data_run_of_its_own(mlflow_server: str, tmp_path: Path) -> None:
    """The same data without a suite need no other run; with another suite they do."""
    for place in ("data/data_docs", "a/suite_docs", "b/suite_docs"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "index.html").write_text("docs")
    data = tmp_path / "data"
    (data / "quarantine.jsonl").write_text("")
    (data / "summary.json").write_text('{"counts": {"train": 4}, "quarantined": 0}')
    for name in ("a", "b"):
        (tmp_path / name / "suites.json").write_text(f'{{"questions": "{name}"}}')
    links = [log_data("suites", "v1", data, tmp_path / name) for name in ("a", "b", "a")]
    assert links[0] == links[2] != links[1] and "/artifacts/suite_docs/index.html?" in links[0]
    assert "/artifacts/data_docs/index.html?" in log_data("suites", "v1", data)
    runs = client().search_runs([experiment_id("suites")])
    assert len(runs) == 2
    for run in runs:
        assert "suites.json" in {one.path for one in client().list_artifacts(run.info.run_id)}


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (MlflowException("refused"), True),  # a refused connection has no code of its own: INTERNAL_ERROR
        (MlflowException("busy", TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("no such run", RESOURCE_DOES_NOT_EXIST), False),
        (MlflowException("bad", INVALID_PARAMETER_VALUE), False),
        (requests.ConnectionError("refused"), True),
        (requests.HTTPError(response=answer(503)), True),
        (requests.HTTPError(response=answer(429)), True),
        (requests.HTTPError(response=answer(403)), False),
        (ValueError("ours"), False),
    ],
)
def test_what_says_that_the_server_is_away(error: Exception, is_away: bool) -> None:
    assert tracking.away(error) is is_away


def test_an_error_of_the_call_goes_through_and_an_absence_gets_its_name() -> None:
    with pytest.raises(tracking.MlflowAway, match="does not answer"), tracking.answering():
        raise requests.ConnectionError("refused")
    with pytest.raises(MlflowException, match="bad"), tracking.answering():
        raise MlflowException("bad", INVALID_PARAMETER_VALUE)
