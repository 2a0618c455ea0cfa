"""What may be deleted: the rules on small tables, then real folders and a real MLflow."""

import os
from pathlib import Path

import pytest

from igpo_core.config import ExperimentConfig
from igpo_core.folders import write_json
from tasks.runs.locks import locked
from tasks.runs.planned import PLAN
from tasks.runs.pruning import DAY, Folder, Known, find_old, main, prune, short_of_room
from tasks.tracking.outbox import About, Outbox, write_status
from tasks.tracking.sending import Sender, read_sent
from tasks.tracking.server import client, experiment_id
from tests.tasks.planned import planned

NOW = 100 * DAY


def run(
    key: str, *, age: float = 40, study: str = "a", sweep: str = "a-1", started: float = 1, start: str = ""
) -> Folder:
    return Folder(Path(key), NOW - age * DAY, 10, study, sweep, started, start)


def warm(key: str, age: float = 40) -> Folder:
    return Folder(Path(key), NOW - age * DAY, 5)


NEWEST = run("newest", age=1, sweep="a-2", started=9, start="w2")


def old(
    *runs: Folder, starts: tuple[Folder, ...] = (), named: str = "", unknown: str = "", days: float = 30
) -> set[str]:
    every = frozenset(one.key for one in (NEWEST, *runs)) - {unknown}
    found = find_old([NEWEST, *runs], starts, Known(every, frozenset({named})), NOW, days)
    return {folder.key for folder in (*found.runs, *found.warm_starts)}


def test_a_run_that_nothing_needs_is_old_after_so_many_days() -> None:
    assert old(run("x", age=30.1)) == {"x"}
    assert old(run("x", age=29.9)) == set()
    assert old(run("x", age=29.9), days=29) == {"x"}


def test_a_run_that_a_report_or_model_names_is_kept() -> None:
    assert old(run("x"), run("y"), named="x") == {"y"}


def test_a_run_that_mlflow_does_not_have_is_kept() -> None:
    assert old(run("x"), run("y"), unknown="x") == {"y"}


def test_the_newest_sweep_of_each_study_is_kept() -> None:
    """a-2 began last in study a; in study b, b-1 did, though b-0 was touched later."""
    runs = [
        run("a1", sweep="a-1", started=8),
        run("a2", sweep="a-2", started=2),
        run("b0", study="b", sweep="b-0", age=35, started=3),
        run("b1", study="b", sweep="b-1", age=40, started=4),
    ]
    assert old(*runs) == {"a1", "b0"}


def test_a_warm_start_is_old_when_no_run_that_is_kept_begins_from_it() -> None:
    starts = (warm("w1"), warm("w2"), warm("w3"), warm("w4", age=1))
    assert old(run("x", start="w1"), run("y", start="w3"), starts=starts, named="y") == {"x", "w1"}


@pytest.mark.parametrize(("free", "needed", "short"), [(6, 0, False), (6, 1, False), (6, 1.5, True), (4, 0, True)])
def test_a_night_ends_before_the_disk_does(free: float, needed: float, short: bool) -> None:
    """5 GB must stay free."""
    assert short_of_room(int(free * 1e9), int(needed * 1e9), 5) is short


# ------------------------------------------------------------------------------------------------- folders and MLflow


def make(home: Path, key: str, study: str, sweep: str, seed: int, started: float) -> str:
    """A finished run of 40 days before NOW and its warm start, sent to MLflow. Returns MLflow's id."""
    folder = home / "runs" / key
    config = ExperimentConfig.model_validate({"data": {"kind": "lookup"}, "policy": {"kind": "new"}, "seed": seed})
    tags = {"kind": "train", "sweep": sweep, "arm": "igpo", "seed": str(seed), "cell": "", "data_version": "d"}
    about = About(study, f"igpo seed {seed}", key, tags, config.model_dump(mode="json"), int(started * 1000))
    Outbox(folder, about).log(1, {"test/all/f1": 0.5})
    (folder / "trajectories.jsonl").write_text("{}\n")
    write_json(folder / "result.json", {})
    write_status(folder, "FINISHED")
    Sender(folder).send()
    planned_run = planned(home, config)
    write_json(folder / PLAN, planned_run.spec.model_dump(mode="json"))
    start = planned_run.start
    start.mkdir(parents=True, exist_ok=True)
    for path in [*folder.rglob("*"), folder, start]:
        os.utime(path, (NOW - 40 * DAY, NOW - 40 * DAY))
    sent = read_sent(folder)
    assert sent
    return sent.run_id


def folders(home: Path) -> tuple[set[str], int]:
    return {path.name for path in (home / "runs").iterdir()}, len(list((home / "warm_starts").iterdir()))


