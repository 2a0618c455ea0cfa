"""Metrics to MLflow: first a line in a file beside the checkpoints, then batches with fixed timestamps.

The file is the truth. A value goes to MLflow with the timestamp of its line, and MLflow keeps an equal (key, timestamp,
step, value) once, so sending a line twice is harmless; `metrics.sent` remembers how many lines of which run were sent.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from igpo_core.errors import ConfigError, ServiceError
from tasks.background import Background

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_A_CALL = 1000  # MLflow's limits for one log_batch call
PARAMS_A_CALL = 100
OWED_VALUES = 500
OWED_SECONDS = 5.0
UPLOADED_BYTES = 50 * 2**20


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the embedded server's address."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"http://127.0.0.1:{os.environ.get('MLFLOW_PORT') or '5000'}"


def client() -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri())


def tag_filter(**tags: str) -> str:
    """MLflow's filter for runs that carry all these tags. Raises ConfigError on a value that cannot be quoted."""
    for name, value in tags.items():
        if "'" in value or '"' in value:
            raise ConfigError(f"{name} {value!r} contains a quotation mark, which MLflow cannot search for: rename it")
    return " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())


def experiment_id(name: str) -> str:
    """The experiment of this name, made when missing. Raises ServiceError when MLflow does not answer or serve it."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    try:
        found = mlflow.get_experiment_by_name(name)
        if found is None:
            try:
                return str(mlflow.create_experiment(name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = mlflow.get_experiment_by_name(name)  # another process was first
    except MlflowException as error:
        raise ServiceError(f"MLflow at {tracking_uri()} does not serve: {error}. Start it with `make up`.") from error
    if found is None or found.lifecycle_stage != "active":
        raise ServiceError(f"MLflow experiment {name!r} was deleted: restore it in MLflow, or use another name")
    return str(found.experiment_id)


def is_finished(experiment: str, run_key: str) -> bool:
    """Whether MLflow has a finished run of this key."""
    found = client().search_runs([experiment_id(experiment)], tag_filter(run_key=run_key), max_results=1)
    return bool(found) and found[0].info.status == "FINISHED"


# --------------------------------------------------------------------------------------------------------- links


def run_url(experiment_id: str, run_id: str) -> str:
    return f"{tracking_uri()}/#/experiments/{experiment_id}/runs/{run_id}"


def chart_url(experiment_id: str, sweep: str) -> str:
    """The chart view of a sweep's training runs: curves by step."""
    search = quote(f'tags.sweep = "{sweep}" and tags.kind = "train"', safe="")
    return f"{tracking_uri()}/#/experiments/{experiment_id}/runs?searchFilter={search}&compareRunsMode=CHART"


def compare_url(experiment_id: str, run_ids: Sequence[str]) -> str:
    """The comparison page: parallel coordinates and a table, side by side."""
    runs, experiments = (
        quote(json.dumps(ids, separators=(",", ":")), safe="") for ids in ([*run_ids], [experiment_id])
    )
    return f"{tracking_uri()}/#/compare-runs?runs={runs}&experiments={experiments}"


def traces_url(experiment_id: str, run_id: str | None = None) -> str:
    """The traces of an experiment, or of one run of it."""
    return f"{run_url(experiment_id, run_id) if run_id else f'{tracking_uri()}/#/experiments/{experiment_id}'}/traces"


# --------------------------------------------------------------------------------------------------- one run's log


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted params ("warm_start.stages.0.steps"); a list of plain values is one JSON value."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


