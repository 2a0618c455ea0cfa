"""The report of a sweep, made of its cells' tables and words: one run in MLflow with a page, texts, figures and tables."""

import csv
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tasks.summaries import ArmSummary, CellReport, cell_reports
from tasks.sweeps import Place, RunData, collect
from tasks.tracking import client, compare_url, run_url, tag_filter, trace_url
from tasks.watch import Moved, moved, prefix
from tasks.wording import markdown, terminal_table


@dataclass(frozen=True)
class Report:
    """Where the report is, its texts, and its table as numbers and as text cells. answer: the sentence that answers the
    question. widest: the widest 95% interval of a difference, None where there is none."""

    run_id: str
    url: str
    compare: str
    answer: str
    markdown: str
    terminal: str
    cells: list[CellReport]
    rows: list[dict[str, str]]
    widest: float | None
    moved: list[Moved]


def write_report(
    specification: Mapping[str, Any],
    sweep: str,
    versions_by_cell: Mapping[str, str],
    places: Mapping[str, Sequence[Place]],
    cells: Sequence[str],
) -> Report:
    """The one run tagged kind=report of this sweep, made or brought up to date, for the specification's arms and seeds.

    places: run key -> (cell, arm, seed) that the run stands for.
    """
    import yaml

    from tasks.figures import write_figures
    from tasks.page import write_page

    study, baseline = specification["name"], specification["baseline"]
    reports = cell_reports(specification, collect(study, sweep, places), cells)
    experiment = reports[0].data.experiment
    comparison = comparison_of(specification)
    answer = answer_sentence(reports)
    left = [arm for report in reports for arm in moved(experiment, comparison, sweep, report.cell, report.summaries)]
    reports[0] = replace(reports[0], words=reports[0].words.warn([arm.sentence() for arm in left]))
    compare = compare_url(
        experiment, sweep, sorted({run.run_id for report in reports for run in report.data.finished()})
    )
    text = markdown(sweep, [(r.cell, r.rows, r.words, r.tables) for r in reports], compare)
    run_id = _report_run(experiment, sweep, specification, versions_by_cell, comparison)
    mlflow = client()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "report.md").write_text(text)
        table = [{"cell": report.cell, **asdict(row)} for report in reports for row in report.summaries]
        (folder / "table.json").write_text(json.dumps(table, indent=1))
        _write_csv(
            folder / "table.csv", [{"cell": r.cell, **row} if r.cell else row for r in reports for row in r.rows]
        )
        (folder / "specification.yaml").write_text(yaml.safe_dump(dict(specification), sort_keys=False))
        (folder / "places.json").write_text(json.dumps({"cells": list(cells), "places": dict(places)}, indent=1))
        computed_on = sorted({run.processor for report in reports for run in report.data.finished()})
        (folder / "versions.json").write_text(json.dumps(versions(versions_by_cell, computed_on), indent=1))
        for report in reports:
            inside = folder / "figures" / report.cell.replace(",", "_") if report.cell else folder
            inside.mkdir(parents=True, exist_ok=True)
            write_figures(report.data, report.pairs, baseline, inside)
        write_page(folder / "report.html", sweep, specification, reports, compare, read_trajectories(reports))
        mlflow.log_artifacts(run_id, str(folder))
    for report in reports:
        _log_summaries(run_id, report.summaries, report.cell)
    mlflow.set_tag(run_id, "answer", answer)  # what the night repeats
    mlflow.set_tag(run_id, "mlflow.note.content", text)  # what the run's page shows first
    mlflow.set_terminated(run_id)
    parts = []
    for report in reports:
        head = [f"== {report.cell}"] if report.cell else []
        parts.append("\n\n".join([*head, terminal_table(report.rows), report.words.plain()]))
    widths = [
        row.high - row.low for r in reports for row in r.summaries if row.low is not None and row.high is not None
    ]
    return Report(
        run_id,
        run_url(experiment, run_id),
        compare,
        answer,
        text,
        "\n\n".join(parts),
        reports,
        [{"cell": report.cell, **row} if report.cell else row for report in reports for row in report.rows],
        max(widths, default=None),
        left,
    )


