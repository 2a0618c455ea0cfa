"""What Prefect and MLflow cost: a training run as a flow against the same epochs, evaluations and checkpoints without.

python -m benchmarks.orchestration [--repeats N]. Real servers in a folder of their own, the default preset after a
shortened warm start; each repeat is another seed, and both sides of a repeat start from the same policy.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Side, ratios, show, spread

PROJECT = Path(__file__).resolve().parents[1]
PRESET = PROJECT / "deployments" / "presets" / "outcome-vs-igpo.yaml"
ARM = "igpo"


def planned(preset: str, seed: int, home: Path, sweep: str) -> Any:
    """A run of the preset, with its data and its warm start on disk."""
    from igpo_core.config import plan_run
    from tasks.data.publishing import prepare
    from tasks.runs.planned import Run
    from tasks.runs.warm_starts import ensure_warm_start
    from tasks.specification.presets import load_specification

    specification = load_specification(preset)
    data = prepare(specification.base.data, home)
    run = Run(plan_run(specification, ARM, seed, "", data.version, sweep), home)
    ensure_warm_start(run, lambda line: None)
    return run


def alone(preset: str, seed: int, home: Path) -> None:
    """The run without a server: what flows.train does, less Prefect and MLflow."""
    from tasks.runs.planned import open_training
    from tasks.runs.training import Recorder
    from tasks.tracking.outbox import NoOutbox

    run = planned(preset, seed, home, "alone")
    run.folder.mkdir(parents=True)
    Recorder(run, open_training(run, lambda line: None), NoOutbox(), lambda line: None).to_end()


def measure(preset: str, home: Path, repeats: int) -> None:
    """Prints the seconds of both sides; runs with the servers' environment."""
    from flows.train import train

    flow: list[tuple[float, float]] = []
    plain: list[tuple[float, float]] = []
    for seed in range(repeats + 1):
        planned(preset, seed, home, "warm start")
        calls = [
            (flow, partial(train, preset=preset, arm=ARM, seed=seed)),
            (plain, partial(alone, preset, seed, home)),
        ]
        for side, call in calls[:: 1 if seed % 2 else -1]:  # which goes first alternates
            started, worked = time.perf_counter(), time.thread_time()
            call()
            if seed:  # the first pair pays imports and the experiment's making
                seconds = time.perf_counter() - started
                side.append((seconds, seconds - (time.thread_time() - worked)))
    print("\n" + json.dumps({"flow": flow, "alone": plain}))


def short_preset(folder: Path) -> Path:
    """The default preset with a warm start of 60 steps: what is timed starts after it."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(PRESET.read_text())
    stage = {**content["base"]["warm_start"]["stages"][0], "steps": 60}
    content["base"]["warm_start"]["stages"] = [stage]
    content["name"] = "orchestration-benchmark"
    path = folder / "preset.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.folder:
        measure(str(chosen.folder / "preset.yaml"), chosen.folder / "home", chosen.repeats)
        return
    from deployments.place import Place

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        short_preset(folder)
        place = Place(folder / "home", *free_ports())
        environment = place.environment()
        service = [sys.executable, "-m", "deployments.services"]
        subprocess.run([*service, "servers"], env=environment, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
        try:
            command = [sys.executable, "-m", "benchmarks.orchestration", "--folder", name]
            command += ["--repeats", str(chosen.repeats)]
            done = subprocess.run(command, env=environment, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            subprocess.run([*service, "down"], env=environment, check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    found = json.loads(done.stdout.strip().splitlines()[-1])
    flow, plain = (Side(name, tuple(seconds for seconds, _ in found[name])) for name in ("flow", "alone"))
    waits = [one - other for (_, one), (_, other) in zip(found["flow"], found["alone"], strict=True)]
    more = [100 * (ratio - 1) for ratio in ratios(flow, plain)]
    seconds = [one - other for one, other in zip(flow.seconds, plain.seconds, strict=True)]
    show(
        "a training run under Prefect and MLflow against the same epochs without: the default preset, 40 steps",
        "at most 2% more wall time",
        [
            ("flow", flow.text),
            ("igpo_core alone", plain.text),
            ("more", spread(more, 1, "%")),
            ("more", spread(seconds, 2, " s")),
            ("of which it waits", spread(waits, 2, " s")),
        ],
        chosen.repeats,
    )


if __name__ == "__main__":
    main()
