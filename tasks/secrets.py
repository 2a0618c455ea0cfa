"""Keys of paid services: from the environment, or from a Prefect Secret block, never from a file or a parameter."""

import os

from igpo_core.config import AtlasWorld, ExperimentConfig, HttpSettings, LookupWorld, QuestionFiles, WebSearch


def provide(config: LookupWorld | AtlasWorld | QuestionFiles) -> None:
    """The key of a web search, into this process's environment. A missing one is reported by who needs it."""
    search = config.search if isinstance(config, QuestionFiles) else None
    if isinstance(search, WebSearch) and search.api != "retriever" and search.mode != "replay":
        from_block(search)


def require_judge(experiment: ExperimentConfig) -> None:
    """Raise ConfigError, before work starts, where a judge is asked for and its key is missing."""
    from igpo_core.http import read_key

    judge = experiment.evaluation.judge
    if judge is not None:
        from_block(judge)
        read_key(judge, "evaluation.judge")


def from_block(settings: HttpSettings) -> None:
    """Set the variable from the Secret block named after it. Nothing is done where it is set or there is no such block."""
    if os.environ.get(settings.key_variable):
        return
    import httpx
    from prefect.blocks.system import Secret

    name = settings.key_variable.lower().replace("_", "-")
    try:
        block = Secret.load(name, _sync=True)  # type: ignore[call-arg]  # its decorator takes it
    except (ValueError, httpx.ConnectError):  # there is none of that name, or no server that could have one
        return
    assert isinstance(block, Secret)
    os.environ[settings.key_variable] = str(block.get())
