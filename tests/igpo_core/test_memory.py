"""Memory that runs out: an error that names the setting to lower, with the run's checkpoint whole. By allocations that fail."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from igpo_core import memory
from igpo_core.config import ExperimentConfig
from igpo_core.errors import OutOfMemory
from igpo_core.memory import Phase, ran_out, remedy, within_memory

ROOT = Path(__file__).resolve().parents[2]


def config(**parts: Any) -> ExperimentConfig:
    return ExperimentConfig.model_validate({"rollout": {"max_tokens": 256, "batch_size": 64}, **parts})


def test_the_allocators_of_cpu_and_gpu_say_so() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(2**60)  # 4 EiB: no address space has it
    assert ran_out(found.value)
    assert ran_out(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")) and ran_out(MemoryError())
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) and not ran_out(OSError("x"))


def test_the_error_names_what_was_under_way_and_what_to_lower() -> None:
    with pytest.raises(OutOfMemory) as found, within_memory("update", config(), 11):
        torch.empty(2**60)
    words = str(found.value)
    assert words.startswith("out of memory during update of step 12: lower optimizer.tokens_per_batch=2048, or set ")
    assert "optimizer.gradient_checkpointing=true" in words and "you tried to allocate" in words
    assert isinstance(found.value.__cause__, RuntimeError)


@pytest.mark.parametrize("phase", get_args(Phase))
def test_the_error_names_no_checkpoint_that_there_need_not_be(phase: Any) -> None:
    with pytest.raises(OutOfMemory) as found, within_memory(phase, config()):
        raise MemoryError
    words = str(found.value)
    assert "The last checkpoint" not in words and "the same command" in words and words.endswith("(MemoryError)")
    assert ("checkpoint" in words) is (phase != "loading")
    assert ("none yet" in words) is (phase in ("warm start", "rollout", "beliefs", "update"))


def test_another_error_goes_through() -> None:
    with pytest.raises(RuntimeError, match="shapes") as found, within_memory("update", config(), 0):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not isinstance(found.value, OutOfMemory)


@pytest.mark.parametrize(
    ("phase", "parts", "words"),
    [
        ("rollout", {}, "rollout.batch_size=64, or rollout.max_tokens=256"),
        ("evaluation", {}, "rollout.batch_size=64, or rollout.max_tokens=256"),
        ("beliefs", {}, "reward.belief_tokens=2048, or rollout.max_tokens=256"),
        ("warm start", {}, "optimizer.tokens_per_batch=2048"),
        ("loading", {}, "the size of the model (policy.name), or what is trained of it (policy.lora)"),
        ("update", {"optimizer": {"gradient_checkpointing": True}}, "optimizer.tokens_per_batch=2048"),
        (
            "update",
            {"optimizer": {"tokens_per_batch": 128, "gradient_checkpointing": True}},
            "rollout.max_tokens=256 (one trajectory fills a pass: optimizer.tokens_per_batch=128 makes it no smaller)",
        ),
        (
            "warm start",
            {"training": {"device": "cuda", "memory_share": 0.25}},
            "optimizer.tokens_per_batch=2048, or give the run more than training.memory_share=0.25",
        ),
    ],
)
def test_each_phase_has_its_settings(phase: Any, parts: Any, words: str) -> None:
    assert remedy(phase, config(**parts)) == words


# 64 rollouts of a random policy, so many rows at a time, which end malformed after some 30 tokens; KL keeps all of them in the
# update, whose one micro-batch keeps about .5 GiB for the way back. The limit is on what is allocated beyond what there is.
RUN = """
import ctypes, gc, json, resource, sys
from pathlib import Path
import torch
from igpo_core.checkpoints import newest_checkpoint, verify_folder
from igpo_core.config import ExperimentConfig
from igpo_core.environments.lookup import generate
from igpo_core.environments import open_environment
from igpo_core.errors import OutOfMemory
from igpo_core.policies import build_policy, save_policy
from igpo_core.run import Checkpointed, Finished
from tasks.runs.planned import open_training
from tasks.runs.training import Recorder
from tasks.tracking.outbox import About, Outbox
from tests.tasks.planned import planned

