"""Atomic checkpoints: written beside, checksummed, renamed; verified before anything is loaded.

A folder holds the policy (safetensors, config, tokenizer: loads with from_pretrained), state.pt (optimizer, scheduler,
torch RNG), and manifest.json with the SHA-256 of every other file. The manifest is written last, and the folder gets its name
only when whole. Where weights are sharded, each process writes its part of the optimizer's moments into shards/, and state.pt
holds none of them. No file of a checkpoint can run code: state.pt is read with weights_only, shards/ by igpo_core.shards. The
manifest guards against damage alone, for whoever changes a file can change it too.
"""

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from igpo_core.errors import CheckpointError
from igpo_core.folders import checksums, file_hash, fill_folder, write_json
from igpo_core.policies import Policy, save_policy
from igpo_core.ranks import ALONE, Ranks
from igpo_core.weights import ADAPTER, copy_into, has_adapter, load_adapter

MANIFEST = "manifest.json"
SHARDS = "shards"
STATE = "state.pt"
FORMAT = 2


@dataclass(frozen=True)
class CheckpointState:
    """Everything besides weights that is needed to go on. The position in the data and every random draw follow from
    `step` (see Trainer); torch_rng is kept for models that draw from torch's global generator. configuration: the
    fingerprint of what was trained, for a checkpoint of another run must not be gone on with. tensors: the optimizer's
    state by the names of parameters (torch's get_optimizer_state_dict), and the weights of a lagged scorer."""

    configuration: str
    step: int
    counters: dict[str, float]
    scheduler: dict[str, Any]
    torch_rng: Any
    tensors: dict[str, Any]


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Return where a run's checkpoint of this step lies."""
    return run_folder / "checkpoints" / f"step-{step:06d}"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """fill_folder, with a manifest of checksums written last.

    Raises CheckpointError when the disk is full or not writable: no half-written folder keeps the name.
    """

    def whole(path: Path) -> None:
        fill(path)
        (path / MANIFEST).write_text(json.dumps({"format": FORMAT, "sha256": checksums(path)}, indent=1))

    try:
        fill_folder(folder, whole)
    except (OSError, SafetensorError) as error:  # safetensors wraps a full disk in an error of its own
        raise CheckpointError(
            f"cannot write {folder}: {error}. Free some space or check the permissions; nothing half-written was left "
            "under that name."
        ) from error


def policy_digest(folder: Path) -> str:
    """Return the SHA-256 of what the manifest says of the policy's files: the same before and after moments are dropped."""
    content = json.loads((folder / MANIFEST).read_text())["sha256"]
    policy = {name: digest for name, digest in content.items() if name.split("/")[0] not in (STATE, SHARDS)}
    return hashlib.sha256(json.dumps(policy, sort_keys=True).encode()).hexdigest()


