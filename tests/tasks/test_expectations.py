"""What was expected of a run: it is warned of or stopped at the step, its checkpoint is whole, and Data Docs say so."""

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from flows.train import _end
from igpo_core.checkpoints import newest_checkpoint
from igpo_core.config import Expectation, ExperimentConfig
from igpo_core.config.expect import Watched
from igpo_core.environments.lookup import generate
from igpo_core.errors import ExpectationError
from igpo_core.policies import save_policy
from igpo_core.training import StepResult
from tasks.report.alarms import unexpected
from tasks.report.sweeps import SweepData
from tasks.runs.expectations import tell_expectations, write_data_docs
from tasks.runs.interruption import leave_checkpoint
from tasks.runs.planned import Run, open_training
from tasks.runs.training import Recorder
from tasks.tracking.mlflow_runs import about_run
from tasks.tracking.outbox import Outbox, read_about
from tasks.tracking.sending import Sender, Tracker, read_sent
from tasks.tracking.server import client
from tests.tasks.planned import planned
from tests.tasks.test_reporting import with_curves

Make = Callable[..., Run]


@pytest.fixture
def make(taught: Any, tmp_path: Path) -> Make:
    """A run of four steps in two epochs, with what is expected of it."""
    config, _, policy = taught

    def made(*expected: dict[str, Any]) -> Run:
        content = json.loads(config.model_dump_json())
        content["training"] |= {"epochs": 2, "steps_per_epoch": 2}
        content["rollout"] |= {"questions": 2, "group_size": 2}
        content["evaluation"] |= {"every": 2, "dev_questions": 2, "test_questions": 2, "diagnostics": 0}
        run = planned(tmp_path, ExperimentConfig.model_validate({**content, "expect": expected}))
        run.folder.mkdir(parents=True, exist_ok=True)
        if not run.data.is_dir():
            run.data.mkdir(parents=True)
            rows = generate(config.data)
            rows.to_parquet(run.data / "questions.parquet")
            counts = {"train": len(rows)}
            (run.data / "summary.json").write_text(json.dumps({"counts": counts, "passages": None, "version": "data"}))
            save_policy(policy, run.start)
        return run

    return made


def trained(run: Run) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    training = open_training(run, said.append)
    return Recorder(run, training, Outbox(run.folder, about_run(run, "cpu", "page")), said.append).to_end(), said


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def untimed(result: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in result["metrics"].items() if not name.endswith("seconds")}


def values(run: Run, name: str) -> dict[int, float]:
    return {line["step"]: line["metrics"][name] for line in lines(run) if name in line["metrics"]}


def tag_of(run: Run) -> str:
    about = read_about(run.folder)
    assert about is not None
    return about.tags.get("unexpected", "")


NEVER = {"metric": "train/turns", "most": 0.5, "first_step": 2}  # every rollout has a turn
ALWAYS = {"metric": "train/turns", "least": 1}


def test_a_run_is_warned_of_once_and_is_the_same_run(make: Make, mlflow_server: str) -> None:
    plain = make()
    result, _ = trained(plain)
    scores = untimed(result)
    for path in sorted(plain.folder.rglob("*"), reverse=True):  # the same run again, from nothing
        path.unlink() if path.is_file() else path.rmdir()
    run = make(NEVER, ALWAYS)
    assert run.spec.run_key == plain.spec.run_key
    result, said = trained(run)
    assert untimed(result) == scores
    measured = {name for line in lines(run) for name in line["metrics"]}
    assert {name for name in get_args(Watched) if not name.startswith("engine/")} - measured == {
        "train/kl"
    }  # no KL term
    turns = values(run, "train/turns")
    told = f"train/turns at most 0.5 from step 2 on: {turns[2]:.4g} at step 2"
    assert [line for line in said if "expected" in line] == [f"warning: not as expected: {told}"]
    about = read_about(run.folder)
    assert about is not None and about.tags["unexpected"] == told
    write_data_docs(run, said.append)
    assert said[-1].startswith(
        "expectations: 1 of 2 met; not train/turns at most 0.5 from step 2 on (3 steps). Data Docs"
    )
    docs = "\n".join(page.read_text() for page in (run.folder / "data_docs").rglob("*.html"))
    assert "train/turns at most 0.5 from step 2 on" in docs and "default-src 'none'" in docs
    sender = Sender(run.folder)
    sender.send()
    Outbox(run.folder, about_run(run, "cpu", "page")).tag("unexpected", "later")  # while a run goes on
    sender.send()
    sent = read_sent(run.folder)
    assert sent is not None and client().get_run(sent.run_id).data.tags["unexpected"] == "later"


