"""MLflow and the Prefect server, on this machine."""

import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
from sqlalchemy.engine import make_url

from deployments import processes
from deployments.place import Place, given, own, run_once, say, wait_until_ready
from deployments.processes import Record
from deployments.shell import tell_prefect
from igpo_core.errors import ServiceError
from tasks.lab.account import make_account, mlflow_has_account
from tasks.lab.home import PROJECT


@dataclass(frozen=True)
class Server:
    """What tells one server from the other.

    preparation: a command that runs to its end before a new start. variables: of its environment, besides the common ones.
    closed: an address that is refused without the account; empty where the server asks for none. lacks: what would give it an
    account, where it has none.
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    port: int
    variable: str
    health: str
    preparation: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    closed: str = ""
    lacks: str = ""


LOOPBACK = "127.0.0.1"


def mlflow_server(place: Place, host: str = LOOPBACK) -> Server:
    """Return how MLflow's server is started here. host: the address it listens on."""
    folder = place.home / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    database = os.environ.get("MLFLOW_BACKEND_STORE_URI") or f"sqlite:///{folder / 'mlflow.db'}"
    address = make_url(database)
    if address.password or "password" in address.query:
        raise ServiceError(
            "MLFLOW_BACKEND_STORE_URI carries a password, which every user of this machine could read in the list of "
            "processes: leave it out and put it into PGPASSWORD or ~/.pgpass"
        )
    accounts: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    if os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        given("MLFLOW_FLASK_SERVER_SECRET_KEY", "a long random text, by which MLflow signs its pages' forms")
        accounts = ("--app-name", "basic-auth")
    elif mlflow_has_account():
        variables = mlflow_account(place, folder)
        accounts = ("--app-name", "basic-auth")
    listen = ("--host", host, "--port", str(place.mlflow_port), "--workers", "1")
    stores = ("--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts"))
    return Server(
        name="mlflow",
        title="MLflow",
        arguments=("deployments.mlflow_server", *listen, *stores, *accounts),
        port=place.mlflow_port,
        variable="MLFLOW_PORT",
        health=f"{place.mlflow_url}/health",
        # several processes that first touch a new database at once crash one another
        preparation=("mlflow", "db", "upgrade", database),
        variables=variables,
        closed=f"{place.mlflow_url}/api/2.0/mlflow/experiments/search?max_results=1" if accounts else "",
        lacks="" if accounts else "MLFLOW_AUTH_CONFIG_PATH, or IGPO_MLFLOW_ACCOUNT=on",
    )


def mlflow_account(place: Place, folder: Path) -> dict[str, str]:
    """MLflow's own accounts, in a database of their own, with the account of the Prefect server as the administrator's. Raises
    ServiceError where there is none."""
    account = place.account
    if account is None:
        raise ServiceError(
            "MLflow shall ask for the account, and there is none: set PREFECT_API_AUTH_STRING=name:password"
        )
    name, _, password = account.partition(":")
    settings = folder / "accounts.ini"
    settings.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nauth_cache_ttl_seconds = 60\n"
        f"database_uri = sqlite:///{folder / 'accounts.db'}\n"
    )
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_USERNAME": name,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def prefect_server(place: Place, host: str = LOOPBACK) -> Server:
    """Return how Prefect's server is started here. host: the address it listens on."""
    return Server(
        name="prefect",
        title="Prefect",
        arguments=("prefect", "server", "start", "--host", host, "--port", str(place.prefect_port)),
        port=place.prefect_port,
        variable="PREFECT_PORT",
        health=f"{place.prefect_url}/api/health",
        closed=f"{place.prefect_url}/api/admin/version",
        lacks="" if place.account else "PREFECT_API_AUTH_STRING=name:password",
    )


def start_servers(place: Place) -> None:
    """Keep our own running servers, start the others, wait until all answer. What fails to start is ended.

    Raises ServiceError where one that runs asks for no account.
    """
    if not own(place, "prefect"):  # one that runs has the account it was started with, whatever this process was told
        make_account(place.home)
    wanted = (prefect_server(place), mlflow_server(place))
    for server in wanted:
        require_startable(place, server)
    for server in wanted:
        if own(place, server.name):
            say(f"{server.title}: runs on port {server.port}, reused")
            continue
        say(f"{server.title}: starting on port {server.port}")
        start(place, server)
    for server in wanted:
        wait_until_it_answers(place, server)
    tell_prefect(place)


def start(place: Place, server: Server) -> None:
    """Start one server; return before it answers."""
    environment = _prepare(place, server)
    log = place.log(server.name)
    record = processes.start(server.arguments, folder=PROJECT, environment=environment, log=log, port=server.port)
    place.state.set(server.name, record)


def become(place: Place, server: Server, host: str) -> None:
    """Turn this process into a server: of a container, whose end is the server's. Does not return.

    Raises ServiceError where it would ask for no account, but for an MLflow that no network reaches.
    """
    if server.lacks and (host != LOOPBACK or server.name == "prefect"):
        raise ServiceError(
            f"LISTEN={host}: who reaches {server.title} there could use it without an account: set {server.lacks}"
        )
    os.execve(sys.executable, [sys.executable, "-m", *server.arguments], _prepare(place, server))


def _prepare(place: Place, server: Server) -> dict[str, str]:
    """Run what comes before a start; return the server's environment."""
    environment = place.server_environment()
    if server.preparation:
        run_once(place, f"{server.name}-preparation", list(server.preparation), environment)
    return {**environment, **server.variables}


def wait_until_it_answers(place: Place, server: Server) -> None:
    """Return when a server that was started answers. Raises ServiceError where it does not, or asks for no account but should."""
    record = place.state.read()[server.name]
    wait_until_ready(place, server.name, server.title, record, ready=partial(answers, record, server.health))
    if server.closed:
        require_closed(server.title, server.closed)


def require_closed(title: str, address: str) -> None:
    """Raise ServiceError unless a call without the account is refused: a server of before may still run without one."""
    status = httpx.get(address, timeout=10, trust_env=False).status_code
    if status != httpx.codes.UNAUTHORIZED:
        raise ServiceError(
            f"{title} runs and asks for no account (a call without one was answered with {status}): whoever reaches it can use "
            "it. Run `make down` and start again"
        )


def require_startable(place: Place, server: Server) -> None:
    """Raise ServiceError when ours runs on another port or as another version of the project started it, or when the port belongs
    to another program."""
    record = place.state.read().get(server.name)
    if record and not processes.is_alive(record):
        processes.end(record)  # a killed server leaves children that hold its port
        place.state.set(server.name, None)
    elif record and record.port != server.port:
        raise ServiceError(
            f"{server.title} of {place.home} runs on port {record.port}, not on {server.port}: run `make down` first, "
            f"or set {server.variable}={record.port}"
        )
    elif record and not processes.runs(record, server.arguments[0]):
        raise ServiceError(
            f"{server.title} of {place.home} runs as another version of this project started it, and may be open to other users "
            "of this machine: run `make down` and start again"
        )
    elif record:
        return
    processes.require_free_port(server.port, server.variable)


def answers(record: Record, url: str) -> bool:
    """Return whether the server at this address answers, and is the one that was started."""
    try:
        return httpx.get(url, timeout=5, trust_env=False).is_success and processes.listens(record)
    except httpx.TransportError:
        return False
