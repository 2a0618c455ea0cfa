"""Registered models: the winner of a verdict, found again by alias."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.checkpoints import MANIFEST, policy_digest
from igpo_core.config.identity import fingerprint
from igpo_core.config.specification import spell_changes
from igpo_core.errors import CheckpointError
from igpo_core.folders import fill_folder
from igpo_core.run import read_best
from tasks.report.watch import comparison_of
from tasks.report.winner import Winner
from tasks.runs.planned import Run
from tasks.tracking.sending import read_sent
from tasks.tracking.server import answering, client, log_model_checkpoint, tag_filter, tracking_uri

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

NAME = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")
ALIAS = "best"
EXPLORATORY = "exploratory"
TAUGHT, NOT_BY_HEART = "warm_start", "not learnt by heart"
LONGEST = 200  # characters of an alias; MLflow takes 255


@dataclass(frozen=True)
class Registered:
    """A registered model on this machine."""

    folder: Path
    run_key: str
    """Of the run that made it; empty where none of ours did."""
    taught: str = ""
    """Whether its warm start was learnt by heart, as the sweep said that registered it; empty: nobody said."""


def alias_of(cell: str, exploratory: bool = False) -> str:
    """Return the alias of a cell's winner: "best", or "best-group-8" of cell group=8; "exploratory" in place of "best" where
    arms, seeds or settings were chosen after the preset. Cells have aliases of their own: where signs were lost, as in
    group=-1, a hash of the cell follows two hyphens."""
    alias = "-".join(filter(None, [EXPLORATORY if exploratory else ALIAS, re.sub(r"[^A-Za-z0-9_]+", "-", cell)]))
    if re.fullmatch(r"(\w+=\w+(,\w+=\w+)*)?", cell, re.ASCII) and len(alias) <= LONGEST:
        return alias
    return f"{alias[:LONGEST]}--{fingerprint(cell)}"


def register_winner(
    winner: Winner, runs: Sequence[Run], specification: Mapping[str, Any], report: str, exploratory: Sequence[str]
) -> str:
    """Register the winner's checkpoint as a version of the model that has the study's name, move the alias to it, and return
    "models:/<study>@<alias>". A version that is there is found again. A sweep that departs from its preset moves the alias
    "exploratory" alone: whoever asks for the best gets what was fixed beforehand.

    runs: of the winning arm in its cell. The one with the highest score on dev is taken, with its checkpoint that was best on
    dev: test chooses nothing. report: MLflow run of the report. exploratory: in what the sweep departs from its preset,
    besides the settings in `changes` of the specification.
    """
    import yaml

    run = max(runs, key=lambda run: (_best(run)["score"], -run.spec.seed))
    step = _best(run)["step"]
    folder = run.folder / "best" / f"step-{step:06d}"
    sent = read_sent(run.folder)
    assert sent is not None  # a report was made of it
    changes = specification.get("changes")
    departures = [*exploratory, *([f"set {spell_changes(changes)}"] if changes else [])]
    study, alias, digest = run.spec.study, alias_of(winner.cell, bool(departures)), policy_digest(folder)
    tags = {
        "arm": winner.arm,
        "verdict": winner.verdict,
        "specification": comparison_of(specification),
        "specification.yaml": yaml.safe_dump(dict(specification), sort_keys=False),
        "cell": winner.cell,
        "seed": str(run.spec.seed),
        "step": str(step),
        "sweep": run.spec.sweep,
        "run_key": run.spec.run_key,
        "data_version": run.spec.data_version,
        "checkpoint": folder.relative_to(run.home).as_posix(),
        "policy_sha256": digest,
        "report": report,
        "exploratory": "; ".join(departures),
        TAUGHT: NOT_BY_HEART,  # a sweep whose warm start is has no winner
    }
    mlflow = client()
    version = _known(study, tags) or _new(study, sent.run_id, folder, step, tags)
    current = mlflow.get_registered_model(study).aliases.get(alias)
    if current != version:
        mlflow.set_registered_model_alias(study, alias, version)
    return f"models:/{study}@{alias}"


def _best(run: Run) -> dict[str, Any]:
    best = read_best(run.folder)
    assert best is not None  # dev is evaluated before the first step
    return best


def _known(study: str, tags: Mapping[str, str]) -> str | None:
    """Return the version that has these tags."""
    same = {name: tags[name] for name in ("policy_sha256", "report", "verdict")}
    for version in client().search_model_versions(
        f"name = '{study}' and {tag_filter(policy_sha256=tags['policy_sha256'])}"
    ):
        if all(version.tags.get(name) == value for name, value in same.items()):
            return str(version.version)
    return None


def _new(study: str, run_id: str, folder: Path, step: int, tags: Mapping[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    mlflow, model_id = client(), log_model_checkpoint(run_id, folder, step)
    try:
        mlflow.create_registered_model(study, description="Winners of this study's verdicts, by alias.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    about = f"{tags['arm']} is {tags['verdict']}. Seed {tags['seed']}, best on dev at step {step}."
    made = mlflow.create_model_version(
        study,
        f"models:/{model_id}",
        run_id,
        tags=dict(tags),
        description=about,
        await_creation_for=0,
        model_id=model_id,
    )
    return str(made.version)


def find_registered(name: str, home: Path) -> Registered:
    """Return a registered model, "models:/<name>@<alias>" or "models:/<name>/<version>": its checkpoint on this disk, else what
    MLflow has of it, fetched once into `<home>/registered`.

    Raises CheckpointError where MLflow has no such model, or nobody has its files; MlflowAway.
    """
    with answering():
        version = _version(name)
        digest, run_key = version.tags.get("policy_sha256"), _run_key(name, version.tags)
        taught = version.tags.get(TAUGHT, "")
        own = _own(name, version.tags, home)
        if own is not None and (own / MANIFEST).is_file() and policy_digest(own) == digest:
            return Registered(own, run_key, taught)
        folder = _fetched(version, own, home)
        if digest is not None and (not (folder / MANIFEST).is_file() or policy_digest(folder) != digest):
            raise CheckpointError(f"model {name}: MLflow has other files than were registered: register it again")
        return Registered(folder, run_key, taught)


def _own(name: str, tags: Mapping[str, str], home: Path) -> Path | None:
    """Return where a checkpoint of ours lies on this disk; None of a version that none of our sweeps registered. Tags are
    anybody's who writes to MLflow.

    Raises CheckpointError where a tag is missing, or names a place that is not below the home.
    """
    if "checkpoint" not in tags:
        return None
    missing = [tag for tag in ("policy_sha256", "run_key") if not tags.get(tag)]
    if missing:
        raise CheckpointError(
            f"model {name}: its version in MLflow has the tag checkpoint and lacks {', '.join(missing)}, which a sweep sets with "
            "it: register it again, or delete the tag checkpoint"
        )
    own = (home / tags["checkpoint"]).resolve()
    if not own.is_relative_to(home.resolve()):
        raise CheckpointError(
            f"model {name}: its tag checkpoint in MLflow, {tags['checkpoint']!a}, names no folder below {home}: nothing is read "
            "there. Register it again"
        )
    return home / tags["checkpoint"]


def _run_key(name: str, tags: Mapping[str, str]) -> str:
    """Return the key of the run that made a version, "" where none did. Raises CheckpointError where it is none: it names a
    folder."""
    run_key = tags.get("run_key", "")
    if not re.fullmatch("([0-9a-f]{12})?", run_key):
        raise CheckpointError(
            f"model {name}: its tag run_key in MLflow, {run_key!a}, is no key of a run, twelve hex digits: register it again"
        )
    return run_key


def _version(name: str) -> "ModelVersion":
    from mlflow.exceptions import MlflowException

    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(
            f"model {name}: give a registered one as models:/<name>@<alias> or models:/<name>/<version>"
        )
    mlflow = client()
    try:
        if found["alias"]:
            return mlflow.get_model_version_by_alias(found["name"], found["alias"])
        return mlflow.get_model_version(found["name"], found["version"])
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        there = [
            f"models:/{model.name}@{alias}" for model in mlflow.search_registered_models() for alias in model.aliases
        ]
        raise CheckpointError(
            f"model {name}: MLflow at {tracking_uri()} has none of this name. It has {', '.join(sorted(there)) or 'no alias'}; a "
            "sweep registers the winner of its verdict"
        ) from error


def _fetched(version: "ModelVersion", own: Path | None, home: Path) -> Path:
    """Return the folder with config.json and *.safetensors of what MLflow has of a version."""
    import mlflow
    from mlflow.exceptions import MlflowException

    place = home / "registered" / fingerprint(tracking_uri(), version.name, version.version, version.creation_timestamp)

    def download(path: Path) -> None:
        if own is not None and version.run_id:
            client().download_artifacts(version.run_id, f"checkpoints/{own.name}", str(path))
        else:
            mlflow.artifacts.download_artifacts(f"models:/{version.name}/{version.version}", dst_path=str(path))

    if not place.is_dir():
        client()  # sets how long a call may take
        mlflow.set_tracking_uri(tracking_uri())
        try:
            fill_folder(place, download)
        except (MlflowException, OSError) as error:
            raise CheckpointError(
                f"models:/{version.name}/{version.version}: its files are neither in {own or home} nor in MLflow ({error}), "
                "which keeps those of small checkpoints alone: evaluate it where it was trained, or copy its folder there"
            ) from error
    os.utime(place)  # in use: pruning goes by age
    found = sorted(file.parent for file in place.rglob("config.json") if any(file.parent.glob("*.safetensors")))
    if not found:
        raise CheckpointError(
            f"models:/{version.name}/{version.version} holds no folder with config.json and *.safetensors: register a model that "
            "transformers saved"
        )
    return found[0]
