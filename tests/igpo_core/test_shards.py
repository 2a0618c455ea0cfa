"""Checkpoints of sharded runs: nothing that lies in a run's folder can execute."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from igpo_core.checkpoints import MANIFEST, SHARDS, CheckpointState, write_checkpoint
from igpo_core.config import fingerprint
from igpo_core.errors import CheckpointError
from igpo_core.folders import checksums
from igpo_core.training import Trainer


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.place),)


def with_right_manifest(folder: Path) -> Path:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(json.dumps({**manifest, "sha256": checksums(folder)}))
    return folder


@pytest.fixture
def trainer(lookup_setup: Any) -> Trainer:
    """After a step whose gradient is 1 everywhere: no rollout decides whether there are moments to lose."""
    made = Trainer(*lookup_setup)
    advance(made)
    made.step = 1
    return made


def advance(trainer: Trainer) -> None:
    for parameter in trainer.policy.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.learner.optimizer.step()


def sharded(trainer: Trainer, folder: Path, **changed: Any) -> Path:
    """A checkpoint as processes write it between which the weights are spread, here by one. changed: of its parameter group."""
    tensors = trainer._tensors()
    (group,) = tensors["optimizer"]["param_groups"]
    tensors["optimizer"] = {**tensors["optimizer"], "param_groups": [{**group, **changed}]}
    state = CheckpointState(
        configuration=fingerprint(trainer.config.identity()),
        step=trainer.step,
        counters=trainer.counters,
        scheduler=trainer.learner.scheduler.state_dict(),
        torch_rng=torch.get_rng_state(),
        tensors=tensors,
    )
    write_checkpoint(folder, trainer.policy, state, trainer.policy.model.state_dict())
    return folder


def test_a_sharded_checkpoint_is_gone_on_with(trainer: Trainer, lookup_setup: Any, tmp_path: Path) -> None:
    folder = sharded(trainer, tmp_path / "step")
    moments = [state["exp_avg"].clone() for state in trainer.learner.optimizer.state.values()]
    advance(trainer)
    other = [state["exp_avg"] for state in trainer.learner.optimizer.state.values()]
    assert any(not torch.equal(one, two) for one, two in zip(moments, other, strict=True))
    trainer.restore(folder)
    again = [state["exp_avg"] for state in trainer.learner.optimizer.state.values()]
    assert trainer.step == 1 and all(torch.equal(one, two) for one, two in zip(moments, again, strict=True))


def test_an_index_that_names_other_things_than_torch_writes_is_refused(trainer: Trainer, tmp_path: Path) -> None:
    folder, place = sharded(trainer, tmp_path / "step"), tmp_path / "ran"
    (folder / SHARDS / ".metadata").write_bytes(pickle.dumps(Hostile(place)))
    refused = False
    try:
        trainer.restore(with_right_manifest(folder))
    except CheckpointError as error:
        refused = "posix.mkdir" in str(error)
    except BaseException:  # what torch raises is no Exception
        refused = False
    assert not place.exists() and refused


def test_a_value_that_is_no_tensor_runs_nothing(trainer: Trainer, tmp_path: Path) -> None:
    """torch reads those with pickle too, whatever its index says."""
    place = tmp_path / "ran"
    folder = sharded(trainer, tmp_path / "step", lr=Hostile(place))
    refused = False
    try:
        trainer.restore(folder)
    except CheckpointError:
        refused = True
    except BaseException:
        refused = False
    assert not place.exists() and refused


def test_shards_in_a_checkpoint_that_has_none_are_not_read(trainer: Trainer, tmp_path: Path) -> None:
    folder, place = tmp_path / "step", tmp_path / "ran"
    trainer.save(folder)
    (folder / SHARDS).mkdir()
    (folder / SHARDS / ".metadata").write_bytes(pickle.dumps(Hostile(place)))
    refused = False
    try:
        trainer.restore(with_right_manifest(folder))
    except BaseException:
        refused = True
    assert not place.exists() and not refused and trainer.step == 1


@pytest.mark.parametrize("lost", [".metadata", "__0_0.distcp"])
def test_missing_shards_are_a_checkpoint_error(trainer: Trainer, tmp_path: Path, lost: str) -> None:
    folder = sharded(trainer, tmp_path / "step")
    (folder / SHARDS / lost).unlink()
    with_right_manifest(folder)
    named = ""
    try:
        trainer.restore(folder)
    except BaseException as error:
        named = type(error).__name__
    assert named == "CheckpointError"


def test_a_state_that_is_none_is_a_checkpoint_error(trainer: Trainer, tmp_path: Path) -> None:
    folder, place = tmp_path / "step", tmp_path / "ran"
    trainer.save(folder)
    torch.save({"counters": Hostile(place)}, folder / "state.pt")
    named = ""
    try:
        trainer.restore(with_right_manifest(folder))
    except BaseException as error:
        named = type(error).__name__
    assert named == "CheckpointError" and not place.exists()
