"""A run of several processes, launched for real: its result, its end, and that nobody outlives the process it works for."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from igpo_core.config import ExperimentConfig, QuestionFiles
from igpo_core.environments.lookup import generate
from igpo_core.errors import ConfigError, IgpoError
from igpo_core.policies import save_policy
from tasks.runs.locks import locked, locked_if_free
from tasks.runs.planned import PLAN, Run, open_run, open_training, write_run
from tasks.runs.together import MARK, Meeting, _end_family, join, train_together
from tasks.runs.training import Recorder
from tasks.tracking.outbox import About, NoOutbox, Outbox, read_about
from tests.sockets import Watch
from tests.tasks.planned import planned
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
STARTED = (
    "import sys; from pathlib import Path; from tasks.runs.locks import locked; from tasks.runs.together import *\n"
    "run = open_run(Path(sys.argv[1]), sys.argv[2])\n"
    "with locked(run.home, run.spec.run_key, print) as lock:\n"
    "    train_together(run, lock, print, lambda step: print('step', step, flush=True))\n"
)


JOINED = (
    "import sys; from pathlib import Path; from tasks.runs.together import *\n"
    "run = open_run(Path(sys.argv[1]), sys.argv[2])\n"
    "join(run, 1, Meeting(sys.argv[3], int(sys.argv[4])), print)\n"
)


def make_run(
    taught: Any,
    home: Path,
    key: str,
    processes: int,
    steps: int = 4,
    sharding: str = "none",
    nodes: int = 1,
    expect: Sequence[dict[str, Any]] = (),
) -> Run:
    config, _, policy = taught
    content = json.loads(config.model_dump_json())
    content["training"] |= {
        "processes": processes,
        "nodes": nodes,
        "epochs": 2,
        "steps_per_epoch": steps // 2,
        "sharding": sharding,
    }
    content["rollout"] |= {"questions": 3, "group_size": 2}
    content["evaluation"] |= {"every": 2, "dev_questions": 5, "test_questions": 5}
    run = planned(home, ExperimentConfig.model_validate({**content, "expect": expect}), sweep=key)
    if not run.data.exists():
        run.data.mkdir(parents=True)
        generate(config.data).to_parquet(run.data / "questions.parquet")
        save_policy(policy, run.start)
    write_run(run)
    Outbox(run.folder, About("study", key, key, {}, {}))
    return run


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def launch(run: Run, said: list[str] | None = None, steps: list[int] | None = None) -> dict[str, Any]:
    said, steps = [] if said is None else said, [] if steps is None else steps
    with locked(run.home, run.spec.run_key, print) as lock:
        return train_together(run, lock, said.append, steps.append)


CLOCK_PUT_RIGHT = "import psutil._pslinux as linux\nseen = linux.boot_time\nlinux.boot_time = lambda: seen() + 1\n"


@pytest.mark.night
def test_two_processes_listen_on_nothing_beyond_loopback(taught: Any, tmp_path: Path) -> None:
    """All sockets of the family, from its start to its end: torch's rendezvous takes pickles from whoever reaches it."""
    run = make_run(taught, tmp_path, "quiet", 2)
    with Watch(tmp_path) as watch:
        launch(run)
    assert watch.beyond == []
    ranks = {listener.port for listener in watch.found if "tasks.runs.together" in listener.command}
    assert len(ranks) >= 2 and not list(run.folder.glob(".meeting-*"))