def test_what_is_old_goes_from_disk_and_mlflow_and_nothing_else(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seed 0 is in a report, 1 made a registered model, 2 is worked on, 3 is in a check, 4 and 5 are nothing; 6 is of the
    newest sweep."""
    from mlflow import register_model

    from tasks.tracking.server import tracking_uri

    study = "pruned"
    made = {seed: make(tmp_path, f"run{seed}", study, "pruned-1", seed, 100) for seed in range(6)}
    make(tmp_path, "run6", study, "pruned-2", 6, 200)
    make(tmp_path, "run7", study, "pruned-1", 7, 100)
    (lost,) = client().search_runs([experiment_id(study)], "tags.run_key = 'run7'")
    client().delete_tag(lost.info.run_id, "arm")  # which reports are about it nothing says any more: it stays
    make(tmp_path, "run8", "of-a-lost-report", "lost-1", 8, 100)
    make(tmp_path, "run9", "of-a-lost-report", "lost-2", 9, 200)
    client().create_run(experiment_id("of-a-lost-report"), tags={"kind": "report", "sweep": "lost-1", "seeds": "8"})
    mlflow, place = client(), experiment_id(study)
    for kind, seed in (("report", 0), ("check", 3)):
        tags = {"kind": kind, "sweep": "pruned-1", "arms": "base,igpo", "seeds": f"{seed},77"}
        mlflow.create_run(place, tags=tags)
    mlflow.create_run(
        place, tags={"kind": "report", "sweep": "pruned-0", "arms": "igpo", "seeds": "4"}
    )  # of another sweep
    models = {seed: mlflow.create_logged_model(place, source_run_id=made[seed]) for seed in (1, 4)}
    mlflow.finalize_logged_model(models[1].model_id, "READY")
    import mlflow as api

    api.set_tracking_uri(tracking_uri())
    register_model(f"models:/{models[1].model_id}", "kept")
    assert folders(tmp_path) == ({f"run{seed}" for seed in range(10)}, 10)

    with locked(tmp_path, "run2", print):
        looked = prune(tmp_path, NOW, 30, delete=False)
        assert {one.key for one in looked.runs} == {"run2", "run4", "run5"} and len(looked.warm_starts) == 3
        assert folders(tmp_path) == ({f"run{seed}" for seed in range(10)}, 10)
        prune(tmp_path, NOW, 30, delete=True)
    assert folders(tmp_path) == ({"run0", "run1", "run2", "run3", "run6", "run7", "run8", "run9"}, 7)
    states = {seed: mlflow.get_run(run_id).info.lifecycle_stage for seed, run_id in made.items()}
    assert states == {0: "active", 1: "active", 2: "active", 3: "active", 4: "deleted", 5: "deleted"}
    assert [item.path for item in mlflow.list_artifacts(made[0])] == ["trajectories.jsonl"]
    mlflow.restore_run(made[4])
    assert mlflow.list_artifacts(made[4]) == []
    assert {model.model_id for model in mlflow.search_logged_models([place])} == {models[1].model_id}


def test_the_command_lists_and_deletes_when_told_to(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    make(tmp_path, "old", "listed", "listed-1", 0, 100)
    make(tmp_path, "new", "listed", "listed-2", 1, 200)
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "run old listed-1" in printed
    assert "would be deleted: 1 run, 1 warm start and 0 cached results" in printed
    assert "make prune ARGS=--yes" in printed and folders(tmp_path) == ({"old", "new"}, 2)
    assert main(["--yes"]) == 0
    assert "\ndeleted: 1 run, 1 warm start and 0" in capsys.readouterr().out and folders(tmp_path) == ({"new"}, 1)
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == ("would be deleted: 0 runs, 0 warm starts and 0 cached results, 0.00 GB")


def test_measurements_and_fetched_models_go_by_their_age(mlflow_server: str, tmp_path: Path) -> None:
    """Of 40 and 10 days each; a measurement that a process makes again is left to it."""
    ages = {"evaluations/a.json": 40, "evaluations/b.json": 10, "evaluations/c.json": 40, "registered/x/m": 40,
            "registered/y/m": 10}  # fmt: skip
    for name, days in ages.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        for touched in (path, path.parent):
            os.utime(touched, (NOW - days * DAY,) * 2)
    with locked(tmp_path, "evaluation-c", print):
        gone = prune(tmp_path, NOW, 30, delete=True)
    assert {one.path.name for one in gone.all} == {"a.json", "c.json", "x"}
    left = {str(path.relative_to(tmp_path)) for place in ("evaluations", "registered")
            for path in (tmp_path / place).iterdir()}  # fmt: skip
    assert left == {"evaluations/b.json", "evaluations/c.json", "registered/y"}


def test_nothing_is_deleted_while_mlflow_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert main(["--yes"]) == 1
    assert "does not answer" in capsys.readouterr().err and (tmp_path / "runs" / "x").exists()
