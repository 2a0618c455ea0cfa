"""What a run has to tell MLflow, as files in its folder. They are the truth; MLflow is a copy that may lag or be lost.

    tracking.json   what the run is: experiment, name, key, tags, params, when it began
    metrics.jsonl   a line a call of `log`: {"step", "timestamp_ms", "metrics"}
    status.json     RUNNING, or how it ended and when
    traces.json     a sample of test trajectories (tasks/tracking/traces.py)
    trajectories.jsonl  a sample of training trajectories at each evaluation, a line each; MLflow gets it when the run ends
    model.json      the last checkpoint, with its headline metrics
    data_docs/      how the run's metrics compare with what was expected of them, where something was

tasks/tracking/sending.py sends them and remembers in sent.json what MLflow has.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from igpo_core.config import fingerprint
from igpo_core.errors import DataError
from igpo_core.folders import checksums, file_hash, write_json
from tasks.tracking.traces import TraceRecord

METRICS_FILE = "metrics.jsonl"
TRAJECTORIES = "trajectories.jsonl"
DATA_DOCS = "data_docs"
UNEXPECTED = "unexpected"  # a run's tag: what was not as `expect` has it, and where first
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class About:
    """What a run is. started_ms tells runs of one key apart: one whose folder was lost began at another time.

    dataset: what MLflow shows as the run's input, `name`, `digest`, `uri` and `profile`
    (tasks/tracking/mlflow_runs.py:dataset_of); empty: nothing.
    """

    experiment: str
    run_name: str
    run_key: str
    tags: Mapping[str, str]
    params: Mapping[str, Any]
    started_ms: int = field(default_factory=lambda: int(time.time() * 1000))
    dataset: Mapping[str, str] = field(default_factory=dict)


class Outbox:
    """The writing side, for the one process that holds the run's lock."""

    def __init__(self, folder: Path, about: About) -> None:
        """Opens a folder, which goes on where a killed process left it: a torn last line is cut off."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        known = read_about(folder)
        write_status(folder, "RUNNING")
        self._about = replace(about, started_ms=known.started_ms) if known else about
        write_json(folder / "tracking.json", asdict(self._about))
        cut_torn_line(folder / METRICS_FILE)
        self._stamps = {
            (name, line["step"]): line["timestamp_ms"]
            for line in read_lines(folder / METRICS_FILE, 0)[0]
            for name in line["metrics"]
        }
        cut_torn_line(folder / TRAJECTORIES)
        self._kept = {(line["split"], line["step"]) for line in read_lines(folder / TRAJECTORIES, 0)[0]}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write down what was not written for this step before (a resumed run computes some steps again).

        Raises ValueError on an infinite value, which MLflow would turn into another number. NaN is kept.
        """
        for name, value in metrics.items():
            if math.isinf(value):
                raise ValueError(f"metric {name} at step {step} is {value}: look for a division by zero or an overflow")
        fresh = {name: float(value) for name, value in metrics.items() if (name, step) not in self._stamps}
        if not fresh:
            return
        now = int(time.time() * 1000)
        with (self.folder / METRICS_FILE).open("a") as file:
            file.write(json.dumps({"step": step, "timestamp_ms": now, "metrics": fresh}) + "\n")
        self._stamps |= {(name, step): now for name in fresh}

    def tag(self, name: str, value: str) -> None:
        """Give the run a tag, in place of the value that it had."""
        self._about = replace(self._about, tags={**self._about.tags, name: value})
        write_json(self.folder / "tracking.json", asdict(self._about))

    def tagged(self, name: str) -> str:
        """Return the value of a tag; "" where the run has none of that name."""
        return self._about.tags.get(name, "")

    def has(self, name: str, step: int) -> bool:
        """Return whether the metric of this step is there."""
        return (name, step) in self._stamps

    def sync(self) -> None:
        """Wait until every metric is on disk: a checkpoint must not outlive the lines of its steps in a power cut."""
        sync(self.folder / METRICS_FILE)

    def set_model(self, checkpoint: Path, step: int, metrics: Sequence[str]) -> None:
        """The checkpoint to show, with these metrics, which were logged at this step."""
        values = {name: {"timestamp_ms": self._stamps[name, step]} for name in metrics}
        for line in read_lines(self.folder / METRICS_FILE, 0)[0]:
            if line["step"] == step:
                for name in line["metrics"].keys() & values.keys():
                    values[name]["value"] = line["metrics"][name]
        place = checkpoint.relative_to(self.folder).as_posix()
        write_json(self.folder / "model.json", {"checkpoint": place, "step": step, "metrics": values})

    def keep(self, records: Sequence[TraceRecord]) -> None:
        """Write down trajectories of a split and step that were not written before."""
        fresh = [record for record in records if (record.split, record.step) not in self._kept]
        with (self.folder / TRAJECTORIES).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in fresh))
        self._kept |= {(record.split, record.step) for record in fresh}

    def set_traces(self, records: Sequence[TraceRecord]) -> None:
        """Write the test trajectories that become MLflow traces."""
        write_json(self.folder / "traces.json", [asdict(record) for record in records])


