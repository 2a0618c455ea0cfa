"""What reaches a real MLflow server: everything, once, whenever it is there."""

import hashlib
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpo_core.errors import ConfigError, ServiceError
from tasks.runs.locks import locked
from tasks.tracking import sending
from tasks.tracking import server as tracking
from tasks.tracking.outbox import About, Outbox, read_status, write_status
from tasks.tracking.owed import owes, send_runs
from tasks.tracking.sending import Sender, Tracker, read_sent
from tasks.tracking.server import MlflowAway, client, experiment_id
from tasks.tracking.traces import TraceRecord, TurnRecord
from tests.waiting import wait_until

NOWHERE = "http://127.0.0.1:9"  # nothing listens there


def about(key: str, **params: Any) -> About:
    return About("sending", f"run {key}", key, {"kind": "train", "arm": "a"}, params)


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run_id, name)]


def runs(key: str) -> list[Any]:
    return list(client().search_runs([experiment_id("sending")], f"tags.run_key = '{key}'"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(sending, "EVERY_SECONDS", 0.2)


def test_one_run_with_tags_params_and_metrics(mlflow_server: str, tmp_path: Path) -> None:
    many = {f"setting{i}": i for i in range(150)}  # more than one call takes
    outbox = Outbox(tmp_path, about("s1", reward={"gamma": 1.0}, **many))
    outbox.log(1, {"train/f1": 0.5, "train/nan": math.nan, **{f"n{i}": 1.0 for i in range(1100)}})
    sender = Sender(tmp_path)
    assert sender.url is None
    url = sender.send()
    run = runs("s1")[0]
    assert (
        url
        == sender.url
        == f"{mlflow_server}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
    )
    assert run.info.status == "RUNNING" and run.info.run_name == "run s1"
    assert run.data.params == {"reward.gamma": "1.0", **{name: str(value) for name, value in many.items()}}
    assert run.data.tags["kind"] == "train"
    outbox.log(2, {"train/f1": 0.75})
    write_status(tmp_path, "FINISHED")
    sender.send()
    run = client().get_run(run.info.run_id)
    assert run.info.status == "FINISHED" and run.info.end_time == read_status(tmp_path)[1]
    assert history(run.info.run_id, "train/f1") == [(1, 0.5), (2, 0.75)]
    assert math.isnan(history(run.info.run_id, "train/nan")[0][1])
    assert all(len(history(run.info.run_id, name)) == 1 for name in ("n0", "n999", "n1000", "n1099"))


def test_a_run_names_its_data_and_its_model(mlflow_server: str, tmp_path: Path) -> None:
    """Every checkpoint was called checkpoint-40, and no run had data."""
    data = {
        "name": "lookup",
        "digest": "0123456789ab",
        "uri": "/home/data/0123456789ab",
        "profile": '{"test questions": 512}',
    }
    named = replace(about("named"), run_name="igpo 1/2 seed 0 gamma=0.5", dataset=data)
    outbox = Outbox(tmp_path, named)
    outbox.log(40, {"test/all/f1": 0.5})
    (tmp_path / "checkpoints" / "step-000040").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000040" / "manifest.json").write_text('{"sha256": {}}')
    outbox.set_model(tmp_path / "checkpoints" / "step-000040", 40, ["test/all/f1"])
    Sender(tmp_path).send()
    Sender(tmp_path).send()  # once, however often
    (run,) = runs("named")
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.profile) == (
        "lookup",
        "0123456789ab",
        data["profile"],
    )
    assert given.dataset.source == '{"uri": "/home/data/0123456789ab"}'
    models = client().search_logged_models(
        [run.info.experiment_id], tracking.tag_filter(policy_sha256=hashlib.sha256(b"{}").hexdigest())
    )
    (model,) = (model for model in models if model.source_run_id == run.info.run_id)
    assert model.name == "igpo-1-2-seed-0-gamma=0-5-step-40"


def test_lines_sent_twice_are_kept_once(mlflow_server: str, tmp_path: Path) -> None:
    Outbox(tmp_path, about("s2")).log(1, {"a": 1.0})
    Sender(tmp_path).send()
    (tmp_path / "sent.json").unlink()  # killed between sending and noting it
    write_status(tmp_path, "KILLED")
    Sender(tmp_path).send()
    (run,) = runs("s2")
    assert history(run.info.run_id, "a") == [(1, 1.0)] and run.info.status == "KILLED"


def test_params_that_a_kill_kept_back_are_added(mlflow_server: str, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, about("s3", lr=0.1, steps=40))
    started = sending.read_about(tmp_path).started_ms  # type: ignore[union-attr]
    made = client().create_run(experiment_id("sending"), start_time=started, tags={"run_key": "s3"})
    client().log_param(made.info.run_id, "lr", "0.1")  # then the process died
    Sender(outbox.folder).send()
    (run,) = runs("s3")
    assert run.info.run_id == made.info.run_id and run.data.params == {"lr": "0.1", "steps": "40"}


def test_a_run_that_the_server_lost_is_sent_whole(mlflow_server: str, tmp_path: Path) -> None:
    Outbox(tmp_path, about("s4")).log(1, {"a": 1.0})
    write_status(tmp_path, "FINISHED")
    Sender(tmp_path).send()
    (lost,) = runs("s4")
    client().delete_run(lost.info.run_id)
    Sender(tmp_path).send()
    (found,) = runs("s4")
    assert found.info.run_id != lost.info.run_id and found.info.status == "FINISHED"
    assert history(found.info.run_id, "a") == [(1, 1.0)]


def test_a_run_whose_folder_was_lost_is_superseded(mlflow_server: str, tmp_path: Path) -> None:
    Outbox(tmp_path / "one", about("s5")).log(1, {"a": 1.0})
    Sender(tmp_path / "one").send()
    (first,) = runs("s5")
    time.sleep(0.01)
    Outbox(tmp_path / "two", about("s5")).log(1, {"a": 1.5})
    Sender(tmp_path / "two").send()
    (second,) = runs("s5")
    assert second.info.run_id != first.info.run_id and history(second.info.run_id, "a") == [(1, 1.5)]
    assert client().get_run(first.info.run_id).data.tags["kind"] == "superseded"
    Sender(tmp_path / "two").send()
    assert [run.info.run_id for run in runs("s5")] == [second.info.run_id]


def test_a_server_that_is_away_costs_a_run_nothing(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away at the start, there in the middle, away at the end: then sent by command."""
    said: list[str] = []
    shown: list[str] = []
    folder = tmp_path / "runs" / "s6"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    tracker = Tracker(folder, about("s6"), said.append, shown.append)
    started = time.monotonic()
    for step in range(3):
        tracker.log(step, {"a": float(step)})
    assert time.monotonic() - started < 0.5
    wait_until(lambda: bool(said))
    assert "does not answer" in said[0] and not shown
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    wait_until(lambda: len(said) > 1)
    assert "answers again" in said[1] and len(shown) == 1
    assert history(runs("s6")[0].info.run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    tracker.log(3, {"a": 3.0})
    tracker.finish("FINISHED")
    assert "make send" in said[-1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    assert owes(folder)
    assert send_runs(tmp_path, print) == 1 and not owes(folder)
    assert send_runs(tmp_path, print) == 0
    (run,) = runs("s6")
    assert run.info.status == "FINISHED"
    assert history(run.info.run_id, "a") == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]


def test_what_mlflow_refuses_ends_the_run_with_its_reason(mlflow_server: str, tmp_path: Path) -> None:
    gone = experiment_id("refusing")
    client().delete_experiment(gone)
    said: list[str] = []
    tracker = Tracker(tmp_path, About("refusing", "run", "s7", {}, {}), said.append)
    wait_until(lambda: tracker._refused is not None)
    with pytest.raises(ServiceError, match="'refusing' was deleted"):
        tracker.log(1, {"a": 1.0})
    tracker.finish("FAILED")
    assert "was deleted" in said[-1]


def test_a_run_at_work_sends_for_itself_and_a_dead_one_is_failed(mlflow_server: str, tmp_path: Path) -> None:
    Outbox(tmp_path / "runs" / "s8", about("s8")).log(1, {"a": 1.0})
    with locked(tmp_path, "s8", print):
        assert send_runs(tmp_path, print) == 0
    assert send_runs(tmp_path, print, {"other"}) == 0
    assert send_runs(tmp_path, print, {"s8"}) == 1  # nobody holds it, and it never said how it ended
    assert [run.info.status for run in runs("s8")] == ["FAILED"]


def test_a_run_that_was_ended_after_its_result_is_finished(mlflow_server: str, tmp_path: Path) -> None:
    """Told to end while it waited for MLflow; a sweep that finds its result starts nothing that would correct it."""
    folder = tmp_path / "runs" / "s9"
    Outbox(folder, about("s9")).log(1, {"a": 1.0})
    write_status(folder, "KILLED")
    Sender(folder).send()
    (folder / "result.json").write_text("{}")
    assert send_runs(tmp_path, print) == 1
    assert [run.info.status for run in runs("s9")] == ["FINISHED"]


def test_traces_and_model_are_sent_once(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path, about("s9"))
    turn = TurnRecord("thought", "search", "who", "he", -2.0, -1.0, 1.0)
    scores = {"f1": 1.0, "em": 1.0}
    outbox.set_traces([TraceRecord(f"q{i}", "Who?", ("he",), (turn,), "answered", scores, "a", 0) for i in range(2)])
    folder = tmp_path / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    (folder / "shards").mkdir()
    for name in ("model.safetensors", "state.pt", "shards/0.pt"):
        (folder / name).write_text(name)
    # a finished run writes its manifest anew at this moment, when it drops its moments
    (folder / ".manifest.json.1.2.partial").write_text("half")
    files = {"model.safetensors": "aa", "shards/0.pt": "cc", "state.pt": "bb"}
    (folder / "manifest.json").write_text(json.dumps({"sha256": files}))
    outbox.set_model(folder, 10, [])
    Sender(tmp_path).send()
    outbox.log(10, {"test/all/f1": 0.5})
    time.sleep(0.01)  # the model is logged at another millisecond than the run's metric
    outbox.set_model(folder, 10, ["test/all/f1"])
    for _ in range(2):
        Sender(tmp_path).send()
        (tmp_path / "sent.json").unlink()  # as after a kill
    (run,) = runs("s9")
    run_id, experiment = run.info.run_id, run.info.experiment_id
    assert len(client().search_traces(run_id=run_id, locations=[experiment])) == 2
    (model,) = client().search_logged_models([experiment], f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY" and model.params["step"] == "10" and model.params["path"] == str(folder)
    # of the bytes {"model.safetensors": "aa"}, as sha256sum gives it: moments are no part of a model
    assert model.tags["policy_sha256"] == "4236b752a1dce73d6edfc06ec6eb08a7d1be46159c3c145eb4e835973e2c5c06"
    model = client().get_logged_model(model.model_id)
    assert [(metric.key, metric.value, metric.step) for metric in model.metrics or []] == [("test/all/f1", 0.5, 10)]
    assert history(run_id, "test/all/f1") == [(10, 0.5)]  # a second timestamp would double it
    uploaded = [item.path for item in client().list_artifacts(run_id, "checkpoints/step-000010")]
    assert uploaded == [f"checkpoints/step-000010/{name}" for name in ("manifest.json", "model.safetensors")]
    import mlflow

    assert str(mlflow.register_model(f"models:/{model.model_id}", "policy").version) == "1"  # it can be registered
    # too big to upload: the model is logged with its path alone
    monkeypatch.setattr(tracking, "UPLOADED_BYTES", 10)
    big = tmp_path / "checkpoints" / "step-000020"
    big.mkdir()
    (big / "model.safetensors").write_text("model.safetensors at 20")
    (big / "manifest.json").write_text(json.dumps({"sha256": {"model.safetensors": "dd"}}))
    outbox.set_model(big, 20, [])
    Sender(tmp_path).send()
    assert client().list_artifacts(run_id, "checkpoints/step-000020") == []
    assert len(client().search_logged_models([experiment], f"source_run_id = '{run_id}'")) == 2


def test_sending_to_another_server_sends_everything(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Outbox(tmp_path, about("s10")).log(1, {"a": 1.0})
    write_status(tmp_path, "FINISHED")
    Sender(tmp_path).send()
    sent = read_sent(tmp_path)
    assert sent is not None and not owes(tmp_path)
    other = mlflow_server.replace(
        "127.0.0.1", "localhost"
    )  # the same server under a name that the folder does not know
    monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
    monkeypatch.setitem(os.environ, "no_proxy", "localhost")
    assert owes(tmp_path)
    Sender(tmp_path).send()
    after = read_sent(tmp_path)
    assert after is not None and (after.server, after.run_id) == (other, sent.run_id)
    assert history(sent.run_id, "a") == [(1, 1.0)]


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"tracking\.json"):
        Sender(tmp_path).send()


def test_an_absent_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    Outbox(tmp_path, about("s11"))
    with pytest.raises(MlflowAway, match=NOWHERE):
        Sender(tmp_path).send()


def test_a_model_written_while_another_is_sent_is_sent_too(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path, about("s12"))
    folder = tmp_path / "checkpoints" / "step-000010"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"sha256": {"model.safetensors": "s12"}}))
    outbox.set_model(folder, 10, [])
    outbox.log(10, {"test/all/f1": 0.5})
    upload = sending.log_model_checkpoint

    def slow(*arguments: Any) -> str:
        outbox.set_model(folder, 10, ["test/all/f1"])  # the run ends its evaluation meanwhile
        return upload(*arguments)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(sending, "log_model_checkpoint", slow)
        Sender(tmp_path).send()
    assert owes(tmp_path)
    Sender(tmp_path).send()
    (run,) = runs("s12")
    (model,) = client().search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert [metric.value for metric in client().get_logged_model(model.model_id).metrics or []] == [0.5]
    assert not owes(tmp_path)


def test_what_mlflow_lost_is_sent_again_and_a_damaged_folder_keeps_nobody_back(
    mlflow_server: str, tmp_path: Path
) -> None:
    for key in ("s13", "s14"):
        Outbox(tmp_path / "runs" / key, about(key)).log(1, {"a": 1.0})
        write_status(tmp_path / "runs" / key, "FINISHED")
    assert send_runs(tmp_path, print) == 2 and send_runs(tmp_path, print) == 0
    client().delete_run(runs("s14")[0].info.run_id)
    with (tmp_path / "runs" / "s13" / "metrics.jsonl").open("a") as file:
        file.write("{damaged}\n")
    with pytest.raises(ServiceError, match=r"s13: .*damaged"):
        send_runs(tmp_path, print)
    assert len(runs("s14")) == 1


def test_a_request_that_was_repeated_leaves_one_run(mlflow_server: str, tmp_path: Path) -> None:
    """MLflow answered create_run too late, and its client asked again."""
    Outbox(tmp_path, about("s15")).log(1, {"a": 1.0})
    started = sending.read_about(tmp_path).started_ms  # type: ignore[union-attr]
    for _ in range(2):
        client().create_run(experiment_id("sending"), start_time=started, tags={"run_key": "s15"})
    for _ in range(2):
        Sender(tmp_path).send()
        (run,) = runs("s15")
        assert history(run.info.run_id, "a") == [(1, 1.0)]
    others = client().search_runs([experiment_id("sending")], "tags.run_key = 's15-superseded'")
    assert [other.info.status for other in others] == ["KILLED"]


def test_a_file_that_a_power_cut_shortened_is_sent_from_its_start(mlflow_server: str, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, about("s16"))
    outbox.log(1, {"a": 1.0})
    Sender(tmp_path).send()
    sent = read_sent(tmp_path)
    assert sent is not None
    sending.write_json(tmp_path / "sent.json", {**sending.asdict(sent), "metrics": 10**6})
    outbox.log(2, {"a": 2.0})
    Sender(tmp_path).send()
    (run,) = runs("s16")
    assert history(run.info.run_id, "a") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("uri", ["http://me:secret@lab:5000", "https://me:secret@lab"])
def test_a_password_in_the_address_is_refused(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        tracking.tracking_uri()
    assert "secret" not in str(caught.value)
