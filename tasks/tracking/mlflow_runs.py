"""MLflow runs of published data, one for each version."""

import json
from pathlib import Path

from igpo_core.config import DataConfig, QuestionFiles
from igpo_core.folders import file_hash
from tasks.tracking.server import artifact_url, client, experiment_id, tag_filter


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


DOCS = "data_docs/index.html"


def log_data(study: str, version: str, folder: Path) -> str:
    """Return the link to the Data Docs of this version, in its run tagged kind=data, which also has quarantine and summary."""
    from mlflow.entities import Metric

    mlflow, experiment = client(), experiment_id(study)
    quarantine = file_hash(folder / "quarantine.jsonl")  # not part of the version, and shown
    tags = {"kind": "data", "data_version": version, "quarantine": quarantine[:12]}
    found = mlflow.search_runs([experiment], tag_filter(**tags))
    whole = [run for run in found if run.info.status == "FINISHED"]
    if whole:
        return artifact_url(experiment, whole[0].info.run_id, DOCS)
    # a sweep that was killed may have left a run without all its files: it is completed
    run = found[0] if found else mlflow.create_run(experiment, tags=tags, run_name=f"data {version}")
    summary = json.loads((folder / "summary.json").read_text())
    counts = {f"{split}_questions": count for split, count in summary["counts"].items()}
    counts["quarantined"] = summary["quarantined"]
    at = run.info.start_time  # the same whenever it is logged, so that nothing stands there twice
    mlflow.log_batch(run.info.run_id, [Metric(f"data/{name}", value, at, 0) for name, value in counts.items()])
    for name in ("summary.json", "quarantine.jsonl"):
        mlflow.log_artifact(run.info.run_id, str(folder / name))
    mlflow.log_artifacts(run.info.run_id, str(folder / "data_docs"), "data_docs")
    mlflow.set_terminated(run.info.run_id)
    return artifact_url(experiment, run.info.run_id, DOCS)
