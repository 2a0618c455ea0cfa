"""Metrics, resume, links and checkpoints against a real MLflow server."""

import json
import math
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from igpo_core.errors import ConfigError, ServiceError
from tasks import tracking
from tasks.tracking import (
    Tracker,
    client,
    experiment_id,
    flatten,
    log_model_checkpoint,
    log_model_metrics,
    read_lines,
    tag_filter,
)


def opened(folder: Path, key: str, **params: Any) -> Tracker:
    return Tracker.open(folder, "tracking", f"run {key}", key, {"kind": "train", "arm": "a"}, params)


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run_id, name)]


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
    chart = urlsplit(urlsplit(tracking.chart_url("7", "a b&c")).fragment)
    assert chart.path == "/experiments/7/runs"
    assert parse_qs(chart.query) == {
        "searchFilter": ['tags.sweep = "a b&c" and tags.kind = "train"'],
        "compareRunsMode": ["CHART"],
    }
    compare = urlsplit(urlsplit(tracking.compare_url("7", ["r1", "r2"])).fragment)
    assert compare.path == "/compare-runs"
    assert parse_qs(compare.query) == {"runs": ['["r1","r2"]'], "experiments": ['["7"]']}
    assert unquote(tracking.traces_url("7")) == "http://host:1/#/experiments/7/traces"
    assert tracking.traces_url("7", "r1") == "http://host:1/#/experiments/7/runs/r1/traces"
    assert tracking.run_url("7", "r1") == "http://host:1/#/experiments/7/runs/r1"


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": {"d": None}}, "e": [0.2, 1], "f": [{"g": "x"}, {"g": True}], "h": {}}
    assert flatten(nested) == {"a.b": "1", "a.c.d": "null", "e": "[0.2, 1]", "f.0.g": "x", "f.1.g": "true"}


def test_a_value_that_cannot_be_quoted_is_refused() -> None:
    assert tag_filter(sweep="x-1", kind="train") == "tags.sweep = 'x-1' and tags.kind = 'train'"
    with pytest.raises(ConfigError, match=r"sweep.*quotation mark"):
        tag_filter(sweep="it's")


def test_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    path.write_text('{"st')
    assert read_lines(path) == [] and path.read_text() == ""


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9.*make up"):
        experiment_id("x")


