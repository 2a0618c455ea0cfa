"""What a sweep will do: what its arms start from, its time from a timed step, its disk from the size of the weights.

Measured once a sweep, in the process that made, or found, its first warm start: before that there is no policy to time.
"""

import json
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from igpo_core.config import ExperimentConfig, PretrainedPolicy, fingerprint
from igpo_core.folders import write_json
from igpo_core.protocol import ChatProtocol, TurnProtocol
from tasks.runs.devices import Spread

if TYPE_CHECKING:
    from igpo_core.estimates import Shape
    from igpo_core.step_costs import Work

# weights on disk, in sizes of what is trained in float32. A finished run: the last ones, the best on dev, MLflow's copy
KEPT = 3
# A run that goes on: two checkpoints with two moments each, the best on dev, and at its end MLflow's copy
COPIES = 2 * 3 + 1 + 1
STARTING = 4.0  # seconds from the start of a run's process to its first step and at its end, on two cores
REST = 2_000_000  # bytes of metrics, trajectories and traces a run, seen with the laptop preset


@dataclass(frozen=True)
class Reached:
    """Shares of a processor's Speed: of its operations by passes over many tokens, of its bandwidth by decoding."""

    passes: float
    decoding: float


# SmolLM2-135M on two cores of an AMD EPYC with avx512_bf16, 2026-11-26 (tests/tasks/test_figures.py has the figures)
REACHED = {"float32": Reached(0.57, 0.27), "bfloat16": Reached(0.33, 0.15)}


@dataclass(frozen=True)
class Tokens:
    """Of a trajectory: all, those that the policy samples, those of its probes; and of a demonstration."""

    trajectory: float
    sampled: float
    probes: float
    demonstration: float


@dataclass(frozen=True)
class Timing:
    """step: seconds of a training step of `rollouts` trajectories; rollout: seconds of one of them without its update;
    warm_start: seconds, None where it was found; weights: bytes. policy: policy_key of what was timed; demonstrations: that
    the warm start was taught, repeats counted. data: data_key of what was timed, and questions of each split of it. sampled,
    longest: as of Size.
    """

    step: float
    rollouts: int
    rollout: float
    warm_start: float | None
    weights: int
    policy: str = ""
    demonstrations: int = 0
    data: str = ""
    questions: dict[str, int] = field(default_factory=dict)
    sampled: int = 0
    longest: int = 0

    @property
    def size(self) -> "Size":
        """Return the size of the step that was timed."""
        return Size(self.rollouts, self.sampled, self.longest)


def start_of(experiment: ExperimentConfig) -> str:
    """Return what the arms of a seed start from, in words."""
    if experiment.warm_start is not None:
        return "the same warm start"
    policy = experiment.policy
    return policy.name if isinstance(policy, PretrainedPolicy) else "the same random weights, which nothing was taught"


def untrained(base: Mapping[str, Any]) -> list[str]:
    """Return a loud line where a policy is new and has no warm start: it neither calls a tool nor answers, and learns nothing."""
    if base["policy"]["kind"] != "new" or base["warm_start"] is not None:
        return []
    return [
        "THE POLICY IS UNTRAINED: it is new (policy.kind: new) and has no warm start, so every score will be near zero. Add a "
        "warm_start, or take over a base that has one: base: {from: outcome-vs-igpo, ...} (docs/experiments.md)"
    ]


def about_template(protocol: TurnProtocol) -> list[str]:
    """Return a line where the prompt has to tell of the tools, because the chat template does not."""
    if not isinstance(protocol, ChatProtocol) or protocol.shows_tools:
        return []
    return [
        "this chat template does not tell of the tools, or has calls written in another form than policies here write them: the "
        "prompt tells of both itself"
    ]


def timing_file(home: Path, sweep: str, policy: str) -> Path:
    """Return where the timing of a sweep is kept that is of this policy_key: the same sweep may be made on a CPU and on a GPU."""
    return home / "timings" / f"{sweep}-{policy}.json"


def read_timing(home: Path, sweep: str, experiment: ExperimentConfig) -> Timing | None:
    """What was measured for runs like this one of the sweep; None before their first warm start."""
    path = timing_file(home, sweep, policy_key(experiment))
    return Timing(**json.loads(path.read_text())) if path.is_file() else None


def policy_key(experiment: ExperimentConfig) -> str:
    """The same for experiments whose tokens cost about the same: same policy, same kind of processor, same kind of engine."""
    training, engine = experiment.training, experiment.rollout.engine
    return fingerprint(experiment.policy.identity(), training.device, training.threads, engine.kind)


@dataclass(frozen=True)
class Size:
    """What makes a step long."""

    rollouts: int
    sampled: int
    """Tokens of a rollout at most."""
    longest: int
    """Tokens of a trajectory at most."""

    def is_near(self, other: "Size") -> bool:
        """Return whether the seconds of one say what the other's are: a rollout of a few costs another time than one of many, and
        a short one another than a long one. Seen apart: a trial of four rollouts with an answer of 16 tokens said 2.2 h of a
        sweep that takes 3 h 45 min."""
        pairs = ((self.rollouts, other.rollouts, 4), (self.sampled, other.sampled, 2), (self.longest, other.longest, 2))
        return all(one <= most * two and two <= most * one for one, two, most in pairs)


