"""The files of a run: what is written stays, once, whatever is killed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from igpo_core.errors import DataError
from tasks.tracking.outbox import (
    About,
    Outbox,
    cut_torn_line,
    read_about,
    read_lines,
    read_model,
    read_status,
    read_traces,
    write_status,
)
from tasks.tracking.traces import TraceRecord, TurnRecord


def about(**params: Any) -> About:
    return About("study", "run a", "key", {"kind": "train"}, params)


def lines(folder: Path) -> list[tuple[int, dict[str, float]]]:
    found, _ = read_lines(folder / "metrics.jsonl", 0)
    return [(line["step"], line["metrics"]) for line in found]


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_lines(path, 0) == ([{"step": 1}, {"step": 2}], 24)  # each whole line has 12 bytes
    cut_torn_line(path)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert read_lines(path, 12) == ([{"step": 2}], 24)
    assert read_lines(tmp_path / "none", 0) == ([], 0)


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st\x00p": 2\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 after byte 0"):
        read_lines(path, 0)


def test_a_step_computed_again_keeps_what_was_first(tmp_path: Path) -> None:
    first = Outbox(tmp_path, about(lr=0.1))
    first.log(1, {"a": 1.0})
    first.log(2, {"a": 2.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "timest')  # killed here
    started = read_about(tmp_path)
    second = Outbox(tmp_path, about(lr=0.1))
    assert second.has("a", 2) and not second.has("a", 3)
    second.log(2, {"a": 2.5, "b": 7.0})
    second.log(2, {"a": 2.5})
    second.log(3, {"a": 3.0})
    assert lines(tmp_path) == [(1, {"a": 1.0}), (2, {"a": 2.0}), (2, {"b": 7.0}), (3, {"a": 3.0})]
    assert started is not None and read_about(tmp_path) == started  # it began when it began


def test_an_infinite_value_is_refused_by_name_and_nan_is_kept(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, about())
    with pytest.raises(ValueError, match=r"train/loss at step 3 is -inf"):
        outbox.log(3, {"fine": 1.0, "train/loss": -math.inf})
    assert lines(tmp_path) == []
    outbox.log(3, {"train/loss": math.nan})
    assert math.isnan(lines(tmp_path)[0][1]["train/loss"])


def test_status(tmp_path: Path) -> None:
    Outbox(tmp_path, about())
    assert read_status(tmp_path) == ("RUNNING", None)
    write_status(tmp_path, "KILLED")
    status, ended = read_status(tmp_path)
    assert status == "KILLED" and ended is not None
    Outbox(tmp_path, about())
    assert read_status(tmp_path) == ("RUNNING", None)


def test_the_model_carries_the_stamps_of_its_metrics(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, about())
    outbox.log(4, {"test/f1": 0.5, "other": 1.0})
    outbox.set_model(tmp_path / "checkpoints" / "step-000004", 4, ["test/f1"])
    stamp = json.loads((tmp_path / "metrics.jsonl").read_text())["timestamp_ms"]
    assert read_model(tmp_path)[0] == {
        "checkpoint": "checkpoints/step-000004",
        "step": 4,
        "metrics": {"test/f1": {"value": 0.5, "timestamp_ms": stamp}},
    }


def test_traces_come_back_as_they_were(tmp_path: Path) -> None:
    turns = (
        TurnRecord("think", "search", "who", "he \udc80", -2.0, -1.0, 1.0),
        TurnRecord("", "malformed", None, None, -1.0, None, None),
    )
    record = TraceRecord("q1", "Who?", ("he", "she"), turns, "answered", {"f1": 0.5, "em": 0.0}, "arm", 3)
    outbox = Outbox(tmp_path, about())
    outbox.set_traces([record])
    assert read_traces(tmp_path)[0] == [record]