class Tracker:
    """One run. `log` is cheap: a line in a file, and when enough is owed a batch to the server, which nobody waits for."""

    def __init__(self, folder: Path, experiment_id: str, run_id: str) -> None:
        self.folder, self.experiment_id, self.run_id = folder, experiment_id, run_id
        lines = read_lines(folder / "metrics.jsonl")
        self._seen = {(name, line["step"]) for line in lines for name in line["metrics"]}
        self._sent = sent_lines(folder, run_id)
        if self._sent > len(lines):
            raise ServiceError(
                f"{folder / 'metrics.sent'} counts {self._sent} lines but metrics.jsonl has {len(lines)}: "
                "it was changed by hand; delete metrics.sent, and every line is sent again"
            )
        self._owed = lines[self._sent :]
        self._flying: list[dict[str, Any]] = []  # what the background is sending
        self._background = Background()
        self._flushed = time.monotonic()

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
        """The run of this key in the experiment, set RUNNING: found again, or made with its tags and params. Params that a
        kill kept from it are added.

        A run that was found but whose metrics file is gone starts over: the old run is tagged kind=superseded and keeps
        its curves, and a new run is made, for two different curves in one run could not be told apart.
        """
        folder.mkdir(parents=True, exist_ok=True)
        mlflow, experiment_key = client(), experiment_id(experiment)
        settings = flatten(params)
        for run in mlflow.search_runs([experiment_key], tag_filter(run_key=run_key), max_results=1):
            if (folder / "metrics.jsonl").is_file() or not run.data.metrics:
                mlflow.update_run(run.info.run_id, status="RUNNING")
                _log_params(mlflow, run.info.run_id, {k: v for k, v in settings.items() if k not in run.data.params})
                return cls(folder, experiment_key, run.info.run_id)
            mlflow.set_tag(run.info.run_id, "kind", "superseded")
            mlflow.set_tag(run.info.run_id, "run_key", f"{run_key}-superseded")
        made = mlflow.create_run(experiment_key, tags={**tags, "run_key": run_key}, run_name=run_name)
        _log_params(mlflow, made.info.run_id, settings)
        return cls(folder, experiment_key, made.info.run_id)

    @property
    def url(self) -> str:
        return run_url(self.experiment_id, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down what was not written for this step before (a resumed run computes some steps again).

        Raises ValueError on an infinite value, which MLflow would turn into another number. NaN is kept.
        """
        for name, value in metrics.items():
            if math.isinf(value):
                raise ValueError(f"metric {name} at step {step} is {value}: look for a division by zero or an overflow")
        fresh = {name: float(value) for name, value in metrics.items() if (name, step) not in self._seen}
        if not fresh:
            return
        line = {"step": step, "timestamp_ms": int(time.time() * 1000), "metrics": fresh}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._seen |= {(name, step) for name in fresh}
        self._owed.append(line)
        enough = sum(len(item["metrics"]) for item in self._owed) >= OWED_VALUES
        if not self._background.busy and (enough or time.monotonic() - self._flushed > OWED_SECONDS):
            self._send_owed()

    def flush(self) -> None:
        """Send every line that is owed, and wait. Raises ServiceError when MLflow does not take them; they stay owed."""
        self._send_owed()
        self._land()

    def _send_owed(self) -> None:
        self._land()
        self._flying, self._owed = self._owed, []
        self._flushed = time.monotonic()
        flying = self._flying
        self._background.submit(lambda: self._send(flying))

    def _land(self) -> None:
        """Wait for the batch that is under way. When it failed, it is owed again."""
        flying, self._flying = self._flying, []
        try:
            self._background.wait()
        except BaseException:
            self._owed = flying + self._owed
            raise

    def _send(self, lines: Sequence[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        values = [
            Metric(name, value, line["timestamp_ms"], line["step"])
            for line in lines
            for name, value in line["metrics"].items()
        ]
        mlflow = client()
        try:
            for start in range(0, len(values), METRICS_A_CALL):
                mlflow.log_batch(self.run_id, metrics=values[start : start + METRICS_A_CALL])
        except MlflowException as error:
            raise ServiceError(
                f"MLflow at {tracking_uri()} did not take the metrics of run {self.run_id}: {error}. They are kept in "
                f"{self.folder / 'metrics.jsonl'}; start it with `make up` and run again"
            ) from error
        self._sent += len(lines)
        beside = self.folder / "metrics.sent.partial"
        beside.write_text(f"{self.run_id} {self._sent}\n")
        beside.replace(self.folder / "metrics.sent")

    def finish(self, status: str) -> None:
        """FINISHED, FAILED or KILLED, after everything owed is sent."""
        self.flush()
        client().set_terminated(self.run_id, status)


def _log_params(mlflow: "MlflowClient", run_id: str, settings: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    entries = [Param(name, value) for name, value in settings.items()]
    for start in range(0, len(entries), PARAMS_A_CALL):
        mlflow.log_batch(run_id, params=entries[start : start + PARAMS_A_CALL])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a last line torn by a kill is cut off the file."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def sent_lines(folder: Path, run_id: str) -> int:
    """How many lines of metrics.jsonl this run has; 0 for a run that is new to the file (another server, say)."""
    path = folder / "metrics.sent"
    if not path.is_file():
        return 0
    owner, count = path.read_text().split()
    return int(count) if owner == run_id else 0


# ----------------------------------------------------------------------------------------------------- checkpoints


def log_model_checkpoint(run_id: str, folder: Path, step: int) -> str:
    """The checkpoint as a logged model of the run: path and manifest hash as params and tag, and the policy files as run
    artifacts while they are small. Logging the same checkpoint again finds the model. Returns its id."""
    import mlflow

    from igpo_core.checkpoints import MANIFEST

    mlflow.set_tracking_uri(tracking_uri())
    api = client()
    experiment = api.get_run(run_id).info.experiment_id
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    for model in api.search_logged_models([experiment], tag_filter(manifest_sha256=digest)):
        if model.source_run_id == run_id:
            return str(model.model_id)
    policy = [path for path in sorted(folder.iterdir()) if path.name != "state.pt"]
    if sum(path.stat().st_size for path in policy) < UPLOADED_BYTES:
        for path in policy:
            api.log_artifact(run_id, str(path), f"checkpoints/{folder.name}")
    made = mlflow.create_external_model(
        name=f"checkpoint-{step}",
        source_run_id=run_id,
        tags={"manifest_sha256": digest},
        params={"path": str(folder), "step": str(step), "manifest_sha256": digest},
        model_type="policy",
        experiment_id=experiment,
    )
    return str(made.model_id)


def log_model_metrics(run_id: str, model_id: str, step: int, metrics: Mapping[str, float]) -> None:
    """Metrics of a logged model, which the run has already at this step."""
    from mlflow.entities import Metric

    api, values = client(), []
    for name, value in metrics.items():  # the run's own timestamps: with others the run would hold each value twice
        logged = [point for point in api.get_metric_history(run_id, name) if point.step == step]
        stamp = logged[0].timestamp if logged else int(time.time() * 1000)
        values.append(Metric(name, value, stamp, step, model_id=model_id))
    api.log_batch(run_id, metrics=values)
