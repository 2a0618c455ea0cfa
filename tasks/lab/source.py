"""The source that computes: its commit, and what MLflow shows as a run's source."""

import shutil
import subprocess
from pathlib import Path

UNKNOWN = "no commit known"


def commit() -> str:
    """Return the commit of this checkout, or why none is known."""
    if shutil.which("git") is None:
        return f"{UNKNOWN}: git is not installed"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else f"{UNKNOWN}: {git.stderr.strip()}"


def source_tags(file: str) -> dict[str, str]:
    """Return the tags from which MLflow shows a run's source: the file of this project and its commit, where one is known."""
    found = commit()
    known = {} if found.startswith(UNKNOWN) else {"mlflow.source.git.commit": found}
    return {"mlflow.source.name": file, "mlflow.source.type": "LOCAL", **known}
