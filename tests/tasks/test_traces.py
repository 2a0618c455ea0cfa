"""Traces written to a real MLflow server and read back."""

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.tracking import server as tracking
from tasks.tracking.server import client, experiment_id, find_runs, find_traces
from tasks.tracking.traces import TraceRecord, TurnRecord, log_traces, tag_of

SEARCH = TurnRecord(
    "<think> a </think> <tool_call> boss of F5 </tool_call>", "search", "boss of F5", "F9", -3.0, -1.0, 2.0
)
ANSWER = TurnRecord("<answer> F9 </answer>", "answer", "F9", None, -1.0, None, None)
BROKEN = TurnRecord("<think>", "malformed", None, None, None, None, None)


def record(name: str, *turns: TurnRecord) -> TraceRecord:
    answered = turns[-1].action == "answer"
    f1, status = (1.0, "answered") if answered else (0.0, "malformed")
    return TraceRecord(name, f"who is {name} ?", ("F9", "F 9"), turns, status, {"f1": f1, "em": f1}, "igpo", 3)


def new_run(name: str) -> Any:
    experiment = experiment_id("traces")
    run_id = client().create_run(experiment, run_name=name).info.run_id
    return SimpleNamespace(run_id=run_id, experiment_id=experiment)


def test_a_trajectory_reads_back_whole(mlflow_server: str) -> None:
    tracker = new_run("igpo seed 3")
    other = new_run("igpo seed 4")
    ids = log_traces(
        tracker.run_id, tracker.experiment_id, [record("q1", SEARCH, SEARCH, ANSWER), record("q2", BROKEN)]
    )
    assert len(log_traces(other.run_id, other.experiment_id, [record("q1", ANSWER)])) == 1

    found = client().search_traces(locations=[tracker.experiment_id], run_id=tracker.run_id)
    assert sorted(trace.info.trace_id for trace in found) == sorted(ids)  # the run's own, and no other's
    trace = client().get_trace(ids[0])
    root, *turns = trace.data.spans
    assert root.span_type == "AGENT" and root.parent_id is None and root.name == "igpo seed 3"
    assert root.inputs == {"question": "who is q1 ?"}
    assert root.outputs == {"answer": "F9", "status": "answered", "f1": 1.0, "em": 1.0}
    assert [span.name for span in turns] == [
        "turn 1: search, gain +2.00",
        "turn 2: search, gain +2.00",
        "turn 3: answer",
    ]
    assert all(span.parent_id == root.span_id for span in turns)
    assert turns[0].inputs == {"policy": SEARCH.text, "search": "boss of F5"}
    assert turns[0].outputs == {"observation": "F9"}
    scores = ("belief_before_nats", "belief_after_nats", "gain")
    assert [turns[0].get_attribute(name) for name in scores] == [-3.0, -1.0, 2.0]
    assert [turns[2].get_attribute(name) for name in scores] == [-1.0, None, None]

    given = {(item.name, item.span_id): item for item in trace.info.assessments}
    gains = {span: item.feedback.value for (name, span), item in given.items() if name == "information_gain"}
    assert gains == {turns[0].span_id: 2.0, turns[1].span_id: 2.0}
    assert next(item.expectation.value for (name, _), item in given.items() if name == "answers") == ["F9", "F 9"]
    assert next(item.feedback.value for (name, _), item in given.items() if name == "f1") == 1.0
    assert trace.info.tags["arm"] == "igpo" and trace.info.tags["seed"] == "3"

    broken = client().get_trace(ids[1])
    assert broken.data.spans[0].outputs["answer"] is None
    assert {item.name for item in broken.info.assessments} == {"f1", "answers"}


def test_a_resumed_run_adds_only_what_is_missing(mlflow_server: str) -> None:
    tracker = new_run("igpo seed 3")
    assert len(log_traces(tracker.run_id, tracker.experiment_id, [record("q1", ANSWER)])) == 1
    both = [record("q1", ANSWER), record("q2", SEARCH, ANSWER)]
    assert len(log_traces(tracker.run_id, tracker.experiment_id, both)) == 1
    found = client().search_traces(locations=[tracker.experiment_id], run_id=tracker.run_id)
    assert sorted(trace.info.tags["question_id"] for trace in found) == ["q1", "q2"]


def test_all_pages_are_read_and_ids_that_begin_alike_stay_two(
    mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five traces with two a page; MLflow cuts a tag of a trace, here of ids with 5,000 characters."""
    monkeypatch.setattr(tracking, "TRACES_A_PAGE", 2)
    monkeypatch.setattr(tracking, "RUNS_A_PAGE", 2)
    tracker = new_run("igpo seed 5")
    records = [record(name, ANSWER) for name in ("y" * 5000 + "1", "y" * 5000 + "2", "q1", "q2", "q3")]
    assert len(log_traces(tracker.run_id, tracker.experiment_id, records)) == 5
    assert log_traces(tracker.run_id, tracker.experiment_id, records) == []
    found = find_traces(tracker.experiment_id, tracker.run_id, spans=False)
    assert {trace.info.tags["question_id"] for trace in found} == {tag_of(one.question_id) for one in records}
    names = {new_run(f"run {number}").run_id for number in range(3)}
    assert names < {run.info.run_id for run in find_runs([tracker.experiment_id])}