def read_trajectories(reports: Sequence[CellReport], most: int = 2000) -> list[dict[str, Any]]:
    """The trajectories that runs keep, with their cell, and the address of those that are MLflow traces: the same share of
    every run where there are too many."""
    import mlflow.artifacts

    from tasks.outbox import TRAJECTORIES

    runs = [(report.cell, run) for report in reports for run in report.data.finished()]
    found: list[dict[str, Any]] = []
    for cell, run in runs:
        if TRAJECTORIES not in {item.path for item in client().list_artifacts(run.run_id)}:
            continue
        text = mlflow.artifacts.load_text(f"runs:/{run.run_id}/{TRAJECTORIES}")
        lines = [json.loads(line) for line in text.splitlines()]
        step = max(1, -(-len(lines) * len(runs) // most))
        addresses = _traces(run)
        for line in lines[::step]:
            trace = addresses.get(line["question_id"]) if line["split"] == "test" else None
            found.append({"cell": cell, **line, "trace": trace})
    return found


def _traces(run: RunData) -> dict[str, str]:
    """Question -> the address of its trace."""
    mlflow = client()
    place = mlflow.get_run(run.run_id).info.experiment_id
    traces = mlflow.search_traces(locations=[place], run_id=run.run_id, max_results=500, include_spans=False)
    return {
        trace.info.tags["question_id"]: trace_url(place, trace.info.trace_id)
        for trace in traces
        if "question_id" in trace.info.tags
    }


def answer_sentence(reports: Sequence[CellReport]) -> str:
    """Return what the comparisons of all cells say."""
    return " ".join(text for report in reports for text in report.words.shown[1 : 1 + len(report.pairs)])


def comparison_of(specification: Mapping[str, Any]) -> str:
    """The same for sweeps that compare the same: tasks/watch.py compares those."""
    from igpo_core.config import fingerprint

    kept = ("name", "base", "arms", "baseline", "factors", "seeds")
    return fingerprint({name: specification[name] for name in kept})


def _report_run(
    place: str, sweep: str, specification: Mapping[str, Any], versions_by_cell: Mapping[str, str], comparison: str
) -> str:
    """Each choice of arms and seeds has a report of its own: one never overwrites another."""
    mlflow = client()
    arms, seeds = ",".join(specification["arms"]), ",".join(map(str, specification["seeds"]))
    tags = {"kind": "report", "sweep": sweep, "arms": arms, "seeds": seeds}
    found = mlflow.search_runs([place], tag_filter(**tags), max_results=1)
    tags |= {"specification": comparison, "data_version": ",".join(sorted(set(versions_by_cell.values())))}
    if found:
        return str(found[0].info.run_id)
    name = f"report {sweep}: {len(specification['arms'])} arms, seeds {seeds}"
    return str(mlflow.create_run(place, tags=tags, run_name=name).info.run_id)


def _log_summaries(run_id: str, summaries: Sequence[ArmSummary], cell: str) -> None:
    """Numbers of the table as metrics; a report written again adds only those that changed."""
    from mlflow.entities import Metric

    mlflow, now = client(), int(time.time() * 1000)
    known = mlflow.get_run(run_id).data.metrics
    numbers = {
        f"{prefix(cell)}{row.arm}/{name}": float(value)
        for row in summaries
        for name, value in vars(row).items()
        if isinstance(value, (int, float))
    }
    fresh = [Metric(name, value, now, 0) for name, value in numbers.items() if known.get(name) != value]
    mlflow.log_batch(run_id, metrics=fresh)


def _write_csv(path: Path, cells: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def _commit() -> str:
    """The commit of this checkout, or why none is known."""
    if shutil.which("git") is None:
        return "no commit known: git is not installed"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else f"no commit known: {git.stderr.strip()}"


def versions(data_versions: Mapping[str, str], computed_on: Sequence[str]) -> dict[str, Any]:
    """What computed the numbers: code, data, the runs' processors, interpreter, this machine and every installed package."""
    from importlib.metadata import distributions

    from igpo_core.config import code_version

    return {
        "data": sorted(set(data_versions.values())),
        "code": code_version(),
        "git": _commit(),
        "computed_on": list(computed_on),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": dict(sorted((item.metadata["Name"], item.version) for item in distributions())),
    }
