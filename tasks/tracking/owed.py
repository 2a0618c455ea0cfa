"""What runs below IGPO_HOME owe MLflow: python -m tasks.tracking.owed, or `make send`."""

import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path

from igpo_core.errors import IgpoError, ServiceError
from tasks.lab.home import open_home
from tasks.runs.locks import locked_if_free
from tasks.runs.planned import drop_moments
from tasks.tracking.outbox import METRICS_FILE, artifacts_hash, read_model, read_status, read_traces, write_status
from tasks.tracking.sending import Sender, read_sent
from tasks.tracking.server import Collided, MlflowAway, answering, client, tracking_uri

Say = Callable[[str], None]


def send_runs(home: Path, say: Say, keys: Collection[str] | None = None) -> int:
    """Send what the runs below `home` (these keys, or all) owe, or what MLflow has lost; returns how many that were.

    A run that a process works on sends for itself. One that has its result is FINISHED, whatever ended its process after it;
    another whose process died without a word is set FAILED first.
    Raises MlflowAway, and after all others were sent ServiceError with every run that could not be.
    """
    count, problems = 0, []
    for folder in sorted((home / "runs").glob("*")):
        if (keys is not None and folder.name not in keys) or not (folder / "tracking.json").is_file():
            continue
        with locked_if_free(home, folder.name) as free:
            if not free:
                continue
            try:
                status = read_status(folder)[0]
                if (folder / "result.json").is_file():  # whatever ended the process after it
                    drop_moments(folder)
                if (folder / "result.json").is_file() and status != "FINISHED":
                    write_status(folder, "FINISHED")
                elif status == "RUNNING":
                    write_status(folder, "FAILED")
                if owes(folder) or is_lost(folder):
                    say(f"sent {folder.name}: {_sent(folder)}")
                    count += 1
            except MlflowAway:
                raise
            except (IgpoError, OSError, ValueError) as error:  # one damaged folder must not keep the others back
                problems.append(f"{folder.name}: {error}")
    if problems:
        raise ServiceError("\n".join(["these runs could not be sent to MLflow:", *problems]))
    return count


def _sent(folder: Path) -> str:
    """Send what a run owes; return the run's page."""
    sender = Sender(folder)
    try:
        return sender.send()
    except Collided:  # the next try finds the other's entry
        return sender.send()


def bring_up_to_date(folder: Path) -> str:
    """Send what MLflow lacks of a finished run; return the run's page, or why there is none, in words."""
    drop_moments(folder)
    if read_status(folder)[0] != "FINISHED":  # killed right after its result was written
        write_status(folder, "FINISHED")
    before = read_sent(folder)
    try:
        url = _sent(folder)
    except MlflowAway as error:
        return f"warning: {error}; the sweep's report sends what is owed, and so does `make send`"
    after = read_sent(folder)
    lost = before is not None and after is not None and before.run_id != after.run_id
    return f"MLflow had lost it and was sent everything again: {url}" if lost else url


def is_lost(folder: Path) -> bool:
    """Whether MLflow no longer has the run that it was sent."""
    from mlflow.exceptions import MlflowException

    sent = read_sent(folder)
    assert sent is not None
    with answering():
        try:
            return str(client().get_run(sent.run_id).info.lifecycle_stage) != "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return True


def owes(folder: Path) -> bool:
    """Whether the MLflow server of now may lack a part of this run, as far as the folder knows."""
    sent = read_sent(folder)
    lines = folder / METRICS_FILE
    return sent is None or (sent.server, sent.metrics, sent.model, sent.traces, sent.trajectories, sent.status) != (
        tracking_uri(),
        lines.stat().st_size if lines.is_file() else 0,
        read_model(folder)[1],
        read_traces(folder)[1],
        artifacts_hash(folder),
        read_status(folder)[0],
    )


def main() -> int:
    """python -m tasks.tracking.owed: send what all runs of IGPO_HOME owe to MLflow."""
    started = time.monotonic()
    try:
        count = send_runs(open_home(), lambda line: print(line, flush=True))
    except IgpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} runs owed something to {tracking_uri()}, which has it now ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
