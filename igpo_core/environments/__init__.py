"""A question in, observations out."""

from pathlib import Path
from typing import Any

from igpo_core.config import AtlasWorld, ExperimentConfig, LookupWorld
from igpo_core.environments.base import Environment
from igpo_core.errors import DataError


def open_environment(config: ExperimentConfig, folder: Path) -> Environment:
    """The environment over a published data folder (questions.parquet; corpus.parquet and an index for files).

    Raises DataError when the folder is not a published one.
    """
    if not (folder / "questions.parquet").is_file():
        raise DataError(f"{folder} holds no published data (questions.parquet is missing): run the prepare-data flow")
    if isinstance(config.data, LookupWorld | AtlasWorld):
        import pandas

        from igpo_core.data import to_questions

        questions = to_questions(pandas.read_parquet(folder / "questions.parquet"))
        return _world(config.data, questions, config.rollout.max_turns)
    from igpo_core.environments.qa import CorpusEnvironment

    return CorpusEnvironment(config.data, folder)


def _world(config: LookupWorld | AtlasWorld, questions: Any, max_turns: int) -> Environment:
    from igpo_core.environments.atlas import AtlasEnvironment
    from igpo_core.environments.lookup import LookupEnvironment

    if isinstance(config, LookupWorld):
        return LookupEnvironment(config, questions, max_turns)
    return AtlasEnvironment(config, questions, max_turns)
