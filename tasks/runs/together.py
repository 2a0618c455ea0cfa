"""Several processes train one policy: the flow's process starts them, and each goes through tasks/runs/training.py.

The first one writes the run's files and says its lines, as JSON on its standard output; the flow's process passes them on and
sends to MLflow what is written. What else the processes print goes to processes.log in the run's folder. When the flow's
process is told to end, or dies, the processes end too, the first one with a checkpoint.

Whoever reaches the place where ranks find one another runs code in them, for they exchange pickles. On one machine that place
is a file in a folder of the user's own, and they connect over loopback: nothing listens to the network. torch's own launcher
is not used, since its rendezvous listens on all interfaces.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from igpo_core.errors import ConfigError, IgpoError
from igpo_core.ranks import MEETING_FILE
from tasks.lab.ending import end, end_when
from tasks.lab.home import PROJECT
from tasks.lab.secrets import provide
from tasks.runs.devices import device
from tasks.runs.models import with_its_model
from tasks.runs.planned import OnStep, Run, Say, open_run, open_training
from tasks.tracking.outbox import NoOutbox, Outbox, read_about
from tasks.tracking.system import monitor

END_SECONDS = 18.0  # of the 30 s that most senders of SIGTERM grant; MLflow gets 10 of them
MARK = "igpo-lab: "
OWNER = "IGPO_OWNER"  # process number of the flow's process


@dataclass(frozen=True)
class Meeting:
    """Where the machines of a run find one another."""

    address: str
    port: int


def train_together(
    run: Run, lock: IO[str], say: Say, on_step: OnStep, call_others: Callable[[Meeting], None] = lambda meeting: None
) -> dict[str, Any]:
    """Train with as many processes as the run asks for; returns the run's result.

    lock: of the run; its processes hold it too, so that nobody else works on the run before its processes have ended.
    call_others: told where the other machines shall come to, each to call `join`, where there are several.
    Raises IgpoError with what the first process that failed said.
    """
    meeting = None
    if run.spec.experiment.training.nodes > 1:
        meeting = Meeting(meeting_address(), _free_port())
    if meeting is not None:
        call_others(meeting)
    failures = _launch(run, 0, meeting, say, on_step, [lock.fileno()])
    result = run.result()
    if failures or result is None:
        raise IgpoError(f"the processes of this run failed: {failures or 'no result was written'}")
    return result


def join(run: Run, node: int, meeting: Meeting, say: Say) -> None:
    """What machine `node` (from 1) does for a run of several. Raises IgpoError when its processes fail."""
    device(run.spec.experiment, say)  # its processes' accelerators are theirs alone
    provide(run.spec.experiment.data)  # its processes call tools too, and nobody prepared data in this one
    failures = _launch(run, node, meeting, say, lambda step: None, [])
    if failures:
        raise IgpoError(f"the processes of node {node} failed: {failures}")


def _launch(run: Run, node: int, meeting: Meeting | None, say: Say, on_step: OnStep, held: list[int]) -> str:
    """Run this machine's processes to their end; return what went wrong, "" when nothing did."""
    log = run.folder / ("processes.log" if node == 0 else f"processes-{node}.log")
    processes: list[subprocess.Popen[bytes]] = []
    failures: list[str] = []
    with _meeting_place(run, meeting) as place, log.open("ab") as errors:
        reading, writing = os.pipe()
        with os.fdopen(reading) as output:
            try:
                with os.fdopen(writing, "wb") as said_by_all:
                    for local in range(run.spec.experiment.training.processes):
                        started = subprocess.Popen(
                            [sys.executable, "-m", "tasks.runs.together", str(run.home), run.spec.run_key],
                            cwd=PROJECT,
                            env={**os.environ, **place, **_rank(run, node, local)},
                            stdin=subprocess.DEVNULL,
                            stdout=said_by_all,
                            stderr=errors,
                            pass_fds=held,
                        )
                        processes.append(started)
                ended = _Ended(processes)
                for line in output:
                    _pass_on(line, say, on_step, failures.append)
                failed = ended.first_failed()
            except BaseException:
                _end(processes)
                raise
    if failed is None:
        return ""
    said = failures[0] if failures else "none of them said why"
    return f"exit status {1 if failed.returncode < 0 else failed.returncode} ({_cause(failed)}), {said}. More in {log}"


@contextmanager
def _meeting_place(run: Run, meeting: Meeting | None) -> Iterator[dict[str, str]]:
    """Give the environment variables by which processes find one another (igpo_core.ranks.join_group). The folder of one
    machine's meeting is this user's alone, and new: what another start left there would be taken for this one's."""
    if meeting is not None:
        yield {"MASTER_ADDR": meeting.address, "MASTER_PORT": str(meeting.port)}
        return
    for left in run.folder.glob(".meeting-*"):  # of a process that was killed; the run's lock is ours
        shutil.rmtree(left, ignore_errors=True)  # another user's, of a shared folder, stays: this meeting has its own
    folder = tempfile.mkdtemp(prefix=".meeting-", dir=run.folder)  # mode 0700
    loopback = _loopback()
    try:
        yield {
            MEETING_FILE: str(Path(folder) / "store"),
            "GLOO_SOCKET_IFNAME": loopback,
            "NCCL_SOCKET_IFNAME": loopback,
        }
    finally:
        shutil.rmtree(folder)


