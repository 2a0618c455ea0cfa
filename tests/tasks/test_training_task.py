"""Locks, identities and what is refused around a run."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from flows.sweep import require_same_code
from igpo_core.checkpoints import policy_digest, verify_folder, write_folder
from igpo_core.config import ExperimentConfig, identity, reward_of, warm_start_key
from igpo_core.errors import CheckpointError, ConfigError
from tasks.runs.locks import locked, locked_if_free
from tasks.runs.planned import PLAN, drop_moments, open_run, told_name, write_run
from tasks.runs.stored_models import locate, require_vocabulary
from tests.tasks.planned import planned
from tests.waiting import wait_until


def hold(home: Path, release: Any, ready: Any) -> None:
    with locked(home, "key", print):
        ready.set()
        release.wait()


def test_a_second_process_waits_and_says_so(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    said: list[str] = []
    other = context.Process(target=hold, args=(tmp_path, release, ready))
    other.start()
    wait_until(ready.is_set, other.is_alive)

    def say(line: str) -> None:
        said.append(line)
        release.set()  # before, the lock cannot have been had

    with locked(tmp_path, "key", say):
        assert release.is_set()
    other.join()
    assert said == ["key is being made by another process: waiting for it"]
    with locked(tmp_path, "key", said.append), locked(tmp_path, "other", said.append):
        assert len(said) == 1


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, never = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, never, ready))
    other.start()
    wait_until(ready.is_set, other.is_alive)
    other.kill()
    with locked(tmp_path, "key", print), locked_if_free(tmp_path, "key") as free:
        assert not free
    with locked_if_free(tmp_path, "key") as free:
        assert free
    other.join()


def test_a_run_belongs_to_one_sweep(tmp_path: Path) -> None:
    config = ExperimentConfig()
    keys = {
        planned(tmp_path, experiment, data_version=data, sweep=sweep).spec.run_key
        for experiment in (config, config.model_copy(update={"seed": 1}))
        for data in ("d1", "d2")
        for sweep in ("s1", "s2")
    }
    assert len(keys) == 8


def test_a_planned_run_is_read_as_it_was_planned_by_the_same_code_alone(tmp_path: Path) -> None:
    run = planned(tmp_path, cell="k=8", arm_settings={"gain": "prob_diff"}, changes={"data.hops": 2})
    with pytest.raises(ConfigError, match=r"holds no run\.json"):
        open_run(run.home, run.spec.run_key)
    write_run(run)
    assert open_run(run.home, run.spec.run_key) == run and run.folder.name == run.spec.run_key
    other = planned(tmp_path, code="0123456789ab")
    write_run(other)
    assert other.folder != run.folder
    with pytest.raises(ConfigError, match="0123456789ab where the run was planned"):
        open_run(other.home, other.spec.run_key)


def test_a_plan_of_other_settings_or_a_damaged_one_is_no_traceback(tmp_path: Path) -> None:
    """Other code may have other settings: its plan is refused for the code, and its page has a name nevertheless."""
    run = planned(tmp_path, arm="igpo", cell="k=8")
    write_run(run)
    path = run.folder / PLAN
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "code": "0123456789ab", "of_tomorrow": 1}))
    with pytest.raises(ConfigError, match="0123456789ab where the run was planned"):
        open_run(run.home, run.spec.run_key)
    assert told_name(tmp_path, run.spec.run_key) == "igpo seed 0 k=8"
    path.write_text(json.dumps({**content, "of_tomorrow": 1}))
    with pytest.raises(ConfigError, match="of_tomorrow"):
        open_run(run.home, run.spec.run_key)
    path.write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        open_run(run.home, run.spec.run_key)
    assert told_name(tmp_path, run.spec.run_key) == run.spec.run_key == told_name(tmp_path / "none", run.spec.run_key)


def test_runs_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runs").symlink_to(tmp_path / "disk")
    run = planned(tmp_path / "home")
    write_run(run)
    assert open_run(run.home, run.spec.run_key) == run


def test_a_finished_run_without_a_whole_checkpoint_stays_as_it_is(tmp_path: Path) -> None:
    drop_moments(tmp_path)
    folder = tmp_path / "checkpoints" / "step-000002"
    folder.mkdir(parents=True)
    for damage in (None, "{", "{}"):
        if damage is not None:
            (folder / "manifest.json").write_text(damage)
        drop_moments(tmp_path)
        assert folder.is_dir()


def test_a_finished_run_keeps_its_plan(tmp_path: Path) -> None:
    """An arm that is called otherwise since is the same run, and MLflow has it under the name that it had."""
    before, after = planned(tmp_path, arm="old"), planned(tmp_path, arm="new")
    assert before.folder == after.folder
    write_run(before)
    write_run(after)
    assert open_run(after.home, after.spec.run_key).spec.arm == "new"
    after.result_file.write_text("{}")
    write_run(before)
    assert open_run(after.home, after.spec.run_key).spec.arm == "new"


def test_a_finished_run_keeps_the_last_and_the_best_weights(tmp_path: Path) -> None:
    """Of two checkpoints with moments, in one file and in shards, the last one's weights stay, whole by its manifest."""
    run = planned(tmp_path)

    def fill(path: Path) -> None:
        (path / "shards").mkdir()
        for name in ("model.safetensors", "config.json", "state.pt", "shards/0.pt"):
            (path / name).write_text(name)

    for place in ("checkpoints/step-000002", "checkpoints/step-000004", "best/step-000002"):
        write_folder(run.folder / place, fill)
    digest = policy_digest(run.folder / "checkpoints" / "step-000004")
    for _ in range(2):  # a kill on the way is mended by the next call
        drop_moments(run.folder)
        files = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
        last = {f"checkpoints/step-000004/{name}" for name in ("model.safetensors", "config.json", "manifest.json")}
        assert {name for name in files if name.startswith("checkpoints/")} == last
        assert "best/step-000002/model.safetensors" in files
        verify_folder(run.folder / "checkpoints" / "step-000004")
        assert policy_digest(run.folder / "checkpoints" / "step-000004") == digest


