"""A run that is told to end, or whose Prefect server is away."""

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.exceptions import PrefectHTTPStatusError

from igpo_core.checkpoints import checkpoint_folder, newest_checkpoint
from igpo_core.environments.lookup import generate
from igpo_core.policies import save_policy
from igpo_core.run import Checkpointed, Evaluated, Finished, Said, StepDone, read_best
from tasks.lab import prefect_runs
from tasks.lab.prefect_runs import RunPage, away, patiently
from tasks.runs.interruption import leave_checkpoint
from tasks.runs.planned import open_training
from tasks.runs.training import Recorder
from tasks.tracking.outbox import About, Outbox, write_status
from tasks.train import train_part
from tests.tasks.planned import planned


class QuietTracker(Outbox):
    """A tracker without its sending thread."""

    def finish(self, status: Any, patience: float = 60) -> None:
        write_status(self.folder, status)


@pytest.fixture
def setting(taught: Any, tmp_path: Path) -> Any:
    """(run, training, tracker) of six steps with an evaluation every second."""
    config, _, policy = taught
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update={"epochs": 1, "steps_per_epoch": 6}),
            "evaluation": config.evaluation.model_copy(update={"every": 2, "dev_questions": 4, "test_questions": 4}),
        }
    )
    run = planned(tmp_path, config)
    run.data.mkdir(parents=True)
    generate(config.data).to_parquet(run.data / "questions.parquet")
    save_policy(policy, run.start)
    training = open_training(run, print)
    tracker = QuietTracker(run.folder, About("study", "run", "key", {}, {}))
    return run, training, tracker


def go_on(setting: Any, last: type[Any], step: int) -> None:
    """Make and write down events up to one of a kind and step."""
    recorder = Recorder(*setting, print)
    with closing(recorder.events()) as events:
        for event in events:
            recorder.write(event)
            if isinstance(event, last) and event.step == step:
                return


def steps_with(folder: Path, metric: str) -> list[int]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if metric in line["metrics"]]


def test_a_checkpoint_of_the_step_that_was_logged(setting: Any, signals: None) -> None:
    _, training, tracker = setting
    said: list[str] = []
    go_on(setting, StepDone, 3)
    leave_checkpoint(training, tracker, said.append)
    newest = newest_checkpoint(training.folder, pytest.fail)
    assert newest is not None and newest.name == "step-000003" and "checkpoint of step 3" in said[-1]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # a second one must not interrupt it
    assert steps_with(training.folder, "train/loss") == [1, 2, 3]
    assert steps_with(training.folder, "eval/all/f1") == [0, 2]


@pytest.mark.parametrize("when", ["before its metrics are written", "while its update is applied"])
def test_a_step_without_metrics_is_not_kept(setting: Any, signals: None, when: str) -> None:
    """Going on behind it would leave a hole in every curve."""
    _, training, tracker = setting
    go_on(setting, StepDone, 1)
    training.trainer.run_step()  # ended before its line
    if when == "while its update is applied":
        training.trainer.learner.whole = False
    leave_checkpoint(training, tracker, print)
    assert newest_checkpoint(training.folder, pytest.fail) is None


@pytest.mark.parametrize(("moment", "done"), [("rollout", 1), ("update", 2), ("line", 2)])
def test_a_signal_waits_until_the_steps_line_is_written(
    setting: Any, signals: None, monkeypatch: pytest.MonkeyPatch, moment: str, done: int
) -> None:
    """During the rollouts of step 2 it ends the run with step 1; from the update on with step 2, whole."""
    _, training, tracker = setting
    trainer = training.trainer

    def told(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, told)
    step, sample, log = trainer.learner.optimizer.step, trainer.sampler.questions_of, tracker.log

    def at(what: str) -> None:
        if trainer.step == (2 if what == "line" else 1) and what == moment:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(trainer.sampler, "questions_of", lambda number: (at("rollout"), sample(number))[1])
    monkeypatch.setattr(trainer.learner.optimizer, "step", lambda: (at("update"), step())[1])
    monkeypatch.setattr(tracker, "log", lambda number, metrics: (at("line"), log(number, metrics))[1])
    with pytest.raises(KeyboardInterrupt):
        go_on(setting, StepDone, 6)
    leave_checkpoint(training, tracker, print)
    newest = newest_checkpoint(training.folder, pytest.fail)
    assert newest is not None and newest.name == f"step-{done:06d}"
    assert steps_with(training.folder, "train/loss") == list(range(1, done + 1))


