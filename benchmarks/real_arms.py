"""Arms of a preset with a real language model, trained on one GPU by igpo_core alone: no Prefect, no MLflow.

python -m benchmarks.real_arms --data FOLDER --model FOLDER [--preset real] [--arms A B] [--seed N] [--steps N] [--every N]
[--questions N] [--out FILE]. FOLDER of data: published (questions.parquet, corpus.parquet, bm25); of the model: converted
(`make model`). The warm start is made once, then each arm in a process of its own, all of them on the card at the same time,
with an equal share of its memory each. Prints and writes every event of the runs. One seed carries no verdict: this shows that
everything runs, what it costs, and the curves of one seed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.common import machine
from igpo_core.config import AblationSpecification, ExperimentConfig, RunSpec
from igpo_core.config.identity import code_version
from igpo_core.environments import open_environment
from igpo_core.policies import build_policy, save_policy
from igpo_core.run import Evaluated, Finished, Said, StepDone, TrainingRun
from igpo_core.warmstart import run_warm_start

PRESETS = Path(__file__).parents[1] / "deployments" / "presets"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def spec_of(chosen: argparse.Namespace, arm: str, share: float) -> RunSpec:
    """A run of the preset, with the model's folder, the continuous engine and what the command line says."""
    specification = AblationSpecification.model_validate(
        yaml.safe_load((PRESETS / f"{chosen.preset}.yaml").read_text())
    )
    whole = specification.experiment(arm, chosen.seed, "").model_dump(mode="json")
    whole["policy"] |= {"name": str(chosen.model.resolve()), "revision": None}
    whole["training"] |= {"device": DEVICE, "epochs": 1, "steps_per_epoch": chosen.steps}
    whole["evaluation"] |= {
        "every": chosen.every,
        "dev_questions": chosen.questions,
        "test_questions": chosen.questions,
    }
    if DEVICE == "cuda":
        whole["rollout"]["engine"] = {"kind": "continuous"}
        whole["training"]["memory_share"] = share
    for path, value in (entry.split("=", 1) for entry in chosen.set):
        *parents, name = path.split(".")
        place = whole
        for parent in parents:
            place = place[parent]
        place[name] = yaml.safe_load(value)
    experiment = ExperimentConfig.model_validate(whole)
    return RunSpec(
        study=specification.name,
        sweep="benchmark",
        arm=arm,
        cell="",
        experiment=experiment,
        data_version="benchmark",
        code=code_version(),
    )


def warm_start(chosen: argparse.Namespace, folder: Path) -> None:
    config = spec_of(chosen, chosen.arms[0], 1.0).experiment
    policy = build_policy(config, open_environment(config, chosen.data))
    policy.model.to(DEVICE)
    started = time.perf_counter()
    run_warm_start(
        config,
        open_environment(config, chosen.data),
        policy,
        progress=lambda done, total, found: say(
            chosen, event="warm start", step=done, seconds=time.perf_counter() - started, **found
        ),
    )
    save_policy(policy, folder)


def train(chosen: argparse.Namespace, arm: str, start: Path, folder: Path) -> None:
    if DEVICE == "cuda":
        torch.cuda.set_per_process_memory_fraction(1 / len(chosen.arms))
    run = TrainingRun(spec_of(chosen, arm, 1 / len(chosen.arms)), folder, chosen.data, start, place=DEVICE)
    for event in run.events():
        memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0
        match event:
            case Said(text):
                say(chosen, event="said", arm=arm, text=text)
            case StepDone(step, metrics) | Evaluated(step, metrics):
                say(chosen, event=type(event).__name__, arm=arm, step=step, memory=memory, **metrics)
                for item in event.sample[:2] if isinstance(event, StepDone) else ():
                    text = run.trainer.policy.protocol.decode(item.trajectory.token_ids)
                    gains = [float(gain) for gain in item.gains or ()]
                    say(
                        chosen, event="trajectory", arm=arm, step=step, text=text, gains=gains, scores=dict(item.scores)
                    )
            case Finished(step, metrics):
                say(chosen, event="test", arm=arm, step=step, **metrics)


def say(chosen: argparse.Namespace, **row: Any) -> None:
    line = json.dumps({**row, "at": time.time()})
    with chosen.out.open("a") as file:
        file.write(line + "\n")
    keep = (
        "event",
        "arm",
        "step",
        "seconds",
        "warm_start/loss",
        "train/f1",
        "eval/all/f1",
        "test/all/f1",
        "time/step",
        "text",
    )
    print({k: v if not isinstance(v, float) else round(v, 3) for k, v in row.items() if k in keep}, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--preset", default="real")
    parser.add_argument("--arms", nargs="+", default=["outcome_only", "igpo_rms"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--questions", type=int, default=488)
    parser.add_argument("--set", nargs="*", default=[], help="further settings, as optimizer.learning_rate=1e-5")
    parser.add_argument("--out", type=Path, default=Path("real_arms.jsonl"))
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)  # one arm's own process: its name, the folder of all
    chosen = parser.parse_args(arguments)
    if chosen.arm:
        arm, home = chosen.arm[0], Path(chosen.arm[1])
        train(chosen, arm, home / "start", home / arm)
        return
    print(f"== arms of preset {chosen.preset}, seed {chosen.seed}; {machine()}", flush=True)
    with tempfile.TemporaryDirectory() as home:
        warm_start(chosen, Path(home) / "start")
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
        own = [sys.executable, "-m", "benchmarks.real_arms", *(sys.argv[1:] if arguments is None else arguments)]
        children = [subprocess.Popen([*own, "--arm", arm, home]) for arm in chosen.arms]
        if any([child.wait() for child in children]):
            raise SystemExit("an arm failed")


if __name__ == "__main__":
    main()
