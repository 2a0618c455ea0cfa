"""The models that an evaluation compares, by the names that people give them:

04231efaf381             a run (its key): its last checkpoint; 04231efaf381@best the best on dev, @start what it started from
sweep:/study-1a2b3c      every arm of a sweep, a model a training seed; @last (the default), @best, @start as of a run
sweep:/study-1a2b3c/igpo one arm of it
models:/study@best       a registered model by alias; models:/study/3 by version
base                     the policy of the specification before any training
owner/model              a model of the hub
any other text           the folder of a checkpoint or model
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from igpo_core.checkpoints import MANIFEST, policy_digest, verify_folder
from igpo_core.config import ExperimentConfig, PretrainedPolicy, fingerprint
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.folders import checksums
from tasks.runs.planned import PLAN, planned_start, told_name
from tasks.runs.stored_models import HUB_NAME, locate

if TYPE_CHECKING:
    from tasks.tracking.registry import Registered

Which = Literal["last", "best", "start"]
BASE = "base"
SWEEP = "sweep:/"
REGISTERED = "models:/"


@dataclass(frozen=True)
class Candidate:
    """One set of weights."""

    name: str
    """What it stands for in tables. Training seeds of one arm share it."""
    place: str
    """Folder or hub name; empty: the policy of the specification before any training."""
    weights: str
    """Changes with the weights."""
    seed: int | None = None
    """Of training, where the model is one of several of an arm."""
    run_key: str = ""
    """Of the training run that made it, where one did."""

    @property
    def title(self) -> str:
        """Return its name with its seed."""
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"


def find_candidates(
    names: Sequence[str], home: Path, experiment: ExperimentConfig, data_version: str
) -> list[Candidate]:
    """Return the models of these names, each once, in order. The first one's name is what the others are compared with.

    experiment, data_version: of the policy that `base` stands for.
    Raises CheckpointError or ConfigError, saying what there is, where a name stands for nothing.
    """
    found: dict[tuple[str, int | None], Candidate] = {}
    for name in dict.fromkeys(names):
        own = _candidates(name, home, experiment, data_version)
        taken = {title for title, _ in found}
        if any(one.name in taken and not _same(found.get((one.name, one.seed)), one) for one in own):
            # arms of two sweeps, as a rule: seeds of one are none of the other's
            own = [replace(one, name=f"{one.name} ({name})") for one in own]
        found |= {(one.name, one.seed): one for one in own}
    return list(found.values())


def _same(known: Candidate | None, candidate: Candidate) -> bool:
    return known is not None and known.weights == candidate.weights


def _candidates(name: str, home: Path, experiment: ExperimentConfig, data_version: str) -> list[Candidate]:
    if name == BASE:
        return [_base(experiment, data_version)]
    if name.startswith(SWEEP):
        return _of_sweep(name, home)
    if name.startswith(REGISTERED):
        from tasks.tracking.registry import find_registered

        return [_registered(name, find_registered(name, home))]
    key, which = _split(name)
    if "/" not in key and (home / "runs" / key).is_dir():
        return [_of_run(home / "runs" / key, which, f"{told_name(home, key)} {which}")]
    place = locate(name, home)
    run = next((parent for parent in Path(place).resolve().parents if (parent / PLAN).is_file()), None)
    return [Candidate(name, place, weights_of(place, experiment), run_key=run.name if run else "")]


def _split(name: str) -> tuple[str, Which]:
    """Return a name without the checkpoint that it asks for, and that. Raises ConfigError on another one of a run or sweep."""
    key, at, which = name.rpartition("@")
    if not at or "/" in which:
        return name, "last"
    if which not in get_args(Which):
        raise ConfigError(f"model {name}: @{which} is none of @{', @'.join(get_args(Which))}")
    return key, cast(Which, which)


def _base(experiment: ExperimentConfig, data_version: str) -> Candidate:
    policy = experiment.policy
    if isinstance(policy, PretrainedPolicy):
        place = locate(policy.source, Path())
        return Candidate(BASE, "", weights_of(place, experiment))
    return Candidate(BASE, "", fingerprint(BASE, policy, experiment.seed, data_version))


def _of_sweep(name: str, home: Path) -> list[Candidate]:
    """Every finished run of a sweep, or of an arm of it, seed by seed. Of several runs of an arm and seed, one edited since, the
    newest counts."""
    key, which = _split(name)
    sweep, _, arm = key.removeprefix(SWEEP).partition("/")
    plans = _finished(home)
    own = {folder: plan for folder, plan in plans.items() if plan["sweep"] == sweep and arm in ("", plan["arm"])}
    if not own:
        arms = sorted({plan["arm"] for plan in plans.values() if plan["sweep"] == sweep})
        there = (
            f"arms with finished runs: {', '.join(arms)}"
            if arms
            else (
                f"sweeps with finished runs: {', '.join(sorted({plan['sweep'] for plan in plans.values()})) or 'none'}"
            )
        )
        raise CheckpointError(f"model {name}: no finished run in {home / 'runs'}; {there}")
    chosen: dict[tuple[str, str, int], Path] = {}
    for folder, plan in sorted(own.items(), key=lambda item: (item[0] / "result.json").stat().st_mtime):
        chosen[plan["arm"], plan["cell"], plan["experiment"]["seed"]] = folder
    found = []
    for (of_arm, cell, seed), folder in sorted(chosen.items(), key=lambda item: (own[item[1]]["arm_number"], item[0])):
        title = " ".join(filter(None, [which if which == "start" else f"{of_arm} {which}", cell]))
        found.append(replace(_of_run(folder, which, title), seed=seed))
    return found


def _finished(home: Path) -> dict[Path, dict[str, Any]]:
    """Return the plan of every finished run, of whatever code it was."""
    folders = [path.parent for path in (home / "runs").glob("*/result.json") if (path.parent / PLAN).is_file()]
    return {folder: json.loads((folder / PLAN).read_text()) for folder in folders}


def _of_run(folder: Path, which: Which, title: str) -> Candidate:
    """Return a checkpoint of a run. Raises CheckpointError where it is not there or damaged."""
    place = checkpoint_of(folder, which)
    verify_folder(place)
    return Candidate(title, str(place), policy_digest(place), run_key=folder.name)


def checkpoint_of(folder: Path, which: Which) -> Path:
    """Return the folder of a run's checkpoint. Raises CheckpointError where the run has none."""
    from igpo_core.run import read_best

    if which == "last":
        found = max((folder / "checkpoints").glob("step-*"), default=None)
    elif which == "best":
        best = read_best(folder)
        found = folder / "best" / f"step-{best['step']:06d}" if best else None
    else:
        start = planned_start(folder)
        found = folder.parents[1] / "warm_starts" / start if start else None
    if found is None or not found.is_dir():
        raise CheckpointError(
            f"run {folder.name} has no checkpoint @{which} in {folder.parents[1]}: train it, or ask for another one of "
            f"@{', @'.join(get_args(Which))}"
        )
    return found