def test_code_edited_since_it_was_imported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_code()
    monkeypatch.setattr(identity, "_IMPORTED", "another one")
    with pytest.raises(ConfigError, match="edited while the sweep ran"):
        require_same_code()


def test_a_pretrained_model_as_it_is_is_copied_once_for_all_seeds() -> None:
    def key(seed: int, **policy: Any) -> str:
        data = {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]}
        policy = {"kind": "pretrained", "name": "m", **policy}
        return warm_start_key(
            ExperimentConfig.model_validate({"data": data, "policy": policy, "seed": seed}), "v", "code"
        )

    assert key(0) == key(1)
    assert key(0) != key(0, dtype="bfloat16")
    assert key(0, lora={"rank": 4}) != key(1, lora={"rank": 4})  # an adapter is drawn


def test_a_policy_of_another_world_is_refused(taught: Any) -> None:
    _, environment, policy = taught
    require_vocabulary(policy, environment, "mine")

    class Other:
        settings = environment.settings

        def vocabulary(self) -> list[str]:
            return [*environment.vocabulary(), "Atlantis"]

    with pytest.raises(CheckpointError, match=r"mine lacks 1 words.*Atlantis"):
        require_vocabulary(policy, Other(), "mine")  # type: ignore[arg-type]


def test_no_older_checkpoint_is_evaluated_in_place_of_a_damaged_one(tmp_path: Path) -> None:
    for step in ("step-000002", "step-000004"):
        (tmp_path / "runs" / "key" / "checkpoints" / step).mkdir(parents=True)
    (tmp_path / "runs" / "key" / "checkpoints" / "step-000004" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="step-000004"):
        locate("key", tmp_path)


@pytest.mark.parametrize("model", ["0123abcd", "/no/such/folder", "./none"])
def test_a_run_or_folder_that_is_not_there_is_no_hub_name(tmp_path: Path, model: str) -> None:
    with pytest.raises(CheckpointError, match="no run"):
        locate(model, tmp_path)
    assert locate("Qwen/Qwen2.5-0.5B-Instruct", tmp_path) == "Qwen/Qwen2.5-0.5B-Instruct"


def test_gain_only_has_no_pool_to_share() -> None:
    with pytest.raises(ValueError, match="normalization=separate"):
        reward_of({"reward": "gain_only", "normalization": "joint"})