def size_of(experiment: ExperimentConfig) -> Size:
    """Return the size of an experiment's training steps."""
    rollout = experiment.rollout
    return Size(rollout.questions * rollout.group_size, rollout.max_turns * rollout.max_new_tokens, rollout.max_tokens)


def data_key(experiment: ExperimentConfig) -> str:
    """The same for experiments that name the same data."""
    return fingerprint(experiment.data)


def demonstrations(experiment: ExperimentConfig) -> int:
    """That the warm start is taught, repeats counted."""
    return sum(stage.steps * stage.batch_size for stage in experiment.warm_start.stages) if experiment.warm_start else 0


def speaks_for(timing: Timing, experiment: ExperimentConfig) -> bool:
    """Return whether a timed step says how long this experiment's take: of such a policy, and about as large."""
    return timing.policy == policy_key(experiment) and size_of(experiment).is_near(timing.size)


def known_timing(home: Path, study: str, experiment: ExperimentConfig) -> Timing | None:
    """The newest on this machine of the same policy_key: of the study, of whatever code and data, else of another one. One that
    timed a warm start comes first. Steps of another size do not count."""
    key, found = policy_key(experiment), []
    for path in (home / "timings").glob("*.json"):
        timing = Timing(**json.loads(path.read_text()))
        if speaks_for(timing, experiment):
            own = re.fullmatch(rf"{re.escape(study)}-[0-9a-f]{{6}}-{key}", path.stem) is not None
            found.append((own, timing.warm_start is not None, path.stat().st_mtime, timing))
    best = max(found, key=lambda entry: entry[:3], default=None)
    return best[3] if best else None


@dataclass(frozen=True)
class Speed:
    """Operations a second in one dtype, and bytes a second that are read and written: what this machine reaches with so many
    threads in a square product and a copy, or an accelerator by its data sheet."""

    operations: float
    bandwidth: float


def dtype_of(experiment: ExperimentConfig) -> Literal["float32", "bfloat16"]:
    """Return what the policy is computed in."""
    policy = experiment.policy
    return "bfloat16" if isinstance(policy, PretrainedPolicy) and policy.half else "float32"


def measure_speed(threads: int, dtype: Literal["float32", "bfloat16"] = "float32") -> Speed:
    """Return this machine's speed, measured in about a second. Other work on it slows it down."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    square, large = torch.ones(1024, 1024, dtype=getattr(torch, dtype)), torch.ones(2**24)
    try:
        product = _fastest(lambda: square @ square)
        copy = _fastest(large.clone)
    finally:
        torch.set_num_threads(before)
    return Speed(2 * 1024**3 / product, 2 * large.nbytes / copy)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of ten times."""
    taken = []
    for _ in range(10):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return min(taken)


def count_timing(experiment: ExperimentConfig, shape: "Shape", tokens: Tokens, speed: Speed, weights: int) -> Timing:
    """Return what steps and warm start would take on this machine's processor by their operations, where none was timed."""
    step, lessons = _counted(experiment, shape, tokens)
    reached = REACHED[dtype_of(experiment)]
    passes = speed.operations * reached.passes
    # decoding is held up by the bytes that it reads
    sampling = (step.prefill + step.beliefs) / passes + step.decoding_bytes / speed.bandwidth / reached.decoding
    return _timing(experiment, sampling, step.update / passes, lessons.update / passes, weights)


def count_gpu_timing(
    experiment: ExperimentConfig, shape: "Shape", tokens: Tokens, sheet: Speed, weights: int
) -> Timing:
    """Return the same on a GPU of this data sheet, by how steps ran on H100s (igpo_core/step_costs.py). One process trains."""
    from igpo_core.step_costs import TURN_TAKES

    step, lessons = _counted(experiment, shape, tokens)
    given = sheet.operations, sheet.bandwidth
    rollout = experiment.rollout
    texts = rollout.questions * rollout.group_size * rollout.max_turns * TURN_TAKES  # demonstrations have turns, too
    teaching = lessons.update_seconds(*given) + texts
    return _timing(experiment, step.rollout_seconds(*given), step.update_seconds(*given), teaching, weights)


def _counted(experiment: ExperimentConfig, shape: "Shape", tokens: Tokens) -> "tuple[Work, Work]":
    """Return the work of a training step; and, as that of an update, of teaching as many demonstrations as it has rollouts. A
    warm start pads its batches, computes nothing again and goes over a batch once."""
    from igpo_core.step_costs import work

    step = work(shape, experiment, tokens=tokens.trajectory, sampled=tokens.sampled, probes=tokens.probes)
    plain = experiment.optimizer.model_copy(update={"gradient_checkpointing": False, "updates_per_step": 1})
    teaching, padded = experiment.model_copy(update={"optimizer": plain}), replace(shape, packable=False)
    return step, work(padded, teaching, tokens=tokens.demonstration, sampled=tokens.sampled, probes=0.0)