def _registered(name: str, found: "Registered") -> Candidate:
    verify = (found.folder / MANIFEST).is_file()
    if verify:
        verify_folder(found.folder)
    digest = policy_digest(found.folder) if verify else fingerprint(checksums(found.folder))
    return Candidate(name, str(found.folder), digest, run_key=found.run_key)


def weights_of(place: str, experiment: ExperimentConfig) -> str:
    """Return what changes with the weights of a folder or hub name: of the hub its commit."""
    folder = Path(place)
    if folder.is_dir():
        return policy_digest(folder) if (folder / MANIFEST).is_file() else fingerprint(checksums(folder))
    if not HUB_NAME.fullmatch(place):
        raise CheckpointError(f"{place} is no folder and no hub name")
    policy = experiment.policy
    pinned = policy.revision if isinstance(policy, PretrainedPolicy) and policy.name == place else None
    if pinned is not None and re.fullmatch("[0-9a-f]{40}", pinned):
        return f"{place}@{pinned}"
    return f"{place}@{_commit(place, pinned)}"


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that a hub name stands for now. Raises CheckpointError where the hub does not say."""
    from transformers import AutoConfig

    try:
        commit: str | None = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)._commit_hash
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: the hub gives no such model ({error}). Check the name; a private one needs HF_TOKEN, and a machine without "
            "network the model in HF_HOME"
        ) from error
    if commit is None:
        raise CheckpointError(f"{name}: the hub says no commit, so that what was measured could not be found again")
    return commit