def test_a_run_is_stopped_with_its_checkpoint_and_goes_on_when_its_bound_is_changed(make: Make) -> None:
    run = make({**NEVER, "first_step": 3, "otherwise": "stop"})
    told = r"stopped, for `expect` says so: train/turns at most 0\.5 from step 3 on: [\d.]+ at step 3\. The checkpoint"
    with pytest.raises(ExpectationError, match=told):
        trained(run)
    whole = newest_checkpoint(run.folder, lambda damage: pytest.fail(damage))
    assert whole is not None and whole.name == "step-000003"  # within the second epoch
    assert sorted(values(run, "train/turns")) == [1, 2, 3]
    with pytest.raises(ExpectationError, match=told):  # nothing is trained past it by starting again
        trained(run)
    assert sorted(values(run, "train/turns")) == [1, 2, 3] and not run.finished
    write_data_docs(run, print)
    assert (run.folder / "data_docs" / "index.html").is_file()
    relaxed = make({**NEVER, "first_step": 3})
    assert relaxed.folder == run.folder
    result, said = trained(relaxed)
    assert result["steps"] == 4 and "resumed at step 3 from step-000003" in said


class Killed(BaseException):
    """A kill that leaves no time: nothing is done after it."""


def killed(run: Run, at: int, how: str) -> str:
    """Train, and be told to end right after the line of a step was written. Returns the tag that is on disk then."""

    def on_step(step: int) -> None:
        if step == at and how == "hard":
            raise Killed
        if step == at:
            os.kill(os.getpid(), signal.SIGINT)

    training = open_training(run, print)
    outbox = Outbox(run.folder, about_run(run, "cpu", "page"))
    try:
        Recorder(run, training, outbox, print, on_step).to_end()
        pytest.fail("it was not ended")
    except KeyboardInterrupt:
        leave_checkpoint(training, outbox, print)
    except Killed:
        pass
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)  # as another process has it
    about = read_about(run.folder)
    assert about is not None
    return about.tags["unexpected"]


@pytest.mark.parametrize("how", ["told", "hard"])
@pytest.mark.parametrize("at", [3, 4])  # within an epoch, and the last of the run
def test_a_kill_passes_over_no_stop(make: Make, signals: None, at: int, how: str) -> None:
    run = make({**NEVER, "first_step": at}, {**NEVER, "first_step": at, "otherwise": "stop"})
    tag = killed(run, at, how)
    told = f"train/turns at most 0.5 from step {at} on: {values(run, 'train/turns')[at]:.4g} at step {at}"
    assert tag == told
    newest = newest_checkpoint(run.folder, pytest.fail)
    assert newest is not None and newest.name == f"step-{at if how == 'told' else 2:06d}"
    for _ in range(2):
        with pytest.raises(ExpectationError, match=f"at step {at}. The checkpoint"):
            trained(run)
        newest = newest_checkpoint(run.folder, pytest.fail)
        assert newest is not None and newest.name == f"step-{at:06d}"
        assert not run.finished and sorted(values(run, "train/turns")) == list(range(1, at + 1))
        assert tag_of(run) == tag
    result, _ = trained(make({**NEVER, "first_step": at}))
    assert result["steps"] == 4 and tag_of(run) == tag