def _timing(experiment: ExperimentConfig, sampling: float, update: float, lessons: float, weights: int) -> Timing:
    """Return what was counted of a step. lessons: seconds of teaching as many demonstrations as a step has rollouts."""
    size, taught = size_of(experiment), demonstrations(experiment)
    learning = lessons / size.rollouts * taught if taught else None
    return Timing(
        sampling + update, size.rollouts, sampling / size.rollouts, learning, weights, policy_key(experiment), taught,
        sampled=size.sampled, longest=size.longest,
    )  # fmt: skip


def keep_timing(home: Path, sweep: str, timing: Timing) -> None:
    """Write how long steps of a sweep take on this machine."""
    path = timing_file(home, sweep, timing.policy)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(timing))


def with_questions_there(experiment: ExperimentConfig, counts: Mapping[str, int] | None) -> ExperimentConfig:
    """Return the experiment with no more questions to evaluate on than its data have; as it is where nobody counted these.

    counts: questions of each split.
    """
    if counts is None:
        return experiment
    evaluation = experiment.evaluation
    there = {
        "dev_questions": min(evaluation.dev_questions, counts["dev"]),
        "test_questions": min(evaluation.test_questions, counts["test"]),
    }
    return experiment.model_copy(update={"evaluation": evaluation.model_copy(update=there)})


def run_seconds(experiment: ExperimentConfig, timing: Timing) -> float:
    """Of one run: its start, its steps (all of them, where a budget of tokens may end it earlier) and its evaluations."""
    training, rollout, evaluation = experiment.training, experiment.rollout, experiment.evaluation
    steps = training.steps * timing.step * rollout.questions * rollout.group_size / timing.rollouts
    if training.budget == "seconds" and training.amount is not None:
        steps = min(steps, training.amount)
    decodings = len(evaluation.decoding)
    dev = (
        training.steps // evaluation.every + 1
    ) * evaluation.dev_questions  # with the first decoding alone, and so is
    test = evaluation.test_questions * (decodings + 1)  # the test of the checkpoint that was best on dev
    return STARTING + steps + (dev + test) * timing.rollout


def warm_start_seconds(experiment: ExperimentConfig, timing: Timing) -> float:
    """Of making one, in proportion to what it is taught; its start alone where none was timed."""
    if timing.warm_start is None or not timing.demonstrations:
        return STARTING + (timing.warm_start or 0.0)
    return STARTING + timing.warm_start * demonstrations(experiment) / timing.demonstrations


def shared_seconds(experiment: ExperimentConfig, timing: Timing, spread: Spread) -> tuple[float, float]:
    """Return the seconds of a warm start and of a run, each beside those that it shares an accelerator with."""
    return warm_start_seconds(experiment, timing) * spread.slower, run_seconds(experiment, timing) * spread.slower


def sweep_seconds(
    runs: Sequence[ExperimentConfig], starts: Sequence[ExperimentConfig], timing: Timing, spread: Spread
) -> float:
    """Of all these runs, and of the warm starts that each of `starts` makes."""
    seconds = sum(run_seconds(run, timing) for run in runs) + sum(warm_start_seconds(start, timing) for start in starts)
    return seconds / min(spread.side_by_side, len(runs))


def disk(runs: int, warm_starts: int, weights: int, at_a_time: int = 0) -> int:
    """Return the bytes that runs and warm starts leave on disk; with at_a_time runs going on, the most that they ever take.

    weights: bytes of what is trained, in float32.
    """
    return runs * (KEPT * weights + REST) + min(at_a_time, runs) * (COPIES - KEPT) * weights + warm_starts * weights


def free_space(place: Path) -> int:
    """Bytes."""
    return shutil.disk_usage(place).free


def estimate(
    runs: Sequence[ExperimentConfig], starts: Sequence[ExperimentConfig], timing: Timing, spread: Spread, place: Path
) -> str:
    """In words: runs, and a run for each warm start, are those still to be made; place: where they are stored."""
    each = statistics.fmean(run_seconds(run, timing) for run in runs)
    needed = disk(len(runs), len(starts), timing.weights, spread.runs)
    free = free_space(place)
    text = (
        f"about {spell(sweep_seconds(runs, starts, timing, spread))} for {len(runs)} runs of about {spell(each)} (a step of "
        f"{timing.rollouts} rollouts took {brief(timing.step)} s here){spread.shared}, {needed / 1e9:.1f} GB on "
        f"disk, where {free / 1e9:.0f} GB are free"
    )
    return text if needed < free else f"{text}\nwarning: the disk will be full before the sweep ends"


def brief(seconds: float) -> str:
    """Return seconds of a step with two digits, and from a hundred on as a whole number."""
    return f"{seconds:.2g}" if seconds < 99.5 else f"{seconds:.0f}"


def spell(seconds: float) -> str:
    """90 -> "90 s", 600 -> "10 min", 9000 -> "2.5 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
