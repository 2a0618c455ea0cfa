"""A sweep's runs are what was planned when it started, whatever becomes of the file that it was planned from."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from igpo_core.config import Plan, make_plan
from igpo_core.environments.lookup import generate
from tasks.lab.home import PROJECT
from tasks.runs.planned import PLAN, Run, write_plan
from tasks.specification.presets import load_specification

TINY: dict[str, Any] = {
    "name": "edited",
    "baseline": "outcome_only",
    "seeds": [0],
    "arms": {"outcome_only": {"reward": "outcome_only"}, "igpo": {"gain": "log_prob_diff"}},
    "base": {
        "data": {"kind": "lookup", "hops": 2, "train": 32, "dev": 4, "test": 4},
        "policy": {"kind": "new", "width": 16, "layers": 1, "feed_forward": 32, "window": 256, "heads": 2,
                   "key_value_heads": 2},
        "rollout": {"questions": 2, "group_size": 2, "max_turns": 3, "max_tokens": 128},
        "training": {"epochs": 1, "steps_per_epoch": 2},
        "evaluation": {"every": 1, "dev_questions": 4, "test_questions": 4, "traces": 0, "diagnostics": 4},
        "warm_start": {
            "stages": [{"steps": 4, "learning_rate": 0.01, "batch_size": 8, "warmup_steps": 1,
                        "demonstrations": {"kind": "lookup"}}]
        },
    },
}  # fmt: skip
# what another process does with a run's key: all that it is given, with the home
CHILD = """
import sys
from pathlib import Path
from tasks.runs.planned import open_run, open_training
from tasks.runs.training import Recorder
from tasks.runs.warm_starts import ensure_warm_start
from tasks.tracking.outbox import About, Outbox

home, key = Path(sys.argv[1]), sys.argv[2]
run = open_run(home, key)
ensure_warm_start(run, print)
training = open_training(run, print)
tags = {"sweep": run.spec.sweep, "arm": run.spec.arm}
Recorder(run, training, Outbox(run.folder, About(run.spec.study, run.spec.name, key, tags, {})), print).to_end()
"""


def edited() -> dict[str, Any]:
    """Every choice that a run has, in another way."""
    content: dict[str, Any] = json.loads(json.dumps(TINY))
    content["base"]["training"]["steps_per_epoch"] = 3
    content["base"]["optimizer"] = {"learning_rate": 0.5}
    content["base"]["warm_start"]["stages"][0]["steps"] = 9
    content["arms"]["igpo"] = {"gain": "prob_diff", "gain_weight": 7}
    return content


def plan(path: Path) -> Plan:
    specification = load_specification(str(path))
    return make_plan(specification, dict.fromkeys(specification.cells, "data"))


def start(home: Path, path: Path) -> Run:
    """Plan a sweep as its parent does; return the run of arm igpo."""
    runs = write_plan(plan(path), home)
    (chosen,) = [run for run in runs if run.spec.arm == "igpo"]
    chosen.data.mkdir(parents=True)
    generate(chosen.spec.experiment.data).to_parquet(chosen.data / "questions.parquet")
    return chosen


def train(run: Run) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Metrics of every step and of the test, of a child in another folder: no relative path leads to the specification."""
    command = [sys.executable, "-c", CHILD, str(run.home), run.spec.run_key]
    environment = {"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin", "HOME": str(run.home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=run.home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    steps = [numbers(line["metrics"]) for line in lines]
    result = run.result()
    assert result is not None
    return steps, numbers(result["metrics"])


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Without times and what the machine had left."""
    return {
        name: value
        for name, value in metrics.items()
        if not name.startswith(("time/", "system/", "memory/")) and "second" not in name
    }


@pytest.mark.timeout(900)
def test_a_yaml_edited_during_a_sweep_changes_nothing_that_its_children_train(tmp_path: Path) -> None:
    """Two homes, one plan; in one the file is edited before the child starts. The next sweep from that file has other runs."""
    path = tmp_path / "edited.yaml"
    path.write_text(yaml.safe_dump(TINY))
    first = plan(path)
    alone, touched = (start(tmp_path / name, path) for name in ("alone", "touched"))
    written = (touched.folder / PLAN).read_bytes()
    expected = train(alone)
    path.write_text(yaml.safe_dump(edited()))
    assert not {spec.run_key for spec in plan(path).runs} & {spec.run_key for spec in first.runs}
    assert train(touched) == expected
    assert len(expected[0]) >= 2 and touched.spec == alone.spec and touched.spec.experiment.training.steps == 2
    assert (touched.folder / PLAN).read_bytes() == written
