"""A planned run, trained: its events are written into its folder, and told to whoever watches.

The flow `train` asks for one part after another, each in a Prefect task; several processes that train together
(tasks/runs/together.py) each go through all of it, and the first of them writes what is written.
"""

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from functools import partial
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
    Unexpected,
)
from tasks.data.published import count_questions
from tasks.runs.interruption import whole_steps
from tasks.runs.planned import OnStep, Run, Say, open_training, write_result
from tasks.runs.planning import Timing, data_key, demonstrations, policy_key, size_of
from tasks.tracking.outbox import UNEXPECTED, Writing
from tasks.tracking.trajectories import records_of, traced_records


class Recorder:
    """Writes a run's events down: each is written before the next one is asked for.

    In other processes than the first, `outbox` writes nothing.
    """

    def __init__(
        self,
        run: Run,
        training: TrainingRun,
        outbox: Writing,
        say: Say,
        on_step: OnStep = lambda step: None,
        system: Callable[[], dict[str, float]] = dict,
    ) -> None:
        """system: what the run took of its machine since the last call (tasks/tracking/system.py)."""
        self._run, self._training, self._trainer = run, training, training.trainer
        self._outbox, self._say, self._on_step, self._system = outbox, say, on_step, system
        self.result: dict[str, Any] | None = None
        """Of the run once it is finished: the content of result.json, which is on disk then."""
        self._logging = 0.0
        """Seconds that the line of the step before took. Nobody knows earlier."""
        self._saving = 0.0
        """Seconds of a checkpoint just before the next step: a kill right after a checkpoint must leave no hole."""
        self._last: StepDone | None = None

    @property
    def next_part(self) -> str:
        """Return what comes up to the next checkpoint, in words."""
        trainer = self._trainer
        number = trainer.step // trainer.config.training.steps_per_epoch + 1
        return "test and publish" if trainer.done else f"epoch {number}"

    def events(self) -> Generator[Event]:
        """Return what is left of the run. A signal to end waits for a step's line (tasks/runs/interruption.py)."""
        return self._training.events(self._evaluated_before, partial(whole_steps, self._trainer))

    def to_end(self) -> dict[str, Any]:
        """Make all that is left of the run, and write it down. Returns its result, which is on disk then."""
        with closing(self.events()) as events:
            for event in events:
                self.write(event)
        assert self.result is not None
        return self.result

    def _evaluated_before(self, step: int) -> bool:
        """Return whether the evaluation on dev of a step is written down."""
        return self._outbox.has(f"eval/all/{self._trainer.config.data.headline}", step)

    def write(self, event: Event) -> None:
        """Write an event down, and tell it to whoever watches."""
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
                self._finished(event)

    def _step(self, event: StepDone) -> None:
        """The tag comes before the line: a checkpoint is left only of a step that has its line."""
        started, config = time.perf_counter(), self._trainer.config
        for one in event.unexpected:
            self._unexpected(one)
        few = slice(config.evaluation.kept)
        if event.sample:
            records = records_of(
                self._trainer.policy, event.sample[few], config, self._run.spec.arm,
                split="train", step=event.step, advantages=event.advantages[few],
            )  # fmt: skip
            self._outbox.keep(records)
        times = {"time/logging": self._logging, "time/checkpoint": self._saving}
        self._outbox.log(event.step, {**_writable(event), **times, **self._system()})
        self._on_step(event.step)
        self._logging, self._saving, self._last = time.perf_counter() - started, 0.0, event

    def _unexpected(self, found: Unexpected) -> None:
        """The first step of each: Data Docs count the others."""
        known = self._outbox.tagged(UNEXPECTED)
        if f"{found.expected.told}: " in known:
            return
        self._outbox.tag(UNEXPECTED, "; ".join(filter(None, [known, found.told])))
        self._say(f"warning: not as expected: {found.told}")

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
        if not trainer.ranks.is_main:
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

    def _finished(self, event: Finished) -> None:
        self._outbox.log(event.step, event.metrics)
        scores = [f"test/all/{name}" for name in self._trainer.config.data.rubric]
        self._outbox.set_model(event.checkpoint, event.step, scores)
        self.result = result_of(self._run, event)
        if self._trainer.ranks.is_main:
            write_result(self._run, self.result)


def _writable(event: StepDone) -> dict[str, float]:
    """Return the step's metrics as an outbox takes them, which has no infinity, for MLflow has none: NaN in its place where the
    metric is told to be unexpected, with its value, and in a step that stops the run, which must not end without its checkpoint.
    Elsewhere an infinity is a fault, and stays one."""
    stops = any(one.expected.otherwise == "stop" for one in event.unexpected)
    told = {one.expected.metric for one in event.unexpected}
    return {
        name: math.nan if math.isinf(value) and (stops or name in told) else value
        for name, value in event.metrics.items()
    }


def time_a_step(run: Run, seconds: float | None, say: Say) -> Timing:
    """Time the second of two training steps from the run's warm start, by this process alone. The run itself is not touched.

    seconds: of the warm start.
    """
    # under another sweep it is another run, without checkpoints
    trainer = open_training(replace(run, spec=run.spec.model_copy(update={"sweep": "timing"})), say).trainer
    experiment = run.spec.experiment
    trainer.run_step()
    started = time.perf_counter()
    metrics = trainer.run_step().metrics
    step = time.perf_counter() - started
    size = size_of(experiment)
    rollout = (step - metrics["time/update"]) / size.rollouts
    weights = sum(file.stat().st_size for file in run.start.glob("*.safetensors"))
    return Timing(
        step,
        size.rollouts,
        rollout,
        seconds,
        weights,
        policy_key(experiment),
        demonstrations(experiment),
        data_key(experiment),
        count_questions(run.data),
        size.sampled,
        size.longest,
    )


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
