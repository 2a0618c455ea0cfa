"""Models by the names that people give them."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from igpo_core.checkpoints import checkpoint_folder, policy_digest, write_folder
from igpo_core.config import ExperimentConfig
from igpo_core.errors import CheckpointError, ConfigError
from tasks.runs.candidates import BASE, _registered, find_candidates
from tasks.runs.planned import Run, write_result, write_run
from tasks.runs.taught import Taught
from tasks.tracking.registry import NOT_BY_HEART, Registered
from tests.tasks.planned import planned


def checkpoint(folder: Path, weights: str) -> None:
    def fill(path: Path) -> None:
        (path / "config.json").write_text("{}")
        (path / "model.safetensors").write_text(weights)

    write_folder(folder, fill)


def finished(home: Path, arm: str, seed: int, when: float = 0.0, **given: Any) -> Run:
    """A run with checkpoints at steps 2 and 4, the best on dev at step 2, and the warm start of its seed. given: settings of the
    experiment, and fields of the plan."""
    settings = {name: given.pop(name) for name in [*given] if name in ExperimentConfig.model_fields}
    # arms are other experiments
    experiment = ExperimentConfig.model_validate({"seed": seed, "replicate": int(arm == "outcome_only"), **settings})
    run = planned(home, experiment, arm=arm, **given)
    write_run(run)
    for step in (2, 4):
        checkpoint(checkpoint_folder(run.folder, step), f"{run.spec.run_key} {step}")
    checkpoint(run.folder / "best" / "step-000002", f"{run.spec.run_key} 2")
    (run.folder / "best.json").write_text(json.dumps({"step": 2, "score": 0.5}))
    checkpoint(run.start, f"start {seed}")
    write_result(run, {})
    os.utime(run.result_file, (when, when))
    return run


def found(home: Path, *names: str) -> list[tuple[str, int | None, str]]:
    """Title, seed and place below the home of each."""
    every = find_candidates(names, home, ExperimentConfig(), "data")
    return [(one.name, one.seed, one.place.removeprefix(f"{home}/")) for one in every]


def test_checkpoints_of_a_run(tmp_path: Path) -> None:
    run = finished(tmp_path, "igpo", 3)
    key, folder = run.spec.run_key, f"runs/{run.spec.run_key}"
    assert found(tmp_path, key, f"{key}@best", f"{key}@start", f"{key}@last") == [
        ("igpo seed 3 last", None, f"{folder}/checkpoints/step-000004"),
        ("igpo seed 3 best", None, f"{folder}/best/step-000002"),
        ("igpo seed 3 start", None, f"warm_starts/{run.spec.start}"),
    ]
    (one,) = find_candidates([f"{key}@best"], tmp_path, ExperimentConfig(), "data")
    assert one.weights == policy_digest(run.folder / "best" / "step-000002") and one.run_key == key
    with pytest.raises(ConfigError, match="@first is none of @last, @best, @start"):
        found(tmp_path, f"{key}@first")


def test_a_sweep_is_its_arms_with_their_training_seeds(tmp_path: Path) -> None:
    """An arm that was edited and trained again counts once, as it is now; an unfinished run is none."""
    finished(tmp_path, "igpo", 0, when=10, arm_number=1, data_version="older")
    newest = finished(tmp_path, "igpo", 0, when=20, arm_number=1)
    base = finished(tmp_path, "outcome_only", 0)
    finished(tmp_path, "igpo", 0, sweep="another")
    (finished(tmp_path, "igpo", 1, arm_number=1).folder / "result.json").unlink()
    assert found(tmp_path, "sweep:/sweep@best") == [
        ("outcome_only best", 0, f"runs/{base.spec.run_key}/best/step-000002"),
        ("igpo best", 0, f"runs/{newest.spec.run_key}/best/step-000002"),
    ]
    assert [name for name, _, _ in found(tmp_path, "sweep:/sweep/igpo")] == ["igpo last"]
    assert found(tmp_path, "sweep:/sweep@start") == [("start", 0, f"warm_starts/{base.spec.start}")]  # one for all arms


def test_arms_of_two_sweeps_are_told_apart(tmp_path: Path) -> None:
    finished(tmp_path, "igpo", 0)
    finished(tmp_path, "igpo", 0, sweep="other")
    names = [name for name, _, _ in found(tmp_path, "sweep:/sweep", "sweep:/other")]
    assert names == ["igpo last", "igpo last (sweep:/other)"]


def test_training_seeds_of_two_sweeps_are_never_one_model(tmp_path: Path) -> None:
    """Seeds 0 and 1 of one, 1 and 2 of the other: of the arm and of the start, whose seed 1 has the same weights."""
    for sweep, seeds in (("a", (0, 1)), ("b", (1, 2))):
        for seed in seeds:
            finished(tmp_path, "igpo", seed, sweep=sweep)
    named = [(name, seed) for name, seed, _ in found(tmp_path, "sweep:/a", "sweep:/b")]
    assert named == [("igpo last", 0), ("igpo last", 1), ("igpo last (sweep:/b)", 1), ("igpo last (sweep:/b)", 2)]
    starts = [(name, seed) for name, seed, _ in found(tmp_path, "sweep:/a@start", "sweep:/b@start")]
    assert starts == [("start", 0), ("start", 1), ("start (sweep:/b@start)", 1), ("start (sweep:/b@start)", 2)]


def test_a_name_that_only_joins_new_seeds_to_a_known_model_is_renamed_whole(tmp_path: Path) -> None:
    """The other sweep has no seed in common, and a second arm: both of its arms carry its name."""
    finished(tmp_path, "igpo", 0, sweep="a")
    finished(tmp_path, "igpo", 1, sweep="b")
    finished(tmp_path, "outcome_only", 1, sweep="b", arm_number=1)
    names = [name for name, _, _ in found(tmp_path, "sweep:/a", "sweep:/b")]
    assert names == ["igpo last", "igpo last (sweep:/b)", "outcome_only last (sweep:/b)"]


def test_the_same_models_by_two_names_are_there_once(tmp_path: Path) -> None:
    for seed in (0, 1):
        finished(tmp_path, "igpo", seed)
    assert len(found(tmp_path, "sweep:/sweep", "sweep:/sweep", "sweep:/sweep/igpo")) == 2


def test_a_model_says_that_its_warm_start_is_learnt_by_heart_whatever_it_is_called(tmp_path: Path) -> None:
    """44 demonstrations of 4 questions are eleven of each; what no run made was taught by none."""
    stage = {"steps": 22, "batch_size": 2, "learning_rate": 1e-3, "demonstrations": {"kind": "files"}}
    taught = {"data": {"kind": "files", "questions": [{"path": "/q"}], "corpus": ["/c"]}, "warm_start": {"stages": [stage]},
              "policy": {"kind": "new", "tokenizer": "chat"}}  # fmt: skip
    published = tmp_path / "data" / "data"
    published.mkdir(parents=True)
    (published / "summary.json").write_text(json.dumps({"counts": {"train": 4}}))
    plain, own = finished(tmp_path, "igpo", 0), finished(tmp_path, "mine", 1, sweep="files", **taught)
    key = own.spec.run_key
    names = [key, f"{key}@best", f"{key}@start", "sweep:/files@start", str(own.folder / "checkpoints" / "step-000004")]
    ((line,),) = {one.taught.by_heart for one in find_candidates(names, tmp_path, ExperimentConfig(), "data")}
    assert "44 demonstrations are made of 4 train questions, 11 times each" in line
    registered = Registered(own.folder / "checkpoints" / "step-000004", key)
    assert _registered("models:/study/1", registered, tmp_path).taught == Taught((line,))
    assert _registered("models:/study/2", replace(registered, run_key=""), tmp_path).taught == Taught()
    elsewhere = tmp_path / "elsewhere"
    assert "elsewhere/runs/" in _registered("models:/study/3", registered, elsewhere).taught.unknown
    said = replace(registered, taught=NOT_BY_HEART)  # by the sweep, whose word counts on every machine
    assert _registered("models:/study/4", said, elsewhere).taught == Taught()
    others = [BASE, plain.spec.run_key, f"{plain.spec.run_key}@start"]
    assert {one.taught for one in find_candidates(others, tmp_path, ExperimentConfig(), "data")} == {Taught()}
    shutil.rmtree(published)
    (gone,) = {one.taught.unknown for one in find_candidates(names, tmp_path, ExperimentConfig(), "data")}
    assert gone.startswith(f"{published}, which run {key} was taught of, is not here")
    # of a run that was taught nothing of files nothing is read of its data
    assert {one.taught for one in find_candidates(others, tmp_path, ExperimentConfig(), "data")} == {Taught()}
    plan = plain.folder / "run.json"
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "code_of_then": 1}))
    (one,) = find_candidates(others[1:2], tmp_path, ExperimentConfig(), "data")
    assert one.taught.unknown.startswith(f"{plan} is no plan that this code can read")


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    finished(tmp_path, "igpo", 0)
    with pytest.raises(CheckpointError, match=r"sweep:/nowhere: no finished run.*sweeps with finished runs: sweep$"):
        found(tmp_path, "sweep:/nowhere")
    with pytest.raises(CheckpointError, match=r"arms with finished runs: igpo$"):
        found(tmp_path, "sweep:/sweep/magic")
    with pytest.raises(CheckpointError, match="models:/study: give a registered one as models:/<name>@<alias>"):
        found(tmp_path, "models:/study")
    run = planned(tmp_path, ExperimentConfig(seed=9))
    write_run(run)
    with pytest.raises(CheckpointError, match="has no checkpoint @best"):
        found(tmp_path, f"{run.spec.run_key}@best")


def test_a_damaged_checkpoint_is_evaluated_under_no_name(tmp_path: Path) -> None:
    run = finished(tmp_path, "igpo", 0)
    (run.folder / "best" / "step-000002" / "model.safetensors").write_text("other")
    with pytest.raises(CheckpointError, match="damaged"):
        found(tmp_path, "sweep:/sweep@best")


def test_base_is_the_policy_before_training_and_changes_with_it(tmp_path: Path) -> None:
    def weights(experiment: ExperimentConfig, version: str = "data") -> str:
        (one,) = find_candidates([BASE], tmp_path, experiment, version)
        assert (one.name, one.place) == (BASE, "")
        return one.weights

    other = ExperimentConfig.model_validate({"policy": {"kind": "new", "width": 64}})
    assert weights(ExperimentConfig()) == weights(ExperimentConfig())
    assert (
        len({weights(ExperimentConfig()), weights(ExperimentConfig(seed=1)), weights(other), weights(other, "d2")}) == 4
    )


def test_a_hub_name_stands_for_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned policy needs no network to be found again; of any other name the hub is asked, which does not answer here."""
    policy = {"kind": "pretrained", "name": "owner/model", "revision": "a" * 40}
    pinned = ExperimentConfig.model_validate({"policy": policy})
    for name in ("owner/model", BASE):
        (one,) = find_candidates([name], tmp_path, pinned, "data")
        assert one.weights == f"owner/model@{'a' * 40}"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError, match="owner/other: the hub gives no such model"):
        find_candidates(["owner/other"], tmp_path, pinned, "data")


