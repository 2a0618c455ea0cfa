"""The winner of a verdict, in a real MLflow's model registry."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.checkpoints import policy_digest, write_folder
from igpo_core.config import ExperimentConfig, Plan
from igpo_core.errors import CheckpointError
from tasks.report.recompute import recompute
from tasks.report.watch import comparison_of
from tasks.report.winner import Winner, winners
from tasks.runs.planned import Run, write_result, write_run
from tasks.tracking.outbox import About, Outbox, write_status
from tasks.tracking.registry import alias_of, find_registered, register_winner
from tasks.tracking.sending import Sender, read_sent
from tasks.tracking.server import client
from tests.tasks.planned import planned
from tests.tasks.test_reporting import SPECIFICATION, five, run

WINNER = Winner("", "igpo", "outcome_only", 0.2, 0.1, 0.3, 0.031, 6, 0.03)


def trained(home: Path, seed: int, score: float, study: str) -> Run:
    """A finished run of arm igpo that MLflow has, best on dev at step 2 with this score."""
    made = planned(home, ExperimentConfig(seed=seed), arm="igpo", study=study)
    write_run(made)

    def fill(path: Path) -> None:
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_text(f"{seed} {score}")

    write_folder(made.folder / "best" / "step-000002", fill)
    (made.folder / "best.json").write_text(json.dumps({"step": 2, "score": score}))
    write_result(made, {})
    outbox = Outbox(made.folder, About(study, made.spec.name, made.spec.run_key, {"kind": "train"}, {}))
    outbox.log(2, {"eval/all/f1": score})
    write_status(made.folder, "FINISHED")
    Sender(made.folder).send()
    return made


def register(runs: list[Run], study: str, report: str = "r1", **changes: Any) -> str:
    winner = Winner(**{**vars(WINNER), **changes})
    return register_winner(winner, runs, {**SPECIFICATION, "name": study}, report, [])


def test_the_run_that_was_best_on_dev_is_registered_once_with_what_it_is(mlflow_server: str, tmp_path: Path) -> None:
    runs = [trained(tmp_path, 0, 0.5, "one"), trained(tmp_path, 1, 0.7, "one"), trained(tmp_path, 2, 0.7, "one")]
    assert register(runs, "one") == register(runs, "one") == "models:/one@best"
    (version,) = client().search_model_versions("name = 'one'")
    best, folder = runs[1], runs[1].folder / "best" / "step-000002"
    sent = read_sent(best.folder)
    assert sent is not None and version.run_id == sent.run_id
    expected = {
        "arm": "igpo", "verdict": "better than outcome_only: +0.200 [+0.100, +0.300], p 0.031, 6 seeds", "seed": "1",
        "step": "2", "run_key": best.spec.run_key, "specification": comparison_of({**SPECIFICATION, "name": "one"}),
        "policy_sha256": policy_digest(folder), "report": "r1", "exploratory": "", "sweep": "sweep",
    }  # fmt: skip
    assert {name: version.tags[name] for name in expected} == expected
    assert yaml.safe_load(version.tags["specification.yaml"])["arms"] == SPECIFICATION["arms"]
    (model,) = client().search_logged_models([sent.experiment_id])
    assert version.source == f"models:/{model.model_id}"
    found = find_registered("models:/one@best", tmp_path)
    assert (found.folder, found.run_key, found.taught) == (folder, best.spec.run_key, "not learnt by heart")
    assert find_registered("models:/one/1", tmp_path) == found


def test_another_verdict_moves_the_alias_and_keeps_the_version_of_before(mlflow_server: str, tmp_path: Path) -> None:
    first, second = trained(tmp_path, 0, 0.5, "two"), trained(tmp_path, 1, 0.4, "two")
    register([first], "two")
    register([second], "two", "r2")
    register([first], "two", cell="group=8")
    model = client().get_registered_model("two")
    assert model.aliases == {"best": "2", "best-group-8": "1"}
    assert find_registered("models:/two/1", tmp_path).run_key == first.spec.run_key
    assert find_registered("models:/two@best", tmp_path).run_key == second.spec.run_key


@pytest.mark.parametrize("given", [(["seeds 7 added"], {}), ([], {"optimizer.learning_rate": 1e-5})])
def test_an_exploratory_start_leaves_the_alias_of_the_best_where_it_is(
    mlflow_server: str, tmp_path: Path, given: tuple[list[str], dict[str, Any]]
) -> None:
    exploratory, changes = given
    study = f"explored-{len(changes)}"
    first, second = trained(tmp_path, 0, 0.5, study), trained(tmp_path, 1, 0.9, study)
    register([first], study)
    specification = {**SPECIFICATION, "name": study, "changes": changes}
    name = register_winner(WINNER, [second], specification, "r2", exploratory)
    assert name == f"models:/{study}@exploratory"
    assert client().get_registered_model(study).aliases == {"best": "1", "exploratory": "2"}
    said = client().get_model_version(study, "2").tags["exploratory"]
    assert said == "; ".join(exploratory) or "optimizer.learning_rate" in said


def test_each_cell_has_an_alias_of_its_own_that_mlflow_takes(mlflow_server: str, tmp_path: Path) -> None:
    cells = [
        "", "group=1", "group=-1", "group=1.5", "group=1-5", "group=1_5", "a=1,b=2", "a-1=b,c=2", "a=1-b,c=2",
        ",".join(f"{letter * 64}={'x' * 64}" for letter in "abc"), ",".join(f"{letter * 64}={'x' * 64}" for letter in "abd"),
    ]  # fmt: skip
    aliases = [alias_of(cell) for cell in cells]
    assert len({alias.lower() for alias in aliases}) == len(cells)
    assert aliases[:2] == ["best", "best-group-1"] and aliases[6] == "best-a-1-b-2"
    register([trained(tmp_path, 0, 0.5, "cells")], "cells")
    for alias in aliases:
        client().set_registered_model_alias("cells", alias, "1")


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("checkpoint", "../outside", "names no folder below"),
        ("checkpoint", "{there}/outside", "names no folder below"),
        ("run_key", "../../outside", "no key of a run"),
        ("run_key", None, "lacks run_key"),
        ("policy_sha256", None, "lacks policy_sha256"),
    ],
)
def test_tags_that_lead_elsewhere_or_are_missing_are_told(
    mlflow_server: str, tmp_path: Path, tag: str, value: str | None, told: str
) -> None:
    """Whoever writes to MLflow may set them; the folder outside holds the very files that were registered."""
    import shutil

    study = "tags"
    made = trained(tmp_path / "home", 0, 0.5, study)
    register([made], study)
    shutil.copytree(made.folder / "best" / "step-000002", tmp_path / "outside")
    version = client().get_model_version_by_alias(study, "best").version
    if value is None:
        client().delete_model_version_tag(study, version, tag)
    else:
        client().set_model_version_tag(study, version, tag, value.format(there=tmp_path))
    try:
        find_registered(f"models:/{study}@best", tmp_path / "home")
        said = "nothing"
    except (CheckpointError, KeyError) as error:
        said = str(error)
    assert told in said


def test_another_machine_fetches_the_files_from_mlflow_once(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trained(tmp_path / "here", 0, 0.5, "three")
    register([made], "three")
    found = find_registered("models:/three@best", tmp_path / "there")
    assert found.folder.is_relative_to(tmp_path / "there" / "registered") and found.run_key == made.spec.run_key
    assert (found.folder / "model.safetensors").read_text() == "0 0.5"
    monkeypatch.setattr("mlflow.MlflowClient.download_artifacts", None)
    fetched = next((tmp_path / "there" / "registered").iterdir())
    os.utime(fetched, (0, 0))
    assert find_registered("models:/three@best", tmp_path / "there") == found
    assert fetched.stat().st_mtime > 0  # in use: pruning goes by age
    (found.folder / "manifest.json").write_text('{"format": 2, "sha256": {}}')
    with pytest.raises(CheckpointError, match="other files than were registered"):
        find_registered("models:/three@best", tmp_path / "there")


@pytest.mark.parametrize("name", ["models:/four@worst", "models:/four/7", "models:/nothing@best"])
def test_a_name_that_is_not_there_is_told_with_those_that_are(mlflow_server: str, tmp_path: Path, name: str) -> None:
    register([trained(tmp_path, 0, 0.5, "four")], "four")
    with pytest.raises(CheckpointError, match=r"has none of this name.*models:/four@best"):
        find_registered(name, tmp_path)


def verdicts(low: dict[str, list[float]]) -> list[Winner]:
    """The winners of a report on eight seeds an arm, with these test scores."""
    from dataclasses import replace

    from tasks.report.summaries import cell_reports

    runs = [run(arm, seed, score, (0.0, 0.1, 0.2)) for arm, scores in low.items() for seed, score in enumerate(scores)]
    data = replace(five(), arms=tuple(low), runs=tuple(runs))
    specification = {**SPECIFICATION, "arms": {arm: {} for arm in low}, "seeds": list(range(8))}
    reports = cell_reports(specification, {"": data}, [""])
    return winners(specification, reports, [arm for arm in low if arm != "outcome_only"])


def publish(folder: Path, train: int) -> None:
    """Write what a report reads of published data."""
    (folder / "data_docs").mkdir(parents=True)
    (folder / "data_docs" / "index.html").write_text("docs")
    (folder / "quarantine.jsonl").write_text("")
    (folder / "summary.json").write_text(json.dumps({"counts": {"train": train}, "quarantined": 0}))


def trained_well(plan: Plan, home: Path) -> None:
    """Write the finished runs of a plan: arms besides the baseline are .2 above on every seed, and best on dev with seed 4."""
    for spec in plan.runs:
        made, better = Run(spec, home), 0.2 * (spec.arm != "outcome_only")
        write_run(made)

        def fill(path: Path, text: str = spec.run_key) -> None:
            (path / "model.safetensors").write_text(text)

        write_folder(made.folder / "best" / "step-000002", fill)
        (made.folder / "best.json").write_text(json.dumps({"step": 2, "score": 0.9 if spec.seed == 4 else 0.5}))
        write_result(made, {})
        tags = {"kind": "train", "sweep": spec.sweep, "arm": spec.arm, "seed": str(spec.seed), "cell": ""}
        outbox = Outbox(made.folder, About(spec.study, spec.name, spec.run_key, tags, {}))
        outbox.log(4, {"test/all/f1": 0.3 + spec.seed / 100 + better, "train/turns": 2.0, "progress/seconds": 1.0})
        write_status(made.folder, "FINISHED")


def test_a_sweeps_report_registers_the_winner_and_a_second_one_finds_it(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Preset tiny with six seeds, of which MLflow has the runs: igpo is .2 above on every seed, and best on dev with seed 4."""
    from igpo_core.config import make_plan
    from tasks.conclude import register_winners, write_report
    from tasks.specification.presets import load_specification

    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    publish(tmp_path / "data" / "v1", 64)
    plan = make_plan(load_specification("tiny").select(None, list(range(6))), {"": "v1"})
    trained_well(plan, tmp_path)
    told: list[str] = []
    for _ in range(2):
        report = write_report.fn(plan, [], "make ablation", told.append)
        register_winners.fn(plan, report, told.append)
    (version,) = client().search_model_versions("name = 'tiny'")
    chosen = next(spec for spec in plan.runs if (spec.arm, spec.seed) == ("igpo", 4))
    assert version.tags["run_key"] == chosen.run_key and version.tags["report"] == report.run_id and report.reused
    assert version.tags["verdict"] == "better than outcome_only: +0.200 [+0.200, +0.200], p 0.031, 6 seeds"
    assert told[-1].startswith("registered models:/tiny@best: igpo, better than outcome_only")
    assert find_registered("models:/tiny@best", tmp_path).run_key == chosen.run_key


