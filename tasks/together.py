"""Several processes train one policy: torch's elastic launcher starts them, and each goes through tasks/training.py.

The first one writes the run's files and says its lines, as JSON on its standard output; the flow's process passes them on and
sends to MLflow what is written. What else the processes print goes to processes.log in the run's folder. When the flow's
process is told to end, or dies, the processes end too, the first one with a checkpoint.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from igpo_core.config import ExperimentConfig, code_version
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.folders import write_json
from tasks.home import PROJECT
from tasks.outbox import Nowhere, Outbox, read_about
from tasks.runs import RunIdentity, Say
from tasks.secrets import provide
from tasks.training import Job, OnStep

JOB = "job.json"
END_SECONDS = 18.0  # of the 30 s that most senders of SIGTERM grant; MLflow gets 10 of them
MARK = "igpo-lab: "
OWNER = "IGPO_OWNER"  # process number of the flow's process


def write_job(job: Job) -> None:
    content = {
        "experiment": job.experiment.model_dump(mode="json"),
        "run_key": job.run.run_key,
        "code_version": code_version(),
        **{name: str(getattr(job, name)) for name in ("data", "warm", "home", "study", "arm", "cell")},
    }
    job.run.folder.mkdir(parents=True, exist_ok=True)
    write_json(job.run.folder / JOB, content)


def read_job(folder: Path) -> Job:
    """Raises ConfigError where this process runs other code than the one that wrote it."""
    content = json.loads((folder / JOB).read_text())
    if content["code_version"] != code_version():
        raise ConfigError(
            f"igpo_core is {code_version()} here and {content['code_version']} where the run was started: install the same "
            "on all machines, and start the run again"
        )
    return Job(
        experiment=ExperimentConfig.model_validate(content["experiment"]),
        run=RunIdentity(content["run_key"], folder),
        data=Path(content["data"]),
        warm=Path(content["warm"]),
        home=Path(content["home"]),
        study=content["study"],
        arm=content["arm"],
        cell=content["cell"],
    )


@dataclass(frozen=True)
class Meeting:
    """Where the machines of a run find one another."""

    address: str
    port: int


def train_together(
    job: Job, lock: IO[str], say: Say, on_step: OnStep, call_others: Callable[[Meeting], None] = lambda meeting: None
) -> dict[str, Any]:
    """Train with as many processes as the job's experiment asks for; returns the run's result.

    lock: of the run; the launcher holds it too, so that nobody else works on the run before its processes have ended.
    call_others: told where the other machines shall come to, each to call `join`, where there are several.
    Raises IgpoError with what the first process that failed said.
    """
    meeting = None
    if job.experiment.training.nodes > 1:
        meeting = Meeting(meeting_address(), _free_port())
    write_job(job)
    if meeting is not None:
        call_others(meeting)
    failures = _launch(job, 0, meeting, say, on_step, [lock.fileno()])
    result = job.run.result()
    if failures or result is None:
        raise IgpoError(f"the processes of this run failed: {failures or 'no result was written'}")
    return result


def join(folder: Path, node: int, meeting: Meeting, say: Say) -> None:
    """What machine `node` (from 1) does for a run of several. Raises IgpoError when its processes fail."""
    job = read_job(folder)
    provide(job.experiment.data)  # its processes search too, and nobody prepared data in this one
    failures = _launch(job, node, meeting, say, lambda step: None, [])
    if failures:
        raise IgpoError(f"the processes of node {node} failed: {failures}")


def _launch(job: Job, node: int, meeting: Meeting | None, say: Say, on_step: OnStep, held: list[int]) -> str:
    """The launcher of this machine's processes until its end; what went wrong, "" when nothing did."""
    training = job.experiment.training
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(training.processes)]
    if meeting is None:
        command += ["--standalone"]
    else:
        command += ["--nnodes", str(training.nodes), "--node-rank", str(node)]
        command += ["--master-addr", meeting.address, "--master-port", str(meeting.port)]
    log = job.run.folder / ("processes.log" if node == 0 else f"processes-{node}.log")
    with log.open("ab") as errors:
        before = errors.tell()
        launcher = subprocess.Popen(
            [*command, "-m", "tasks.together", str(job.run.folder)],
            cwd=PROJECT,
            env={**os.environ, OWNER: str(os.getpid()), "OMP_NUM_THREADS": str(training.threads)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            pass_fds=held,
        )
    assert launcher.stdout is not None
    failures: list[str] = []
    try:
        for line in launcher.stdout:
            _pass_on(line, say, on_step, failures.append)
        launcher.wait()
    except BaseException:
        _end(launcher)
        raise
    if launcher.returncode == 0:
        return ""
    said = failures[0] if failures else "none of them said why"
    return f"exit status {launcher.returncode} ({_first_failure(log, before)}), {said}. More in {log}"


def _first_failure(log: Path, before: int) -> str:
    """What torch's launcher wrote, behind byte `before`, of the process that failed first: "exitcode: -9 (pid: 7) (SIGKILL)".

    The others fail too, for want of it, and may be the only ones who said why."""
    with log.open("rb") as file:
        file.seek(before)
        written = file.read().decode(errors="replace").splitlines()
    told = [" ".join(line.split()).replace(" :", ":") for line in written if line.strip().startswith("exitcode")]
    return told[-1] if told else "of the launcher itself"


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


def _end(launcher: "subprocess.Popen[str]") -> None:
    """The launcher passes the signal on; what has not ended in time is killed."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not interrupt this
            signal.signal(number, signal.SIG_IGN)
    try:
        family = [psutil.Process(launcher.pid), *psutil.Process(launcher.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    launcher.terminate()
    _, alive = psutil.wait_procs(family, timeout=END_SECONDS)
    for process in alive:
        if process.is_running():
            process.kill()
    launcher.wait()


# ------------------------------------------------------------------------------------------ in each of the processes


def main(folder: Path) -> None:
    """What each process does."""
    from tasks.interruption import leave_checkpoint
    from tasks.training import start_trainer, train_to_end

    first = os.environ["RANK"] == "0"
    signal.signal(signal.SIGTERM, _interrupt if first else _linger)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the flow's process decides
    threading.Thread(target=_end_with_owner, daemon=True).start()
    say: Say = (lambda line: _tell(say=line)) if first else (lambda line: None)
    trainer = None
    try:
        job = read_job(folder)
        about = read_about(folder)
        assert about is not None
        outbox = Outbox(folder, about) if first else Nowhere()
        trainer = start_trainer(job, say)
        train_to_end(trainer, job, outbox, say, lambda step: _tell(step=step) if first else None)
    except KeyboardInterrupt:
        if trainer is not None:
            leave_checkpoint(trainer, job.run, outbox, say)
        os._exit(0)  # without waiting for processes that may have ended
    except Exception as error:
        _tell(failed=f"{type(error).__name__} in process {os.environ['RANK']}: {error}")
        raise


def _tell(**what: Any) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more: _end_with_owner sees to that
        print(MARK + json.dumps(what), flush=True)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _linger(number: int, frame: Any) -> None:
    """The first process may need this one to finish its step; it does not outlive it for long."""
    timer = threading.Timer(END_SECONDS - 5, os._exit, [0])
    timer.daemon = True
    timer.start()


def _end_with_owner() -> None:
    """Nobody would see the result when the flow's process was killed, and whoever goes on waits for the lock; without the
    launcher nobody would notice that another process has died."""
    launcher = os.getppid()
    with contextlib.suppress(psutil.NoSuchProcess):
        # what tells a process from another of its number is taken here, not from the owner: the seconds since 1970 at which
        # a process started are other ones after the machine's clock has been put right
        owner = psutil.Process(int(os.environ[OWNER]))
        while os.getppid() == launcher and owner.is_running() and owner.status() != psutil.STATUS_ZOMBIE:
            time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
