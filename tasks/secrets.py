"""Keys of paid services: from the environment, or from a Prefect Secret block, never from a file or a parameter."""

import os

from igpo_core.config import AtlasWorld, LookupWorld, QuestionFiles, WebSearch


def provide(config: LookupWorld | AtlasWorld | QuestionFiles) -> None:
    """Put the key of a web search into this process's environment, from the Secret block named after its variable.

    Nothing is done where the variable is set or no key is needed. A missing block leaves it unset, which
    igpo_core.retrieval.web.read_key reports.
    """
    search = config.search if isinstance(config, QuestionFiles) else None
    if not isinstance(search, WebSearch) or search.api == "retriever" or search.mode == "replay":
        return
    if os.environ.get(search.key_variable):
        return
    from prefect.blocks.system import Secret

    name = search.key_variable.lower().replace("_", "-")
    try:
        block = Secret.load(name, _sync=True)  # type: ignore[call-arg]  # its decorator takes it
    except ValueError:  # there is none of that name
        return
    assert isinstance(block, Secret)
    os.environ[search.key_variable] = str(block.get())