def forget_files(folder: Path, names: Sequence[str]) -> None:
    """Delete files, or folders of files, of a folder and of its manifest, which is written first."""
    manifest = json.loads((folder / MANIFEST).read_text())
    kept = {path: digest for path, digest in manifest["sha256"].items() if path.split("/")[0] not in names}
    if kept != manifest["sha256"]:
        write_json(folder / MANIFEST, {**manifest, "sha256": kept})
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def verify_folder(folder: Path) -> None:
    """Raise CheckpointError, naming the file, unless every file of the folder's manifest is there and unchanged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        checksums = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder} is no whole checkpoint: its {MANIFEST} cannot be read ({error}). Delete the "
            "folder, or name another checkpoint."
        ) from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} has format {manifest.get('format')}, this version reads {FORMAT}")
    for name, expected in checksums.items():
        path = folder / name
        if not path.is_file() or file_hash(path) != expected:
            raise CheckpointError(
                f"{path} is damaged or missing (its checksum differs from {MANIFEST}). Delete the "
                "folder, or name another checkpoint."
            )


def write_checkpoint(
    folder: Path, policy: Policy, state: CheckpointState, weights: dict[str, Any] | None = None, ranks: Ranks = ALONE
) -> None:
    """The first process writes, and where there are weights of a sharded model (igpo_core.sharding.full_state) all do; all
    call this and wait for one another.

    Raises CheckpointError when the disk is full or not writable; nothing half-written keeps the name.
    """
    import torch

    from igpo_core.shards import write_shards

    def fill(path: Path) -> None:
        save_policy(policy, path, weights)
        try:
            torch.save(vars(state if weights is None else replace(state, tensors={})), path / STATE)
        except RuntimeError as error:  # torch reports a full disk as RuntimeError
            raise OSError(f"state.pt: {error}") from error
        if weights is not None:
            write_shards(ranks.broadcast(path) / SHARDS, state.tensors)

    if ranks.is_main:
        write_folder(folder, fill)
    elif weights is not None:
        write_shards(ranks.broadcast(folder) / SHARDS, state.tensors)
    ranks.broadcast(None)


def read_checkpoint(folder: Path, policy: Policy, tensors: dict[str, Any]) -> CheckpointState:
    """Verify the folder, load its weights into `policy`, return the rest. tensors: like those of the state that is read,
    sharded as they are wanted. The shards of a sharded checkpoint are read into them, and they are the state's own then; a
    folder `shards` in another checkpoint is not looked at.

    Raises CheckpointError when a file is damaged or missing, or when the weights are of another architecture.
    """
    import torch

    from igpo_core.shards import read_shards

    verify_folder(folder)
    load_weights(folder, policy.model)
    # a moment saved on cuda:0 is not there on every process's device, nor on a CPU: who takes it copies it to its own
    try:
        state = CheckpointState(**torch.load(folder / STATE, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'state.pt'} is no state of a checkpoint ({type(error).__name__}: {error}). Delete the folder, or name "
            "another checkpoint."
        ) from error
    if state.tensors:
        return state
    read_shards(folder / SHARDS, tensors)
    return replace(state, tensors=tensors)


def load_weights(folder: Path, model: Any) -> None:
    """Copy a folder's safetensors into `model`, of an adapter into its adapter. Raises CheckpointError, naming what differs,
    on another architecture."""
    from safetensors.torch import load_file

    if has_adapter(model) is not (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder} holds {'an adapter' if (folder / ADAPTER).is_file() else 'a whole model'}, and this policy is trained "
            f"{'with' if has_adapter(model) else 'without'} one: use the configuration that the checkpoint was made with"
        )
    if has_adapter(model):
        try:
            load_adapter(folder, model)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds another adapter: {error}. Use the configuration that the checkpoint was made with."
            ) from error
        return
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    if not tensors:
        raise CheckpointError(f"{folder} holds no *.safetensors")
    own = model.state_dict()
    differing = [
        name
        for name in sorted(own.keys() | tensors.keys())
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    ]
    tied = {name for name in differing if name in own and name not in tensors and name == "lm_head.weight"}
    if tied and model.config.tie_word_embeddings:
        differing = [name for name in differing if name not in tied]
    if differing:
        name = differing[0]
        shapes = [tuple(side[name].shape) if name in side else "absent" for side in (tensors, own)]
        raise CheckpointError(
            f"{folder} is of another architecture: {len(differing)} tensors differ, first {name} ({shapes[0]} in the "
            f"checkpoint, {shapes[1]} in the model). Use the configuration that the checkpoint was made with."
        )
    copy_into(own, tensors)


def newest_checkpoint(run_folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint of a run; `warn` hears of each damaged one that is passed over. None: there is none."""
    folders = sorted((run_folder / "checkpoints").glob("step-*"), reverse=True)
    for folder in folders:
        try:
            verify_folder(folder)
        except CheckpointError as error:
            warn(f"CHECKPOINT DAMAGED, going on from the one before it: {error}")
            continue
        return folder
    return None
