"""What a training step of SmolLM2 costs on a CPU, part by part, against the floors of its arithmetic and its memory.

python -m benchmarks.cpu [--dtype float32 bfloat16] [--shape smollm2] [--threads N] [--repeats N] [--profile]. Random weights of
SmolLM2-135M's shape, no network; on two cores some ten minutes in bfloat16, twice that in float32. 4 questions x 8 of three
turns, as preset real-laptop has them; every turn is forced to one script of a search, at the cost of a real choice. The ceilings
are of the same run: a square product in the dtype, and what a copy reads and writes.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import LlamaConfig, Qwen2Config

from benchmarks.common import machine, scripted
from benchmarks.models import LLAMA_135M, QWEN2_SMALLEST, Fixed, policy, questions, turn_script
from igpo_core.config import ExperimentConfig
from igpo_core.estimates import Shape
from igpo_core.policies import Policy
from igpo_core.rewards.scoring import reward_trajectories
from igpo_core.rollout import transformers_engine as engine
from igpo_core.rollout.rows import RolloutTimes
from igpo_core.step_costs import work
from igpo_core.training import Trainer
from igpo_core.trajectory import Trajectory
from tasks.runs.planning import Speed, measure_speed

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class Size:
    """A shape of a model, questions x members, turns, words of a thought and of an observation, tokens of a micro-batch."""

    shape: dict[str, Any]
    architecture: Any
    questions: int = 4
    members: int = 8
    turns: int = 3
    thought: int = 10
    observation: int = 150
    budget: int = 4_096


SIZES = {
    "smollm2": Size(LLAMA_135M, LlamaConfig),
    "tiny": Size(QWEN2_SMALLEST, Qwen2Config, 1, 2, 2, 0, 2, 1_024),
}


def configuration(size: Size, dtype: Dtype, script: int) -> ExperimentConfig:
    """Return the settings of a step of outcome and gain."""
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "none"}], "corpus": ["none"]},
            "policy": {"kind": "pretrained", "name": "random", "dtype": dtype},
            "reward": {"reward": "outcome_and_gain"},
            "rollout": {
                "questions": size.questions,
                "group_size": size.members,
                "max_turns": size.turns,
                "max_new_tokens": script,
                "max_tokens": 2_048,
            },
            "optimizer": {"learning_rate": 1e-12, "tokens_per_batch": size.budget},
        }
    )


@contextmanager
def clocks() -> Iterator[dict[str, float]]:
    """Within it, seconds add up by part of the rollout: prefill, decode (the model on one token of each row), choose (a token of
    each row's distribution)."""
    seconds: dict[str, float] = defaultdict(float)
    stream: Any = engine._Stream
    kept = {name: getattr(stream, name) for name in ("_prefill", "sample_turn", "_choose")}

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            started = time.perf_counter()
            result = call(*args)
            seconds[part] += time.perf_counter() - started
            return result

        return run

    for name, part in (("_prefill", "prefill"), ("sample_turn", "decode"), ("_choose", "choose")):
        setattr(stream, name, timed(part, kept[name]))
    try:
        yield seconds
        seconds["decode"] -= seconds["choose"]
    finally:
        for name, call in kept.items():
            setattr(stream, name, call)


def step(trainer: Trainer, of: Policy, environment: Fixed) -> tuple[list[Trajectory], dict[str, float]]:
    """Return the trajectories of a step and the seconds of its parts."""
    times = RolloutTimes()
    started = time.perf_counter()
    with clocks() as seconds:
        trajectories = trainer.roll_out(list(enumerate(environment.asked)), times)
    rolled = time.perf_counter()
    reward_trajectories(of, environment, trajectories, trainer.config.reward)
    scored = time.perf_counter()
    # every trajectory is updated: a dead group would cost nothing
    trainer.learner.update(trajectories, [[1e-3] * len(item.turns) for item in trajectories], step=0)
    ended = time.perf_counter()
    return trajectories, {**seconds, "rollout": rolled - started, "update": ended - scored, "step": ended - started}


def floors(of: Policy, config: ExperimentConfig, trajectories: Sequence[Trajectory], speed: Speed) -> dict[str, float]:
    """Return the seconds that the parts take at the ceilings: passes by their operations; decoding by the longer of
    two, the operations of a token of each row, and the weights and columns of the cache that it reads; a choice by the logits and
    their distribution in float32."""
    shape, rows = Shape.of(of.model.config), len(trajectories)
    tokens = sum(len(item.token_ids) for item in trajectories) / rows
    sampled = sum(item.sampled_tokens for item in trajectories) / rows
    prompt = sum(item.turns[0].start for item in trajectories) / rows
    read = config.rollout.questions * prompt + rows * (tokens - prompt - sampled)  # a prompt once for its group
    size = 2 if of.half else 4
    matrices = shape.block_weights + shape.vocabulary * shape.width
    cached = rows * tokens / 2 * 2 * shape.layers * shape.key_value_heads * shape.head_width * size
    a_token = max((size * matrices + cached) / speed.bandwidth, 2 * rows * matrices / speed.operations)
    update = work(shape, config, tokens=tokens, sampled=sampled, probes=0.0).update
    return {
        "prefill": 2 * shape.block_weights * read / speed.operations,
        "decode": sampled * a_token,
        "choose": sampled * 2 * 4 * rows * shape.vocabulary / speed.bandwidth,
        "update": update / speed.operations,
    }


def measure(name: str, dtype: Dtype, repeats: int, profiled: bool) -> str:
    """Return the table of a shape in one dtype: medians of the steps after the first one, and their floors."""
    size = SIZES[name]
    of = replace(policy(size.shape, architecture=size.architecture), half=dtype == "bfloat16")
    script = turn_script(of, size.thought)
    environment = Fixed(questions(size.questions), size.observation)
    config = configuration(size, dtype, len(script))
    found: list[dict[str, float]] = []
    with scripted(script):
        trainer = Trainer(config, environment, of)  # type: ignore[arg-type]
        trajectories, _ = step(trainer, of, environment)
        speed = measure_speed(torch.get_num_threads(), dtype)
        for _ in range(repeats):
            found.append(step(trainer, of, environment)[1])
        if profiled:
            profile(lambda: step(trainer, of, environment))
    taken = {part: statistics.median(each[part] for each in found) for part in found[0]}
    least = floors(of, config, trajectories, speed)
    tokens = sum(len(item.token_ids) for item in trajectories)
    sampled = sum(item.sampled_tokens for item in trajectories)
    lines = [
        f"== {name}, {dtype}: {len(trajectories)} trajectories, {tokens} tokens, of which {sampled} sampled; a product makes "
        f"{speed.operations / 1e9:.0f} GFLOP/s, a copy moves {speed.bandwidth / 1e9:.1f} GB/s",
        "   part       seconds    floor    times",
    ]
    for part, seconds in taken.items():
        known = f"{least[part]:8.2f} {seconds / least[part]:8.1f}" if part in least else ""
        lines.append(f"   {part:9} {seconds:8.2f} {known}")
    a_token = sampled / len(trajectories)
    lines.append(
        f"   a token of {len(trajectories)} rows: {1e3 * (taken['decode'] + taken['choose']) / a_token:.0f} ms, floor "
        f"{1e3 * (least['decode'] + least['choose']) / a_token:.0f} ms"
    )
    return "\n".join(lines)


def profile(call: Callable[[], object]) -> None:
    """Print what operations the time of a call goes to."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as seen:
        call()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=32, max_name_column_width=60), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--shape", choices=list(SIZES), default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="print what operations the time goes to")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    for dtype in chosen.dtype:
        print(measure(chosen.shape, dtype, chosen.repeats, chosen.profile), flush=True)
    print(f"   medians of {chosen.repeats} steps after one that is not counted; {machine()}")


if __name__ == "__main__":
    main()