@pytest.mark.parametrize("how", ["told", "hard"])
def test_a_kill_passes_over_no_warning(make: Make, signals: None, how: str) -> None:
    run = make({**NEVER, "first_step": 4, "otherwise": "warn"})
    tag = killed(run, 4, how)
    trained(run)
    assert run.finished and tag_of(run) == tag and tag.endswith("at step 4")


def test_a_stop_is_known_of_each_step_that_has_a_checkpoint(make: Make) -> None:
    strict = {**NEVER, "first_step": 1, "otherwise": "stop"}
    for first in (2, 3, 4):  # each time with a looser one
        with pytest.raises(ExpectationError, match=f"at step {first}"):
            trained(make({**strict, "first_step": first}))
    run = make(strict)
    shutil.rmtree(run.folder / "checkpoints" / "step-000004")
    with pytest.raises(ExpectationError, match="at step 3"):
        trained(run)


def with_infinite(run: Run, name: str, said: list[str]) -> None:
    """Train a run whose second step has an infinite metric."""
    training = open_training(run, said.append)
    made = training.trainer.run_step

    def run_step() -> StepResult:
        done = made()
        return replace(done, metrics={**done.metrics, name: math.inf}) if done.step == 2 else done

    training.trainer.run_step = run_step  # type: ignore[method-assign]
    Recorder(run, training, Outbox(run.folder, about_run(run, "cpu", "page")), said.append).to_end()


def test_an_infinite_metric_stops_a_run_with_its_value_and_checkpoint(make: Make) -> None:
    run = make({"metric": "train/ratio_error", "most": 0.5, "otherwise": "stop"})
    told = "train/ratio_error at most 0.5: inf at step 2"
    for train in (lambda: with_infinite(run, "train/ratio_error", []), lambda: trained(run)):
        with pytest.raises(ExpectationError, match=f"says so: {told}. The checkpoint"):
            train()
        assert (run.folder / "checkpoints" / "step-000002").is_dir() and tag_of(run) == told
    seen = values(run, "train/ratio_error")
    assert sorted(seen) == [1, 2] and seen[1] < 0.5 and math.isnan(seen[2])  # MLflow has no infinity
    said: list[str] = []
    write_data_docs(run, said.append)
    assert "expectations: 0 of 1 met; not train/ratio_error at most 0.5 (1 steps)" in said[-1]


def test_an_infinite_metric_is_warned_of_and_one_that_nobody_expects_is_a_fault(make: Make) -> None:
    run, said = make({"metric": "train/ratio_error"}), list[str]()
    with_infinite(run, "train/ratio_error", said)
    assert run.finished and tag_of(run) == "train/ratio_error finite: inf at step 2"
    assert f"warning: not as expected: {tag_of(run)}" in said and math.isnan(values(run, "train/ratio_error")[2])
    for path in sorted(run.folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    with pytest.raises(ValueError, match="metric train/entropy at step 2 is inf"):
        with_infinite(make({"metric": "train/ratio_error"}), "train/entropy", said)


def test_a_run_is_told_to_be_unexpected_by_what_is_expected_of_it_now(make: Make, mlflow_server: str) -> None:
    stop, other = {**NEVER, "otherwise": "stop"}, {"metric": "train/turns", "least": 9, "most": 10}
    with pytest.raises(ExpectationError):
        trained(make(stop, other))
    run = make(stop, other)
    Sender(run.folder).send()
    sent = read_sent(run.folder)
    assert sent is not None

    def in_mlflow() -> str:
        Sender(run.folder).send()
        return client().get_run(sent.run_id).data.tags["unexpected"]

    first, second = tag_of(run).split("; ")
    assert first.startswith("train/turns at least 9, at most 10: ") and second.startswith("train/turns at most 0.5 ")
    assert in_mlflow() == f"{first}; {second}"
    Outbox(run.folder, about_run(make(NEVER), "cpu", "page"))  # which warns of it
    assert tag_of(run) == in_mlflow() == second
    trained(make())
    assert run.finished and tag_of(run) == in_mlflow() == ""


def test_data_docs_that_cannot_be_written_hide_no_end_of_a_run(make: Make) -> None:
    run = make(ALWAYS)
    trained(run)
    path = run.folder / "metrics.jsonl"
    first, second, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, *others, second[:30]]) + "\n")
    said: list[str] = []
    tell_expectations(make(), said.append)  # nothing is expected: nothing is read
    assert not said
    tell_expectations(run, said.append)
    (told,) = said
    assert told.startswith("warning: no Data Docs") and "DataError" in told and f"{path}: line" in told
    path.write_text("\n".join([first, *others]) + "\n")
    (run.folder / "data_docs").write_text("in the way")
    tell_expectations(run, said.append)
    assert said[1].startswith("warning: no Data Docs") and len(said) == 2
    (run.folder / "data_docs").unlink()
    tell_expectations(run, said.append)
    assert said[2].startswith("expectations: 1 of 1 met.")