def test_run_params_metrics_and_status(mlflow_server: str, tmp_path: Path) -> None:
    many = {f"p{i}": i for i in range(230)}  # more than one call takes
    tracker = opened(tmp_path, "k1", reward={"gamma": 1.0}, **many)
    assert client().get_run(tracker.run_id).info.status == "RUNNING"
    tracker.log(1, {"train/f1": 0.5, "train/nan": math.nan})
    tracker.log(2, {"train/f1": 0.75})
    tracker.finish("FINISHED")
    run = client().get_run(tracker.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "run k1"
    assert run.data.params == {"reward.gamma": "1.0", **{name: str(value) for name, value in many.items()}}
    assert run.data.tags["kind"] == "train" and run.data.tags["run_key"] == "k1"
    assert history(tracker.run_id, "train/f1") == [(1, 0.5), (2, 0.75)]
    assert math.isnan(history(tracker.run_id, "train/nan")[0][1])
    assert tracker.url == f"{mlflow_server}/#/experiments/{tracker.experiment_id}/runs/{tracker.run_id}"


def test_an_infinite_value_is_refused_by_name(mlflow_server: str, tmp_path: Path) -> None:
    tracker = opened(tmp_path, "k2")
    with pytest.raises(ValueError, match=r"train/loss at step 3 is -inf"):
        tracker.log(3, {"fine": 1.0, "train/loss": -math.inf})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_values_are_owed_until_there_are_enough(mlflow_server: str, tmp_path: Path) -> None:
    tracker = opened(tmp_path, "k3")
    for step in range(4):
        tracker.log(step, {f"m{i}": float(i) for i in range(100)})
    assert history(tracker.run_id, "m0") == [] and not (tmp_path / "metrics.sent").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4  # on disk already
    tracker.log(4, {f"m{i}": float(i) for i in range(100)})
    tracker._background.wait()
    assert [step for step, _ in history(tracker.run_id, "m99")] == [0, 1, 2, 3, 4]
    assert (tmp_path / "metrics.sent").read_text().split() == [tracker.run_id, "5"]
    tracker.log(5, {f"n{i}": 1.0 for i in range(1100)})  # more than one call takes
    tracker._background.wait()
    assert all(len(history(tracker.run_id, name)) == 1 for name in ("n0", "n999", "n1000", "n1099"))


def test_values_are_owed_no_longer_than_seconds(mlflow_server: str, tmp_path: Path) -> None:
    tracker = opened(tmp_path, "k4")
    tracker.log(1, {"a": 1.0})
    tracker._flushed = time.monotonic() - tracking.OWED_SECONDS - 1
    tracker.log(2, {"a": 2.0})
    tracker._background.wait()
    assert history(tracker.run_id, "a") == [(1, 1.0), (2, 2.0)]


def test_what_failed_to_be_sent_is_owed_again(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    tracker = opened(tmp_path, "k11")
    tracker._flushed = -tracking.OWED_SECONDS
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
        tracker.log(1, {"a": 1.0})  # nobody waits: no error yet
        with pytest.raises(ServiceError, match="did not take the metrics"):
            tracker.flush()
    tracker.log(2, {"a": 2.0})
    tracker.flush()
    assert history(tracker.run_id, "a") == [(1, 1.0), (2, 2.0)]
    assert (tmp_path / "metrics.sent").read_text().split() == [tracker.run_id, "2"]


def test_a_killed_run_resumes_without_doubling(mlflow_server: str, tmp_path: Path) -> None:
    first = opened(tmp_path, "k5", lr=0.1)
    first.log(1, {"a": 1.0})
    first.flush()
    first.log(2, {"a": 2.0})  # owed when the process dies
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "timest')
    second = opened(tmp_path, "k5", lr=0.1)
    assert second.run_id == first.run_id
    second.log(2, {"a": 2.5, "b": 7.0})  # step 2 is computed again: its first `a` stands, `b` is new
    second.log(3, {"a": 3.0})
    second.finish("FINISHED")
    assert history(first.run_id, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert history(first.run_id, "b") == [(2, 7.0)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["metrics"]) for line in lines] == [
        (1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"b": 7.0}), (3, {"a": 3.0})
    ]  # fmt: skip


def test_params_that_a_kill_kept_back_are_added(mlflow_server: str, tmp_path: Path) -> None:
    made = client().create_run(experiment_id("tracking"), tags={"run_key": "k10"})
    client().log_param(made.info.run_id, "lr", "0.1")  # then the process died
    resumed = opened(tmp_path, "k10", lr=0.1, steps=40)
    assert resumed.run_id == made.info.run_id
    assert client().get_run(resumed.run_id).data.params == {"lr": "0.1", "steps": "40"}


def test_lines_sent_twice_are_kept_once(mlflow_server: str, tmp_path: Path) -> None:
    first = opened(tmp_path, "k6")
    first.log(1, {"a": 1.0})
    first.flush()
    (tmp_path / "metrics.sent").unlink()  # killed between sending and counting
    second = opened(tmp_path, "k6")
    second.finish("KILLED")
    assert history(first.run_id, "a") == [(1, 1.0)]
    assert client().get_run(first.run_id).info.status == "KILLED"


def test_a_run_that_the_server_lost_is_sent_whole(mlflow_server: str, tmp_path: Path) -> None:
    first = opened(tmp_path, "k7")
    first.log(1, {"a": 1.0})
    first.finish("FINISHED")
    client().delete_run(first.run_id)
    second = opened(tmp_path, "k7")
    second.finish("FINISHED")
    assert second.run_id != first.run_id and history(second.run_id, "a") == [(1, 1.0)]


def test_a_run_whose_files_are_gone_is_superseded(mlflow_server: str, tmp_path: Path) -> None:
    first = opened(tmp_path / "one", "k8")
    first.log(1, {"a": 1.0})
    first.finish("FAILED")
    second = opened(tmp_path / "two", "k8")
    assert second.run_id != first.run_id
    assert client().get_run(first.run_id).data.tags["kind"] == "superseded"
    assert opened(tmp_path / "two", "k8").run_id == second.run_id


def test_experiment_is_found_again_and_a_deleted_one_named(mlflow_server: str) -> None:
    made = experiment_id("gone")
    assert experiment_id("gone") == made
    client().delete_experiment(made)
    with pytest.raises(ServiceError, match="'gone' was deleted"):
        experiment_id("gone")


def test_checkpoint_becomes_a_logged_model_once(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(tmp_path, "k9")
    tracker.log(10, {"test/all/f1": 0.5})
    tracker.flush()
    time.sleep(0.01)  # the model is logged at another millisecond than the run's metric
    folder = tmp_path / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    for name in ("model.safetensors", "state.pt", "manifest.json"):
        (folder / name).write_text(name)
    model_id = log_model_checkpoint(tracker.run_id, folder, 10)
    assert log_model_checkpoint(tracker.run_id, folder, 10) == model_id
    for _ in range(2):  # a run resumed at its very end says it again
        log_model_metrics(tracker.run_id, model_id, 10, {"test/all/f1": 0.5})
    model = client().get_logged_model(model_id)
    assert model.source_run_id == tracker.run_id and str(model.status) == "READY"
    assert model.params["path"] == str(folder) and model.params["step"] == "10"
    # sha256 of the bytes "manifest.json", as sha256sum gives it
    assert model.tags["manifest_sha256"] == "ffa5b716b5a57837f7929dfcca4b4dfdeb97210a7fd5a12d2f1978846d6f1743"
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics or []] == [("test/all/f1", 0.5, 10)]
    assert history(tracker.run_id, "test/all/f1") == [(10, 0.5)]  # a second timestamp would double it
    uploaded = [item.path for item in client().list_artifacts(tracker.run_id, "checkpoints/step-000010")]
    assert uploaded == [f"checkpoints/step-000010/{name}" for name in ("manifest.json", "model.safetensors")]
    import mlflow

    assert str(mlflow.register_model(f"models:/{model_id}", "policy").version) == "1"  # it can be registered
    # too big to upload: the model is logged with its path alone
    monkeypatch.setattr(tracking, "UPLOADED_BYTES", 10)
    big = tmp_path / "checkpoints" / "step-000020"
    big.mkdir()
    for name in ("model.safetensors", "manifest.json"):
        (big / name).write_text(f"{name} at 20")
    assert log_model_checkpoint(tracker.run_id, big, 20) != model_id
    assert client().list_artifacts(tracker.run_id, "checkpoints/step-000020") == []