def test_signals_end_the_process_again_once_a_line_could_not_be_written(
    setting: Any, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the step's line is written they wait; a full disk must not leave a process that no signal ends."""
    _, _, tracker = setting

    def told(*_: Any) -> None:
        raise KeyboardInterrupt

    def full(number: int, metrics: Any) -> None:
        assert signal.getsignal(signal.SIGTERM) is not told
        raise OSError("no space left")

    signal.signal(signal.SIGTERM, told)
    monkeypatch.setattr(tracker, "log", lambda number, metrics: full(number, metrics) if number else None)
    with pytest.raises(OSError, match="no space left"):
        go_on(setting, StepDone, 6)
    assert signal.getsignal(signal.SIGTERM) is told


def test_an_evaluation_that_was_cut_off_is_made_at_the_start(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; and none is missing at the very end."""
    _, training, tracker = setting
    log = tracker.log

    def interrupted(step: int, metrics: dict[str, float]) -> None:
        if step == 2 and "eval/all/f1" in metrics:
            raise KeyboardInterrupt
        log(step, metrics)

    with monkeypatch.context() as patched:
        patched.setattr(tracker, "log", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go_on(setting, StepDone, 6)
    assert training.trainer.step == 2 and steps_with(training.folder, "eval/all/f1") == [0]
    go_on(setting, Evaluated, 2)
    go_on(setting, Checkpointed, 6)
    go_on(setting, Finished, 6)
    assert steps_with(training.folder, "eval/all/f1") == [0, 2, 4, 6]
    assert steps_with(training.folder, "time/diagnostics") == [2, 4, 6]
    assert steps_with(training.folder, "train/loss") == [1, 2, 3, 4, 5, 6]
    assert steps_with(training.folder, "test/all/f1") == [6]


def test_an_evaluation_that_is_written_is_not_made_again(setting: Any) -> None:
    go_on(setting, Evaluated, 2)
    with closing(Recorder(*setting, print).events()) as events:
        assert isinstance(next(event for event in events if not isinstance(event, Said)), StepDone)


def test_an_ignored_signal_does_not_hide_another(setting: Any, signals: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is ignored in the processes of a run of several, and SIGTERM is what ends them."""
    _, training, _ = setting
    step = training.trainer.learner.optimizer.step

    def told(*_: Any) -> None:
        raise KeyboardInterrupt

    def both() -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return step()

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, told)
    monkeypatch.setattr(training.trainer.learner.optimizer, "step", both)
    with pytest.raises(KeyboardInterrupt):
        go_on(setting, StepDone, 2)
    assert training.trainer.step == 1


def test_events_that_failed_are_not_asked_for_again(setting: Any) -> None:
    """A retry of the task found none, and called that a part."""
    asked = [sys.executable, "-c", "from tasks.train import train_part; print(train_part.retries)"]
    retrying = {**os.environ, "PREFECT_TASKS_DEFAULT_RETRIES": "2"}
    assert subprocess.run(asked, env=retrying, capture_output=True, text=True, check=True).stdout.strip() == "0"
    recorder = Recorder(*setting, print)
    with pytest.raises(RuntimeError, match="ended before its next checkpoint"):
        train_part.fn(iter(()), recorder)
    train_part.fn(recorder.events(), recorder)
    assert newest_checkpoint(setting[1].folder, pytest.fail) is not None


def test_metrics_are_on_disk_before_the_checkpoint_that_claims_their_steps(
    setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, training, tracker = setting
    seen: list[tuple[list[int], bool]] = []

    def sync() -> None:
        seen.append((steps_with(training.folder, "train/loss"), checkpoint_folder(training.folder, 6).exists()))

    monkeypatch.setattr(tracker, "sync", sync)
    go_on(setting, Checkpointed, 6)
    assert seen == [([1, 2, 3, 4, 5, 6], False)] and checkpoint_folder(training.folder, 6).exists()


def test_the_best_weights_are_the_first_of_equals(setting: Any) -> None:
    _, training, _ = setting
    training._keep_best(0.5)
    go_on(setting, StepDone, 1)
    training._keep_best(0.5)
    assert read_best(training.folder)["step"] == 0  # type: ignore[index]
    training._keep_best(0.6)
    assert read_best(training.folder) == {"step": 1, "score": 0.6}
    assert [path.name for path in (training.folder / "best").iterdir()] == ["step-000001"]


def status(code: int) -> PrefectHTTPStatusError:
    request = httpx.Request("GET", "http://server")
    return PrefectHTTPStatusError("said so", request=request, response=httpx.Response(code, request=request))


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadTimeout("slow"), True),
        (status(503), True),
        (status(429), True),
        (status(404), False),
        (ValueError("ours"), False),
    ],
)
def test_what_says_that_prefect_is_away(error: Exception, is_away: bool) -> None:
    assert away(error) is is_away


def test_a_call_is_made_again_while_the_server_is_away() -> None:
    answers: list[Any] = [httpx.ConnectError("refused"), "there"]

    def call() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    assert patiently(call) == "there"
    answers[:] = [status(404), "never asked"]
    with pytest.raises(PrefectHTTPStatusError):
        patiently(call)
    assert answers == ["never asked"]


def test_a_page_that_cannot_be_shown_is_mentioned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", refuse)
    monkeypatch.setattr("prefect.artifacts.create_link_artifact", refuse)
    said: list[str] = []
    page = RunPage("arm seed 0", 20, said.append)
    page.link("http://mlflow")
    for step in range(21):
        page.report(step)
    page.close()
    assert len(said) == 1 and "the run goes on" in said[0]
    assert prefect_runs.PATIENCE_SECONDS >= 600
