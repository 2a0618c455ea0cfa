"""Metrics to MLflow: first a line in a file beside the checkpoint, then batches with fixed timestamps.

The file is the truth. A value goes to MLflow with the timestamp of its line, and MLflow keeps equal (key, timestamp, step,
value) once, so sending twice is harmless; `metrics.sent` remembers how many lines were sent.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from igpo_core.errors import IgpoError, ServiceError

if TYPE_CHECKING:
    from mlflow import MlflowClient

BATCH = 1000  # MLflow's limit for one log_batch call
OWED_VALUES = 500
OWED_SECONDS = 5.0


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the embedded server's address."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT', '5000')}"


def client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def experiment_id(name: str) -> str:
    """The experiment of a study, made when missing. Raises ServiceError when MLflow does not answer."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(mlflow.create_experiment(name))
    except MlflowException as error:
        found = None if "RESOURCE_ALREADY_EXISTS" not in str(error) else mlflow.get_experiment_by_name(name)
        if found is None:  # not another process that was first
            raise ServiceError(
                f"MLflow at {tracking_uri()} does not serve: {error}. Start it with `make up`."
            ) from error
        return str(found.experiment_id)


def run_url(experiment: str, run: str) -> str:
    return f"{tracking_uri()}/#/experiments/{experiment}/runs/{run}"


def chart_url(experiment: str, sweep: str) -> str:
    """The chart view of a sweep's runs: curves by step."""
    search = quote(f"tags.sweep = '{sweep}' and tags.kind = 'train'", safe="")
    return f"{tracking_uri()}/#/experiments/{experiment}/runs?searchFilter={search}&compareRunsMode=CHART"


def compare_url(experiment: str, runs: list[str]) -> str:
    """The comparison page: parallel coordinates and a table, side by side."""
    ids, experiments = quote(json.dumps(runs), safe=""), quote(json.dumps([experiment]), safe="")
    return f"{tracking_uri()}/#/compare-runs?runs={ids}&experiments={experiments}"


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted params; lists as JSON."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


class Tracker:
    """One run. `log` is cheap: a line in a file, and a batch to the server when enough is owed."""

    def __init__(self, folder: Path, experiment: str, run_id: str) -> None:
        self.folder, self.experiment_id, self.run_id = folder, experiment, run_id
        self.lines = read_lines(folder / "metrics.jsonl")
        self.seen = {(name, line["step"]) for line in self.lines for name in line["metrics"]}
        sent = folder / "metrics.sent"
        self.sent = int(sent.read_text()) if sent.is_file() else 0
        self.flushed = time.monotonic()

    @classmethod
    def open(
        cls,
        folder: Path,
        experiment: str,
        run_name: str,
        run_key: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
    ) -> "Tracker":
        """The run of this key in the experiment: found again, or made with its tags and params."""
        from mlflow.entities import Param

        folder.mkdir(parents=True, exist_ok=True)
        mlflow, experiment_key = client(), experiment_id(experiment)
        found = mlflow.search_runs([experiment_key], f"tags.run_key = '{run_key}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            mlflow.update_run(run_id, status="RUNNING")
        else:
            run = mlflow.create_run(experiment_key, tags={**tags, "run_key": run_key}, run_name=run_name)
            run_id = run.info.run_id
            entries = [Param(name, value[:6000]) for name, value in flatten(params).items()]
            for start in range(0, len(entries), 100):
                mlflow.log_batch(run_id, params=entries[start : start + 100])
        return cls(folder, experiment_key, run_id)

    @property
    def url(self) -> str:
        return run_url(self.experiment_id, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down what was not written for this step before (a resumed run computes some steps again).

        Raises IgpoError on an infinite value, which MLflow would turn into another number. NaN is kept.
        """
        for name, value in metrics.items():
            if math.isinf(value):
                raise IgpoError(f"metric {name} at step {step} is infinite; something upstream is broken")
        fresh = {name: value for name, value in metrics.items() if (name, step) not in self.seen}
        if not fresh:
            return
        line = {"step": step, "timestamp_ms": int(time.time() * 1000), "metrics": fresh}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        self.seen |= {(name, step) for name in fresh}
        owed = sum(len(item["metrics"]) for item in self.lines[self.sent :])
        if owed >= OWED_VALUES or time.monotonic() - self.flushed > OWED_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send every line that is owed."""
        from mlflow.entities import Metric

        values = [
            Metric(name, value, line["timestamp_ms"], line["step"])
            for line in self.lines[self.sent :]
            for name, value in line["metrics"].items()
        ]
        mlflow = client()
        for start in range(0, len(values), BATCH):
            mlflow.log_batch(self.run_id, metrics=values[start : start + BATCH])
        self.sent, self.flushed = len(self.lines), time.monotonic()
        beside = self.folder / "metrics.sent.partial"
        beside.write_text(str(self.sent))
        beside.replace(self.folder / "metrics.sent")

    def finish(self, status: str) -> None:
        """FINISHED, FAILED or KILLED, after everything owed is sent."""
        self.flush()
        client().set_terminated(self.run_id, status)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line torn by a kill is cut off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]


def log_model_checkpoint(run_id: str, folder: Path, step: int, metrics: Mapping[str, float]) -> None:
    """The checkpoint as a logged model: its path and manifest hash, its metrics, its files while they are small."""
    import mlflow
    from mlflow.entities import Metric

    from igpo_core.checkpoints import MANIFEST, file_hash

    api = client()
    run = api.get_run(run_id)
    model = api.create_logged_model(
        run.info.experiment_id,
        name=f"checkpoint-{step}",
        source_run_id=run_id,
        tags={"manifest_sha256": file_hash(folder / MANIFEST)},
        params={"path": str(folder), "step": str(step)},
        model_type="causal-lm",
    )
    now = int(time.time() * 1000)
    api.log_batch(
        run_id, metrics=[Metric(name, value, now, step, model_id=model.model_id) for name, value in metrics.items()]
    )
    if sum(path.stat().st_size for path in folder.iterdir()) < 50 * 2**20:
        policy = [path for path in folder.iterdir() if path.name != "state.pt"]
        for path in policy:
            api.log_artifact(run_id, str(path), "policy")
    api.finalize_logged_model(model.model_id, mlflow.entities.LoggedModelStatus.READY)
