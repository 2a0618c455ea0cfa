"""Locks, identities and what is refused around a run."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from flows.ablation import require_same_code
from igpo_core.config import ExperimentConfig, RewardConfig, identity
from igpo_core.errors import CheckpointError, ConfigError
from tasks.locks import locked, locked_if_free
from tasks.runs import identify
from tasks.stored_models import locate, require_vocabulary
from tasks.warm_starts import warm_start_key


def hold(home: Path, seconds: float, ready: Any) -> None:
    with locked(home, "key", print):
        ready.set()
        time.sleep(seconds)


def test_a_second_process_waits_and_says_so(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, said = context.Event(), []
    other = context.Process(target=hold, args=(tmp_path, 1.5, ready))
    other.start()
    assert ready.wait(60)
    started = time.monotonic()
    with locked(tmp_path, "key", said.append):
        assert time.monotonic() - started > 0.5
    other.join()
    assert said == ["key is being made by another process: waiting for it"]
    with locked(tmp_path, "key", said.append), locked(tmp_path, "other", said.append):
        assert len(said) == 1


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path, 600, ready))
    other.start()
    assert ready.wait(60)
    other.kill()
    with locked(tmp_path, "key", print), locked_if_free(tmp_path, "key") as free:
        assert not free
    with locked_if_free(tmp_path, "key") as free:
        assert free
    other.join()


def test_a_run_belongs_to_one_sweep(tmp_path: Path) -> None:
    config = ExperimentConfig()
    keys = {
        identify(experiment, data, sweep, tmp_path).run_key
        for experiment in (config, config.model_copy(update={"seed": 1}))
        for data in ("d1", "d2")
        for sweep in ("s1", "s2")
    }
    assert len(keys) == 8


def test_code_edited_since_it_was_imported_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    require_same_code()
    monkeypatch.setattr(identity, "_IMPORTED", "another one")
    with pytest.raises(ConfigError, match="edited while the sweep ran"):
        require_same_code()


def test_a_pretrained_model_as_it_is_is_copied_once_for_all_seeds() -> None:
    def key(seed: int, **policy: Any) -> str:
        data = {"kind": "files", "questions": [{"path": "q"}], "corpus": ["c"]}
        policy = {"kind": "pretrained", "name": "m", **policy}
        return warm_start_key(ExperimentConfig.model_validate({"data": data, "policy": policy, "seed": seed}), "v")

    assert key(0) == key(1)
    assert key(0) != key(0, dtype="bfloat16")
    assert key(0, lora={"rank": 4}) != key(1, lora={"rank": 4})  # an adapter is drawn


def test_a_policy_of_another_world_is_refused(taught: Any) -> None:
    _, environment, policy = taught
    require_vocabulary(policy, environment, "mine")

    class Other:
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
        RewardConfig(reward="gain_only", normalization="joint")
