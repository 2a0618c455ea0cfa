"""The report of a sweep, made of its cells' tables and words: one run in MLflow with a page, texts, figures and tables."""

import csv
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import DataConfig, code_version, fingerprint
from igpo_core.config.specification import spell_changes
from igpo_core.environments.base import WorldSettings
from igpo_core.folders import file_hash
from tasks.lab.home import home
from tasks.lab.source import commit
from tasks.report.answer import answer as answer_of
from tasks.report.figures import write_figures
from tasks.report.frame import folder_of
from tasks.report.kept import read_trajectories
from tasks.report.page import Made, write_page
from tasks.report.summaries import ArmSummary, CellReport, cell_reports
from tasks.report.sweeps import Place, collect
from tasks.report.texts import markdown, terminal
from tasks.report.watch import Moved, comparison_of, moved, prefix, report_before
from tasks.report.winner import Winner, winners
from tasks.tracking import outbox
from tasks.tracking.mlflow_runs import LONGEST_NAME
from tasks.tracking.outbox import METRICS_FILE
from tasks.tracking.server import (
    artifact_url,
    client,
    experiment_id,
    find_runs,
    tag_filter,
    tracking_uri,
)
from tasks.tracking.views import show_view

if TYPE_CHECKING:
    from mlflow.entities import Run

MADE_OF = "made_of"  # tag of a report: the fingerprint of all that it is made of

UNTIL = "until"  # tag of a report: what `until` was when it was first made

REPORT = "report.json"
PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """Where the report is, and what it says.

    url: report.html in MLflow. compare: the curves by arm in MLflow.
    answer: the sentence that answers the question. terminal: table, score of each seed, warnings and the answer. warnings: these,
    with their cell. rows: the table as text cells. widest: the widest 95% interval of a difference, None where there is none.
    winners: of each cell whose verdict names one. exploratory: in what it departs from what was fixed beforehand, in words.
    made: when it was written.
    reused: it was there, and nothing that it is made of has changed.
    """

    run_id: str
    url: str
    compare: str
    answer: str
    markdown: str
    terminal: str
    warnings: list[str]
    rows: list[dict[str, str]]
    widest: float | None
    moved: list[Moved]
    winners: list[Winner]
    exploratory: list[str]
    made: str
    reused: bool

    @property
    def file(self) -> Path | None:
        """Return report.html on this disk; None where MLflow's server keeps its artifacts elsewhere."""
        place = client().get_run(self.run_id).info.artifact_uri.removeprefix("mlflow-artifacts:/")
        path = home() / "mlflow" / "artifacts" / place / PAGE
        return path if path.is_file() else None


def write_report(
    specification: Mapping[str, Any],
    sweep: str,
    versions_by_cell: Mapping[str, str],
    places: Mapping[str, Sequence[Place]],
    cells: Sequence[str],
    again: str,
    exploratory: Sequence[str] = (),
    added: Sequence[int] = (),
    by_heart: Mapping[str, Sequence[str]] | None = None,
) -> Report:
    """The one run tagged kind=report of this sweep, made or brought up to date, for the specification's arms and seeds; found
    as it is where nothing that it is made of has changed.

    places: run key -> (cell, arm, seed) that the run stands for. again: the command that makes it once
    more. exploratory: in what the sweep departs from the preset. added: seeds that `until` added on the way. by_heart: cell ->
    why its warm start is learnt by heart, so that it has no verdict (tasks.runs.taught.taught_by_heart).
    """
    study, by_heart = specification["name"], {cell: list(lines) for cell, lines in (by_heart or {}).items()}
    experiment, comparison = experiment_id(study), comparison_of(specification)
    exploratory = [*exploratory, *_after_a_look(experiment, sweep, specification, added)]
    before = report_before(experiment, comparison, sweep)
    made_of = fingerprint(
        dict(specification), dict(versions_by_cell), dict(places), again, exploratory, [*added], by_heart,
        tracking_uri(), _code(), before and before.info.run_id, _runs(experiment, sweep, home() / "runs"),
    )  # fmt: skip
    found = _find_report(experiment, sweep, specification)
    if found is not None and found.data.tags.get(MADE_OF) == made_of:
        return read_report(found.info.run_id)
    found_runs = collect(study, sweep, places, rubric=rubric_of(specification), runs=home() / "runs")
    reports = cell_reports(specification, found_runs, cells, by_heart)  # raises where no run is finished
    run_id = _report_run(found, experiment, sweep, specification, versions_by_cell, comparison)
    client().set_tag(run_id, MADE_OF, "")  # until it is whole
    left = [arm for report in reports for arm in moved(before, report.cell, report.summaries)]
    reports[0] = replace(reports[0], words=reports[0].words.warn([arm.sentence() for arm in left]))
    answer = _answer(specification, cells, reports, exploratory, added)
    compare = show_view(
        experiment, study, sweep, specification["arms"], specification["description"], rubric_of(specification)
    )
    report = Report(
        run_id=run_id,
        url=artifact_url(experiment, run_id, PAGE),
        compare=compare,
        answer=answer,
        markdown=markdown(sweep, answer, reports, compare),
        terminal=terminal(reports, answer),
        warnings=[f"{r.cell}: {line}" if r.cell else line for r in reports for line in r.words.warnings],
        rows=[{"cell": report.cell, **row} if report.cell else row for report in reports for row in report.rows],
        widest=_widest(reports),
        moved=left,
        winners=winners(specification, reports, _answering(specification)),
        exploratory=exploratory,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        reused=False,
    )
    _write_files(report, specification, sweep, versions_by_cell, places, cells, again, by_heart, reports)
    for one in reports:
        _log_summaries(run_id, one.summaries, one.cell)
    _finish(report, made_of)
    return report


