"""What a sweep will take: time from a timed step, disk from the size of the weights.

Measured once a sweep, in the process that made, or found, its first warm start: before that there is no policy to time.
"""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igpo_core.config import ExperimentConfig
from igpo_core.folders import write_json
from tasks.training import start_trainer

if TYPE_CHECKING:
    from tasks.runs import Say
    from tasks.training import Job

# weights on disk, in sizes of the model in float32: two checkpoints with two moments each, the best on dev, MLflow's copy
COPIES = 2 * 3 + 1 + 1
REST = 2_000_000  # bytes of metrics, trajectories and traces a run, seen with the laptop preset


@dataclass(frozen=True)
class Timing:
    """step: seconds of a training step of `rollouts` trajectories; rollout: seconds of one of them without its update;
    warm_start: seconds, None where it was found; weights: bytes."""

    step: float
    rollouts: int
    rollout: float
    warm_start: float | None
    weights: int


def timing_file(home: Path, sweep: str) -> Path:
    return home / "timings" / f"{sweep}.json"


def read_timing(home: Path, sweep: str) -> Timing | None:
    """What was measured for the sweep; None before its first warm start."""
    path = timing_file(home, sweep)
    return Timing(**json.loads(path.read_text())) if path.is_file() else None


def time_a_step(job: "Job", seconds: float | None, say: "Say") -> Timing:
    """Two training steps from the warm start, by this process alone, the second timed. seconds: of the warm start."""
    trainer = start_trainer(job, say)
    trainer.run_step()
    started = time.perf_counter()
    metrics = trainer.run_step().metrics
    step = time.perf_counter() - started
    rollouts = job.experiment.rollout.questions * job.experiment.rollout.group_size
    rollout = (step - metrics["time/update"]) / rollouts
    return Timing(step, rollouts, rollout, seconds, sum(file.stat().st_size for file in job.warm.glob("*.safetensors")))


def keep_timing(home: Path, sweep: str, timing: Timing) -> None:
    path = timing_file(home, sweep)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(timing))


def run_seconds(experiment: ExperimentConfig, timing: Timing) -> float:
    """Of one run: its steps (all of them, where a budget of tokens may end it earlier) and its evaluations."""
    training, rollout, evaluation = experiment.training, experiment.rollout, experiment.evaluation
    steps = training.steps * timing.step * rollout.questions * rollout.group_size / timing.rollouts
    if training.budget == "seconds" and training.amount is not None:
        steps = min(steps, training.amount)
    decodings = len(evaluation.decoding)
    dev = (training.steps // evaluation.every + 1) * evaluation.dev_questions * decodings
    test = evaluation.test_questions * (decodings + 1)  # the checkpoint best on dev with the first decoding alone
    return steps + (dev + test) * timing.rollout


def estimate(runs: Sequence[ExperimentConfig], warm_starts: int, timing: Timing, workers: int, place: Path) -> str:
    """In words: runs and warm_starts are those still to be made; place: where they are stored."""
    if not runs:
        return "nothing is left to train"
    each = [run_seconds(run, timing) for run in runs]
    total = (sum(each) + warm_starts * (timing.warm_start or 0.0)) / min(workers, len(runs))
    disk = len(runs) * (COPIES * timing.weights + REST) + warm_starts * timing.weights
    free = shutil.disk_usage(place).free
    text = (
        f"about {spell(total)} for {len(runs)} runs of about {spell(sum(each) / len(each))} (a step of {timing.rollouts} "
        f"rollouts took {timing.step:.2g} s here), {disk / 1e9:.1f} GB on disk, where {free / 1e9:.0f} GB are free"
    )
    return text if disk < free else f"{text}\nwarning: the disk will be full before the sweep ends"


def spell(seconds: float) -> str:
    """90 -> "90 s", 600 -> "10 min", 9000 -> "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