@pytest.mark.parametrize("sharding", ["none", pytest.param("fsdp", marks=pytest.mark.night)])
def test_two_processes_end_with_the_result_of_one(
    taught: Any, tmp_path: Path, sharding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the machine's clock is put right by a second between the start of the owner and theirs."""
    (tmp_path / "sitecustomize.py").write_text(CLOCK_PUT_RIGHT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    said: list[str] = []
    steps: list[int] = []
    together = make_run(taught, tmp_path, "together", 2, sharding=sharding)
    result = launch(together, said, steps)
    alone = make_run(taught, tmp_path, "alone", 1)
    outbox = Outbox(alone.folder, About("study", "alone", "alone", {}, {}))
    expected = Recorder(alone, open_training(alone, print), outbox, print).to_end()
    same = {k: v for k, v in expected["metrics"].items() if "seconds" not in k}
    assert {k: result["metrics"][k] for k in same} == pytest.approx(same, abs=1e-4)
    assert result["steps"] == 4 and sorted(set(steps)) == [1, 2, 3, 4] and any("step 4/4" in line for line in said)
    kept = [(line["step"], name) for line in lines(alone) for name in line["metrics"]]
    found = [(line["step"], name) for line in lines(together) for name in line["metrics"]]
    assert [(step, name) for step, name in found if not name.startswith("system/")] == kept
    # of all its processes, by the first one: each has torch and a policy, half a GiB and more
    memory = [
        line["metrics"]["system/memory_gib"] for line in lines(together) if "system/memory_gib" in line["metrics"]
    ]
    assert memory and max(memory) > 0.5
    names = {path.name for path in alone.folder.rglob("*") if path.is_file()}
    assert names <= {path.name for path in together.folder.rglob("*") if path.is_file()}


@pytest.mark.night
def test_two_machines_end_with_the_result_of_one(taught: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a launcher and a process of its own; here both are this machine."""
    run = make_run(taught, tmp_path, "nodes", 1, nodes=2)
    with pytest.raises(ConfigError, match="set IGPO_ADDRESS"):
        launch(run)
    monkeypatch.setenv("IGPO_ADDRESS", "127.0.0.1")
    joined: list[subprocess.Popen[str]] = []

    def call_others(meeting: Meeting) -> None:
        told = [str(run.home), run.spec.run_key, meeting.address, str(meeting.port)]
        joined.append(start(JOINED, *told))

    with locked(tmp_path, "nodes", print) as lock:
        result = train_together(run, lock, print, lambda step: None, call_others)
    assert joined[0].wait(HANGS) == 0
    alone = make_run(taught, tmp_path, "alone", 1)
    expected = Recorder(alone, open_training(alone, print), NoOutbox(), print).to_end()
    same = {k: v for k, v in expected["metrics"].items() if "seconds" not in k}
    assert {k: result["metrics"][k] for k in same} == pytest.approx(same, abs=1e-4)


def start(code: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for_step(process: "subprocess.Popen[str]", step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"step {step}":
            return
    pytest.fail("it ended before that step")


TELL = """
import sys, threading
from tasks.runs.together import _tell

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=lambda: [_tell(say="x" * 100) for _ in range(3000)]) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_a_number_that_another_program_got_since_is_left_alone() -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(sleeping) as ended, subprocess.Popen(sleeping) as other:
        ended.kill()
        ended.wait()
        ended.pid = other.pid
        _end_family([ended])
        running = other.poll() is None
        other.kill()
    assert running


def test_what_several_threads_tell_arrives_in_whole_lines() -> None:
    told = start(TELL).communicate(timeout=60)[0].splitlines()
    assert told == [MARK + json.dumps({"say": "x" * 100})] * (4 * 3000)


@pytest.mark.night
def test_two_processes_stop_together_at_a_step_that_is_not_as_expected(taught: Any, tmp_path: Path) -> None:
    never = {"metric": "train/turns", "most": 0.5, "first_step": 3}
    run = make_run(taught, tmp_path, "stopped", 2, expect=[{**never, "otherwise": "stop"}])
    for _ in range(2):  # started again it stops at once
        with pytest.raises(IgpoError, match=r"ExpectationError in process [01]: stopped, .* at step 3"):
            launch(run)
        assert [line["step"] for line in lines(run) if "train/turns" in line["metrics"]] == [1, 2, 3]
        assert (run.folder / "checkpoints" / "step-000003").is_dir()
    about = read_about(run.folder)
    assert about is not None and about.tags["unexpected"].endswith(" at step 3")
    assert launch(make_run(taught, tmp_path, "stopped", 2, expect=[never]))["steps"] == 4


@pytest.mark.night
def test_a_killed_owner_takes_its_processes_along_and_the_run_goes_on(taught: Any, tmp_path: Path) -> None:
    run = make_run(taught, tmp_path, "killed", 2, steps=400)
    owner = start(STARTED, str(run.home), run.spec.run_key)
    wait_for_step(owner, 3)
    family = psutil.Process(owner.pid).children(recursive=True)
    assert len(family) >= 2
    owner.send_signal(signal.SIGKILL)
    with locked_if_free(tmp_path, run.spec.run_key) as free:
        assert not free  # nobody goes on with the run before they have ended
    _, alive = psutil.wait_procs(family, timeout=HANGS)
    assert not alive
    left = sorted((run.folder / "checkpoints").glob("step-*"))
    last = max(line["step"] for line in lines(run))
    assert left and int(left[-1].name[5:]) in (last, last - 1)
    alone = make_run(taught, tmp_path, "killed", 1, steps=400)  # fewer processes are the same run
    assert open_training(alone, print).trainer.step == int(left[-1].name[5:])


def test_a_process_that_dies_ends_the_run_with_its_last_words(taught: Any, tmp_path: Path) -> None:
    run = make_run(taught, tmp_path, "broken", 2)
    (run.start / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(IgpoError, match=r"(?s)exit status 1 \(exitcode: 1 .*\), \w+ in process [01]: .*eader.*More in"):
        launch(run)


@pytest.mark.night
def test_a_killed_process_is_told_apart_from_those_that_miss_it(taught: Any, tmp_path: Path) -> None:
    def kill_second(step: int) -> None:
        processes = [p for p in psutil.Process().children(recursive=True) if "tasks.runs.together" in p.cmdline()]
        next(p for p in processes if p.environ().get("RANK") == "1").kill()

    run = make_run(taught, tmp_path, "killed", 2, steps=400)
    with (
        locked(tmp_path, run.spec.run_key, print) as lock,
        pytest.raises(IgpoError, match=r"exitcode: -9 \(pid: \d+\) \(SIGKILL\)"),
    ):
        train_together(run, lock, print, kill_second)


def test_a_job_of_other_code_is_refused(taught: Any, tmp_path: Path) -> None:
    run = make_run(taught, tmp_path, "old", 2)
    assert open_run(run.home, run.spec.run_key) == run
    path = run.folder / PLAN
    path.write_text(path.read_text().replace(f'"code": "{run.spec.code}"', '"code": "0123456789ab"'))
    with pytest.raises(IgpoError, match="install the same on all machines"):
        open_run(run.home, run.spec.run_key)


def test_another_machine_gets_the_search_key_before_its_processes_start(
    chat_config: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Secret block's key (here: what stands in for the Prefect server) is in what the launcher inherits."""
    search = {"kind": "web", "api": "serper", "url": "http://127.0.0.1:9/search"}
    data = QuestionFiles.model_validate({"questions": [{"path": "q.jsonl"}], "search": search})
    run = planned(tmp_path, chat_config.model_copy(update={"data": data, "warm_start": None}))
    write_run(run)
    monkeypatch.setenv("SEARCH_API_KEY", "")
    monkeypatch.setattr("tasks.lab.secrets.from_block", lambda needed: monkeypatch.setenv(needed.key_variable, "hush"))
    keys: list[str] = []
    monkeypatch.setattr("tasks.runs.together._launch", lambda *_: keys.append(os.environ["SEARCH_API_KEY"]) or "")
    join(run, 1, Meeting("127.0.0.1", 1), print)
    assert keys == ["hush"]
