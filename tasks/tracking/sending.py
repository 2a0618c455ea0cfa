"""What a run's folder has and MLflow lacks is sent: by a thread while the run works, or later by `make send`.

Sending twice is harmless. A run is found by its key; MLflow keeps an equal (metric, timestamp, step, value) once, and
timestamps are those of the file; traces and the model are looked up first. sent.json remembers what one server has.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.errors import ServiceError
from igpo_core.folders import write_json
from tasks.tracking.outbox import (
    DATA_DOCS,
    METRICS_FILE,
    TRAJECTORIES,
    About,
    Outbox,
    Status,
    artifacts_hash,
    read_about,
    read_lines,
    read_model,
    read_status,
    read_traces,
    sync,
    write_status,
)
from tasks.tracking.server import (
    Collided,
    MlflowAway,
    answering,
    brief,
    client,
    experiment_id,
    find_runs,
    flatten,
    log_dataset,
    log_model_checkpoint,
    log_params,
    run_url,
    tracking_uri,
)
from tasks.tracking.traces import TraceRecord, log_traces

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

Say = Callable[[str], None]
METRICS_A_CALL = 1000  # MLflow's limit for one log_batch call
EVERY_SECONDS = 5.0
SLOWEST_SECONDS = 30.0  # between two attempts while MLflow is away


@dataclass(frozen=True)
class Sent:
    """What one MLflow server has of a run. metrics: bytes of metrics.jsonl; the others: hashes of what was sent."""

    server: str
    experiment_id: str
    run_id: str
    metrics: int = 0
    model: str = ""
    traces: str = ""
    trajectories: str = ""
    status: str = ""


class Sender:
    """Sends one folder. Only one process at a time may: the one that holds the run's lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sent: Sent | None = None  # set once the server was seen to have the run
        self._tags: Mapping[str, str] = {}  # that it has
        self._part = "params, data and tags"  # what is being sent

    @property
    def url(self) -> str | None:
        """The run's page; None before the first `send` that reached MLflow."""
        return run_url(self._sent.experiment_id, self._sent.run_id) if self._sent else None

    def send(self) -> str:
        """Bring MLflow up to date. Returns the run's page.

        Raises ServiceError when MLflow does not answer (what was sent by then is remembered), or when it refuses.
        """
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException

        about = read_about(self.folder)
        if about is None:
            raise ServiceError(f"{self.folder} holds no tracking.json: nothing was ever tracked there")
        try:
            with answering():
                self._send(about)
        except (MlflowException, RequestException) as error:
            raise ServiceError(
                f"MLflow at {tracking_uri()} refuses {self._part} of {self.folder}: {brief(error)}. Everything is kept there. "
                "The server's log has more (`make up` names its folder): set right what it says, then `make send`"
            ) from error
        assert self.url is not None
        return self.url

    def _send(self, about: About) -> None:
        self._part = "params, data and tags"
        if self._sent is None:
            self._sent = self._find_run(about)
        for name, value in about.tags.items():
            if self._tags.get(name) != value:
                client().set_tag(self._sent.run_id, name, value)
        self._tags = about.tags
        status, ended = read_status(self.folder)  # before the metrics: what is written meanwhile is owed
        if status == "RUNNING" and self._sent.status != status:
            client().update_run(self._sent.run_id, status=status)
            self._remember(status=status)
        parts = {"metrics": self._send_metrics, "model": self._send_model, "traces": self._send_traces}
        if status != "RUNNING":  # a file that grows is sent once
            parts["artifacts"] = self._send_artifacts
        for self._part, send in parts.items():
            send()
        self._part = "status"
        if status != self._sent.status:
            client().set_terminated(self._sent.run_id, status, ended)
            self._remember(status=status)

    def _find_run(self, about: About) -> Sent:
        """The run of this key, found or made with its tags, and its params.

        A run of the key that began at another time belongs to a folder that is gone: two different curves in one run could
        not be told apart, so it is tagged kind=superseded, keeps its curves, and a new run is made. Several that began at
        the same time come from a request that was repeated, for the server was slow to answer: one of them is kept.
        """
        mlflow, experiment = client(), experiment_id(about.experiment)
        ours = self._runs(about, experiment)
        if not ours:
            tags = {**about.tags, "run_key": about.run_key}
            mlflow.create_run(experiment, start_time=about.started_ms, tags=tags, run_name=about.run_name)
            ours = self._runs(about, experiment)
        known = read_sent(self.folder)
        if known and known.server != tracking_uri():
            known = None
        run = min(ours, key=lambda run: (known is None or run.info.run_id != known.run_id, run.info.run_id))
        for other in ours:
            if other is not run:
                self._supersede(other.info.run_id, about.run_key)
                mlflow.set_terminated(other.info.run_id, "KILLED")
        log_params(run.info.run_id, {k: v for k, v in flatten(about.params).items() if k not in run.data.params})
        if about.dataset and not (run.inputs and run.inputs.dataset_inputs):
            log_dataset(run.info.run_id, about.dataset)
        self._tags = run.data.tags
        if known and known.run_id == run.info.run_id:
            return replace(known, status=run.info.status)
        return Sent(tracking_uri(), experiment, run.info.run_id, status=run.info.status)

    def _runs(self, about: About, experiment: str) -> "list[Run]":
        """MLflow's runs of this folder; those of a folder that is gone are superseded."""
        ours = []
        for run in find_runs([experiment], run_key=about.run_key):
            if run.info.start_time == about.started_ms:
                ours.append(run)
            else:
                self._supersede(run.info.run_id, about.run_key)
        return ours

    @staticmethod
    def _supersede(run_id: str, run_key: str) -> None:
        client().set_tag(run_id, "kind", "superseded")
        client().set_tag(run_id, "run_key", f"{run_key}-superseded")

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        assert self._sent is not None
        path = self.folder / METRICS_FILE
        # MLflow must not have a line that a power cut takes from the file: computed again, it would be another
        sync(path)
        size = path.stat().st_size if path.is_file() else 0
        lines, end = read_lines(path, self._sent.metrics if self._sent.metrics <= size else 0)
        values = [
            Metric(name, value, line["timestamp_ms"], line["step"])
            for line in lines
            for name, value in line["metrics"].items()
        ]
        if values:
            _log_metrics(self._sent.run_id, values)
            self._remember(metrics=end)

    def _send_model(self) -> None:
        from mlflow.entities import Metric

        assert self._sent is not None
        model, digest = read_model(self.folder)
        if model is None or self._sent.model == digest:
            return
        run_id, step = self._sent.run_id, model["step"]
        model_id = log_model_checkpoint(run_id, self.folder / model["checkpoint"], step)
        values = [
            # the run's own timestamps: with others the run would hold each value twice
            Metric(name, point["value"], point["timestamp_ms"], step, model_id=model_id)
            for name, point in model["metrics"].items()
        ]
        _log_metrics(run_id, values)
        self._remember(model=digest)  # of what was read above: the run may have written another since

    def _send_traces(self) -> None:
        assert self._sent is not None
        records, digest = read_traces(self.folder)
        if not records or self._sent.traces == digest:
            return
        log_traces(self._sent.run_id, self._sent.experiment_id, records)
        self._remember(traces=digest)

    def _send_artifacts(self) -> None:
        assert self._sent is not None
        digest = artifacts_hash(self.folder)
        if digest and self._sent.trajectories != digest:
            for path in filter(Path.exists, (self.folder / TRAJECTORIES, self.folder / DATA_DOCS)):
                client().log_artifact(self._sent.run_id, str(path))
            self._remember(trajectories=digest)

    def _remember(self, **sent: Any) -> None:
        assert self._sent is not None
        self._sent = replace(self._sent, **sent)
        write_json(self.folder / "sent.json", asdict(self._sent))


