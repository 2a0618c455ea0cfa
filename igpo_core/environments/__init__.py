"""Tasks in, observations and scores out."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from igpo_core.config import ExperimentConfig
    from igpo_core.environments.base import Environment


def open_environment(config: "ExperimentConfig", folder: Path) -> "Environment":
    """Return the environment of an experiment over a published data folder (questions.parquet; corpus.parquet and an index for
    files). Raises DataError when the folder is not a published one."""
    return config.data.open(folder, config.rollout.max_turns)