def test_a_folder_without_a_manifest_has_an_identity_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("one")
    (one,) = find_candidates([str(tmp_path / "model")], tmp_path, ExperimentConfig(), "data")
    (tmp_path / "model" / "model.safetensors").write_text("two")
    (two,) = find_candidates([str(tmp_path / "model")], tmp_path, ExperimentConfig(), "data")
    assert one.weights != two.weights and one.name == str(tmp_path / "model")


def test_a_folder_may_have_an_at_sign_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qwen@8bit", "qwen@best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    monkeypatch.chdir(tmp_path)
    for given in (str(tmp_path / "qwen@8bit"), "./qwen@best", "qwen@8bit"):
        (one,) = find_candidates([given], tmp_path, ExperimentConfig(), "data")
        assert (one.name, one.place) == (given, str(Path(given)))
    with pytest.raises(CheckpointError, match="no folder of this name"):
        found(tmp_path, "/data/qwen@4bit")


def test_what_a_start_was_trained_from_is_the_run_of_no_arm(tmp_path: Path) -> None:
    """Two arms share it: as the model of either's training run it would be called the work of that arm."""
    runs = [finished(tmp_path, arm, 0) for arm in ("igpo", "outcome_only")]
    names = ["sweep:/sweep@start", f"{runs[0].spec.run_key}@start"]
    assert [one.run_key for one in find_candidates(names, tmp_path, ExperimentConfig(), "data")] == ["", ""]


def test_a_sweep_ends_with_its_own_runs_and_no_others_of_its_name(tmp_path: Path) -> None:
    """On disk lie an arm that was left out, a seed that was added once, and a run of the edited arm where its own failed."""
    from tasks.runs import candidates

    base = [finished(tmp_path, "outcome_only", seed) for seed in (0, 1)]
    kept, failed = (finished(tmp_path, "igpo", seed, arm_number=1) for seed in (0, 1))
    failed.result_file.unlink()
    finished(tmp_path, "igpo", 1, arm_number=1, data_version="before the edit")
    finished(tmp_path, "left_out", 0, arm_number=2)
    finished(tmp_path, "outcome_only", 7)
    every = [base[0], kept, base[1], failed]
    own = candidates.candidates_of_runs(["base", "start", "last"], every, ExperimentConfig(), "data")
    assert [(one.name, one.seed) for one in own] == [
        (BASE, None), ("start", 0), ("start", 1), ("outcome_only last", 0), ("outcome_only last", 1), ("igpo last", 0)
    ]  # fmt: skip
    assert own[-1].run_key == kept.spec.run_key
