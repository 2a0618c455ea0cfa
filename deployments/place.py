"""Where the services of one folder are, and how their processes are started."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from deployments import processes
from deployments.processes import Record, StateFile
from igpo_core.errors import ServiceError
from tasks.lab.account import for_runs, for_servers, mlflow_has_account, read_account
from tasks.lab.home import PROJECT, home

DEFAULT_PORTS = {"MLFLOW_PORT": 5000, "PREFECT_PORT": 4200}
# a server is up in 8 s on two idle cores, in a minute on busy ones; one that dies is seen at once
START_SECONDS = 600.0


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


@dataclass(frozen=True)
class Place:
    """Where the services of one folder are."""

    home: Path
    mlflow_port: int
    prefect_port: int
    elsewhere: bool = False  # servers that MLFLOW_TRACKING_URI and PREFECT_API_URL name, instead of those of the folder

    @classmethod
    def from_environment(cls) -> "Place":
        """Return the place that the environment names. Raises ServiceError for a port that is none."""
        ports = {}
        for variable, default in DEFAULT_PORTS.items():
            text = os.environ.get(variable) or str(default)
            if not text.isdecimal() or not 1024 <= int(text) <= 65535:
                raise ServiceError(f"{variable}={text} is no port: give a number between 1024 and 65535")
            ports[variable] = int(text)
        if ports["MLFLOW_PORT"] == ports["PREFECT_PORT"]:
            raise ServiceError(
                f"MLFLOW_PORT and PREFECT_PORT are both {ports['MLFLOW_PORT']}: give two different ports"
            )
        return cls(home(), ports["MLFLOW_PORT"], ports["PREFECT_PORT"])

    @property
    def mlflow_url(self) -> str:
        """Return MLflow's address."""
        if self.elsewhere:
            return given("MLFLOW_TRACKING_URI")
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def prefect_url(self) -> str:
        """Return Prefect's address, without /api."""
        if self.elsewhere:
            return given("PREFECT_API_URL").rstrip("/").removesuffix("/api")
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def account(self) -> str | None:
        """name:password of the Prefect server, None where there is none: the embedded server's is made when it starts."""
        if not self.elsewhere:
            return read_account(self.home)
        own = replace(self, elsewhere=False)
        given_account = os.environ.get("PREFECT_API_AUTH_STRING")
        # through a tunnel the embedded server of a shared folder is at its own address on other machines, too
        return given_account or (read_account(self.home) if self.prefect_url == own.prefect_url else None)

    @property
    def state(self) -> StateFile:
        """Return the file of what runs here."""
        return StateFile(self.home / "services.json")

    def log(self, name: str) -> Path:
        """Return where a service's log is."""
        return self.home / "logs" / f"{name}.log"

    def environment(self) -> dict[str, str]:
        """What the worker and its flow runs find in their environment: no password that only a server needs."""
        account = self.account
        # "": none, whatever a .env of this folder says, for the account of one server is not for another
        variables = {"PREFECT_API_AUTH_STRING": account or ""}
        if not self.elsewhere and account and mlflow_has_account():
            name, _, password = account.partition(":")
            variables |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
        return {**filter_names(os.environ, for_runs), **self._common(), **variables}

    def server_environment(self) -> dict[str, str]:
        """What the embedded servers find in their environment: no key of a search or a judge."""
        account = self.account or ""
        variables = {
            "PREFECT_SERVER_API_AUTH_STRING": account,
            "PREFECT_API_AUTH_STRING": account,
            # pages of other origins get no answer to read; the account is what refuses them
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(
                f"http://{host}:{self.prefect_port}" for host in ("127.0.0.1", "localhost")
            ),
        }
        return {**filter_names(os.environ, for_servers), **self._common(), **variables}

    def _common(self) -> dict[str, str]:
        return {
            "IGPO_HOME": str(self.home),
            "MLFLOW_PORT": str(self.mlflow_port),
            "PREFECT_PORT": str(self.prefect_port),
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_V2_ENABLED": "false",  # links open the first interface, and so does the server's start page
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # deployments/automations/end-dead-runs.yaml counts on it
            "PREFECT_CLIENT_MAX_RETRIES": "8",  # some eight minutes without a server
            "DO_NOT_TRACK": "true",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
            "TQDM_DISABLE": "1",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # unused here, and seven processes of 240 MB
            "GX_ANALYTICS_ENABLED": "false",
            "PYTHONUNBUFFERED": "1",
        }


def filter_names(variables: Mapping[str, str], wanted: Callable[[str], bool]) -> dict[str, str]:
    """Return the variables with a name that is wanted."""
    return {name: value for name, value in variables.items() if wanted(name)}


def given(variable: str, what: str = "the address of the server, as this machine reaches it") -> str:
    """Return a variable of the environment. Raises ServiceError, with what it has to be, when it is not set."""
    value = os.environ.get(variable)
    if not value:
        raise ServiceError(f"{variable} is not set: set it to {what}")
    return value


def environment() -> dict[str, str]:
    """What a process needs to reach the services of the folder and ports that this one was told."""
    return Place.from_environment().environment()


def own(place: Place, name: str) -> Record | None:
    """The service of that name that was started here and still runs."""
    record = place.state.read().get(name)
    return record if record and processes.is_alive(record) else None


def wait_until_ready(place: Place, name: str, title: str, record: Record, *, ready: Callable[[], bool]) -> None:
    """Wait for a service to answer. Raises ServiceError with the end of its log where it does not."""
    try:
        processes.wait_for(
            ready,
            what=title,
            log=place.log(name),
            alive=lambda: processes.is_alive(record),
            seconds=START_SECONDS,
            say=say,
        )
    except ServiceError:
        processes.end(record)
        place.state.set(name, None)
        raise


def run_once(place: Place, name: str, arguments: list[str], environment: Mapping[str, str] | None = None) -> None:
    """Run `python -m arguments...` to its end, as the worker's flow runs are. Raises ServiceError with the end of its log."""
    log = place.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        done = subprocess.run(
            [sys.executable, "-m", *arguments],
            cwd=PROJECT,
            env=place.environment() if environment is None else environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise ServiceError(
            f"`{' '.join(arguments[:3])}` ended with exit status {done.returncode}. The end of {log}:\n"
            f"{processes.tail(log)}"
        )
