"""A run's identity and files.

The run's folder `<home>/runs/<run key>/` holds config.json, metrics.jsonl, checkpoints/step-000010/ and, written last,
result.json: its presence means that the run is finished. The key is a hash of sweep, data version, configuration, code
version and seed, so the same run asked for again is found again. A process that works on a run or a warm start holds its
lock in `<home>/locks`; another that wants the same waits, and then finds it.
"""

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import ExperimentConfig, code_version, fingerprint
from igpo_core.folders import write_json

if TYPE_CHECKING:
    from igpo_core.training import Trainer

Say = Callable[[str], None]


@dataclass(frozen=True)
class RunIdentity:
    """What a run is, and where its files are."""

    run_key: str
    folder: Path

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while there is none."""
        if not self.result_file.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        return result


def identify(experiment: ExperimentConfig, data_version: str, sweep: str, home: Path) -> RunIdentity:
    """sweep: part of the identity, for MLflow keeps a run under one sweep: runs are shared within a sweep only."""
    run_key = fingerprint(experiment.identity(), data_version, sweep, code_version())
    return RunIdentity(run_key, home / "runs" / run_key)


def save_checkpoint(trainer: "Trainer", run: RunIdentity, *, alone: bool = False) -> float:
    """Write the checkpoint of the current step; keep it and the one before. Returns the seconds. alone: see Trainer.save."""
    from igpo_core.checkpoints import checkpoint_folder

    started = time.perf_counter()
    folder = checkpoint_folder(run.folder, trainer.step)
    trainer.save(folder, alone=alone)
    if trainer.ranks.first:
        for old in sorted(folder.parent.glob("step-*"))[:-2]:
            shutil.rmtree(old)
    return time.perf_counter() - started


def bring_up_to_date(run: RunIdentity) -> str:
    """Send what MLflow lacks of a finished run; says what was done."""
    from tasks.outbox import read_status, write_status
    from tasks.sending import Sender, read_sent
    from tasks.tracking import MlflowAway

    if read_status(run.folder)[0] != "FINISHED":  # killed right after its result was written
        write_status(run.folder, "FINISHED")
    before = read_sent(run.folder)
    try:
        url = Sender(run.folder).send()
    except MlflowAway as error:
        return f"warning: {error}; the sweep's report sends what is owed, and so does `make send`"
    after = read_sent(run.folder)
    lost = before is not None and after is not None and before.run_id != after.run_id
    return f"MLflow had lost it and was sent everything again: {url}" if lost else url


def write_result(run: RunIdentity, result: dict[str, Any]) -> None:
    """Atomically, last: from now on the run is finished."""
    write_json(run.result_file, result)
