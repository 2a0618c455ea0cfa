"""Old runs and warm starts, on disk and in MLflow: python -m tasks.runs.pruning [--days 30] [--yes], or `make prune`.

Deleted is what was not touched for so many days, unless
- a report or a check of MLflow is about it, or a registered model was made by it,
- it belongs to the newest sweep of its study, which the next sweep or night may go on with,
- a process works on it, or a run that is kept starts from it,
- MLflow does not have it (`make send` sends it there), or has it without its sweep, arm or seed.
What an evaluation measured of a model, and registered models fetched from MLflow, go by their age alone: both are made again
where they are asked for.
A report that is deleted in MLflow keeps its runs no longer.
"""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.errors import IgpoError, ServiceError
from tasks.lab.home import open_home
from tasks.report.wording import counted
from tasks.runs.locks import locked_if_free
from tasks.runs.planned import planned_start
from tasks.tracking.outbox import read_about
from tasks.tracking.server import answering, client, find_runs, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities import Run

DAYS = 30
UNFINISHED = ".unfinished"  # behind the name of a warm start's folder of checkpoints
DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Folder:
    """A run or a warm start on disk."""

    path: Path
    touched: float
    """When something in it was last written, in seconds since 1970."""
    size: int
    """Of its files, in bytes."""
    study: str = ""
    """Of a run; a warm start has none of this and of the next three."""
    sweep: str = ""
    started: float = 0.0
    """When the run began, in seconds since 1970."""
    start: str = ""
    """The warm start that the run began from; empty where no plan says."""

    planned: bool = False
    """Whether a run has nothing but its plan."""

    @property
    def key(self) -> str:
        """Return the key of the run, or of the warm start, unfinished ones too; of a measurement the name of its lock."""
        if self.path.suffix == ".json":
            return f"evaluation-{self.path.stem}"
        return self.path.name.removeprefix(".").removesuffix(UNFINISHED)


@dataclass(frozen=True)
class Known:
    """Keys of runs, as MLflow has them."""

    every: frozenset[str]
    named: frozenset[str]
    """Those that a report or a check is about, and those that made a registered model."""


@dataclass(frozen=True)
class Old:
    """What may be deleted."""

    runs: tuple[Folder, ...]
    warm_starts: tuple[Folder, ...]
    cached: tuple[Folder, ...] = ()
    """Measurements of evaluations, files each, and fetched models."""

    @property
    def all(self) -> tuple[Folder, ...]:
        """Return all of it."""
        return (*self.runs, *self.warm_starts, *self.cached)

    def told(self) -> str:
        """Return how many they are and how much room that makes, in words."""
        size = sum(folder.size for folder in self.all)
        return (
            f"{counted(len(self.runs), 'run')}, {counted(len(self.warm_starts), 'warm start')} and "
            f"{counted(len(self.cached), 'cached result')}, {size / 1e9:.2f} GB"
        )


def find_old(
    runs: Sequence[Folder],
    warm_starts: Sequence[Folder],
    known: Known,
    now: float,
    days: float,
    cached: Sequence[Folder] = (),
) -> Old:
    """Return what may be deleted.

    A run that MLflow does not have is kept: of a server that lost its database, nothing says which reports there were.
    """
    newest: dict[str, Folder] = {}
    for run in runs:
        if run.planned:
            continue
        newest[run.study] = max(run, newest.get(run.study, run), key=lambda one: one.started)

    def aged(folder: Folder) -> bool:
        return now - folder.touched > days * DAY

    old = [
        run
        for run in runs
        if aged(run)
        and (run.planned or (run.key in known.every - known.named and run.sweep != newest[run.study].sweep))
    ]
    needed = {run.start for run in runs if run not in old and not run.planned}
    starts = tuple(start for start in warm_starts if aged(start) and start.key not in needed)
    return Old(tuple(old), starts, tuple(filter(aged, cached)))


def read_runs(home: Path) -> list[Folder]:
    """Return every run on disk that has told what it is, and those that were only planned."""
    found = []
    for path in _folders(home / "runs"):
        about = read_about(path)
        if about is not None:
            start = planned_start(path)
            began = about.started_ms / 1000
            found.append(Folder(path, *_files(path), about.experiment, about.tags["sweep"], began, start))
        elif planned_start(path):
            found.append(Folder(path, *_files(path), start=planned_start(path), planned=True))
    return found


def read_warm_starts(home: Path) -> list[Folder]:
    """Return every warm start on disk."""
    place = home / "warm_starts"
    unfinished = sorted(place.glob(f".*{UNFINISHED}"))
    return [Folder(path, *_files(path)) for path in (*_folders(place), *unfinished)]


def read_cached(home: Path) -> list[Folder]:
    """Return every measurement of an evaluation and every fetched model on disk."""
    measured = sorted((home / "evaluations").glob("[!.]*.json"))
    return [Folder(path, *_files(path)) for path in (*measured, *_folders(home / "registered"))]


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.glob("[!.]*") if path.is_dir())


