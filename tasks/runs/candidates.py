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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from igpo_core.checkpoints import MANIFEST, policy_digest, verify_folder
from igpo_core.config import ExperimentConfig, PretrainedPolicy, fingerprint
from igpo_core.errors import CheckpointError, ConfigError
from igpo_core.folders import checksums
from igpo_core.hub import require_model
from tasks.runs.planned import PLAN, Run, planned_start, told_name
from tasks.runs.stored_models import HUB_NAME, locate
from tasks.runs.taught import Taught, planned_taught

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
    """Of the training run that made it, where one did. What training started from was made by none."""
    revision: str | None = None
    """Commit of a model of the hub, which is loaded at it."""
    taught: Taught = field(default_factory=Taught)
    """Of the run that it is of. There is no verdict where its warm start is learnt by heart, or nobody knows."""

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


def candidates_of_runs(
    endings: Sequence[Literal["base"] | Which], runs: Sequence[Run], experiment: ExperimentConfig, data_version: str
) -> list[Candidate]:
    """Return what a sweep compares at its end: of these runs and no others, arm by arm, those that are finished.

    runs: as the sweep planned them. experiment, data_version: of the policy that `base` stands for.
    Raises CheckpointError where a finished run lacks the checkpoint, or has a damaged one.
    """
    finished = sorted((run for run in runs if run.finished), key=lambda run: run.spec.arm_number)
    found: dict[tuple[str, int | None], Candidate] = {}
    for ending in endings:
        if ending == "base":
            own = [_base(experiment, data_version)]
        else:
            own = [_of_seed(run.folder, ending, run.spec.arm, run.spec.cell, run.spec.seed) for run in finished]
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

        return [_registered(name, find_registered(name, home), home)]
    if "/" not in name and not Path(name).exists():  # a folder may have an @ in its name
        key, which = _split(name)
        if (home / "runs" / key).is_dir():
            return [_of_run(home / "runs" / key, which, f"{told_name(home, key)} {which}")]
    place = locate(name, home)
    run = next((parent for parent in Path(place).resolve().parents if (parent / PLAN).is_file()), None)
    weights, revision = weights_of(place, experiment)
    taught = planned_taught(run) if run else Taught()
    return [Candidate(name, place, weights, run_key=run.name if run else "", revision=revision, taught=taught)]


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
        weights, revision = weights_of(locate(policy.source, Path()), experiment)
        return Candidate(BASE, "", weights, revision=revision)
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
    ordered = sorted(chosen.items(), key=lambda item: (own[item[1]]["arm_number"], item[0]))
    return [_of_seed(folder, which, *place) for place, folder in ordered]


def _of_seed(folder: Path, which: Which, arm: str, cell: str, seed: int) -> Candidate:
    """Return a checkpoint of a sweep's run as one training seed of its arm; arms share what they start from."""
    title = " ".join(filter(None, [which if which == "start" else f"{arm} {which}", cell]))
    return replace(_of_run(folder, which, title), seed=seed)


def _finished(home: Path) -> dict[Path, dict[str, Any]]:
    """Return the plan of every finished run, of whatever code it was."""
    folders = [path.parent for path in (home / "runs").glob("*/result.json") if (path.parent / PLAN).is_file()]
    return {folder: json.loads((folder / PLAN).read_text()) for folder in folders}


def _of_run(folder: Path, which: Which, title: str) -> Candidate:
    """Return a checkpoint of a run. Raises CheckpointError where it is not there or damaged."""
    place = checkpoint_of(folder, which)
    verify_folder(place)
    run_key = "" if which == "start" else folder.name
    return Candidate(title, str(place), policy_digest(place), run_key=run_key, taught=planned_taught(folder))


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


def _registered(name: str, found: "Registered", home: Path) -> Candidate:
    verify = (found.folder / MANIFEST).is_file()
    if verify:
        verify_folder(found.folder)
    digest = policy_digest(found.folder) if verify else fingerprint(checksums(found.folder))
    return Candidate(name, str(found.folder), digest, run_key=found.run_key, taught=_taught(found, home))


def _taught(found: "Registered", home: Path) -> Taught:
    """Return what is known of a registered model: what its sweep said, else what its run's folder does where it is here."""
    from tasks.tracking.registry import NOT_BY_HEART, TAUGHT

    if found.taught == NOT_BY_HEART or not found.run_key:
        return Taught()
    run = home / "runs" / found.run_key
    if run.is_dir():
        return planned_taught(run)
    return Taught(
        unknown=f"its version in MLflow has no tag {TAUGHT}={NOT_BY_HEART}, and {run} is not here: copy it here"
    )


def weights_of(place: str, experiment: ExperimentConfig) -> tuple[str, str | None]:
    """Return what changes with the weights of a folder or hub name, and the commit of a hub name."""
    folder = Path(place)
    if folder.is_dir():
        return policy_digest(folder) if (folder / MANIFEST).is_file() else fingerprint(checksums(folder)), None
    if not HUB_NAME.fullmatch(place):
        raise CheckpointError(f"{place} is no folder and no hub name")
    policy = experiment.policy
    commit = policy.revision if isinstance(policy, PretrainedPolicy) and policy.name == place else None
    if commit is None or not re.fullmatch("[0-9a-f]{40}", commit):
        commit = _commit(place, commit)
    return f"{place}@{commit}", commit


def at_its_commit(model: Candidate, experiment: ExperimentConfig) -> ExperimentConfig:
    """Return the experiment that loads a model of the hub at its commit; for other models the experiment as it is. Code that
    comes with a model runs for the experiment's own alone."""
    policy = experiment.policy
    if model.revision is None:
        return experiment
    if isinstance(policy, PretrainedPolicy) and model.place in ("", policy.name):
        pinned = policy.model_copy(update={"revision": model.revision})
    else:
        settings = policy if isinstance(policy, PretrainedPolicy) else PretrainedPolicy(name=model.place)
        of_it = {"name": model.place, "revision": model.revision, "trust_remote_code": False, "thinking": None}
        pinned = settings.model_copy(update=of_it)
    return experiment.model_copy(update={"policy": pinned})


def _commit(name: str, revision: str | None) -> str:
    """Return the commit that a hub name stands for now. Raises CheckpointError where the hub does not say."""
    from transformers.utils.hub import cached_file, extract_commit_hash

    require_model(name, revision, "model")
    try:
        file = cached_file(name, "config.json", revision=revision)
        commit = extract_commit_hash(file, None)  # snapshots/<commit>/config.json
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name}: the hub gives no such model ({error}). Check the name; a private one needs HF_TOKEN, and a machine without "
            "network the model in HF_HOME"
        ) from error
    if commit is None:
        raise CheckpointError(f"{name}: the hub says no commit, so that what was measured could not be found again")
    return commit
