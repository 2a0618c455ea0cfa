"""Two processes that give MLflow the same new entry at once: tried again, and told without SQL."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from igpo_core.errors import ServiceError
from tasks.tracking import sending
from tasks.tracking import server as tracking
from tasks.tracking.outbox import About, Outbox
from tasks.tracking.owed import owes, send_runs
from tasks.tracking.sending import Sender, Tracker
from tasks.tracking.server import client, experiment_id
from tests.waiting import HANGS, wait_until

# as MLflow tells what the two databases refused
COLLISIONS = (
    "(sqlite3.IntegrityError) UNIQUE constraint failed: experiment_tags.key, experiment_tags.experiment_id\n"
    "[SQL: INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?)]\n[parameters: ('a', 'secret', 1)]",
    '(psycopg2.errors.UniqueViolation) duplicate key value violates unique constraint "registered_model_alias_pk"\n'
    "DETAIL:  Key (name, alias)=(lookup, best) already exists.\n[SQL: INSERT INTO registered_model_aliases VALUES ..]",
)


def about(key: str, dataset: dict[str, str] | None = None) -> About:
    return About("collisions", f"run {key}", key, {"kind": "train"}, {}, dataset=dataset or {})


@pytest.mark.parametrize("text", COLLISIONS)
def test_two_entries_at_once_are_tried_again_and_told_without_sql(text: str) -> None:
    with pytest.raises(tracking.Collided, match="another process") as caught, tracking.answering():
        raise MlflowException(text, BAD_REQUEST)
    assert isinstance(caught.value, tracking.MlflowAway)  # what every retry here waits for
    assert tracking.away(MlflowException(text, BAD_REQUEST))
    assert not any(word in str(caught.value) for word in ("SQL", "constraint", "secret", "DETAIL"))
    assert "SQL" not in tracking.brief(MlflowException(" ".join(text.split()), BAD_REQUEST))


def test_another_refusal_of_a_database_is_final() -> None:
    assert not tracking.away(MlflowException("(sqlite3.IntegrityError) NOT NULL constraint failed: a", BAD_REQUEST))


def test_two_runs_that_log_new_data_at_once_both_have_them(mlflow_server: str) -> None:
    """MLflow looks for a data set and then inserts it: of fifteen pairs ten failed, and with each an arm."""
    mlflow, experiment = client(), experiment_id("at-once")
    pair = [mlflow.create_run(experiment).info.run_id for _ in range(2)]
    collisions = 0

    def log(run_id: str, name: str, together: threading.Barrier) -> int:
        data = {"name": name, "digest": "d1", "uri": f"/data/{name}", "profile": "{}"}
        together.wait(HANGS)
        for tries in range(3):
            try:
                with tracking.answering():
                    tracking.log_dataset(run_id, data)
                return tries
            except tracking.Collided:
                continue
        raise AssertionError("three collisions in a row: the second try finds the row of the first")

    with ThreadPoolExecutor(2) as threads:
        for number in range(60):
            together = threading.Barrier(2)
            collisions += sum(threads.map(log, pair, [f"data-{number}"] * 2, [together] * 2))
            if collisions == 3:
                break
    assert collisions > 0  # else this test has seen nothing
    for run_id in pair:
        inputs = mlflow.get_run(run_id).inputs
        assert inputs is not None
        logged = {entry.dataset.name for entry in inputs.dataset_inputs}
        assert logged == {f"data-{made}" for made in range(number + 1)}


def test_a_tracker_whose_only_try_met_anothers_entry_tries_again_and_is_silent(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two arms that start at once in a new experiment, one was MISSING: MLflow refused its data."""
    refused: list[str] = []
    told: list[str] = []

    def at_once(run_id: str, dataset: Any) -> None:
        if not refused:
            refused.append(run_id)
            raise MlflowException(
                "(sqlite3.IntegrityError) UNIQUE constraint failed: datasets.name\n[SQL: ..", BAD_REQUEST
            )
        tracking.log_dataset(run_id, dataset)

    monkeypatch.setattr(sending, "log_dataset", at_once)
    monkeypatch.setattr(sending, "EVERY_SECONDS", 0.2)
    data = {"name": "lookup", "digest": "0123456789ab", "uri": "/data", "profile": "{}"}
    tracker = Tracker(tmp_path, about("s20", data), told.append)
    tracker.finish("FINISHED")
    (run,) = client().search_runs([experiment_id("collisions")], "tags.run_key = 's20'")
    assert refused == [run.info.run_id] and told == []
    assert run.info.status == "FINISHED" and run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == "lookup"
    assert not owes(tmp_path)


def test_a_collision_at_the_end_is_tried_again_after_mlflow_was_away(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away at the first send, another's entry at the last one."""
    real, met, told = Sender.send, [tracking.MlflowAway("away"), tracking.Collided("another's entry")], []

    def send(self: Sender) -> str:
        if met:
            raise met.pop(0)
        return real(self)

    monkeypatch.setattr(Sender, "send", send)
    monkeypatch.setattr(sending, "EVERY_SECONDS", 0.2)
    tracker = Tracker(tmp_path, about("s22"), told.append)
    wait_until(lambda: len(met) == 1)
    tracker.finish("FINISHED")
    assert not met and not owes(tmp_path)
    assert [line.split(".")[0] for line in told] == [
        "warning: away",
        "MLflow answers again and has everything that was owed",
    ]


def test_what_runs_owe_is_sent_at_the_second_try(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, met = Sender.send, [tracking.Collided("another's entry")]

    def send(self: Sender) -> str:
        if met:
            raise met.pop(0)
        return real(self)

    monkeypatch.setattr(Sender, "send", send)
    for key in ("s23", "s24"):
        Outbox(tmp_path / "runs" / key, about(key)).log(1, {"a": 1.0})
    assert send_runs(tmp_path, print) == 2


def test_a_refusal_names_the_part_and_a_remedy_and_no_sql(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("(sqlite3.IntegrityError) FOREIGN KEY constraint failed\n[SQL: INSERT ..]", BAD_REQUEST)

    monkeypatch.setattr(sending, "_log_metrics", refuse)
    Outbox(tmp_path, about("s21")).log(1, {"a": 1.0})
    with pytest.raises(ServiceError, match=r"refuses metrics of .*FOREIGN KEY.*`make send`") as caught:
        Sender(tmp_path).send()
    assert "SQL" not in str(caught.value).replace("sqlite3", "") and not isinstance(caught.value, tracking.MlflowAway)
