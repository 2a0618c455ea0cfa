"""What becomes of folders of older versions: of other code, of other settings, and of the time before plans."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.errors import CheckpointError, ConfigError
from tasks.runs.candidates import checkpoint_of
from tasks.runs.planned import PLAN, Run, open_run, planned_start, told_name, write_result, write_run
from tasks.runs.pruning import DAY, Known, find_old, read_runs, read_warm_starts
from tasks.tracking.outbox import About, Outbox
from tests.tasks.planned import planned

MONTH = 30.0  # days
OLD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda path: path.unlink(), "no plan"),
    (lambda path: path.write_text(path.read_text()[:-9]), "a torn plan"),
    (lambda path: changed(path, ("experiment", "rollout", "beam"), 4), "a setting that is gone"),
    (lambda path: changed(path, ("experiment", "reward", "credit"), "sentence"), "a choice that is gone"),
    (lambda path: changed(path, ("arm",), None), "another form of plan"),
]
NAMES = [name for _, name in OLD]


def changed(path: Path, where: tuple[str, ...], value: Any) -> None:
    """Write another value into a plan; None takes the name out."""
    content = json.loads(path.read_text())
    inner = content
    for name in where[:-1]:
        inner = inner[name]
    if value is None:
        del inner[where[-1]]
    else:
        inner[where[-1]] = value
    path.write_text(json.dumps(content))


def made(home: Path, *, seed: int = 0, sweep: str = "sweep", started: float = 0.0, **given: Any) -> Run:
    """A finished run with its warm start, as a sweep leaves them."""
    run = planned(home, ExperimentConfig(seed=seed), sweep=sweep, **given)
    write_run(run)
    tags = {"kind": "train", "sweep": sweep, "arm": "arm", "seed": str(seed), "cell": "", "data_version": "data"}
    Outbox(run.folder, About("study", f"arm seed {seed}", run.spec.run_key, tags, {}, int(started * 1000)))
    write_result(run, {})
    run.start.mkdir(parents=True)
    return run


def test_a_run_of_other_code_keeps_its_start_and_is_not_gone_on_with(tmp_path: Path) -> None:
    """Its settings are read as they are: nothing but the code is another one."""
    run = made(tmp_path, code="0123456789ab")
    assert planned_start(run.folder) == run.spec.start
    assert checkpoint_of(run.folder, "start") == run.start
    with pytest.raises(ConfigError, match="0123456789ab where the run was planned: install the same"):
        open_run(tmp_path, run.spec.run_key)
    assert made(tmp_path).folder != run.folder  # planned anew it is another run, with another warm start
    assert made(tmp_path, seed=1).start != run.start


@pytest.mark.parametrize(("make_old", "name"), OLD, ids=NAMES)
def test_a_plan_that_cannot_be_read_names_no_start(tmp_path: Path, make_old: Callable[[Path], None], name: str) -> None:
    run = made(tmp_path)
    make_old(run.folder / PLAN)
    assert planned_start(run.folder) == ""
    with pytest.raises(CheckpointError, match=f"run {run.folder.name} has no checkpoint @start"):
        checkpoint_of(run.folder, "start")
    with pytest.raises(ConfigError, match=r"holds no run\.json|is damaged|is no plan of a run"):
        open_run(tmp_path, run.spec.run_key)
    expected = {"no plan": run.spec.run_key, "a torn plan": run.spec.run_key, "another form of plan": run.spec.run_key}
    assert told_name(tmp_path, run.spec.run_key) == expected.get(name, "arm seed 0")


@pytest.mark.parametrize(("make_old", "name"), OLD, ids=NAMES)
def test_its_warm_start_goes_by_its_age_and_the_run_as_any_other(
    tmp_path: Path, make_old: Callable[[Path], None], name: str
) -> None:
    """Nothing goes on with such a run. A run of today, which a report names, keeps the warm start that it began from."""
    older, kept = made(tmp_path), made(tmp_path, seed=1)
    newest = made(tmp_path, seed=2, sweep="newest", started=9.0)
    make_old(older.folder / PLAN)
    runs, starts = read_runs(tmp_path), read_warm_starts(tmp_path)
    assert {run.key for run in runs} == {run.spec.run_key for run in (older, kept, newest)}
    later = max(folder.touched for folder in (*runs, *starts)) + (MONTH + 1) * DAY
    every = frozenset(run.key for run in runs)

    def goes(*named: Run) -> tuple[set[str], set[str]]:
        names = frozenset(run.spec.run_key for run in named)
        old = find_old(runs, starts, Known(every, names), later, MONTH)
        return {run.key for run in old.runs}, {start.key for start in old.warm_starts}

    assert goes(kept) == ({older.spec.run_key}, {older.spec.start})
    assert goes(kept, older) == (
        set(),
        {older.spec.start},
    )  # a report keeps the run, and no plan says what it began from


@pytest.mark.parametrize(("make_old", "name"), OLD, ids=NAMES)
def test_a_folder_that_was_only_planned_and_cannot_be_read_is_left_alone(
    tmp_path: Path, make_old: Callable[[Path], None], name: str
) -> None:
    run = planned(tmp_path)
    write_run(run)
    assert [(folder.key, folder.planned) for folder in read_runs(tmp_path)] == [(run.spec.run_key, True)]
    make_old(run.folder / PLAN)
    assert read_runs(tmp_path) == []
