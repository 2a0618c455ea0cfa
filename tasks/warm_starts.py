"""What the arms of a seed start from: made once, found by all."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import ExperimentConfig, PretrainedPolicy, code_version, fingerprint
from igpo_core.errors import ConfigError
from tasks.locks import locked
from tasks.runs import Say

if TYPE_CHECKING:
    from igpo_core.environments.base import Environment
    from igpo_core.policies import Policy
    from tasks.data import PublishedData


def warm_start_key(experiment: ExperimentConfig, data_version: str) -> str:
    """Changes with everything that a warm start depends on, and with nothing that tells arms apart."""
    relevant = {
        "policy": experiment.policy.model_dump(mode="json"),
        "stages": experiment.warm_start.model_dump(mode="json") if experiment.warm_start else None,
        "rollout": [experiment.rollout.max_turns, experiment.rollout.max_tokens],
        "batch": experiment.optimizer.tokens_per_batch,
        "threads": experiment.training.threads,
        "seed": experiment.seed if _depends_on_seed(experiment) else None,
    }
    return fingerprint(relevant, data_version, code_version())


def start_of(experiment: ExperimentConfig) -> str:
    """Return what the arms of a seed start from, in words."""
    if experiment.warm_start is not None:
        return "the same warm start"
    policy = experiment.policy
    return policy.name if isinstance(policy, PretrainedPolicy) else "the same random weights, which nothing was taught"


def untrained(base: Mapping[str, Any]) -> list[str]:
    """Return a loud line where a policy is new and has no warm start: it neither searches nor answers, and learns nothing."""
    if base["policy"]["kind"] != "new" or base["warm_start"] is not None:
        return []
    return [
        "THE POLICY IS UNTRAINED: it is new (policy.kind: new) and has no warm start, so every score will be near zero. Add a "
        "warm_start, or take over a base that has one: base: {from: outcome-vs-igpo, ...} (docs/experiments.md)"
    ]


def _depends_on_seed(experiment: ExperimentConfig) -> bool:
    """A pretrained model as it is serves all seeds: one copy of it is kept."""
    policy = experiment.policy
    drawn = not isinstance(policy, PretrainedPolicy) or policy.lora is not None
    return drawn or experiment.warm_start is not None


def set_up(experiment: ExperimentConfig, data: Path, place: str | None = None) -> "tuple[Environment, Policy]":
    """The environment over a published data folder, and the untrained policy on its device, or in `place`. Sets this
    process's torch threads. Raises ConfigError when there is no such device."""
    import torch

    from igpo_core.environments import open_environment
    from igpo_core.policies import build_policy

    torch.set_num_threads(experiment.training.threads)
    environment = open_environment(experiment, data)
    policy = build_policy(experiment, environment)
    policy.model.to(place or device(experiment))
    return environment, policy


def device(experiment: ExperimentConfig) -> str:
    """Of this process: among those that a launcher started, each has an accelerator of its own. From then on the process takes
    no more than training.memory_share of its memory."""
    import torch

    if experiment.training.device == "cpu":
        return "cpu"
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= torch.cuda.device_count():
        raise ConfigError(
            f"training.device=cuda with processes={experiment.training.processes}: this machine has "
            f"{torch.cuda.device_count()} such devices. Lower training.processes, or set training.device to cpu"
        )
    torch.cuda.set_per_process_memory_fraction(experiment.training.memory_share, place)
    return f"cuda:{place}"


def ensure_warm_start(experiment: ExperimentConfig, data: "PublishedData", home: Path, say: Say) -> Path:
    """The folder of the policy that every arm of this seed starts from: found whole, or made now."""
    from igpo_core.checkpoints import verify_folder

    key = warm_start_key(experiment, data.version)
    folder = home / "warm_starts" / key
    with locked(home, key, say):
        if folder.exists():
            verify_folder(folder)
            made = f"start {key} ({start_of(experiment)})" if experiment.warm_start is None else f"warm start {key}"
            say(f"{made}: reused")
        else:
            _make_warm_start(experiment, data, folder, say)
    return folder


def _make_warm_start(experiment: ExperimentConfig, data: "PublishedData", folder: Path, say: Say) -> None:
    """A model that nothing is taught stays on the CPU, and one that was taught leaves the accelerator: this is the flow's own
    process, which waits while others train there."""
    import torch

    from igpo_core.checkpoints import write_folder
    from igpo_core.policies import save_policy
    from igpo_core.warmstart import run_warm_start

    environment, policy = set_up(experiment, data.folder, "cpu" if experiment.warm_start is None else None)
    if experiment.warm_start is not None:
        total = sum(stage.steps for stage in experiment.warm_start.stages)
        started = time.monotonic()

        def progress(done: int, steps: int, metrics: dict[str, float]) -> None:
            if done % max(10, total // 6 // 10 * 10) == 0 or done == steps:
                say(
                    f"warm start seed {experiment.seed}: step {done}/{steps}, loss {metrics['warm_start/loss']:.3f}, "
                    f"{time.monotonic() - started:.0f} s"
                )

        losses = run_warm_start(experiment, environment, policy, progress=progress)
        if losses["warm_start/left_out"]:
            say(
                f"warning: {losses['warm_start/left_out']:.0f} demonstrations did not fit rollout.max_tokens="
                f"{experiment.rollout.max_tokens} and were left out, the longest ones: raise it to teach these too"
            )
    write_folder(folder, lambda path: save_policy(policy, path))
    policy.model.to("cpu")
    torch.cuda.empty_cache()  # else the allocator keeps for this process what the model leaves