class Ending(Tracker):
    """Without MLflow."""

    def __init__(self) -> None:
        self.status = ""

    def finish(self, status: Any, patience: float = 60) -> None:
        self.status = status


def test_a_run_ends_in_mlflow_though_its_data_docs_are_interrupted(make: Make) -> None:
    run = make(ALWAYS)
    trained(run)
    tracker = Ending()

    def told(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _end(run, tracker, "FAILED", told)
    assert tracker.status == "FAILED"


def test_what_is_no_finite_number_is_as_nobody_expects() -> None:
    gains = Expectation.model_validate({"metric": "reward/gain_mean"})
    turns = Expectation.model_validate({"metric": "train/turns", "least": 1, "most": 4, "first_step": 5})
    assert gains.told == "reward/gain_mean finite" and turns.told == "train/turns at least 1, at most 4 from step 5 on"
    assert gains.met(1, {"reward/gain_mean": -9.0}) and gains.met(1, {})  # an arm without gains
    assert not gains.met(1, {"reward/gain_mean": float("nan")}) and not gains.met(1, {"reward/gain_mean": float("inf")})
    met = [
        turns.met(step, {"train/turns": value}) for step, value in ((4, 9.0), (5, 9.0), (5, 4.0), (5, 1.0), (5, 0.9))
    ]
    assert met == [True, False, True, True, False]


@pytest.mark.parametrize(
    ("expected", "told"),
    [
        ({"metric": "train/loss"}, "Input should be 'advantage/dead_groups'"),
        ({"metric": "train/turns", "least": 2, "most": 1}, "least=2 is above most=1"),
        ({"metric": "train/turns", "otherwise": "ignore"}, "Input should be 'warn' or 'stop'"),
        ({"metric": "engine/mismatch_max", "most": 1}, "which are the same with rollout.engine.kind=transformers"),
        ({"metric": "train/kl", "most": 1}, "train/kl is measured where optimizer.kl_coefficient is above 0"),
        ({"metric": "train/turns", "most": float("inf")}, "finite number"),
        (
            {"metric": "train/turns", "most": 1, "first_step": 41},
            "first_step=41 of train/turns is never reached: a run ends with step 40, training.epochs=4 of ",
        ),
    ],
)
def test_what_cannot_be_expected_is_refused(expected: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        ExperimentConfig.model_validate({"expect": [expected]})
    assert told in str(refused.value)


def test_a_report_names_each_run_of_which_something_was_not_as_expected() -> None:
    told = "train/turns at most 0.5: 2 at step 3"
    curves = {"test/all/f1": {4.0: 0.5}}
    runs = (
        replace(with_curves("a", "igpo", 0, curves), unexpected=told),
        replace(with_curves("b", "igpo", 1, {}), status="FAILED", unexpected=told),
        with_curves("c", "plain", 0, curves),
    )
    assert unexpected(SweepData("1", "s", ("igpo", "plain"), runs, rubric={"f1": "F1"})) == [
        f"NOT AS EXPECTED in igpo seed 0: {told}.",
        f"NOT AS EXPECTED in igpo seed 1 (FAILED): {told}.",
    ]
