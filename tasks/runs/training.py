"""A planned run, trained: its events are written into its folder, and told to whoever watches.

The flow `train` goes through it in its own process, with a Prefect task for each checkpoint; several processes that train
together (tasks/runs/together.py) each go through it, and the first of them writes what is written.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from igpo_core.run import (
    Checkpointed,
    Decoded,
    Evaluated,
    Event,
    Finished,
    Said,
    Saving,
    StepDone,
    Testing,
    TrainingRun,
)
from tasks.runs.devices import device
from tasks.runs.interruption import whole_steps
from tasks.runs.planned import OnStep, Run, Say, write_result
from tasks.tracking.outbox import Writing
from tasks.tracking.trajectories import records_of, traced_records


def open_training(run: Run, say: Say) -> TrainingRun:
    """Return the run at its newest whole checkpoint, or at its start, on the device that is this process's."""
    place = device(run.spec.experiment, say)
    return TrainingRun(run.spec, run.folder, run.data, run.start, place=place, judgements=run.home / "judge.sqlite")


class Recorder:
    """Writes down what a run's events say. In other processes than the first, `outbox` writes nothing."""

    def __init__(self, run: Run, training: TrainingRun, outbox: Writing, say: Say, on_step: OnStep) -> None:
        self._run, self._trainer, self._outbox, self._say, self._on_step = run, training.trainer, outbox, say, on_step
        self._logging = 0.0
        """Seconds that the line of the step before took. Nobody knows earlier."""
        self._saving = 0.0
        """Seconds of a checkpoint just before the next step: a kill right after a checkpoint must leave no hole."""
        self._last: StepDone | None = None

    def evaluated(self, step: int) -> bool:
        """Return whether the evaluation on dev of a step is written down."""
        return self._outbox.has(f"eval/all/{self._trainer.config.data.headline}", step)

    def record(self, event: Event) -> None:
        """Write down one event."""
        match event:
            case Said(text):
                self._say(text)
            case StepDone():
                self._step(event)
            case Evaluated():
                self._evaluated(event)
            case Saving():
                self._outbox.sync()  # metrics are on disk before the checkpoint claims their steps
            case Checkpointed():
                self._saving = event.seconds
            case Testing(step, checkpoint):
                self._outbox.set_model(checkpoint, step, [])
            case Decoded():
                self._traces(event)
            case Finished():
                self._outbox.log(event.step, event.metrics)
                scores = [f"test/all/{name}" for name in self._trainer.config.data.rubric]
                self._outbox.set_model(event.checkpoint, event.step, scores)

    def _step(self, event: StepDone) -> None:
        started, config = time.perf_counter(), self._trainer.config
        few = slice(config.evaluation.kept)
        if event.sample:
            records = records_of(
                self._trainer.policy, event.sample[few], config, self._run.spec.arm,
                split="train", step=event.step, advantages=event.advantages[few],
            )  # fmt: skip
            self._outbox.keep(records)
        times = {"time/logging": self._logging, "time/checkpoint": self._saving}
        self._outbox.log(event.step, {**event.metrics, **times})
        self._on_step(event.step)
        self._logging, self._saving, self._last = time.perf_counter() - started, 0.0, event

    def _evaluated(self, event: Evaluated) -> None:
        self._outbox.log(event.step, event.metrics)
        if self._last is None or self._last.step != event.step:
            return
        seen, steps = self._last.metrics, self._trainer.config.training.steps
        key, title = self._trainer.config.data.headline, self._trainer.config.data.headline_title
        self._say(
            f"step {event.step}/{steps}: dev {title} {event.metrics[f'eval/all/{key}']:.3f}, train {title} "
            f"{seen[f'train/{key}']:.3f}, turns {seen['train/turns']:.1f}, dead groups {seen['advantage/dead_groups']:.2f}, "
            f"{seen['progress/seconds']:.0f} s"
        )

    def _traces(self, event: Decoded) -> None:
        trainer = self._trainer
        if not trainer.ranks.first:
            return
        traced = traced_records(
            trainer.policy,
            trainer.environment,
            event.result.scored,
            trainer.config,
            self._run.spec.arm,
            event.step,
            trainer.contrast(event.step),
        )
        self._outbox.keep(traced)
        self._outbox.set_traces(traced)


def advance(training: TrainingRun, events: Iterator[Event], recorder: Recorder) -> Event:
    """Make the next event and write it down; a signal to end waits for a step's line (tasks/runs/interruption.py)."""
    with whole_steps(training.trainer):
        event = next(events)
        recorder.record(event)
    return event


def train_part(training: TrainingRun, events: Iterator[Event], recorder: Recorder) -> Event:
    """Go on until the next checkpoint is whole, or the run is finished; return that event."""
    while True:
        event = advance(training, events, recorder)
        if isinstance(event, Checkpointed | Finished):
            return event


def train_to_end(
    run: Run,
    training: TrainingRun,
    outbox: Writing,
    say: Say,
    on_step: OnStep = lambda step: None,
    part: Callable[[TrainingRun, Iterator[Event], Recorder], Event] = train_part,
) -> dict[str, Any]:
    """Make all that is left of the run. Returns its result, which is on disk then. part: train_part, or what wraps it."""
    recorder = Recorder(run, training, outbox, say, on_step)
    events = training.events(recorder.evaluated)
    while not isinstance(event := part(training, events, recorder), Finished):
        pass
    result = result_of(run, event)
    if training.trainer.ranks.first:
        write_result(run, result)
    return result


def result_of(run: Run, event: Finished) -> dict[str, Any]:
    """Return the content of result.json."""
    spec = run.spec
    return {
        "run_key": spec.run_key,
        "study": spec.study,
        "arm": spec.arm,
        "seed": spec.seed,
        "cell": spec.cell,
        "steps": event.step,
        "counters": event.counters,
        "metrics": event.metrics,
        "checkpoint": str(event.checkpoint.relative_to(run.home)),
    }
