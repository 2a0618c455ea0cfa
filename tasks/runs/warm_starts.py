"""What the arms of a seed start from: made once, found by all."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.config import ExperimentConfig, FileDemonstrations, PretrainedPolicy
from tasks.runs.devices import device
from tasks.runs.locks import locked
from tasks.runs.planned import Run, Say

if TYPE_CHECKING:
    from igpo_core.environments.base import Environment
    from igpo_core.policies import Policy

MOST_REPEATS = 10  # demonstrations of a question from files; 2.7 were seen to leave room to learn


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


def learnt_by_heart(experiment: ExperimentConfig, train: int) -> list[str]:
    """Return a loud line where a warm start is made of few questions from files, each shown again and again. train: questions."""
    taught = sum(
        stage.steps * stage.batch_size
        for stage in (experiment.warm_start.stages if experiment.warm_start else ())
        if isinstance(stage.demonstrations, FileDemonstrations) and stage.demonstrations.use == "searches"
    )
    if taught <= MOST_REPEATS * train:
        return []
    return [
        f"THE WARM START IS LEARNT BY HEART: {taught} demonstrations are made of {train} train questions, {taught / train:.0f} "
        "times each. Training then starts from questions whose answers the policy knows, and what arms differ by on these says "
        "nothing of the method: a comparison on such data carries no verdict. Give more questions (data.questions, data.corpus)"
    ]


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


def ensure_warm_start(run: Run, say: Say) -> Path:
    """Return the folder of the policy that every arm of the run's seed starts from: found whole, or made now."""
    from igpo_core.checkpoints import verify_folder

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
    import torch

    from igpo_core.checkpoints import write_folder
    from igpo_core.policies import save_policy
    from igpo_core.warmstart import run_warm_start

    unfinished = folder.with_name(f".{folder.name}.unfinished")
    environment, policy = set_up(experiment, data, "cpu" if experiment.warm_start is None else None)
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
