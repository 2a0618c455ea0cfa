"""What MLflow knows of a standing study, on a real server: which report is its verdict, what a check came to."""

import pytest
from mlflow import MlflowClient

from tasks.report.nights import (
    Check,
    Progress,
    find_check,
    find_verdict,
    read_progress,
    write_check,
    write_progress,
)
from tasks.report.standing import Change
from tasks.tracking.server import experiment_id

pytestmark = pytest.mark.usefixtures("mlflow_server")
MOVED = Change("igpo", "", effect=0.3, before=0.25, now=0.0, low=-0.4, high=-0.1, identical=False)
STANDS = Change("rms", "group=8", effect=0.3, before=0.25, now=0.35, low=-0.1, high=0.2, identical=False)


def report(experiment: str, sweep: str, pairs: int) -> None:
    tags = {
        "kind": "report",
        "specification": "same",
        "sweep": sweep,
        "answer": f"of {sweep}",
        "arms": "base,igpo",
        "seeds": "0",
    }
    mlflow = MlflowClient()
    run = mlflow.create_run(experiment, tags=tags).info.run_id
    mlflow.log_metric(run, "report/igpo/pairs", pairs)
    mlflow.set_terminated(run)


def test_the_verdict_is_the_report_of_the_code_of_now_or_else_the_newest_whole_one() -> None:
    """The study was made anew on `b`; the change was undone then, and the report of `a` counts again."""
    place = experiment_id("verdicts")
    assert find_verdict(place, "same", 6, "a") is None
    report(place, "a", 6)
    report(place, "b", 6)
    report(place, "c", 5)  # a run of it failed
    found = {sweep: find_verdict(place, "same", 6, sweep) for sweep in "abcd"}
    assert {sweep: verdict and verdict.answer for sweep, verdict in found.items()} == {
        "a": "of a", "b": "of b", "c": "of b", "d": "of b",
    }  # fmt: skip


def test_a_check_is_read_as_it_was_written() -> None:
    place = experiment_id("checks")
    assert find_check(place, "same", "a") is None
    write_check(place, "same", "a", (200, 201), [STANDS, MOVED], "THE VERDICT MOVED for igpo")
    write_check(place, "same", "b", (200, 201), [STANDS], "The verdict stands.")
    assert find_check(place, "same", "a") == Check("THE VERDICT MOVED for igpo", moved=True)
    assert find_check(place, "same", "b") == Check("The verdict stands.", moved=False)
    assert find_check(place, "other", "a") is None
    (run,) = MlflowClient().search_runs([place], "tags.sweep = 'b'")
    assert run.data.metrics == {
        f"report/group 8/rms/{name}": value
        for name, value in {"effect": 0.3, "before": 0.25, "now": 0.35, "low": -0.1, "high": 0.2}.items()
    }


def test_how_far_a_study_was_is_read_as_it_was_written() -> None:
    place = experiment_id("progress")
    assert read_progress(place) is None
    progress = Progress("same", "a-123456", 12, {"code": "aa", "data": ["d"], "packages": {"torch": "2.13.0"}})
    write_progress(place, progress)
    assert read_progress(place) == progress
