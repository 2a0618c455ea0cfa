"""What a step costs on a GPU: its ceilings, a decoding step, rollouts, beliefs, the update, against the floors.

python -m benchmarks.gpu [--shapes 0.5b 7b smollm2] [--peer] [--profile] [--out FILE]. One command, without network, meant for
six minutes on an H100. Models are random and of real shapes; every turn is forced to one script of a search, at the cost of a
real choice. "before" is rollout.engine.kind=transformers with padded updates, "after" rollout.engine.kind=continuous with
packed ones; both run here, on the same card. Without a GPU it runs a tiny shape, which shows nothing but that it runs.
"""

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, Qwen2Config

from benchmarks.common import machine, scripted
from benchmarks.models import (
    LLAMA_135M,
    QWEN2_7B,
    QWEN2_HALF_BILLION,
    QWEN2_SMALLEST,
    Fixed,
    policy,
    questions,
    turn_script,
)
from igpo_core.clock import now
from igpo_core.config import ExperimentConfig, Lora
from igpo_core.estimates import Shape
from igpo_core.policies import Policy
from igpo_core.rewards.scoring import reward_trajectories
from igpo_core.rollout.rows import RolloutTimes
from igpo_core.rollout.slots import Sampling
from igpo_core.sampled import sampled_logprobs
from igpo_core.training import Trainer
from igpo_core.trajectory import Trajectory
from igpo_core.weights import add_lora

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What is rolled out: a shape, questions x members, turns, words of a thought and of an observation.

    before: repeats of the exact engine's steps after the first one, of which the medians are told; 0: the first one is told,
    which plans kernels for every length; None: not at all. budget: tokens of a micro-batch.
    """

    shape: dict[str, Any]
    architecture: Any = Qwen2Config
    questions: int = 16
    members: int = 8
    turns: int = 4
    thought: int = 18
    observation: int = 87
    lora: bool = False
    checkpointing: bool = False
    before: int | None = 0
    budget: int = 32_768


WORKS = {
    "0.5b": Work(QWEN2_HALF_BILLION, before=1),
    "smollm2": Work(LLAMA_135M, LlamaConfig, thought=19, observation=100),
    "7b": Work(QWEN2_7B, questions=8, lora=True, checkpointing=True, before=None),
    "tiny": Work(QWEN2_SMALLEST, questions=1, members=2, turns=2, thought=0, observation=2, budget=1_024),
}


def timed(call: Callable[[], object], repeats: int) -> float:
    """Median seconds of a call, after one that is not counted."""
    call()
    seconds = []
    for _ in range(repeats):
        started = now(DEVICE)
        call()
        seconds.append(now(DEVICE) - started)
    return statistics.median(seconds)


def ceilings(size: int) -> Row:
    """Operations a second of a square bfloat16 product, and bytes a second that a copy reads and writes."""
    one = torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16)
    source = torch.randint(0, 255, (32 * size * size // 2,), device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = timed(lambda: [one @ one for _ in range(10)], 3) / 10
    copy = timed(lambda: [target.copy_(source) for _ in range(10)], 3) / 10
    return {"operations": 2 * size**3 / product, "bandwidth": 2 * source.numel() / copy}


def configuration(work: Work, reward: str, engine: str, script: int) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "data": {"kind": "files", "questions": [{"path": "none"}], "corpus": ["none"]},
            "policy": {"kind": "pretrained", "name": "random", "dtype": "bfloat16"},
            "reward": {"reward": reward},
            "rollout": {
                "questions": work.questions,
                "group_size": work.members,
                "max_turns": work.turns,
                "max_new_tokens": script,
                "max_tokens": 2048,
                "engine": {"kind": engine},
            },
            "optimizer": {
                "learning_rate": 1e-12,
                "tokens_per_batch": work.budget,
                "gradient_checkpointing": work.checkpointing,
            },
            "training": {"device": DEVICE.type},
        }
    )


def model_of(work: Work) -> Policy:
    of = replace(
        policy(work.shape, dtype=torch.bfloat16 if work.lora else torch.float32, architecture=work.architecture),
        half=True,
    )
    if work.lora:
        add_lora(of.model, Lora(rank=32, alpha=64), 0, None)
    return of


def steps(name: str, work: Work, of: Policy, engine: str, packed: bool, repeats: int) -> list[Row]:
    """Whole steps with and without the gain; the medians of `repeats` after one that is not counted."""
    script = turn_script(of, work.thought)
    environment = Fixed(questions(work.questions), work.observation)
    rows = []
    with scripted(script):
        for reward in ("outcome_only", "outcome_and_gain"):
            config = configuration(work, reward, engine, len(script))
            trainer = Trainer(config, environment, of)  # type: ignore[arg-type]
            trainer.learner.packed = trainer.learner.model.packed = packed
            found = []
            for repeat in range(repeats + 1):
                one = step(trainer, of, environment, config)
                if repeat or not repeats:
                    found.append(one)
            rows.append(
                {
                    "shape": name,
                    "engine": engine,
                    "packed": packed,
                    "reward": reward,
                    **{key: statistics.median(row[key] for row in found) for key in found[0]},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            del trainer
            gc.collect()  # its engine's cache
    return rows


def step(trainer: Trainer, of: Policy, environment: Fixed, config: ExperimentConfig) -> dict[str, float]:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = RolloutTimes()
    started = now(DEVICE)
    trajectories = trainer.roll_out(list(enumerate(environment.asked)), times)
    rolled = now(DEVICE)
    rolling = peak()
    reward_trajectories(of, environment, trajectories, config.reward)
    scored = now(DEVICE)
    # every trajectory is updated on all sides: outcome_only must not win by its dead groups
    trainer.learner.update(trajectories, [[1e-3] * len(item.turns) for item in trajectories], step=0)
    ended = now(DEVICE)
    tokens = sum(len(item.token_ids) for item in trajectories)
    sampled = sum(item.sampled_tokens for item in trajectories)
    return {
        "rows": len(trajectories),
        "tokens": tokens,
        "sampled": sampled,
        "rollout": rolled - started,
        "sampled_per_second": sampled / (rolled - started),
        "scoring": times.scoring,
        "update": ended - scored,
        "step": ended - started,
        "memory_rollout": rolling,
        "memory": peak(),
    }


def peak() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else 0.0


def floors(work: Work, of: Policy, row: Row, limits: Row) -> Row:
    """Seconds that the same work would take at the ceilings: bytes of weights and cache by decoding step, operations of the
    update (6 a weight and token, 4 with LoRA, a third more with checkpointing; the head on sampled tokens alone)."""
    shape = Shape.of(of.model.config)
    weights = 2 * (shape.block_weights + shape.vocabulary * shape.width)
    a_token = 4 * shape.layers * shape.key_value_heads * shape.head_width
    decoding = row["sampled"] / row["rows"]
    moved = decoding * (weights + row["tokens"] / 2 * a_token)
    head = shape.vocabulary * shape.width
    passes = (4 if work.lora else 6) + 2 * work.checkpointing
    return {
        "decoding_step": (weights + row["tokens"] / 2 * a_token) / limits["bandwidth"],
        "rollout": moved / limits["bandwidth"]
        + 2 * shape.block_weights * (row["tokens"] - row["sampled"]) / limits["operations"],
        "update": passes * (row["tokens"] * shape.block_weights + row["sampled"] * head) / limits["operations"],
    }


def decoding(work: Work, of: Policy, row: Row, repeats: int) -> float:
    """Seconds of one decoding step of all rows, in the middle of their histories."""
    from igpo_core.rollout.slots import SlotModel

    rows, middle = int(row["rows"]), int(row["tokens"] / row["rows"] / 2)
    model = SlotModel(of, rows, -(-(2 * middle + 256) // 128) * 128, 256)
    uniforms = torch.rand(rows, 256, dtype=torch.float64)
    sampling = Sampling(1.0, False, 256)
    with torch.no_grad():
        model.begin_turns(range(rows), [middle] * rows, [1] * rows, uniforms)
        return timed(lambda: model.decode(rows, 8, sampling), repeats) / 8


def agreement(of: Policy, trajectories: Sequence[Trajectory]) -> Row:
    """How far the log-probabilities of an engine are from those of a plain padded pass in the same precision, and both from a
    pass in float32."""
    some = list(trajectories)[:8]
    ours = torch.tensor([p for item in some for turn in item.turns for p in turn.logprobs])
    with torch.no_grad():
        with of.precision():
            plain = sampled_logprobs(of.model, some, of.protocol.pad_id, 1.0)[0].float().cpu()
        exact = sampled_logprobs(of.model, some, of.protocol.pad_id, 1.0)[0].float().cpu()
    far = {"engine_plain": ours - plain, "engine_float32": ours - exact, "plain_float32": plain - exact}
    return {
        f"{name}_{kind}": float(value)
        for name, gap in far.items()
        for kind, value in (("mean", gap.abs().mean()), ("max", gap.abs().max()))
    }


def free_rollout(work: Work, of: Policy, engine: str) -> list[Trajectory]:
    """Trajectories that the policy samples itself, not the script: the first turn of a random model, which ends malformed."""
    script = turn_script(of, work.thought)
    config = configuration(work, "outcome_only", engine, len(script))
    trainer = Trainer(config, Fixed(questions(work.questions), work.observation), of)  # type: ignore[arg-type]
    return trainer.roll_out(list(enumerate(trainer.questions)), RolloutTimes())


def peer(work: Work, of: Policy, row: Row) -> Row:
    """transformers' generate_batch on as many prompts with as many tokens a turn: one turn from prompts of a mean history."""
    from transformers import GenerationConfig
    from transformers.generation import ContinuousBatchingConfig

    past, new = int(row["tokens"] / row["rows"] / 2), int(row["sampled"] / row["rows"] / work.turns)
    settings = GenerationConfig(max_new_tokens=new, do_sample=True, temperature=1.0, eos_token_id=-1, pad_token_id=0)
    prompts = [torch.randint(1, 400, (past,)).tolist() for _ in range(work.questions)]
    asked = [list(prompts[i // work.members]) for i in range(int(row["rows"]))]
    batching = ContinuousBatchingConfig(return_logprobs=True)
    # in the precision of the other rows: its own thread would know of no autocast
    model = copy.deepcopy(of.model).to(torch.bfloat16) if of.half else of.model
    seconds = []
    for _ in range(2):
        started = now(DEVICE)
        answers = model.generate_batch(
            asked, generation_config=settings, continuous_batching_config=batching, progress_bar=False
        )
        seconds.append(now(DEVICE) - started)
    sampled = sum(len(answer.generated_tokens) for answer in answers.values())
    return {"sampled": sampled, "seconds": seconds[-1], "sampled_per_second": sampled / seconds[-1]}


def profile(call: Callable[[], object], title: str) -> None:
    """Print what kernels the time of a call goes to."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        call()
        now(DEVICE)
    print(f"== profile: {title}")
    events = [e for e in seen.key_averages() if e.self_device_time_total > 0 and e.device_type.name == "CUDA"]
    total = sum(e.self_device_time_total for e in events)
    print(f"   {total / 1000:.1f} ms of kernels")
    for event in sorted(events, key=lambda e: -e.self_device_time_total)[:22]:
        print(f"   {event.self_device_time_total / 1000:8.2f} ms {event.count:6d} x  {event.key[:110]}", flush=True)


def measure(name: str, work: Work, limits: Row, chosen: argparse.Namespace) -> Row:
    started = time.perf_counter()
    of = model_of(work)
    result: Row = {"rows": []}
    if work.before is not None and not chosen.after_only:
        result["rows"] += steps(name, work, of, "transformers", False, work.before)
    result["rows"] += steps(name, work, of, "continuous", DEVICE.type == "cuda", 1 if work.lora else chosen.repeats)
    last = result["rows"][-1]
    result["floors"] = floors(work, of, last, limits)
    result["decoding_step"] = decoding(work, of, last, 5)
    if not work.lora:
        result["agreement"] = agreement(of, free_rollout(work, of, "continuous"))
        print(json.dumps(result["agreement"]), flush=True)
    if chosen.peer and not work.lora:
        result["generate_batch"] = peer(work, of, last)
    if chosen.profile:
        profiles(work, of)
    result["seconds"] = time.perf_counter() - started
    return result


def profiles(work: Work, of: Policy) -> None:
    script = turn_script(of, work.thought)
    environment = Fixed(questions(work.questions), work.observation)
    with scripted(script):
        config = configuration(work, "outcome_and_gain", "continuous", len(script))
        trainer = Trainer(config, environment, of)  # type: ignore[arg-type]
        roll = partial(trainer.roll_out, list(enumerate(environment.asked)), RolloutTimes())
        trajectories = roll()
        profile(roll, "a rollout with beliefs")
        advantages = [[1e-3] * len(item.turns) for item in trajectories]
        update = partial(trainer.learner.update, trajectories, advantages, step=0)
        update()
        profile(update, "an update")


def table(name: str, result: Row) -> str:
    lines = [f"== {name}: {int(result['rows'][0]['rows'])} trajectories, {int(result['rows'][0]['tokens'])} tokens, of which "
             f"{int(result['rows'][0]['sampled'])} sampled",
             "   engine        reward             tokens/s  rollout  scoring   update     step   GiB"]  # fmt: skip
    for row in result["rows"]:
        lines.append(
            f"   {row['engine']:13} {row['reward']:17} {row['sampled_per_second']:9.0f} {row['rollout']:8.2f} "
            f"{row['scoring']:8.3f} {row['update']:8.2f} {row['step']:8.2f} {row['memory']:5.1f}"
        )
    floor = result["floors"]
    lines.append(f"   floors: rollout {floor['rollout']:.2f}, update {floor['update']:.2f} s")
    lines.append(
        f"   a decoding step: {1000 * result['decoding_step']:.2f} ms, floor {1000 * floor['decoding_step']:.2f} ms"
    )
    without, with_gain = result["rows"][-2:]
    lines.append(f"   the gain makes a step {100 * (with_gain['step'] / without['step'] - 1):+.1f} %")
    if "generate_batch" in result:
        lines.append(f"   generate_batch: {result['generate_batch']['sampled_per_second']:.0f} sampled tokens/s")
    if "agreement" in result:
        lines.append(
            "   log-probabilities: " + ", ".join(f"{key} {value:.2g}" for key, value in result["agreement"].items())
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> Row:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(WORKS))
    parser.add_argument("--peer", action="store_true", help="transformers' generate_batch as well")
    parser.add_argument("--profile", action="store_true", help="print what kernels the time goes to")
    parser.add_argument("--after-only", action="store_true", help="leave out the exact engine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    on_gpu = DEVICE.type == "cuda"
    if chosen.peer and not on_gpu:
        parser.error("--peer needs a GPU: generate_batch's cache takes all the memory that it finds")
    limits = ceilings(8192 if on_gpu else 256)
    print(f"{limits['operations'] / 1e12:.0f} TFLOP/s, {limits['bandwidth'] / 1e12:.2f} TB/s; {machine()}", flush=True)
    found: Row = {"machine": machine(), "ceilings": limits, "shapes": {}}
    for name in chosen.shapes or (["0.5b", "smollm2", "7b"] if on_gpu else ["tiny"]):
        found["shapes"][name] = measure(name, WORKS[name], limits, chosen)
        if on_gpu:
            torch.cuda.empty_cache()
        if chosen.out:
            chosen.out.write_text(json.dumps(found, indent=1))
    for name, result in found["shapes"].items():
        print(table(name, result), flush=True)
    print(json.dumps(found), flush=True)
    return found


if __name__ == "__main__":
    main()