def _widest(reports: Sequence[CellReport]) -> float | None:
    """The width of the widest interval; None where there is none."""
    rows = [row for report in reports for row in report.summaries]
    return max((row.high - row.low for row in rows if row.low is not None and row.high is not None), default=None)


def _finish(report: Report, made_of: str) -> None:
    """Tell the report's run in MLflow what it says, and that it is whole."""
    client().set_tag(report.run_id, "answer", report.answer)  # what a night repeats
    client().set_tag(report.run_id, "mlflow.note.content", report.markdown)  # what the run's page shows first
    if client().get_run(report.run_id).info.status != "FINISHED":  # else the run would seem to have lasted until now
        client().set_terminated(report.run_id)
    client().set_tag(report.run_id, MADE_OF, made_of)


def read_report(run_id: str) -> Report:
    """A report as it was written."""
    import mlflow.artifacts

    client()  # sets how long a call may take
    mlflow.set_tracking_uri(tracking_uri())
    content = json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{REPORT}"))
    told = {
        "moved": [Moved(**arm) for arm in content["moved"]],
        "winners": [Winner(**one) for one in content["winners"]],
    }
    return Report(**{**content, **told, "reused": True})


def _write_files(
    report: Report,
    specification: Mapping[str, Any],
    sweep: str,
    versions_by_cell: Mapping[str, str],
    places: Mapping[str, Sequence[Place]],
    cells: Sequence[str],
    again: str,
    by_heart: Mapping[str, Sequence[str]],
    reports: Sequence[CellReport],
) -> None:
    """The artifacts of the report's run."""
    import yaml

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / REPORT).write_text(json.dumps(asdict(report), indent=1))
        (folder / "report.md").write_text(report.markdown)
        table = [{"cell": one.cell, **asdict(row)} for one in reports for row in one.summaries]
        (folder / "table.json").write_text(json.dumps(table, indent=1))
        _write_csv(folder / "table.csv", report.rows)
        (folder / "specification.yaml").write_text(yaml.safe_dump(dict(specification), sort_keys=False))
        known = {"cells": list(cells), "places": dict(places), "by_heart": dict(by_heart)}
        (folder / "places.json").write_text(json.dumps(known, indent=1))
        computed_on = sorted({run.processor for one in reports for run in one.data.finished()})
        (folder / "versions.json").write_text(json.dumps(versions(versions_by_cell, computed_on), indent=1))
        for one in reports:
            inside = folder / "figures" / one.cell.replace(",", "_") if one.cell else folder
            inside.mkdir(parents=True, exist_ok=True)
            write_figures(one.data, one.pairs, specification["baseline"], inside)
        made = Made(
            when=report.made,
            commit=commit(),
            code=code_version(),
            data=tuple(sorted(set(versions_by_cell.values()))),
            processors=tuple(computed_on),
            again=again,
            links=(("curves by arm in MLflow", report.compare), ("this report in MLflow", report.url)),
        )
        trajectories = read_trajectories(reports)
        write_page(folder / PAGE, sweep, report.answer, specification, reports, made, trajectories)
        client().log_artifacts(report.run_id, str(folder))


def rubric_of(specification: Mapping[str, Any]) -> Mapping[str, str]:
    """Return title by key of the scores of a specification's data, the headline first."""
    from pydantic import TypeAdapter

    data: WorldSettings = TypeAdapter(DataConfig).validate_python(specification["base"]["data"])
    return data.rubric


def _answering(specification: Mapping[str, Any]) -> list[str]:
    """igpo_core.config.AblationSpecification.answering."""
    primary, baseline = specification["primary"], specification["baseline"]
    return [primary] if primary else [arm for arm in specification["arms"] if arm != baseline]


