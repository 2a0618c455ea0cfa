"""What MLflow knows of a standing study: its verdict, its checks, the scores of its runs.

Nothing of it is kept elsewhere: the verdict is the newest report on all seeds of the study, and a check is a run tagged
kind=check.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.errors import ConfigError, DataError
from tasks.report.standing import Change, Scores
from tasks.report.sweeps import Place
from tasks.report.watch import prefix
from tasks.tracking.server import client, find_runs, run_url, tag_filter

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Verdict:
    """The report on all seeds of a study."""

    run_id: str
    url: str
    sweep: str
    answer: str
    """The sentence that answers the question."""
    made: datetime
    """When it was written."""


@dataclass(frozen=True)
class Check:
    """What came of comparing the check seeds with the study."""

    said: str
    moved: bool
    """Whether the verdict moved."""


@dataclass(frozen=True)
class Progress:
    """How far a study was after a night."""

    comparison: str
    """Of the specification (tasks.report.watch.comparison_of)."""
    sweep: str
    finished: int
    """How many of its seeds were there."""
    versions: Mapping[str, Any]
    """What they were computed with (tasks.report.reporting.versions), of packages those that compute."""


SEEDS = "night.seeds"  # tag of the study's experiment
PROGRESS = "night.progress"  # another one


def find_verdict(experiment: str, comparison: str, seeds: int, sweep: str) -> Verdict | None:
    """Return the report of the comparison (tasks.report.watch.comparison_of) that lacks none of so many seeds; None while
    there is none. Of several it is the one of this sweep, which the code and data of now would make again, else the newest."""
    reports = [run for run in _whole(experiment, kind="report", specification=comparison) if _pairs(run) == {seeds}]
    run = next((run for run in reports if run.data.tags["sweep"] == sweep), next(iter(reports), None))
    if run is None:
        return None
    made, tags = datetime.fromtimestamp(run.info.end_time / 1000, UTC), run.data.tags
    return Verdict(run.info.run_id, run_url(experiment, run.info.run_id), tags["sweep"], tags["answer"], made)


def fix_seeds(experiment: str, seeds: int) -> None:
    """Write down at the first night of how many seeds the study is. Raises ConfigError where it is of another number.

    Whoever changes the number after a look at the result chooses when to stop.
    """
    before = client().get_experiment(experiment).tags.get(SEEDS)
    if before is None:
        client().set_experiment_tag(experiment, SEEDS, str(seeds))
    elif int(before) != seeds:
        raise ConfigError(
            f"this study was begun with {before} seeds, and seeds={seeds} would choose when it ends: set seeds to {before}, or "
            "give the specification another name, which makes it another study"
        )


def find_check(experiment: str, comparison: str, sweep: str) -> Check | None:
    """Return the newest check of this sweep; None where there was none."""
    checks = _whole(experiment, kind="check", specification=comparison, sweep=sweep)
    return Check(checks[0].data.tags["answer"], checks[0].data.tags["moved"] == "yes") if checks else None


def read_progress(experiment: str) -> Progress | None:
    """Return how far the study was after its last night; None before the first."""
    told = client().get_experiment(experiment).tags.get(PROGRESS)
    return None if told is None else Progress(**json.loads(told))


def write_progress(experiment: str, progress: Progress) -> None:
    """Write down how far the study is."""
    client().set_experiment_tag(experiment, PROGRESS, json.dumps(asdict(progress)))


def _whole(experiment: str, **tags: str) -> "Sequence[Run]":
    """Finished runs with these tags, the newest first."""
    asked = f"{tag_filter(**tags)} and attributes.status = 'FINISHED'"
    found: Sequence[Run] = client().search_runs([experiment], asked, order_by=["attributes.end_time DESC"])
    return found


def _pairs(report: "Run") -> set[float]:
    """How many seeds stand behind its arms; a report of a sweep in which runs failed has fewer."""
    return {value for name, value in report.data.metrics.items() if name.endswith("/pairs")}


def read_report(run_id: str) -> tuple[dict[str, Any], dict[str, list[Place]]]:
    """Return versions.json of a report, and run key -> (cell, arm, seed) of its runs."""
    with tempfile.TemporaryDirectory() as name:
        mlflow = client()
        versions = json.loads(Path(mlflow.download_artifacts(run_id, "versions.json", name)).read_text())
        known = json.loads(Path(mlflow.download_artifacts(run_id, "places.json", name)).read_text())
    return versions, {key: [tuple(place) for place in places] for key, places in known["places"].items()}


def read_scores(experiment: str, sweep: str, places: Mapping[str, Sequence[Place]], headline: str) -> Scores:
    """Return the headline on test of these runs. Raises DataError where MLflow lacks one."""
    score = f"test/all/{headline}"
    found = find_runs([experiment], kind="train", sweep=sweep)
    known = {
        run.data.tags["run_key"]: run.data.metrics[score]
        for run in found
        if run.info.status == "FINISHED" and score in run.data.metrics
    }
    missing = [key for key in places if key not in known]
    if missing:
        raise DataError(
            f"MLflow has no finished run {', '.join(missing)} of sweep {sweep}: `make send` sends what folders still have. "
            "Without it start the whole study anew, as a sweep on all its seeds"
        )
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for key, where in places.items():
        for cell, arm, seed in where:
            scores.setdefault(cell, {}).setdefault(arm, {})[seed] = known[key]
    return scores


def write_check(
    experiment: str, comparison: str, sweep: str, seeds: Sequence[int], found: Sequence[Change], answer: str
) -> str:
    """Write down that the check seeds of this sweep were compared with the study. Returns the run's page."""
    mlflow = client()
    arms = ",".join(dict.fromkeys(change.arm for change in found))
    tags = {
        "kind": "check", "specification": comparison, "sweep": sweep, "arms": arms, "seeds": ",".join(map(str, seeds)),
        "moved": "yes" if any(change.moved for change in found) else "no", "answer": answer, "mlflow.note.content": answer,
    }  # fmt: skip
    run = mlflow.create_run(experiment, tags=tags, run_name=f"check {sweep}, seeds {tags['seeds']}").info.run_id
    for change in found:
        for name in ("effect", "before", "now", "low", "high"):
            mlflow.log_metric(run, f"{prefix(change.cell)}{change.arm}/{name}", getattr(change, name))
    mlflow.set_terminated(run)
    return run_url(experiment, run)
