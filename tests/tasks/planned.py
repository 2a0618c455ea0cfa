"""Planned runs, as a sweep would hand them over."""

from pathlib import Path
from typing import Any

from igpo_core.config import ExperimentConfig, RunSpec, code_version
from tasks.runs.planned import Run


def planned(home: Path, experiment: ExperimentConfig | None = None, **given: Any) -> Run:
    """A run of the arm `arm` of study `study` in a sweep, on data version "data". given: fields of RunSpec that differ."""
    fields = {"study": "study", "sweep": "sweep", "arm": "arm", "data_version": "data", "code": code_version(), **given}
    return Run(RunSpec(experiment=experiment or ExperimentConfig(), **fields), home)