def _answer(
    specification: Mapping[str, Any],
    cells: Sequence[str],
    reports: Sequence[CellReport],
    exploratory: Sequence[str],
    added: Sequence[int],
) -> str:
    """Return the sentence that answers, with every cell and every run that is missing."""
    answering, by_cell = _answering(specification), {report.cell: report for report in reports}
    told = [(cell, [by_cell[cell].comparison(arm) for arm in answering] if cell in by_cell else None) for cell in cells]
    besides = [
        f"{report.cell + ': ' if report.cell else ''}{arm} seed {seed} ({why})"
        for report in reports
        for arm, seed, why in report.data.absent
        if arm not in (*answering, specification["baseline"])
    ]
    decodings = [f"{r.cell + ': ' if r.cell else ''}{text}" for r in reports for text in r.by_decoding]
    return answer_of(specification, told, exploratory, besides, added, decodings)


def _runs(experiment: str, sweep: str, folders: Path) -> list[list[Any]]:
    """Return the runs that MLflow has of the sweep, when each ended, and of the file that its values are read from the size and
    when it was written last."""
    found = find_runs([experiment], sweep=sweep, kind="train")
    return sorted(
        [run.info.run_id, run.info.status, run.info.end_time, _file(folder_of(run, folders))] for run in found
    )


def _file(folder: Path | None) -> list[int]:
    """Return size and time of a run's metrics file; [] where MLflow is read."""
    if folder is None:
        return []
    found = (folder / METRICS_FILE).stat()
    return [found.st_size, found.st_mtime_ns]


def _code() -> dict[str, str]:
    """What turns runs into a report: a change of it makes the report anew."""
    folder = Path(__file__).parent
    files = [*folder.glob("*.py"), *folder.glob("templates/*"), Path(outbox.__file__)]
    return {path.name: file_hash(path) for path in sorted(files)}


def _tags(sweep: str, specification: Mapping[str, Any]) -> dict[str, str]:
    """What tells reports apart: each choice of arms and seeds has one of its own, so that none overwrites another."""
    arms, seeds = ",".join(specification["arms"]), ",".join(map(str, specification["seeds"]))
    return {"kind": "report", "sweep": sweep, "arms": arms, "seeds": seeds}


def _after_a_look(experiment: str, sweep: str, specification: Mapping[str, Any], added: Sequence[int]) -> list[str]:
    """Return in words that seeds were added by an `until` that an earlier report of the sweep did not have; [] otherwise."""
    if not added:
        return []
    reports = client().search_runs([experiment], tag_filter(kind="report", sweep=sweep))
    if all(report.data.tags.get(UNTIL, "") == _until(specification) for report in reports):
        return []
    return [f"seeds {', '.join(map(str, added))} added by an `until` that an earlier report of this sweep did not have"]


def _until(specification: Mapping[str, Any]) -> str:
    until = specification["until"]
    return f"{until['width']:g} or {until['seeds']} seeds" if until else ""


def _find_report(place: str, sweep: str, specification: Mapping[str, Any]) -> "Run | None":
    found = client().search_runs([place], tag_filter(**_tags(sweep, specification)), max_results=1)
    return found[0] if found else None


def _report_run(
    found: "Run | None",
    place: str,
    sweep: str,
    specification: Mapping[str, Any],
    versions_by_cell: Mapping[str, str],
    comparison: str,
) -> str:
    """Return the id of the report's run: the one that was found, or a new one."""
    if found is not None:
        if found.data.tags.get("specification") != comparison:  # by an older version of the laboratory
            client().set_tag(found.info.run_id, "specification", comparison)
        return str(found.info.run_id)
    tags = _tags(sweep, specification)
    changed = spell_changes(specification["changes"])
    told = f"report {sweep}: {len(specification['arms'])} arms, seeds {tags['seeds']}"
    name = " · ".join(filter(None, [told, changed]))[:LONGEST_NAME]
    tags |= {
        **({"set": changed} if changed else {}),
        UNTIL: _until(specification),
        "specification": comparison,
        "data_version": ",".join(sorted(set(versions_by_cell.values()))),
    }
    return str(client().create_run(place, tags=tags, run_name=name).info.run_id)


def _log_summaries(run_id: str, summaries: Sequence[ArmSummary], cell: str) -> None:
    """Numbers of the table as metrics; a report written again adds only those that changed."""
    from mlflow.entities import Metric

    mlflow, now = client(), int(time.time() * 1000)
    known = mlflow.get_run(run_id).data.metrics
    numbers = {
        f"{prefix(cell)}{row.arm}/{name}": float(value)
        for row in summaries
        for name, value in {**vars(row), **row.others, **row.decoded}.items()
        if isinstance(value, (int, float))
    }
    fresh = [Metric(name, value, now, 0) for name, value in numbers.items() if known.get(name) != value]
    mlflow.log_batch(run_id, metrics=fresh)


def _write_csv(path: Path, cells: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def versions(data_versions: Mapping[str, str], computed_on: Sequence[str]) -> dict[str, Any]:
    """What computed the numbers: code, data, the runs' processors, interpreter, this machine and every installed package."""
    from importlib.metadata import distributions

    return {
        "data": sorted(set(data_versions.values())),
        "code": code_version(),
        "git": commit(),
        "computed_on": list(computed_on),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": dict(sorted((item.metadata["Name"], item.version) for item in distributions())),
    }
