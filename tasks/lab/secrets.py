"""Keys of paid services: from the environment, or from a Prefect Secret block, never from a file or a parameter."""

import os

import httpx

from igpo_core.config import DataConfig, ExperimentConfig, HttpSettings, QuestionFiles, WebSearch
from igpo_core.errors import ConfigError
from igpo_core.http import read_key


def provide(config: DataConfig) -> None:
    """The key of a web search, into this process's environment. A missing one is reported by who needs it."""
    search = config.search if isinstance(config, QuestionFiles) else None
    if isinstance(search, WebSearch) and search.api != "retriever" and search.mode != "replay":
        from_block(search)


def require_judge(experiment: ExperimentConfig) -> None:
    """Raise ConfigError, before work starts, where a judge is asked for and its key is missing."""
    judge = experiment.evaluation.judge
    if judge is not None:
        from_block(judge)
        read_key(judge, "evaluation.judge")


def from_block(settings: HttpSettings) -> None:
    """Set the variable from the Secret block named after it. Nothing is done where it is set or there is no such block.

    Raises ConfigError where it is not set and the Prefect server, which may have the block, does not answer.
    """
    if os.environ.get(settings.key_variable):
        return
    from prefect.blocks.system import Secret
    from prefect.exceptions import ObjectNotFound

    name = settings.key_variable.lower().replace("_", "-")
    try:
        block = Secret.load(name)
    except ValueError as error:
        if isinstance(error.__cause__, ObjectNotFound):
            return
        raise
    except httpx.ConnectError as error:
        raise ConfigError(
            f"{settings.key_variable} is not set, and the Prefect server, which may have it as Secret block {name}, does not "
            f"answer ({error}): set the variable, or start the server"
        ) from error
    assert isinstance(block, Secret)
    os.environ[settings.key_variable] = str(block.get())
