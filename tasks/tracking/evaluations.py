"""MLflow runs of an evaluation: one for each model, and one that compares them. Asked for again, they are found."""

import csv
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from igpo_core.config import fingerprint
from tasks.report import compared_shown as shown
from tasks.report.evaluated import Compared, Results, mean_metrics
from tasks.tracking.mlflow_runs import dataset_of
from tasks.tracking.sending import read_sent
from tasks.tracking.server import client, experiment_id, find_runs, log_dataset, run_url, tag_filter

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

METRICS_A_CALL = 1000  # MLflow's limit for one log_batch call
TAG = 8000  # MLflow's limit for a tag's value, in characters; the store cuts or refuses a longer one


def log_model(study: str, results: Results, home: Path) -> tuple[str, str]:
    """Log what was measured of one model, and return title and address of its run, tagged kind=evaluation. Its inputs are the
    data sets, and the checkpoint where MLflow knows it; records.jsonl has a line a question, decoding and sampling seed."""
    from mlflow.entities import LoggedModelInput, Metric

    mlflow, experiment = client(), experiment_id(study)
    units = [unit for unit, _ in results]
    candidate = units[0].model
    key = fingerprint(candidate.title, candidate.run_key, sorted(unit.key for unit in units))
    found = find_runs([experiment], kind="evaluation", measured=key)
    if found and found[0].info.status == "FINISHED":
        return candidate.title, run_url(experiment, found[0].info.run_id)
    sets = {unit.data.version: unit.data for unit in units}
    tags = {
        "kind": "evaluation",
        "measured": key,
        "model": candidate.place or candidate.title,
        "weights": candidate.weights,
        "data_version": ",".join(sorted(sets)),
        "sampling_seeds": ",".join(map(str, sorted({unit.draw for unit in units}))),
        "processor": ", ".join(sorted({measured.processor for _, measured in results})),
        **_of_training(home, candidate.run_key),
    }
    run = found[0] if found else mlflow.create_run(experiment, tags=tags, run_name=f"evaluate {candidate.title}"[:250])
    run_id, at = (
        run.info.run_id,
        run.info.start_time,
    )  # the same whenever it is logged, so that nothing stands there twice
    for data in sets.values():
        log_dataset(run_id, dataset_of(data.experiment.data, data.folder), "evaluation")
    known = _logged_model(tags)
    if known is not None:
        mlflow.log_inputs(run_id, models=[LoggedModelInput(known.model_id)])
    shown_with = known.model_id if known else None  # MLflow's page of the checkpoint shows them then
    metrics = [Metric(name, value, at, 0, model_id=shown_with) for name, value in mean_metrics(results).items()]
    for start in range(0, len(metrics), METRICS_A_CALL):
        mlflow.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])
    lines = [
        json.dumps({"data": unit.data.name, "sampling_seed": unit.draw, **record}, ensure_ascii=False)
        for unit, measured in results
        for record in measured.records
    ]
    mlflow.log_text(run_id, "\n".join(lines) + "\n", "records.jsonl")
    mlflow.set_terminated(run_id)
    return candidate.title, run_url(experiment, run_id)


def _of_training(home: Path, run_key: str) -> dict[str, str]:
    """Return the tags that lead to the training run."""
    sent = read_sent(home / "runs" / run_key) if run_key else None
    if sent is None:
        return {"evaluated_run_key": run_key} if run_key else {}
    link = run_url(sent.experiment_id, sent.run_id)
    return {
        "evaluated_run_key": run_key,  # not run_key: that finds the training run
        "trained_run": sent.run_id,
        "trained_in": sent.experiment_id,
        "mlflow.note.content": f"[The training run of this model]({link})",
    }


def _logged_model(tags: Mapping[str, str]) -> "LoggedModel | None":
    """Return the checkpoint as MLflow has it; None where it was not logged."""
    if "trained_in" not in tags:
        return None
    found = client().search_logged_models([tags["trained_in"]], tag_filter(policy_sha256=tags["weights"]))
    return next((model for model in found if model.source_run_id == tags["trained_run"]), None)


def log_comparison(study: str, compared: Compared, results: Results, links: Sequence[tuple[str, str]]) -> str:
    """Log tables and figure of all models, and return the address of the run, tagged kind=comparison. Its metrics are
    model_1/score, model_2/difference and so on, by the places of the models, and tag model_1 names one: a name as it was given
    may be none for MLflow. links: to the models' runs."""
    from mlflow.entities import Metric

    mlflow, experiment = client(), experiment_id(study)
    units = [unit for unit, _ in results]
    key = fingerprint([unit.key for unit in units], compared.words)
    found = find_runs([experiment], kind="comparison", measured=key)
    if found and found[0].info.status == "FINISHED":
        return run_url(experiment, found[0].info.run_id)
    sets = {unit.data.version: unit.data for unit in units}
    models = list(dict.fromkeys(row.model for row in compared.scores))
    places = {model: f"model_{place}" for place, model in enumerate(models, start=1)}
    tags = {
        "kind": "comparison",
        "measured": key,
        "models": ", ".join(models)[:TAG],
        "data_version": ",".join(sorted(sets)),
        **{place: model[:TAG] for model, place in places.items()},  # what the names of the metrics stand for
    }
    name = f"compare {', '.join(models)}"[:250]
    run_id = (found[0] if found else mlflow.create_run(experiment, tags=tags, run_name=name)).info.run_id
    for data in sets.values():
        log_dataset(run_id, dataset_of(data.experiment.data, data.folder), "evaluation")
    now = int(time.time() * 1000)
    numbers = {
        f"{places[row.model]}/{name}": value
        for row in compared.scores
        if row.part == shown.whole_of(compared.scores)
        for name, value in (("score", row.score), ("difference", row.difference), ("p", row.p))
        if value is not None
    }
    logged = [Metric(name, value, now, 0) for name, value in numbers.items()]
    for start in range(0, len(logged), METRICS_A_CALL):
        mlflow.log_batch(run_id, metrics=logged[start : start + METRICS_A_CALL])
    rows, by_slice = compared.rows, shown.slice_rows(compared.scores, compared.unseen)
    pages = [f"- [{title}]({address})" for title, address in links]
    text = shown.page(study, compared.words, rows, by_slice, pages)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "comparison.md").write_text(text, encoding="utf-8")
        (folder / "comparison.json").write_text(json.dumps([asdict(row) for row in compared.scores], indent=1))
        for file, table in (("table.csv", rows), ("slices.csv", by_slice)):
            with (folder / file).open("w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(opened, list(table[0]))
                writer.writeheader()
                writer.writerows(table)
        shown.draw(compared.scores, compared.unseen, compared.title, folder / "comparison.png")
        mlflow.log_artifacts(run_id, str(folder))
    mlflow.set_tag(run_id, "mlflow.note.content", shown.note(study, compared.words, rows, pages, TAG))
    mlflow.set_terminated(run_id)
    return run_url(experiment, run_id)