def read_sent(folder: Path) -> Sent | None:
    """Return how far a run was sent; None before the first time."""
    path = folder / "sent.json"
    return Sent(**json.loads(path.read_text())) if path.is_file() else None


def _log_metrics(run_id: str, values: "list[Metric]") -> None:
    for start in range(0, len(values), METRICS_A_CALL):
        client().log_batch(run_id, metrics=values[start : start + METRICS_A_CALL])


class Tracker(Outbox):
    """An outbox with a thread that sends. `log` never waits for a server; a server that is away costs nothing."""

    def __init__(self, folder: Path, about: About, say: Say, on_run: Callable[[str], None] = lambda url: None) -> None:
        """on_run: called once, in the thread, with the run's page as soon as MLflow has the run."""
        super().__init__(folder, about)
        self._say, self._on_run = say, on_run
        self._sender = Sender(folder)
        self._wake, self._ending = threading.Event(), threading.Event()
        self._refused: Exception | None = None
        self._all_sent = False
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Outbox.log. Raises what the thread died of: ServiceError where MLflow refused what was sent."""
        if self._refused:
            raise self._refused
        super().log(step, metrics)

    def set_traces(self, records: Sequence[TraceRecord]) -> None:
        """Outbox.set_traces, sent at once: the run evaluates on meanwhile."""
        super().set_traces(records)
        self._wake.set()

    def finish(self, status: Status, patience: float = 60.0) -> None:
        """FINISHED, FAILED or KILLED. Waits until MLflow has everything, or was found to be away, or for `patience` s;
        then says how the rest is sent."""
        write_status(self.folder, status)
        self._ending.set()
        self._wake.set()
        self._thread.join(patience)
        if self._refused:
            self._say(f"warning: {self._refused}")
        elif not self._all_sent:
            self._say(
                f"warning: MLflow at {tracking_uri()} lacks a part of this run, which is kept in {self.folder}: the sweep's "
                "report sends it, and so does `make send`"
            )

    def _work(self) -> None:
        """Send every few seconds; a last time when the run has ended."""
        delay, told, collisions = EVERY_SECONDS, False, 0
        while True:
            ending, again = self._ending.is_set(), False
            try:
                known = self._sender.url
                url = self._sender.send()
                if known is None:
                    self._on_run(url)
                if told:
                    self._say("MLflow answers again and has everything that was owed")
                delay, told, collisions = EVERY_SECONDS, False, 0
                self._all_sent = ending
            except MlflowAway as error:
                collisions += isinstance(error, Collided)
                again = isinstance(error, Collided) and collisions == 1  # the next try finds the other's entry
                if not told and not again:
                    self._say(f"warning: {error}. The run goes on; what is owed is kept in {self.folder}")
                delay, told = min(2 * delay, SLOWEST_SECONDS), told or not again
            except Exception as error:  # raised in the run's own thread by the next `log`
                self._refused = error
                return
            if ending and not again:
                return
            self._wake.wait(delay)
            self._wake.clear()
