"""Data files of the Hugging Face hub, by name: hf://datasets/<owner>/<name>@<commit>/<path of the file>.

The commit is part of the name, so that the same name is the same bytes for ever; a file is fetched once and stays in the
hub's own cache (HF_HOME). Whatever comes is read and validated like any other file.
"""

import re
from pathlib import Path

from igpo_core.errors import ConfigError, DataError

NAME = re.compile(r"hf:/+datasets/(?P<repository>[\w.-]+/[\w.-]+)@(?P<revision>[^/]+)/(?P<file>.+)")


def is_hub_name(path: Path) -> bool:
    """Return whether the path names a file of the hub: hf://..."""
    return path.parts[:1] == ("hf:",)  # Path makes one slash of two


def require_pinned(path: Path) -> None:
    """Raise ConfigError unless a hub name is whole and names a commit."""
    found = NAME.fullmatch(path.as_posix())
    if found is None:
        raise ConfigError(
            f"{path}: a file of the hub is named hf://datasets/<owner>/<name>@<commit>/<path of the file>"
        )
    if not re.fullmatch("[0-9a-f]{40}", found["revision"]):
        raise ConfigError(
            f"{path}: @{found['revision']} may name other bytes tomorrow: give the commit, 40 hex digits (the hub's page of the "
            "file shows it)"
        )


def fetched(path: Path) -> Path:
    """The file itself: a hub name's in the hub's cache, fetched where it is not there yet; any other path as it is.

    Raises DataError when the hub does not have it or does not answer.
    """
    if not is_hub_name(path):
        return path
    require_pinned(path)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = NAME.fullmatch(path.as_posix())
    assert found is not None
    try:
        place: str = hf_hub_download(
            found["repository"], found["file"], repo_type="dataset", revision=found["revision"]
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"{path} cannot be fetched: {error}. Check name and commit; a private one needs HF_TOKEN, and a machine without "
            "network the file in HF_HOME"
        ) from error
    return Path(place)