@pytest.mark.parametrize(("train", "registered"), [(479, 0), (480, 1)])
def test_a_warm_start_that_is_learnt_by_heart_registers_nothing(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: int, registered: int
) -> None:
    """Preset real shows 4,800 demonstrations: of 480 train questions each ten times, of 479 more often. igpo_rms is .2 above on
    each of six seeds."""
    from igpo_core.config import make_plan
    from tasks.conclude import register_winners, write_report
    from tasks.specification.presets import load_specification

    monkeypatch.setenv("IGPO_HOME", str(tmp_path))
    publish(tmp_path / "data" / "v1", train)
    specification = load_specification("real").select(["outcome_only", "igpo_rms"], list(range(6)))
    plan = make_plan(specification.model_copy(update={"name": f"real-{train}"}), {"": "v1"})
    trained_well(plan, tmp_path)
    told: list[str] = []
    report = write_report.fn(plan, [], "make ablation", told.append)
    register_winners.fn(plan, report, told.append)
    assert len(client().search_model_versions(f"name = 'real-{train}'")) == registered
    heart = report.rows[1]["verdict"] == "learnt by heart" and "carries no verdict, however many seeds" in report.answer
    assert heart is not bool(registered) and report.rows[1]["verdict"] in ("learnt by heart", "better")
    assert any("THE WARM START IS LEARNT BY HEART" in line for line in report.warnings) is heart
    again = recompute(report.run_id)  # from MLflow alone
    assert [one.rows for one in again] == [report.rows]


LEVEL = [0.30, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36, 0.37]


def test_the_better_arm_wins_the_baseline_where_all_are_worse_and_nobody_else() -> None:
    """Eight seeds that all lie above: p is 2 / 2^8. Differences of .2 and .4 on every seed."""
    up, far, down = ([value + by for value in LEVEL] for by in (0.2, 0.4, -0.2))
    (found,) = verdicts({"outcome_only": LEVEL, "up": up, "far": far})
    assert (found.arm, found.against, found.seeds) == ("far", "outcome_only", 8)
    assert found.difference == pytest.approx(0.4) and found.p == pytest.approx(2 / 256)
    (found,) = verdicts({"outcome_only": LEVEL, "down": down})
    assert (found.arm, found.against) == ("outcome_only", "down")
    assert found.difference == pytest.approx(0.2) and found.low == pytest.approx(0.2)
    assert verdicts({"outcome_only": LEVEL, "same": LEVEL}) == []
    assert verdicts({"outcome_only": LEVEL, "down": down, "same": LEVEL}) == []
    assert verdicts({"outcome_only": LEVEL[:5], "up": up[:5]}) == []  # too few seeds
