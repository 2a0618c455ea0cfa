"""A training run as observable steps: warm start, epochs, evaluations, checkpoints, result.

The run's folder `<home>/runs/<run key>/` holds config.json, metrics.jsonl, checkpoints/step-000010/ and, written last,
result.json: its presence means that the run is finished. The key is a hash of sweep, data version, configuration, code
version and seed, so the same run asked for again is found again. A process that works on a run or a warm start holds its
lock in `<home>/locks`; another that wants the same waits, and then finds it.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igpo_core.checkpoints import checkpoint_folder, newest_checkpoint, verify_folder, write_folder
from igpo_core.config import ExperimentConfig, code_version, fingerprint
from igpo_core.folders import write_json
from tasks.locks import locked

if TYPE_CHECKING:
    from igpo_core.environments.base import Environment
    from igpo_core.evaluation import EvaluationResult
    from igpo_core.policies import Policy
    from igpo_core.training import StepResult, Trainer
    from tasks.data import PublishedData
    from tasks.sending import Tracker

Say = Callable[[str], None]
Keep = Callable[[int, "list[Any]", "list[list[float]]"], None]


@dataclass(frozen=True)
class RunIdentity:
    """What a run is, and where its files are."""

    run_key: str
    folder: Path

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    def result(self) -> dict[str, Any] | None:
        """The result of a finished run; None while there is none."""
        if not self.result_file.is_file():
            return None
        result: dict[str, Any] = json.loads(self.result_file.read_text())
        return result


def identify(experiment: ExperimentConfig, data_version: str, sweep: str, home: Path) -> RunIdentity:
    """sweep: part of the identity, for MLflow keeps a run under one sweep: runs are shared within a sweep only."""
    run_key = fingerprint(experiment, data_version, sweep, code_version())
    return RunIdentity(run_key, home / "runs" / run_key)


def warm_start_key(experiment: ExperimentConfig, data_version: str) -> str:
    """Changes with everything that a warm start depends on, and with nothing that tells arms apart."""
    relevant = {
        "policy": experiment.policy.model_dump(mode="json"),
        "stages": experiment.warm_start.model_dump(mode="json") if experiment.warm_start else None,
        "rollout": [experiment.rollout.max_turns, experiment.rollout.max_tokens],
        "batch": experiment.optimizer.tokens_per_batch,
        "threads": experiment.training.threads,
        "seed": experiment.seed,
    }
    return fingerprint(relevant, data_version, code_version())


def set_up(experiment: ExperimentConfig, data: "PublishedData") -> "tuple[Environment, Policy]":
    """The environment over published data, and the untrained policy. Sets this process's torch threads."""
    import torch

    from igpo_core.environments import open_environment
    from igpo_core.policies import build_policy

    torch.set_num_threads(experiment.training.threads)
    environment = open_environment(experiment, data.folder)
    return environment, build_policy(experiment, environment)


def ensure_warm_start(experiment: ExperimentConfig, data: "PublishedData", home: Path, say: Say) -> Path:
    """The folder of the policy that every arm of this seed starts from: found whole, or made now."""
    key = warm_start_key(experiment, data.version)
    folder = home / "warm_starts" / key
    with locked(home, key, say):
        if folder.exists():
            verify_folder(folder)
            say(f"warm start {key}: reused")
        else:
            _make_warm_start(experiment, data, folder, say)
    return folder


def _make_warm_start(experiment: ExperimentConfig, data: "PublishedData", folder: Path, say: Say) -> None:
    from igpo_core.policies import save_policy
    from igpo_core.warmstart import run_warm_start

    environment, policy = set_up(experiment, data)
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


def start_trainer(
    experiment: ExperimentConfig, data: "PublishedData", run: RunIdentity, warm: Path, say: Say
) -> "Trainer":
    """A trainer at the newest whole checkpoint of the run, or at the warm start."""
    from igpo_core.checkpoints import load_weights
    from igpo_core.training import Trainer

    environment, policy = set_up(experiment, data)
    load_weights(warm, policy.model)
    trainer = Trainer(experiment, environment, policy)
    if trainer.left_out:
        say(f"{trainer.left_out} train questions do not fit rollout.max_tokens and are left out")
    checkpoint = newest_checkpoint(run.folder, lambda damage: say(f"warning: {damage}"))
    if checkpoint is not None:
        trainer.restore(checkpoint)
        say(f"resumed at step {trainer.step} from {checkpoint.name}")
    return trainer


def evaluate_if_missing(trainer: "Trainer", run: RunIdentity, tracker: "Tracker") -> None:
    """Dev before the first step, and where a run was ended between a step and the evaluation that was due after it."""
    if _evaluation_is_due(trainer) and not tracker.has("eval/all/f1", trainer.step):
        dev = evaluate_dev(trainer)
        keep_best(trainer, run, dev["eval/all/f1"])
        tracker.log(trainer.step, dev)


