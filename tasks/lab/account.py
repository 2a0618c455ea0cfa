"""The account of the embedded servers: who has no part of it reaches nothing of them, also on this machine.

It lies in IGPO_HOME, in a file that the user alone reads. The Prefect server always asks for it, for who reaches that
server runs code as its worker. MLflow asks for it when IGPO_MLFLOW_ACCOUNT is on.
"""

import os
import secrets
import stat
from pathlib import Path

from igpo_core.errors import ServiceError
from igpo_core.folders import write_text

ACCOUNT = "account"
NAME = "igpo"
SWITCH = "IGPO_MLFLOW_ACCOUNT"
# what only a server needs: the beginnings of names that the worker, the flows and the training processes do without
SERVERS_ONLY = (
    "PREFECT_SERVER_",
    "PREFECT_API_DATABASE_",
    "PREFECT_ORION_",
    "MLFLOW_AUTH_",
    "PGPASS",
    "POSTGRES_PASSWORD",
)
SERVERS_ONLY_NAMES = {
    "MLFLOW_BACKEND_STORE_URI", "MLFLOW_REGISTRY_STORE_URI", "MLFLOW_FLASK_SERVER_SECRET_KEY",
    "MLFLOW_CRYPTO_KEK_PASSPHRASE", "PGUSER", "PGSERVICE", "PGSERVICEFILE", "PGSSLKEY",
}  # fmt: skip
RUNS_ONLY = ("_API_KEY",)  # of a web search or a judge: key_variable of a specification names it
RUNS_ONLY_NAMES = {
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "PREFECT_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
}


def account_file(home: Path) -> Path:
    """Return where the account of the servers is kept."""
    return home / ACCOUNT


def read_account(home: Path) -> str | None:
    """name:password of the embedded servers of that folder; None before their first start.

    Raises ServiceError where others may read or write the file, or where it holds no account.
    """
    path = account_file(home)
    try:
        with path.open() as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            text = file.read().removesuffix("\n")
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ServiceError(
            f"{path} is another user's: ask for the account, and set PREFECT_API_AUTH_STRING to it"
        ) from error
    if mode & 0o077:
        raise ServiceError(
            f"{path} is open to other users (mode {mode:04o}), who may know the account: run `make down`, delete it, and "
            "`make up`, which makes a new one"
        )
    _check(text, str(path))
    return text


def make_account(home: Path) -> str:
    """The account of that folder, made where there is none: the user's own, or a random one.

    The user's own is PREFECT_SERVER_API_AUTH_STRING, or PREFECT_API_AUTH_STRING. Raises ServiceError as read_account.
    """
    given = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or os.environ.get("PREFECT_API_AUTH_STRING")
    if given:
        _check(given, "PREFECT_SERVER_API_AUTH_STRING or PREFECT_API_AUTH_STRING")
    there = read_account(home)
    if there is not None and (not given or given == there):
        return there
    account = given or f"{NAME}:{secrets.token_urlsafe(32)}"
    home.mkdir(parents=True, exist_ok=True)
    write_text(account_file(home), account + "\n", mode=0o600)
    return account


def mlflow_has_account() -> bool:
    """Whether the embedded MLflow asks for the account. Raises ServiceError for another value than on and off, and beside
    accounts of the user's own."""
    value = os.environ.get(SWITCH) or "off"
    if value not in ("on", "off"):
        raise ServiceError(f"{SWITCH}={value} is neither on nor off: on makes the embedded MLflow ask for the account")
    if value == "on" and os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        raise ServiceError(
            f"{SWITCH}=on and MLFLOW_AUTH_CONFIG_PATH are two sets of accounts for MLflow: set one of them"
        )
    return value == "on"


def for_servers(name: str) -> bool:
    """Whether a variable is one that a server may have."""
    return not (name.endswith(RUNS_ONLY) or name in RUNS_ONLY_NAMES)


def for_runs(name: str) -> bool:
    """Whether a variable is one that the worker, the flows and the training processes may have."""
    return not (name.startswith(SERVERS_ONLY) or name in SERVERS_ONLY_NAMES)


def drop_what_servers_need() -> None:
    """Passwords of databases and accounts, out of this process's environment and so out of its children's."""
    for name in [name for name in os.environ if not for_runs(name)]:
        del os.environ[name]


def _check(account: str, where: str) -> None:
    name, colon, password = account.partition(":")
    if not (colon and name and password) or any(not c.isprintable() for c in account) or "${" in account:
        raise ServiceError(f"{where} holds no account: give it as name:password, in one line and without ${{")
