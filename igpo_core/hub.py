"""Data files of the Hugging Face hub, by name: hf://datasets/<owner>/<name>@<commit>/<path of the file>.

The commit is part of the name, so that the same name is the same bytes for ever; a file is fetched once and stays in the
hub's own cache (HF_HOME). Whatever comes is read and validated like any other file.
"""

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from igpo_core.errors import ConfigError, DataError, NoNetwork

MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
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

    Raises DataError when the hub does not have it or does not answer, NoNetwork at once where its name does not resolve.
    """
    if not is_hub_name(path):
        return path
    require_pinned(path)
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = NAME.fullmatch(path.as_posix())
    assert found is not None
    cached = try_to_load_from_cache(found["repository"], found["file"], revision=found["revision"], repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    require_reachable(
        f"hf://{path.as_posix().removeprefix('hf:/')} is a file of it",
        "name a file of this machine in its place under data",
    )
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


def require_model(name: str, revision: str | None, setting: str = "policy.name") -> None:
    """Raise NoNetwork at once for a model of the hub that is not in its cache where the hub's name does not resolve.

    setting: that names the model.
    """
    from huggingface_hub import try_to_load_from_cache

    if Path(name).exists() or not MODEL.fullmatch(name):
        return
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        files = "config.json, tokenizer.json and *.safetensors"
        require_reachable(f"{setting}={name} is a model of it", f"set {setting} to a folder with {files}")


def require_reachable(needed: str, instead: str) -> None:
    """Raise NoNetwork where the hub's name does not resolve: its library would ask again for a minute. What may pass, an answer
    that is late or a server's error, is left to the library. needed: what of the hub; instead: how to do without it."""
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    host = address.hostname or ""
    if constants.HF_HUB_OFFLINE or (getproxies().get(address.scheme) and not proxy_bypass(host)):
        return  # nothing is asked, or a proxy resolves the name
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        raise NoNetwork(
            f"no network: {host} does not resolve ({error.strerror}), and {needed}. Fetch it on a machine with network and bring "
            f"the folder HF_HOME, or {instead}"
        ) from error