class NoOutbox:
    """In place of an outbox, of those of several processes that write nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep nothing."""

    def tag(self, name: str, value: str) -> None:
        """Keep nothing."""

    def tagged(self, name: str) -> str:
        """Return ""."""
        return ""

    def has(self, name: str, step: int) -> bool:
        """Return False."""
        return False

    def sync(self) -> None:
        """Keep nothing."""

    def set_model(self, checkpoint: Path, step: int, metrics: Sequence[str]) -> None:
        """Keep nothing."""

    def keep(self, records: Sequence[TraceRecord]) -> None:
        """Keep nothing."""

    def set_traces(self, records: Sequence[TraceRecord]) -> None:
        """Keep nothing."""


Writing = Outbox | NoOutbox


def sync(path: Path) -> None:
    """Wait until a file, if there is one, is on disk."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def cut_torn_line(path: Path) -> None:
    """Cut off what a kill left behind the last whole line."""
    if path.is_file():
        content = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def read_lines(path: Path, start: int) -> tuple[list[dict[str, Any]], int]:
    """The whole lines from byte `start` on, and the byte behind them. Raises DataError, naming the line, on damage."""
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    content = content[: content.rfind(b"\n") + 1]
    lines = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}: line {number} after byte {start} is damaged ({error}). Delete that line; its metrics are lost, "
                "the others are sent"
            ) from error
    return lines, start + len(content)


def read_about(folder: Path) -> About | None:
    """None: nothing was ever tracked here."""
    path = folder / "tracking.json"
    return About(**json.loads(path.read_text())) if path.is_file() else None


def write_status(folder: Path, status: Status) -> None:
    """Write how a run stands, and when it ended."""
    ended = None if status == "RUNNING" else int(time.time() * 1000)
    write_json(folder / "status.json", {"status": status, "ended_ms": ended})


def read_status(folder: Path) -> tuple[Status, int | None]:
    """(status, when it ended in ms)."""
    content = json.loads((folder / "status.json").read_text())
    return content["status"], content["ended_ms"]


def read_traces(folder: Path) -> tuple[list[TraceRecord], str]:
    """(records, hash of the file); none and "" where there is no file."""
    content, digest = _read_hashed(folder / "traces.json")
    return [TraceRecord.from_json(entry) for entry in content or ()], digest


def read_model(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """(content, hash of the file); None and "" where there is no file."""
    return _read_hashed(folder / "model.json")


def artifacts_hash(folder: Path) -> str:
    """Of the files that MLflow gets when a run ends, its trajectories and Data Docs; "" where there are none."""
    trajectories = file_hash(folder / TRAJECTORIES) if (folder / TRAJECTORIES).is_file() else ""
    if not (folder / DATA_DOCS).is_dir():
        return trajectories
    return fingerprint(trajectories, checksums(folder / DATA_DOCS))


def _read_hashed(path: Path) -> tuple[Any, str]:
    if not path.is_file():
        return None, ""
    content = path.read_bytes()
    return json.loads(content), hashlib.sha256(content).hexdigest()
