"""The chains of steps that a user starts: prepare-data, train, evaluate, ablation, night."""

import logging

from igpo_core.errors import IgpoError


def _say_what_is_wrong(record: logging.LogRecord) -> bool:
    """Take the traceback from the log of an error of ours: its message says what is wrong and what to do."""
    if record.exc_info and isinstance(record.exc_info[1], IgpoError):
        record.exc_info = None
    return True


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_say_what_is_wrong)