BEST = "best.json"


def keep_best(trainer: "Trainer", run: RunIdentity, f1: float) -> None:
    """Keep the weights of this step when dev F1 is higher than at any step before (the first of equals).

    A run that is killed and goes on from an earlier step meets the same values again and ends with the same best.
    """
    import shutil

    from igpo_core.policies import save_policy

    known = read_best(run)
    if known is not None and f1 <= known["f1"]:
        return
    folder = run.folder / "best" / f"step-{trainer.step:06d}"
    if not folder.exists():
        write_folder(folder, lambda path: save_policy(trainer.policy, path))
    write_json(run.folder / BEST, {"step": trainer.step, "f1": f1})
    for other in folder.parent.glob("step-*"):
        if other != folder:
            shutil.rmtree(other)


def read_best(run: RunIdentity) -> dict[str, Any] | None:
    """{"step", "f1"} of the best dev evaluation so far; None before the first."""
    path = run.folder / BEST
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def evaluate_best(trainer: "Trainer", run: RunIdentity, last: dict[str, float]) -> dict[str, float]:
    """test_best/ metrics: the one evaluation on test of the checkpoint that was best on dev. last: test metrics of the last
    checkpoint, "/all/f1" and so on, which serve where it is the best. Changes the trainer's weights: call it last."""
    from igpo_core.checkpoints import load_weights

    best = read_best(run)
    assert best is not None  # dev is evaluated before the first step
    metrics = last
    if best["step"] != trainer.step:
        folder = run.folder / "best" / f"step-{best['step']:06d}"
        verify_folder(folder)
        load_weights(folder, trainer.policy.model)
        config = trainer.config
        first = config.model_copy(
            update={"evaluation": config.evaluation.model_copy(update={"decoding": config.evaluation.decoding[:1]})}
        )
        metrics, _ = evaluate_all(
            trainer.policy, trainer.environment, first, "test", config.evaluation.test_questions, best["step"]
        )
    return {
        "test_best/all/f1": metrics["/all/f1"],
        "test_best/all/em": metrics["/all/em"],
        "test_best/step": float(best["step"]),
    }


def train_steps(
    trainer: "Trainer",
    until: int,
    log: Callable[[int, dict[str, float]], None],
    say: Say,
    keep: "Keep" = lambda step, explained, advantages: None,
    best: Callable[[float], None] = lambda f1: None,
) -> None:
    """Steps up to `until` or the end of the budget, with an evaluation on dev every config.evaluation.every steps.

    keep(step, explained, advantages) is given the sample of training trajectories that diagnostics look at; best the dev F1
    of each evaluation.
    """
    total = trainer.config.training.steps
    while trainer.step < until and not trainer.done:
        with whole_steps(trainer):
            result = trainer.run_step()
            metrics, due = result.metrics, _evaluation_is_due(trainer)
            if due:  # with the step's own line: whoever goes on from this step has its weights but not its rollouts
                metrics = {**metrics, **look_into(trainer, result, keep)}
            log(trainer.step, metrics)
        if due:
            dev = evaluate_dev(trainer)
            best(dev["eval/all/f1"])  # before its line: a run that finds the line does not evaluate again
            log(trainer.step, dev)
            say(
                f"step {trainer.step}/{total}: dev F1 {dev['eval/all/f1']:.3f}, train F1 {metrics['train/f1']:.3f}, turns "
                f"{metrics['train/turns']:.1f}, dead groups {metrics['advantage/dead_groups']:.2f}, "
                f"{metrics['progress/seconds']:.0f} s"
            )


@contextmanager
def whole_steps(trainer: "Trainer") -> Iterator[None]:
    """A signal to end waits from the beginning of a step's update until the line of its metrics is written; before, during
    rollouts, it ends the step at once. Elsewhere than in the main thread nothing is changed: signals are not seen there."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, waiting = trainer.step, []
    own = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def told(number: int, frame: Any) -> None:
        handler = own[signal.Signals(number)]
        if trainer.step == before and trainer.whole and callable(handler):
            handler(number, frame)
        else:
            waiting.append(number)

    for number in own:
        signal.signal(number, told)
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


def _evaluation_is_due(trainer: "Trainer") -> bool:
    config = trainer.config
    return trainer.step % config.evaluation.every == 0 or trainer.done


def look_into(trainer: "Trainer", result: "StepResult", keep: "Keep") -> dict[str, float]:
    """diagnostics/ metrics of the step's first config.evaluation.diagnostics trajectories, the same ones in every arm."""
    from itertools import islice

    from igpo_core.diagnostics import belief_metrics, fits_window
    from igpo_core.rewards.scoring import explain_trajectories

    config, policy = trainer.config, trainer.policy
    started = time.perf_counter()
    numbers = (i for i, item in enumerate(result.scored) if fits_window(policy, item, config.reward))
    sample = list(islice(numbers, config.evaluation.diagnostics))
    if not sample:
        return {}
    trajectories = [result.scored[i].trajectory for i in sample]
    explained = explain_trajectories(policy, trajectories, config.reward, key=(config.seed, trainer.step))
    metrics = belief_metrics(policy, explained, config.reward)
    keep(trainer.step, explained, [result.credit.turns[i] for i in sample])
    return {**metrics, "time/diagnostics": time.perf_counter() - started}


