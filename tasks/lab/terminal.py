"""What a sweep shows in a terminal: what is told to people, and no line of Prefect's.

All that Prefect logs still goes to the pages of the flow runs, and here to a file instead of the terminal. A sweep that a
worker runs is left alone: its output is the worker's log.
"""

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from tasks.lab.prefect_runs import TOLD

LOG = "IGPO_SWEEP_LOG"  # environment variable: the file, for the processes of the runs


class Told(logging.StreamHandler[TextIO]):
    """Writes what run_log of tasks.lab.prefect_runs was given, as it is."""

    def __init__(self, level: int) -> None:
        super().__init__(sys.stdout)
        self.setLevel(level)
        self.addFilter(lambda record: getattr(record, TOLD, False))
        self.setFormatter(logging.Formatter("%(message)s"))


def show_progress(log: Path) -> None:
    """From now on this process and its children log to the file. This one tells everything, its children warnings alone."""
    os.environ[LOG] = str(log)
    _log_to(log, logging.INFO)


def follow_parent() -> None:
    """In a child process: log where its parent does."""
    if log := os.environ.get(LOG):
        _log_to(Path(log), logging.WARNING)


def _log_to(path: Path, told: int) -> None:
    from prefect.logging.handlers import PrefectConsoleHandler

    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    for console in [handler for handler in root.handlers if isinstance(handler, PrefectConsoleHandler)]:
        file = logging.FileHandler(path)
        file.setFormatter(console.formatter)
        root.removeHandler(console)
        root.addHandler(file)
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addHandler(Told(told))


def hush_tasks() -> None:
    """Leave "Finished in state Completed()" of each task, which names none, out of the sweep's log."""
    logging.getLogger("prefect.task_runs").setLevel(logging.WARNING)
