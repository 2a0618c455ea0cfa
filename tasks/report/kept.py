"""The trajectories that the runs of a report keep, from their folders, and from MLflow where a run has none."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks.report.summaries import CellReport
from tasks.report.sweeps import RunData
from tasks.tracking.outbox import TRAJECTORIES, read_lines
from tasks.tracking.server import client, find_traces, trace_url
from tasks.tracking.traces import tag_of


def read_trajectories(reports: Sequence[CellReport], most: int = 2000) -> list[dict[str, Any]]:
    """Return the trajectories that runs keep, with their cell, and the address of those that are MLflow traces: the same share of
    every run where there are too many."""
    runs = [(report, run) for report in reports for run in report.data.finished()]
    with ThreadPoolExecutor(4) as pool:
        once = {run.run_id: (run, report.data.experiment) for report, run in runs}  # cells may share a run
        kept = dict(zip(once, pool.map(_trajectories, *zip(*once.values(), strict=True)), strict=True))
    found: list[dict[str, Any]] = []
    for report, run in runs:
        lines, addresses = kept[run.run_id]
        step = max(1, -(-len(lines) * len(runs) // most))
        for line in lines[::step]:
            trace = addresses.get(tag_of(line["question_id"])) if line["split"] == "test" else None
            found.append({"cell": report.cell, **line, "trace": trace})
    return found


def _trajectories(run: RunData, experiment: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the lines that a run keeps, and question's tag (tasks.tracking.traces.tag_of) -> the address of its trace."""
    with tempfile.TemporaryDirectory() as place:
        if run.folder and (run.folder / TRAJECTORIES).is_file():
            path = run.folder / TRAJECTORIES
        elif TRAJECTORIES in {item.path for item in client().list_artifacts(run.run_id)}:
            path = Path(client().download_artifacts(run.run_id, TRAJECTORIES, place))
        else:
            return [], {}
        lines, _ = read_lines(path, 0)
    if not any(line["split"] == "test" for line in lines):  # nothing else is traced
        return lines, {}
    traces = find_traces(experiment, run.run_id, spans=False)
    return lines, {
        trace.info.tags["question_id"]: trace_url(experiment, trace.info.trace_id)
        for trace in traces
        if "question_id" in trace.info.tags
    }
