"""How a shell reaches the embedded servers: `.env` of the project folder, which Prefect reads there, and lines to export."""

import shlex
from io import StringIO
from pathlib import Path

from deployments import processes
from deployments.place import Place, say
from deployments.processes import StateFile
from igpo_core.folders import write_text
from tasks.lab.account import account_file, mlflow_has_account
from tasks.lab.home import PROJECT

ENV = PROJECT / ".env"
BEGIN = "# igpo-lab: lines of `make up`, for "
END = "# igpo-lab: end"
# without PREFECT_API_URL and PREFECT_HOME `prefect` starts a server of its own outside this folder, and leaves ~/.prefect
TOLD = ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_API_AUTH_STRING")
# what finds the laboratory; how long a flow waits for its server, and how often it says that it lives; nothing is told to others
EXPORTS = (
    "PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "MLFLOW_PORT", "PREFECT_PORT", "IGPO_HOME",
    "PREFECT_CLIENT_MAX_RETRIES", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
    "PREFECT_SERVER_ANALYTICS_ENABLED", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "GX_ANALYTICS_ENABLED",
)  # fmt: skip


def exports(place: Place) -> list[str]:
    """Lines for a shell. The account is read from its file, so that no terminal shows it and no history keeps it."""
    told = place.environment()
    account = f'"$(cat {shlex.quote(str(account_file(place.home)))})"'
    lines = [f"export {name}={shlex.quote(told[name])}" for name in EXPORTS]
    lines.append(f"export PREFECT_API_AUTH_STRING={account}")
    if mlflow_has_account():
        lines.append('export MLFLOW_TRACKING_USERNAME="${PREFECT_API_AUTH_STRING%%:*}"')
        lines.append('export MLFLOW_TRACKING_PASSWORD="${PREFECT_API_AUTH_STRING#*:}"')
    return lines


def tell_prefect(place: Place) -> None:
    """Write address and account into .env, so that `prefect` finds the server in the project folder.

    Lines of the user stay as they are. Nothing is written where they set one of the same variables, or where the lines of
    another laboratory stand there whose server runs: both are said.
    """
    others, home = _parts()
    set_there = sorted({name for line in others if (name := _name(line)) in TOLD})
    if set_there:
        say(f"{ENV}: has {', '.join(set_there)} of your own and stays as it is; a shell needs the lines of `make up`")
    elif home is not None and home != place.home and _runs(home):
        say(f"{ENV}: belongs to {home}, which runs; for this one a shell needs the lines of `make up`")
    else:
        told = place.environment()
        ours = [f"{BEGIN}{place.home}", *(f"{name}={_quoted(told[name])}" for name in TOLD), END]
        write_text(ENV, "".join(f"{line}\n" for line in [*others, *ours]), mode=0o600)


def forget(place: Place) -> None:
    """Take the lines of this folder's server out of .env again, and the file where nothing else is in it."""
    others, home = _parts()
    if home != place.home:
        return
    if others:
        write_text(ENV, "".join(f"{line}\n" for line in others), mode=0o600)
    else:
        ENV.unlink()


def _parts() -> tuple[list[str], Path | None]:
    """The user's lines of .env, and the folder that ours are for: those behind BEGIN that set what we set, and END."""
    others: list[str] = []
    home: Path | None = None
    inside = False
    for line in map(_unended, StringIO(ENV.read_text() if ENV.is_file() else "")):
        if line.startswith(BEGIN):
            home, inside = Path(line.removeprefix(BEGIN)), True
        elif inside and _name(line) in TOLD:
            continue
        else:
            if not (inside and line == END):
                others.append(line)
            inside = False
    return others, home


def _unended(line: str) -> str:
    return line.removesuffix("\n")


def _runs(home: Path) -> bool:
    record = StateFile(home / "services.json").read().get("prefect")
    return record is not None and processes.is_alive(record)


def _name(line: str) -> str:
    return line.strip().removeprefix("export ").partition("=")[0].strip()


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
