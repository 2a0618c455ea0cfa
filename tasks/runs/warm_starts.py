"""What the arms of a seed start from: made once, found by all."""

import shutil
import time
from pathlib import Path

import torch

from igpo_core.checkpoints import verify_folder, write_folder
from igpo_core.config import ExperimentConfig
from igpo_core.environments import open_environment
from igpo_core.environments.base import Environment
from igpo_core.policies import Policy, build_policy, save_policy
from igpo_core.warmstart import run_warm_start
from tasks.runs.devices import device
from tasks.runs.locks import locked
from tasks.runs.planned import Run, Say
from tasks.runs.planning import about_template, start_of


def set_up(experiment: ExperimentConfig, data: Path, place: str | None = None) -> tuple[Environment, Policy]:
    """The environment over a published data folder, and the untrained policy on its device, or in `place`. Sets this
    process's torch threads. Raises ConfigError when there is no such device."""
    torch.set_num_threads(experiment.training.threads)
    environment = open_environment(experiment, data)
    policy = build_policy(experiment, environment)
    policy.model.to(place or device(experiment))
    return environment, policy


def ensure_warm_start(run: Run, say: Say) -> Path:
    """Return the folder of the policy that every arm of the run's seed starts from: found whole, or made now."""
    experiment, key = run.spec.experiment, run.spec.start
    with locked(run.home, key, say):
        if run.start.exists():
            verify_folder(run.start)
            made = f"start {key} ({start_of(experiment)})" if experiment.warm_start is None else f"warm start {key}"
            say(f"{made}: reused")
        else:
            _make_warm_start(experiment, run.data, run.start, say)
    return run.start


def _make_warm_start(experiment: ExperimentConfig, data: Path, folder: Path, say: Say) -> None:
    """A model that nothing is taught stays on the CPU, and one that was taught leaves the accelerator: this is the flow's own
    process, which waits while others train there."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    environment, policy = set_up(experiment, data, "cpu" if experiment.warm_start is None else None)
    for line in about_template(policy.protocol):
        say(f"warning: {line}")
    if experiment.warm_start is not None:
        total = sum(stage.steps for stage in experiment.warm_start.stages)
        started = time.monotonic()

        def progress(done: int, steps: int, metrics: dict[str, float]) -> None:
            if done % max(10, total // 6 // 10 * 10) == 0 or done == steps:
                say(
                    f"warm start seed {experiment.seed}: step {done}/{steps}, loss {metrics['warm_start/loss']:.3f}, "
                    f"{time.monotonic() - started:.0f} s"
                )

        losses = run_warm_start(
            experiment, environment, policy,
            progress=progress, folder=unfinished, warn=lambda damage: say(f"warning: {damage}"),
        )  # fmt: skip
        if losses["warm_start/left_out"]:
            say(
                f"warning: {losses['warm_start/left_out']:.0f} demonstrations did not fit rollout.max_tokens="
                f"{experiment.rollout.max_tokens} and were left out, the longest ones: raise it to teach these too"
            )
    write_folder(folder, lambda path: save_policy(policy, path))
    shutil.rmtree(unfinished, ignore_errors=True)  # there is one of a long warm start alone
    policy.model.to("cpu")
    torch.cuda.empty_cache()  # else the allocator keeps for this process what the model leaves
