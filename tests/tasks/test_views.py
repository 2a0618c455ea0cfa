"""The page of MLflow that a sweep's links open: what its state says, and that MLflow keeps it."""

import base64
import json
import zlib

from tasks.tracking.server import client, experiment_id
from tasks.tracking.views import note, show_view, view_state


def test_the_view_is_of_the_sweeps_runs_by_arm(mlflow_server: str) -> None:
    """What MLflow's page reads: a tag of the experiment whose name ends as the link says, "deflate;" and zlib in base64."""
    experiment = experiment_id("viewed-by-arm")
    for sweep, kind in (("s-1", "train"), ("s-1", "report"), ("s-2", "train")):
        client().create_run(experiment, tags={"sweep": sweep, "kind": kind})
    arms = {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "prob_diff", "optimizer": {"ratio": "token"}}}
    url = show_view(experiment, "viewed-by-arm", "s-1", arms, "Two arms.", {"f1": "F1"})
    assert f"/#/experiments/{experiment}/runs?viewStateShareKey=s-1&" in url
    tags = client().get_experiment(experiment).tags
    kept = tags["mlflow.sharedViewState.s-1"]
    assert len(kept) <= 5000 and kept.startswith("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(kept[len("deflate;") :])))
    assert state == view_state("s-1", "f1")
    assert state["groupBy"] == {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]}
    assert [chart["metricKey"] for chart in state["compareRunCharts"]][:3] == [
        "eval/all/f1",
        "train/turns",
        "advantage/dead_groups",
    ]
    (found,) = client().search_runs([experiment], state["searchFilter"])
    assert found.data.tags["sweep"] == "s-1" and found.data.tags["kind"] == "train"
    note = tags["mlflow.note.content"]
    assert url in note and "Two arms." in note
    assert "| `igpo` | `gain: prob_diff`, `optimizer.ratio: token` |" in note


def test_a_function_is_told_by_its_path() -> None:
    """Its text is a page of its own, and MLflow refuses a tag of 20,000 characters."""
    gain = {"kind": "function", "path": "mine.py:bonus", "source": "x = 1  # | a cell\n" * 2000}
    told = note("study", "study-1", {"mine": {"gain": gain}}, "", "http://x", "F1")
    assert "`gain.path: mine.py:bonus`" in told and "a cell" not in told and len(told) < 1000
