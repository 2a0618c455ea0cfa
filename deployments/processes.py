"""Long-lived processes of one folder: started in a session of their own, recognised later, ended whole.

A process is known again by a random mark in its environment, not by its number alone: a number that the system has
given to another program since is never taken for ours. Children inherit the mark, so that ending a service ends every
process it started, wherever those went.
"""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from igpo_core.errors import ServiceError
from igpo_core.folders import write_json
from igpo_core.locks import held
from tasks.lab import ending

MARK = "IGPO_SERVICE_MARK"


@dataclass(frozen=True)
class Record:
    """A process that was started: its number, its mark and the port it was told to listen on (0: none)."""

    pid: int
    mark: str
    port: int


class StateFile:
    """services.json: what was started, by name. Rewritten whole, by rename."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """Return what runs, by name. Raises ServiceError where the file is damaged."""
        if not self.path.is_file():
            return {}
        try:
            return {name: Record(**entry) for name, entry in json.loads(self.path.read_text()).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ServiceError(
                f"{self.path} cannot be read ({error}). Delete it, and end by hand what "
                "`ps -ef | grep -e mlflow -e prefect` still shows."
            ) from error

    def set(self, name: str, record: Record | None) -> None:
        """Write what runs under this name; None: nothing."""
        records = self.read()
        records.pop(name, None)
        if record is not None:
            records[name] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {key: asdict(value) for key, value in records.items()})


def start(
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    log: Path,
    port: int = 0,
    mark: str | None = None,
) -> Record:
    """Start `python -m arguments...` so that it outlives this terminal; its output is appended to `log`.

    mark: of a service that died and that this one replaces, whose children become members of the new one.
    """
    mark = mark or uuid.uuid4().hex
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=folder,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Record(process.pid, mark, port)


def is_alive(record: Record) -> bool:
    """Whether the process that was started still runs, and not another one under its number."""
    return psutil.pid_exists(record.pid) and _mark(psutil.Process(record.pid)) == record.mark


def runs(record: Record, module: str) -> bool:
    """Whether the process that was started runs this module of Python, or is ending."""
    try:
        command = psutil.Process(record.pid).cmdline()
    except psutil.NoSuchProcess:
        return True
    return not command or command[1:3] == ["-m", module]


def members(record: Record) -> list[psutil.Process]:
    """The process and everything it started that still runs: all that bear its mark, except this very process."""
    return [
        process for process in psutil.process_iter() if process.pid != os.getpid() and _mark(process) == record.mark
    ]


def listens(record: Record) -> bool:
    """Whether it is one of its members that listens on its port: another program's server may answer there."""
    return any(record.port in _listening(process) for process in members(record))


def _listening(process: psutil.Process) -> set[int]:
    try:
        connections = process.net_connections(kind="tcp")
    except psutil.NoSuchProcess:
        return set()  # it ended meanwhile
    return {connection.laddr[1] for connection in connections if connection.status == psutil.CONN_LISTEN}


def end(record: Record, *, patience: float = 30) -> int:
    """Ask all members to end, end by force those that do not within `patience` seconds; returns how many there were."""
    asked = members(record)
    if left := ending.end(asked, lambda: members(record), patience):
        numbers = ", ".join(str(process.pid) for process in left)
        raise ServiceError(f"processes {numbers} do not end, not even by force: see what holds them, then call again")
    return len(asked)


def _mark(process: psutil.Process) -> str | None:
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else process.environ().get(MARK)
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None  # gone, or another user's: not ours in either case


@contextmanager
def one_at_a_time(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Two calls at once would start two of each."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with held(lock, lambda: say("Waiting for another call of the services to finish")):
        yield


def require_free_port(port: int, variable: str) -> None:
    """Raise ServiceError, naming who holds it where that can be seen, unless 127.0.0.1:port can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ServiceError(
                f"port {port} of 127.0.0.1 cannot be used ({error}){_holder(port)}. End that program, or choose "
                f"another port: make {variable}={port + 1} ..."
            ) from error


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f": process {connection.pid} ({psutil.Process(connection.pid).name()}) listens there"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""  # it ended meanwhile, or may not be seen: the message does without its name
    return ""


def wait_for(
    ready: Callable[[], bool],
    *,
    what: str,
    log: Path,
    alive: Callable[[], bool],
    seconds: float,
    say: Callable[[str], None],
) -> None:
    """Wait until ready(), with a line now and then. Raises ServiceError with the end of the log when that fails."""
    started = time.monotonic()
    told = started
    while not ready():
        waited = time.monotonic() - started
        if not alive():
            raise ServiceError(f"{what} ended while it was starting. The end of {log}:\n{tail(log)}")
        if waited > seconds:
            raise ServiceError(f"{what} does not answer after {waited:.0f} s. The end of {log}:\n{tail(log)}")
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            say(f"  waiting for {what} ({waited:.0f} s)")
        time.sleep(0.25)


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.is_file() else "(no log)"