def _loopback() -> str:
    """Return the name of the interface that has 127.0.0.1: lo on Linux. Raises ConfigError where none has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    raise ConfigError("no network interface has 127.0.0.1, over which a run's processes connect: bring up the loopback")


def _rank(run: Run, node: int, local: int) -> dict[str, str]:
    training = run.spec.experiment.training
    return {
        "RANK": str(node * training.processes + local),
        "WORLD_SIZE": str(training.world),
        "LOCAL_RANK": str(local),
        "LOCAL_WORLD_SIZE": str(training.processes),
        "OMP_NUM_THREADS": str(training.threads),
        OWNER: str(os.getpid()),
    }


class _Ended:
    """The end of processes that work together: where one fails, the others are ended.

    Others fail too for want of the first one, so each process has a thread that waits for it alone: a look at all of them now
    and then would not tell who was first.
    """

    def __init__(self, processes: "Sequence[subprocess.Popen[bytes]]") -> None:
        self._processes, self._lock = processes, threading.Lock()
        self._failed: subprocess.Popen[bytes] | None = None
        self._watchers = [threading.Thread(target=self._watch, args=[one], daemon=True) for one in processes]
        for watcher in self._watchers:
            watcher.start()

    def first_failed(self) -> "subprocess.Popen[bytes] | None":
        """Wait until all have ended; return the one that failed first, None where none did."""
        for watcher in self._watchers:
            watcher.join()
        return self._failed

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        with self._lock:
            first = code != 0 and self._failed is None
            if first:
                self._failed = process
        if first:
            _end_family(self._processes)


def _cause(process: "subprocess.Popen[bytes]") -> str:
    """exitcode: -9 (pid: 7) (SIGKILL)"""
    code = process.returncode
    name = f" ({signal.Signals(-code).name})" if code < 0 else ""
    return f"exitcode: {code} (pid: {process.pid}){name}"


def meeting_address() -> str:
    """Where other machines reach this one. Raises ConfigError where nobody said so."""
    address = os.environ.get("IGPO_ADDRESS")
    if not address:
        raise ConfigError(
            "training.nodes asks for several machines: set IGPO_ADDRESS to the address at which the others reach this one"
        )
    return address


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


def _pass_on(line: str, say: Say, on_step: OnStep, failed: Say) -> None:
    told: Mapping[str, Any] = json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else {"say": line.rstrip()}
    if "step" in told:
        on_step(told["step"])
    elif "failed" in told:
        failed(told["failed"])
    else:
        say(told["say"])


def _end(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not interrupt this
            signal.signal(number, signal.SIG_IGN)
    _end_family(processes)


def _end_family(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Tell the processes to end, and kill what has not ended in time, their children too."""
    asked, family = [], []
    for process in processes:
        if process.returncode is not None:  # waited for: its number may be another program's by now
            continue
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(process.pid)
            asked.append(own)
            family += [own, *own.children(recursive=True)]
    end(asked, lambda: family, END_SECONDS)


# ------------------------------------------------------------------------------------------ in each of the processes


def main(home: Path, run_key: str) -> None:
    """What each process does."""
    from tasks.runs.interruption import leave_checkpoint
    from tasks.runs.training import Recorder

    first = os.environ["RANK"] == "0"
    signal.signal(signal.SIGTERM, _interrupt if first else _linger)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the flow's process decides
    end_when(_owner_has_ended)
    say: Say = (lambda line: _tell(say=line)) if first else (lambda line: None)
    training = None
    try:
        run = with_its_model(open_run(home, run_key), say)
        about = read_about(run.folder)
        assert about is not None
        outbox = Outbox(run.folder, about) if first else NoOutbox()
        training = open_training(run, say)
        with contextlib.ExitStack() as stack:
            system: Callable[[], dict[str, float]] = dict
            if first:
                place, owner = str(training.trainer.policy.model.device), int(os.environ[OWNER])
                system = stack.enter_context(monitor(run.spec.experiment, place, say, owner)).taken
            Recorder(run, training, outbox, say, lambda step: _tell(step=step) if first else None, system).to_end()
    except KeyboardInterrupt:
        if training is not None:
            leave_checkpoint(training, outbox, say)
    except Exception as error:
        _tell(failed=f"{type(error).__name__} in process {os.environ['RANK']}: {error}")
        raise
    sys.stderr.flush()
    # without waiting for processes that may have ended: torch's threads of a group whose other side is gone abort a plain exit
    # now and then, and a run that is done would be told as failed
    os._exit(0)


def _tell(**what: Any) -> None:
    line = MARK + json.dumps(what) + "\n"
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: end_when sees to that
        sys.stdout.write(line)  # print writes text and newline apart, and the system's monitor is another thread
        sys.stdout.flush()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _linger(number: int, frame: Any) -> None:
    """The first process may need this one to finish its step; it does not outlive it for long."""
    timer = threading.Timer(END_SECONDS - 5, os._exit, [0])
    timer.daemon = True
    timer.start()


def _owner_has_ended() -> None:
    """Return when the flow's process has ended. A process whose parent has ended gets another one, which nothing else changes: no
    clock and no reused process number."""
    while os.getppid() == int(os.environ[OWNER]):
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
