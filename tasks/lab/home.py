"""The one folder that holds everything made here: published data, warm starts, runs, servers' databases, logs."""

import os
from pathlib import Path

from igpo_core.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[2]
THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
SHARED = "IGPO_SHARED"  # variable; "group": the users of the folder's group share it


def home() -> Path:
    """IGPO_HOME, or .igpo in the project folder."""
    return Path(os.environ.get("IGPO_HOME") or PROJECT / ".igpo").resolve()


def open_home() -> Path:
    """Make the folder, and every file that this process and its children make from now on, the user's alone; return it.

    What is said to servers of this machine goes through no proxy from then on: it bears the account.

    With IGPO_SHARED=group it is the group's too. Raises ConfigError where others may write there: it holds the databases of
    the servers and what runs start from, so that whoever writes there acts as its user.
    """
    shared = os.environ.get(SHARED, "")
    if shared not in ("", "group"):
        raise ConfigError(f"{SHARED}={shared} is no way to share IGPO_HOME: set it to group, or leave it out")
    _bypass_proxies()
    folder, allowed = home(), 0o2770 if shared else 0o700
    os.umask(0o007 if shared else 0o077)
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(allowed)  # with the group's bit its files belong to the group whoever makes them
    found = folder.stat()
    own = found.st_uid == os.geteuid()
    if not shared and not own:
        raise ConfigError(
            f"{folder} belongs to another user: name a folder of your own with IGPO_HOME, or set {SHARED}=group on all sides "
            "where the users of its group share it"
        )
    if found.st_mode & 0o022 & ~allowed:
        raise ConfigError(
            f"others may write to {folder} (mode {found.st_mode & 0o7777:o}), and whoever writes there can run code as you: "
            f"see that nothing strange lies there, then `chmod {allowed:o} {folder}`"
            + ("" if shared else f", or set {SHARED}=group where the users of its group share it")
        )
    if own and found.st_mode & 0o077 & ~allowed:
        folder.chmod(allowed)
    return folder


def _bypass_proxies() -> None:
    """Let no client of this process and its children ask a proxy for this machine: they would by themselves, unlike curl."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    # "*" means no proxy at all, to urllib and requests where it stands alone
    value = "*" if "*" in names else ",".join(dict.fromkeys([*names, *THIS_MACHINE]))
    os.environ.update(no_proxy=value, NO_PROXY=value)


def data_folder(version: str) -> Path:
    """Return the folder of a version of data."""
    return home() / "data" / version