home, rows, room = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) * 2**20
experiment = ExperimentConfig.model_validate({
    "data": {"kind": "lookup", "hops": 2, "train": 40, "dev": 2, "test": 2},
    "policy": {"kind": "new", "width": 256, "layers": 6, "feed_forward": 1024, "window": 512},
    "reward": {"reward": "outcome_only"},
    "rollout": {"questions": 8, "group_size": 8, "max_turns": 1, "max_new_tokens": 128, "max_tokens": 256,
                "batch_size": rows},
    "optimizer": {"tokens_per_batch": 100_000, "kl_coefficient": 0.01},
    "training": {"epochs": 2, "steps_per_epoch": 1},
    "evaluation": {"every": 5, "dev_questions": 2, "test_questions": 2, "decoding": ["greedy"], "diagnostics": 0},
})
run = planned(home, experiment)
run.data.mkdir(parents=True)
generate(experiment.data).to_parquet(run.data / "questions.parquet")
save_policy(build_policy(experiment, open_environment(experiment, run.data)), run.start)

def opened():
    training = open_training(run, lambda line: None)
    return training, Recorder(run, training, Outbox(run.folder, About("s", "r", "k", {}, {})), lambda line: None)

training, recorder = opened()
events = recorder.events()
for event in events:
    recorder.write(event)
    if isinstance(event, Checkpointed):
        break
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # what the step before left free is no longer the process's
pages = int(Path("/proc/self/statm").read_text().split()[0])
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room, hard))
try:
    next(events)
    said = "nothing ran out"
except OutOfMemory as error:
    said = str(error)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
del training, recorder, events
damage = []
folder = newest_checkpoint(run.folder, damage.append)
verify_folder(folder)
training, recorder = opened()
resumed = training.trainer.step
recorder.to_end()
lowered = experiment.model_copy(update={"optimizer": experiment.optimizer.model_copy(update={"tokens_per_batch": 1000})})
other = planned(home, lowered)
print(json.dumps({"said": said, "checkpoint": folder.name, "damage": damage, "resumed": resumed,
                  "steps": recorder.result["steps"], "same": other.spec.run_key == run.spec.run_key,
                  "same_start": other.spec.start == run.spec.start}))
"""


@pytest.mark.night  # three processes that import all, 25 s on two free cores
@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
@pytest.mark.parametrize(
    ("phase", "rows", "room", "setting"),
    [
        ("update", 8, 100, "lower optimizer.tokens_per_batch=100000, or set optimizer.gradient_checkpointing=true"),
        ("rollout", 64, 1, "lower rollout.batch_size=64"),
    ],
)
def test_a_run_that_ran_out_goes_on_from_its_checkpoint(
    tmp_path: Path, phase: str, rows: int, room: int, setting: str
) -> None:
    """With memory again. With the setting lowered it is another run, of another warm start too where that takes the setting."""
    command = [sys.executable, "-c", RUN, str(tmp_path), str(rows), str(room)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["said"].startswith(f"out of memory during {phase} of step 2: {setting}"), found["said"]
    assert found["checkpoint"] == "step-000001" and found["damage"] == [] and found["resumed"] == 1
    assert found["steps"] == 2 and not found["same"] and not found["same_start"]


@pytest.mark.skipif(memory._glibc() is None, reason="this C library does not tell what it keeps")
def test_freed_memory_goes_back_to_the_system_after_a_phase() -> None:
    """Blocks of a mebibyte, every other one freed: 200 MiB lie in gaps, which the C library keeps by itself."""
    code = """
import gc, sys
import psutil, torch
from igpo_core.memory import give_back
def held():
    return psutil.Process().memory_info().rss / 2**20
large = torch.ones(31 * 2**18)  # from its end on blocks of this size are kept
del large
before = held()
blocks = [torch.ones(2**18) for _ in range(400)]
blocks[::2] = [None] * 200
kept = held() - before
small = give_back()
still = held() - before
large = give_back(100 * 2**20)
print(small, kept > 350, still > 350, large, held() - before < 250, sum(float(b.sum()) for b in blocks[1::2]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["False", "True", "True", "True", "True", str(200.0 * 2**18)]


def test_what_was_freed_is_given_back_behind_each_phase(monkeypatch: Any) -> None:
    told: list[str] = []
    monkeypatch.setattr(memory, "give_back", lambda: told.append("given back"))
    with memory.within_memory("update", ExperimentConfig(), 0):
        assert told == []
    assert told == ["given back"]
