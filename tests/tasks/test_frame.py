"""The long frame of a report: equal from run folders and from MLflow."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pandas.testing import assert_frame_equal

from tasks.report.frame import COLUMNS, frame_of
from tasks.report.kept import read_trajectories
from tasks.report.summaries import cell_reports
from tasks.report.sweeps import SweepData, collect
from tasks.tracking.outbox import METRICS_FILE, TRAJECTORIES, About, Outbox
from tasks.tracking.sending import Sender
from tasks.tracking.traces import TraceRecord, TurnRecord
from tests.tasks.test_reporting import RUBRIC, SPECIFICATION, run, send, send_kept


def only(study: str, runs: Path | None, places: dict[str, list[tuple[str, str, int]]] | None = None) -> SweepData:
    (data,) = collect(study, "study-1", places, rubric=RUBRIC, runs=runs).values()
    return data


def test_folders_and_mlflow_give_one_frame(mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs with NaN, infinities and lines written twice one is sent twice; a third failed before its first value."""
    for item in (run("igpo", 0, 0.8, (0.0, 0.1, math.nan)), run("igpo", 1, 0.7, (0.0, 0.1, 0.9))):
        send("frames", item, tmp_path)
    send("frames", replace(run("igpo", 2, 0.0, (0, 0, 0)), frame=item.frame[:0], status="FAILED"), tmp_path)
    folder = tmp_path / "igpo-1"
    before = json.loads((folder / METRICS_FILE).read_text().splitlines()[-1])
    stamp = before["timestamp_ms"]
    again = [
        {"step": 4, "timestamp_ms": stamp, "metrics": {"test/all/f1": 0.7}},  # the same once more
        {"step": 4, "timestamp_ms": stamp + 1, "metrics": {"eval/all/f1": 0.6}},  # lower, and later
        {"step": 3, "timestamp_ms": stamp + 1, "metrics": {"train/turns": 1.0, "train/entropy": math.inf}},
        {"step": 3, "timestamp_ms": stamp + 1, "metrics": {"train/turns": math.nan, "train/entropy": -math.inf}},
        {"step": 4, "timestamp_ms": stamp, "metrics": {"test/nq/f1": 0.25, "time/update": 1.0}},
    ]
    with (folder / METRICS_FILE).open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in again))
    for _ in range(2):
        Sender(folder).send()
        (folder / "sent.json").unlink()

    from_mlflow = only("frames", None)
    with monkeypatch.context() as patch:  # values are not asked of MLflow where there are folders
        patch.setattr(MlflowClient, "get_metric_history", None)
        from_folders = only("frames", tmp_path)
    assert_frame_equal(from_folders.frame, from_mlflow.frame)
    assert tuple(from_folders.frame.columns) == COLUMNS
    assert [item.folder for item in from_folders.runs] == [tmp_path / f"igpo-{seed}" for seed in (0, 1)] + [None]
    curves = from_folders.runs[1].histories
    assert curves["eval/all/f1"] == {0.0: 0.0, 2.0: 0.1, 4.0: 0.6} and curves["test/nq/f1"] == {4.0: 0.25}
    assert curves["train/turns"][3.0] == 1.0 and curves["train/entropy"][3.0] > 1e308 and "time/update" not in curves
    assert math.isnan(from_folders.runs[0].histories["eval/all/f1"][4.0])


def test_mlflow_is_read_for_each_run_without_a_folder_of_its_own(mlflow_server: str, tmp_path: Path) -> None:
    """Seed 0 is here; seed 1 was made elsewhere; of seed 2 the folder was lost, and another run has begun in its place."""
    for seed in range(3):
        send("spread", run("igpo", seed, 0.5 + seed / 10, (0, 0, 0)), tmp_path)
    whole = only("spread", None).frame
    (tmp_path / "igpo-1").rename(tmp_path / "gone")
    (tmp_path / "igpo-2").rename(tmp_path / "lost")
    Outbox(tmp_path / "igpo-2", About("spread", "igpo-2", "igpo-2", {}, {}, started_ms=1)).log(4, {"test/all/f1": 0.0})
    data = only("spread", tmp_path)
    assert [item.folder for item in data.runs] == [tmp_path / "igpo-0", None, None]
    assert_frame_equal(data.frame, whole)
    places = {f"igpo-{seed}": [("", "igpo", seed)] for seed in range(3)} | {"igpo-3": [("", "igpo", 3)]}
    asked = only("spread", tmp_path, places).select(["igpo"], [0, 1, 2, 3])
    assert asked.absent == (("igpo", 3, "no run"),)  # neither a folder nor MLflow has it


def test_a_damaged_or_short_file_is_told_and_mlflow_is_read(mlflow_server: str, tmp_path: Path) -> None:
    """Of seed 0 the first line is damaged, of seed 1 the last one is lost, and of seed 2 a value was changed."""
    for seed in range(3):
        send("damaged", run("igpo", seed, 0.5, (0, 0, 0.25)), tmp_path)
    whole = only("damaged", None)
    files = [tmp_path / f"igpo-{seed}" / METRICS_FILE for seed in range(3)]
    files[0].write_text(files[0].read_text().replace("{", "?", 1))
    files[1].write_text("".join(files[1].read_text().splitlines(keepends=True)[:-1]))
    files[2].write_text(files[2].read_text().replace('"eval/all/f1": 0.25', '"eval/all/f1": 0.75'))
    data = only("damaged", tmp_path)
    assert_frame_equal(data.frame, whole.frame)
    assert [item.folder for item in data.runs] == [None] * 3
    damaged, *short = data.warnings
    assert damaged.startswith("DAMAGED FOLDER: ") and "igpo-0" in damaged and "line 1 after byte 0" in damaged
    assert [line.split()[0] for line in short] == ["SHORT"] * 2 and "eval/all/f1" in short[1]


def test_trajectories_are_read_from_the_folder_that_has_them(mlflow_server: str, tmp_path: Path) -> None:
    turn = TurnRecord("<answer> x </answer>", "answer", "x", None, -1.0, None, None)
    kept = TraceRecord("q1", "who ?", ("x",), (turn,), "answered", {"f1": 1.0, "em": 1.0}, "igpo", 0, "test", 4)
    item = run("outcome_only", 0, 0.5, (0, 0, 0))
    folder = send_kept("kept", item, kept, tmp_path)

    def lines(runs: Path | None) -> list[dict[str, object]]:
        return read_trajectories(cell_reports(SPECIFICATION, {"": only("kept", runs)}, [""]))

    here, elsewhere = lines(tmp_path), lines(None)
    assert here == elsewhere and here[0]["question_id"] == "q1" and "/traces?" in str(here[0]["trace"])
    (folder / TRAJECTORIES).unlink()
    assert lines(tmp_path) == here  # MLflow still has them


def test_a_frame_of_nothing_has_its_columns() -> None:
    data = SweepData("1", "s", ("igpo",), (), rubric=RUBRIC)
    assert tuple(data.frame.columns) == COLUMNS and data.frame.empty and frame_of(iter(())).empty
