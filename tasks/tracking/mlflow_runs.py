"""What MLflow is told of a training run, and a run for each version of published data."""

import json
from pathlib import Path

from igpo_core.config import DataConfig, QuestionFiles, RunSpec
from igpo_core.config.specification import spell_changes
from igpo_core.folders import file_hash
from tasks.data.checked import SUITE_DOCS, SUITES
from tasks.lab.source import source_tags
from tasks.report.colours import COLOURS
from tasks.runs.planned import Run
from tasks.runs.processors import joined
from tasks.tracking.outbox import UNEXPECTED, About, read_about
from tasks.tracking.server import artifact_url, client, experiment_id, flatten, tag_filter

LONGEST_NAME = 250  # of a run: a column of MLflow's database; the tag `set` has it whole


def dataset_of(config: DataConfig, folder: Path) -> dict[str, str]:
    """Return what MLflow shows as the input of a run on this published folder (tasks/tracking/outbox.py:About.dataset).

    Its name is the world's, or the first file's; its digest is the data version.
    """
    name = config.questions[0].path.stem if isinstance(config, QuestionFiles) else config.kind
    summary = json.loads((folder / "summary.json").read_text())
    profile = {f"{split} questions": count for split, count in summary["counts"].items()}
    if summary["passages"] is not None:
        profile["passages"] = summary["passages"]
    return {"name": name, "digest": summary["version"], "uri": str(folder), "profile": json.dumps(profile)}


def about_run(run: Run, processor: str, page: str) -> About:
    """Return what MLflow is told of a training run. processor: that it computes on now; page: its own in Prefect."""
    spec = run.spec
    before = read_about(run.folder)
    known = before.tags if before else {}
    tags = tags_of(spec) | {
        **({UNEXPECTED: _still(known[UNEXPECTED], spec)} if UNEXPECTED in known else {}),
        "processor": joined(known.get("processor"), processor),
        "mlflow.note.content": f"[This run in Prefect]({page})",  # the page shows it first
    }
    settings = spec.experiment.model_dump(mode="json")
    dataset = dataset_of(spec.experiment.data, run.data)
    return About(spec.study, title_of(spec), spec.run_key, tags, settings, dataset=dataset)


def _still(told: str, spec: RunSpec) -> str:
    """Return what a tag UNEXPECTED says of what is expected now: it may be something else than before. "" is sent too, for
    MLflow keeps a tag that it is not told of."""
    expected = [f"{one.told}: " for one in spec.experiment.expect]
    return "; ".join(part for part in told.split("; ") if part.startswith(tuple(expected)))


def title_of(spec: RunSpec) -> str:
    """Return what MLflow calls the run: its name, and what the start of its sweep set."""
    return " · ".join(filter(None, [spec.name, spell_changes(spec.changes)]))[:LONGEST_NAME]


def tags_of(spec: RunSpec) -> dict[str, str]:
    """Return MLflow's tags of a run that its plan says."""
    return {
        "kind": "train",
        "cell": spec.cell,
        "mlflow.runColor": COLOURS[spec.arm_number % len(COLOURS)],  # its seeds share it; a group has MLflow's own
        "sweep": spec.sweep,
        "arm": spec.arm,
        "seed": str(spec.seed),
        "data_version": spec.data_version,
        **({"set": spell_changes(spec.changes)} if spec.changes else {}),
        **{f"arm.{name}": value for name, value in flatten(spec.arm_settings).items()},
        **source_tags("flows/train.py"),
    }


DOCS = "data_docs/index.html"


def log_data(study: str, version: str, folder: Path, checked: Path | None = None) -> str:
    """Return the link to the Data Docs of this version, in its run tagged kind=data, which also has quarantine and summary.

    checked: the folder of what the user's own suites found (tasks/data/checked.py): a run of its own, whose Data Docs have them.
    """
    from mlflow.entities import Metric

    mlflow, experiment = client(), experiment_id(study)
    summary = json.loads((folder / "summary.json").read_text())
    quarantine = file_hash(folder / "quarantine.jsonl")  # not part of the version, and shown
    tags = {"kind": "data", "data_version": version, "quarantine": quarantine[:12]}
    docs = DOCS
    if checked is not None:  # no part of the version either
        tags["expectations"], docs = file_hash(checked / SUITES)[:12], f"{SUITE_DOCS}/index.html"
    found = mlflow.search_runs([experiment], tag_filter(**tags))
    whole = [run for run in found if run.info.status == "FINISHED"]
    if whole:  # without a suite, one that has a suite's Data Docs beside these will do
        return artifact_url(experiment, whole[0].info.run_id, docs)
    # a sweep that was killed may have left a run without all its files: it is completed
    begun = [run for run in found if run.data.tags.get("expectations") == tags.get("expectations")]
    run = begun[0] if begun else mlflow.create_run(experiment, tags=tags, run_name=f"data {version}")
    counts = {f"{split}_questions": count for split, count in summary["counts"].items()}
    counts["quarantined"] = summary["quarantined"]
    at = run.info.start_time  # the same whenever it is logged, so that nothing stands there twice
    mlflow.log_batch(run.info.run_id, [Metric(f"data/{name}", value, at, 0) for name, value in counts.items()])
    for name in ("summary.json", "quarantine.jsonl"):
        mlflow.log_artifact(run.info.run_id, str(folder / name))
    mlflow.log_artifacts(run.info.run_id, str(folder / "data_docs"), "data_docs")
    if checked is not None:
        mlflow.log_artifact(run.info.run_id, str(checked / SUITES))
        mlflow.log_artifacts(run.info.run_id, str(checked / SUITE_DOCS), SUITE_DOCS)
    mlflow.set_terminated(run.info.run_id)
    return artifact_url(experiment, run.info.run_id, docs)
