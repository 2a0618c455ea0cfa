"""Training with rollout.engine.kind=continuous against training with the exact engine, from the same start.

python -m benchmarks.engines [--steps N] [--seeds N]. A small model that demonstrations of world lookup taught the grammar is
trained with each engine and seed; the table has the mean F1 of the training rollouts in fifths of the steps, and how far the
engine's log-probabilities are from the trainer's. On a GPU in bfloat16; on a CPU in float32, where both engines sample the same.
"""

import argparse
import copy
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.common import machine
from igpo_core.config import ExperimentConfig, LookupWorld
from igpo_core.data import to_questions
from igpo_core.environments import lookup
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.policies import Policy, build_policy
from igpo_core.training import Trainer
from igpo_core.warmstart import run_warm_start

# the stages of preset outcome-vs-igpo, shorter
SKILL = {
    "steps": 120,
    "learning_rate": 3e-3,
    "batch_size": 64,
    "demonstrations": {
        "kind": "lookup",
        "right_query": [0.2, 1.0],
        "stop_early": 0.05,
        "answer_when_done": 0.8,
        "wrong_answer": 0.0,
    },
}
CARELESS = {
    "steps": 40,
    "learning_rate": 1e-3,
    "batch_size": 64,
    "demonstrations": {
        "kind": "lookup",
        "right_query": [0.2, 0.2],
        "stop_early": 0.25,
        "answer_when_done": 0.3,
        "wrong_answer": 0.5,
    },
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def configuration(engine: str, seed: int, steps: int, questions: int) -> ExperimentConfig:
    return ExperimentConfig.model_validate(
        {
            "seed": seed,
            "data": {"kind": "lookup", "hops": 2, "train": 400, "dev": 32, "test": 32},
            "policy": {"kind": "new", "width": 96, "layers": 3, "heads": 4, "feed_forward": 192, "window": 256},
            "reward": {"format_penalty": -1},
            "warm_start": {"stages": [SKILL, SKILL, CARELESS]},
            "rollout": {
                "questions": questions,
                "group_size": 8,
                "max_turns": 4,
                "max_tokens": 200,
                "engine": {"kind": engine},
            },
            "optimizer": {"learning_rate": 3e-4, "tokens_per_batch": 16_384},
            "training": {"device": DEVICE, "steps_per_epoch": steps},
        }
    )


def started(seed: int, steps: int, questions: int) -> tuple[LookupEnvironment, Policy]:
    config = configuration("transformers", seed, steps, questions)
    assert isinstance(config.data, LookupWorld)
    environment = LookupEnvironment(config.data, to_questions(lookup.generate(config.data)), config.rollout.max_turns)
    policy = build_policy(config, environment)
    policy.model.to(DEVICE)
    run_warm_start(config, environment, policy, progress=lambda *_: None)
    return environment, replace(policy, half=DEVICE == "cuda")


def curve(config: ExperimentConfig, environment: LookupEnvironment, start: Policy) -> list[dict[str, float]]:
    policy = replace(start, model=copy.deepcopy(start.model))
    trainer = Trainer(config, environment, policy)
    return [trainer.run_step().metrics for _ in range(config.training.steps_per_epoch)]


def main(arguments: Sequence[str] | None = None) -> dict[str, list[list[float]]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=16)
    chosen = parser.parse_args(arguments)
    found: dict[str, list[list[float]]] = {"transformers": [], "continuous": []}
    print(f"== training with either engine; {machine()}")
    for seed in range(chosen.seeds):
        environment, start = started(seed, chosen.steps, chosen.questions)
        for engine, curves in found.items():
            config = configuration(engine, seed, chosen.steps, chosen.questions)
            metrics = curve(config, environment, start)
            rewards = [step["train/f1"] for step in metrics]
            curves.append(rewards)
            fifth = max(1, chosen.steps // 5)
            parts = [statistics.mean(rewards[i : i + fifth]) for i in range(0, chosen.steps, fifth)]
            seconds = statistics.median(step["time/step"] for step in metrics)
            told = f"   seed {seed} {engine:13} F1 {' '.join(f'{part:.3f}' for part in parts)}; a step {seconds:.2f} s"
            if engine == "continuous":
                mean = statistics.mean(step["engine/mismatch"] for step in metrics if "engine/mismatch" in step)
                most = max(step.get("engine/mismatch_max", 0.0) for step in metrics)
                told += f"; mismatch {mean:.2g}, at most {most:.2g}"
            print(told, flush=True)
    return found


if __name__ == "__main__":
    main()
