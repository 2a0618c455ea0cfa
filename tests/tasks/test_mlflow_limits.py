"""Limits of MLflow: 6,000 characters of a parameter, 4,096 of a trace's tag, 500 traces a search, NaN once a step, no NUL."""

import json
import math
from pathlib import Path

import pytest

from tasks.tracking.outbox import About, Outbox
from tasks.tracking.sending import Sender
from tasks.tracking.server import client, experiment_id
from tasks.tracking.traces import TraceRecord, TurnRecord, log_traces


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def record(name: str, text: str = "F9") -> TraceRecord:
    turn = TurnRecord("<think>", "answer", text, None, -1.0, None, None)
    return TraceRecord(name, "who ?", ("F9",), (turn,), "answered", {"f1": 1.0, "em": 1.0}, "igpo", 3)


def made(records: list[TraceRecord]) -> tuple[int, list[str]]:
    """Traces that were made, and those that a second call made."""
    experiment = experiment_id("limits")
    run = client().create_run(experiment).info.run_id
    return len(log_traces(run, experiment, records)), log_traces(run, experiment, records)


@pytest.mark.parametrize(
    "records",
    [
        [record("x" * 300)],
        [record("y" * 5000)],
        [record("nul", "a\x00b\U000e0041")],
        [record('it\'s "so"\n100%')],
        [record("same"), record("same2")],
    ],
    ids=["300 characters", "5000 characters", "NUL", "quotes", "two that begin alike"],
)
def test_each_trace_is_made_once(mlflow_server: str, records: list[TraceRecord]) -> None:
    assert made(records) == (len(records), [])


@pytest.mark.night
@pytest.mark.timeout(1800)
def test_more_traces_than_a_search_gives_are_made_once(mlflow_server: str) -> None:
    assert made([record(f"q{number}") for number in range(520)]) == (520, [])


def test_a_run_with_a_long_parameter_reaches_mlflow(mlflow_server: str, tmp_path: Path) -> None:
    corpus = [f"/mnt/shared/corpora/wiki/part-{number:05d}-of-00150.jsonl" for number in range(150)]
    assert len(json.dumps(corpus)) > 6000
    Outbox(tmp_path, About("limits", "r1", "r1", {}, {"data": {"corpus": corpus}})).log(1, {"a": 1.0})
    Sender(tmp_path).send()
    (found,) = client().search_runs([experiment_id("limits")], "tags.run_key = 'r1'")
    assert found.data.metrics["a"] == 1.0 and found.data.params["data.corpus"].startswith('["/mnt/shared')


def test_nan_that_is_sent_twice_is_kept_once(mlflow_server: str, tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, About("limits", "r2", "r2", {}, {}))
    outbox.log(1, {"nan": math.nan, "a": 1.0})
    Sender(tmp_path).send()
    (tmp_path / "sent.json").unlink()
    outbox.log(2, {"nan": math.nan, "a": 2.0})
    Sender(tmp_path).send()
    (found,) = client().search_runs([experiment_id("limits")], "tags.run_key = 'r2'")
    counts = {name: len(client().get_metric_history(found.info.run_id, name)) for name in ("nan", "a")}
    assert counts == {"nan": 2, "a": 2}
