"""What a report looks at as one long frame: a row a value, of the metrics in tasks/report/metrics.py.

A run's values are in its folder, and MLflow has a copy. A sweep's report reads the folder of each run that is on this
machine and has all that MLflow was sent, and MLflow for each of the others; `recompute` reads MLflow alone. Both give the same
frame.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from igpo_core.errors import DataError
from tasks.report.metrics import wanted
from tasks.tracking.outbox import METRICS_FILE, read_about, read_lines
from tasks.tracking.server import client

if TYPE_CHECKING:
    from mlflow.entities import Run
    from pandas import DataFrame

COLUMNS = ("cell", "arm", "seed", "key", "step", "value")
Point = tuple[str, int, int, float]  # key, step, timestamp in ms, value


def folder_of(run: "Run", runs: Path) -> Path | None:
    """Return the folder of one of MLflow's runs; None where MLflow's copy is what there is to read.

    That is where the run was pruned here or made on another machine, and where the folder is that of another run of the same key,
    which began at another time. runs: the folder of all runs on this machine.
    """
    folder = runs / run.data.tags["run_key"]
    about = read_about(folder)
    whole = about is not None and about.started_ms == run.info.start_time and (folder / METRICS_FILE).is_file()
    return folder if whole else None


def read_run(
    run: "Run", runs: Path | None, rubric: Mapping[str, str], warn: Callable[[str], None]
) -> "tuple[Path | None, DataFrame]":
    """Return the values of one of MLflow's runs, and the folder that they were read from; None and MLflow's copy where there is
    no such folder, and with a warning where it is damaged or lacks the last value of a metric that MLflow has."""
    folder = folder_of(run, runs) if runs else None
    if folder is not None:
        try:
            frame = frame_of(points_of_folder(folder, rubric))
        except DataError as error:
            warn(f"DAMAGED FOLDER: {error}. What MLflow has of the run is read instead.")
        else:
            short = lacking(frame, run, rubric)
            if not short:
                return folder, frame
            warn(f"SHORT FOLDER: {folder} lacks the end of {short}, which MLflow has; MLflow's copy is read instead.")
    return None, frame_of(points_of_mlflow(run, rubric))


def lacking(frame: "DataFrame", run: "Run", rubric: Mapping[str, str]) -> str:
    """Return the first metric of which the frame has no value, or another last one than MLflow; empty: it has them all. A run
    that goes on may have more than MLflow has."""
    last = frame.drop_duplicates("key", keep="last").set_index("key")["value"]
    ended = run.info.status == "FINISHED"
    for name in sorted(wanted(run.data.metrics, rubric)):
        if name not in last or (ended and not equal(last[name], run.data.metrics[name])):
            return name
    return ""


def equal(one: float, other: float) -> bool:
    """Return whether two values are the same; NaN is NaN."""
    return one == other or (one != one and other != other)


def points_of_folder(folder: Path, rubric: Mapping[str, str]) -> Iterator[Point]:
    """Yield what a report reads of a run's own file. Raises DataError, naming the line, on damage."""
    lines, _ = read_lines(folder / METRICS_FILE, 0)
    names = {*wanted({name for line in lines for name in line["metrics"]}, rubric)}
    for line in lines:
        for name, value in line["metrics"].items():
            if name in names:
                yield name, line["step"], line["timestamp_ms"], value


def points_of_mlflow(run: "Run", rubric: Mapping[str, str]) -> Iterator[Point]:
    """Yield what a report reads of MLflow's copy of a run: a request a metric."""
    for name in wanted(run.data.metrics, rubric):
        for point in client().get_metric_history(run.info.run_id, name):
            yield name, point.step, point.timestamp, point.value


def frame_of(points: Iterator[Point]) -> "DataFrame":
    """Return a run's key, step and value, sorted: one value a metric and step.

    Of several, the last one written counts, and of one millisecond the largest: MLflow does not know their order. It keeps an
    infinite number as the largest one, and sorts NaN as 0.
    """
    from pandas import DataFrame

    frame = DataFrame(list(points), columns=["key", "step", "timestamp", "value"])
    frame = frame.astype({"key": object, "step": float, "timestamp": float, "value": float})
    frame["value"] = frame["value"].clip(-sys.float_info.max, sys.float_info.max)
    frame["size"] = frame["value"].fillna(0.0)
    frame = frame.sort_values(["key", "step", "timestamp", "size"]).drop_duplicates(["key", "step"], keep="last")
    return frame[["key", "step", "value"]].reset_index(drop=True)


def placed(frame: "DataFrame", cell: str, arm: str, seed: int) -> "DataFrame":
    """Return rows of the long frame: the values of a run where it counts."""
    return frame.assign(cell=cell, arm=arm, seed=seed)[list(COLUMNS)]


def empty() -> "DataFrame":
    """Return a long frame of no run."""
    return placed(frame_of(iter(())), "", "", 0)