def _files(folder: Path) -> tuple[float, int]:
    """When it was last written, and its bytes; of a file too."""
    if folder.is_file():
        return folder.stat().st_mtime, folder.stat().st_size
    touched, size = folder.stat().st_mtime, 0
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            try:
                entry = os.stat(path)
            except FileNotFoundError:  # a run that goes on deletes its older checkpoints meanwhile
                continue
            touched, size = max(touched, entry.st_mtime), size + entry.st_size
    return touched, size


def read_known() -> Known:
    """Return what MLflow has. A report is about the runs of its sweep that have one of its arms and seeds; one that lost a tag,
    about all runs of its experiment."""
    mlflow = client()
    trained = _search(kind="train")
    reports = [*_search(kind="report"), *_search(kind="check")]
    lost = {
        report.info.experiment_id for report in reports if not {"sweep", "arms", "seeds"} <= report.data.tags.keys()
    }
    about = {
        (report.info.experiment_id, report.data.tags["sweep"], arm, seed)
        for report in reports
        if report.info.experiment_id not in lost
        for arm in report.data.tags["arms"].split(",")
        for seed in report.data.tags["seeds"].split(",")
    }
    registered = {model.run_id for model in mlflow.search_model_versions()}
    named = {
        run.data.tags["run_key"]
        for run in trained
        if run.info.run_id in registered
        or run.info.experiment_id in lost
        or _place(run) is None
        or _place(run) in about
    }
    return Known(frozenset(run.data.tags["run_key"] for run in trained), frozenset(named))


def _place(run: "Run") -> tuple[str, ...] | None:
    """Experiment, sweep, arm and seed of a run; None of one that lost a tag: nothing says which reports are about it."""
    names = ("sweep", "arm", "seed")
    if any(name not in run.data.tags for name in names):
        return None
    return run.info.experiment_id, *(run.data.tags[name] for name in names)


def _search(**tags: str) -> "list[Run]":
    """Every run of every experiment with these tags."""
    return find_runs([experiment.experiment_id for experiment in client().search_experiments()], **tags)


def prune(home: Path, now: float, days: float, delete: bool) -> Old:
    """Delete what is old, or only look for it. Returns what it was. Raises MlflowAway."""
    with answering():
        old = find_old(read_runs(home), read_warm_starts(home), read_known(), now, days, read_cached(home))
        for folder in old.all if delete else ():
            with locked_if_free(home, folder.key) as free:
                if not free or _files(folder.path)[0] != folder.touched:  # somebody began to work on it
                    continue
                if folder.study:  # MLflow's copy first: a folder without it is found again, and not the other way round
                    for copy in _search(run_key=folder.key):
                        _delete_copy(copy)
                if folder.path.is_file():
                    folder.path.unlink()
                else:
                    shutil.rmtree(folder.path)
    return old


def _delete_copy(run: "Run") -> None:
    """Delete a run of MLflow, with its artifacts and models."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    mlflow = client()
    for model in mlflow.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"):
        mlflow.delete_logged_model(model.model_id)
    artifacts: Any = get_artifact_repository(run.info.artifact_uri, tracking_uri=tracking_uri())
    artifacts.delete_artifacts()
    mlflow.delete_run(run.info.run_id)


def require_room(home: Path, needed: int, least: float) -> None:
    """Raise ServiceError where so many more bytes would leave less than `least` GB free."""
    free = shutil.disk_usage(home).free
    if short_of_room(free, needed, least):
        raise ServiceError(
            f"the disk of {home} has {free / 1e9:.1f} GB free. The runs of this night would take {needed / 1e9:.1f} GB and leave "
            f"less than free_gb={least:g}. `make prune` shows what may be deleted; or move IGPO_HOME, or lower free_gb"
        )


def short_of_room(free: int, needed: int, least: float) -> bool:
    """Whether less than `least` GB stay free. free and needed: bytes."""
    return free - needed < least * 1e9


def main(arguments: list[str]) -> int:
    """Delete what is old, or say what would be. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="make prune ARGS=..", description="Old runs and warm starts: docs/operate.md."
    )
    parser.add_argument("--days", type=float, default=DAYS, help=f"not touched for so many days, {DAYS} by default")
    parser.add_argument("--yes", action="store_true", help="delete them; without it they are only listed")
    chosen = parser.parse_args(arguments)
    now = time.time()
    try:
        old = prune(open_home(), now, chosen.days, chosen.yes)
    except IgpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    kinds = (("run", old.runs), ("warm start", old.warm_starts), ("cached result", old.cached))
    for kind, folders in kinds:
        for folder in folders:
            days = (now - folder.touched) / DAY
            print(f"{kind} {folder.key} {folder.sweep:<30} {days:.0f} days, {folder.size / 1e6:.1f} MB")
    print(f"{'deleted' if chosen.yes else 'would be deleted'}: {old.told()}")
    if not chosen.yes and old.all:
        print("nothing was deleted: make prune ARGS=--yes does")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
