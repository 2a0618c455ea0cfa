"""The one folder that holds everything made here: published data, warm starts, runs, servers' databases, logs."""

import os
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]


def home() -> Path:
    """IGPO_HOME, or .igpo in the project folder."""
    return Path(os.environ.get("IGPO_HOME") or PROJECT / ".igpo").resolve()


def run_folder(run_key: str) -> Path:
    return home() / "runs" / run_key


def data_folder(version: str) -> Path:
    return home() / "data" / version


def warm_start_folder(key: str) -> Path:
    return home() / "warm_starts" / key