def evaluate_dev(trainer: "Trainer") -> dict[str, float]:
    started = time.perf_counter()
    metrics, _ = evaluate_all(
        trainer.policy,
        trainer.environment,
        trainer.config,
        "dev",
        trainer.config.evaluation.dev_questions,
        trainer.step,
    )
    return {
        **{f"eval{name}": value for name, value in metrics.items()},
        "time/evaluation": time.perf_counter() - started,
    }


def evaluate_all(
    policy: "Policy",
    environment: "Environment",
    config: ExperimentConfig,
    split: str,
    limit: int,
    step: int,
    after_first: "Callable[[EvaluationResult], None]" = lambda result: None,
) -> "tuple[dict[str, float], dict[str, EvaluationResult]]":
    """Every decoding of config.evaluation; names start with "/" for the first and "_<decoding>/" for the others.

    after_first is called with the result of the first decoding, before the others are made.
    """
    from igpo_core.evaluation import evaluate

    metrics: dict[str, float] = {}
    results: dict[str, EvaluationResult] = {}
    for place, decoding in enumerate(config.evaluation.decoding):
        result = evaluate(policy, environment, config, split=split, limit=limit, decoding=decoding, step=step)
        prefix = "/" if place == 0 else f"_{decoding}/"
        metrics |= {prefix + name: value for name, value in result.metrics.items()}
        results[decoding] = result
        if place == 0:
            after_first(result)
    return metrics, results


def judge(result: "EvaluationResult", experiment: ExperimentConfig, home: Path) -> dict[str, float]:
    """test/all/judged and its agreement with EM, where a judge is asked for; its verdicts stay in <home>/judge.sqlite."""
    if experiment.evaluation.judge is None:
        return {}
    from igpo_core.judge import Judge, judged_metrics

    found = judged_metrics(Judge(experiment.evaluation.judge, home / "judge.sqlite"), result.scored)
    return {f"test/all/{name}": value for name, value in found.items()}


def save_checkpoint(trainer: "Trainer", run: RunIdentity) -> tuple[Path, float]:
    """Write the checkpoint of the current step; keep it and the one before. Returns its folder and the seconds."""
    import shutil

    started = time.perf_counter()
    folder = checkpoint_folder(run.folder, trainer.step)
    trainer.save(folder)
    for old in sorted(folder.parent.glob("step-*"))[:-2]:
        shutil.rmtree(old)
    return folder, time.perf_counter() - started


def leave_checkpoint(trainer: "Trainer", run: RunIdentity, tracker: "Tracker", say: Say) -> None:
    """What a run does when it is told to end (SIGTERM, Ctrl-C), within the 30 s that most senders of SIGTERM grant.

    The step under way is given up. Nothing is written between its update and the line of its metrics, which would be lost.
    """
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):  # a second one must not interrupt this
        signal.signal(number, signal.SIG_IGN)
    if checkpoint_folder(run.folder, trainer.step).exists() or trainer.step == 0:
        say("told to end; started again, the run goes on from its last checkpoint")
    elif trainer.whole and tracker.has("progress/seconds", trainer.step):
        tracker.sync()
        save_checkpoint(trainer, run)
        say(f"told to end: checkpoint of step {trainer.step} written; started again, the run goes on from there")
    else:
        say("told to end while a step was being applied: started again, the run goes on from its last checkpoint")
    tracker.finish("KILLED", patience=10)


def bring_up_to_date(run: RunIdentity) -> str:
    """Send what MLflow lacks of a finished run; says what was done."""
    from tasks.outbox import read_status, write_status
    from tasks.sending import Sender, read_sent
    from tasks.tracking import MlflowAway

    if read_status(run.folder)[0] != "FINISHED":  # killed right after its result was written
        write_status(run.folder, "FINISHED")
    before = read_sent(run.folder)
    try:
        url = Sender(run.folder).send()
    except MlflowAway as error:
        return f"warning: {error}; the sweep's report sends what is owed, and so does `make send`"
    after = read_sent(run.folder)
    lost = before is not None and after is not None and before.run_id != after.run_id
    return f"MLflow had lost it and was sent everything again: {url}" if lost else url


def write_result(run: RunIdentity, result: dict[str, Any]) -> None:
    """Atomically, last: from now on the run is finished."""
    write_json(run.result_file, result)
