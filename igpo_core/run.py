"""One training run, from its newest checkpoint or the weights that it starts from to its result, as an iterator of events.

    run = TrainingRun(spec, folder, data, start, place="cpu")
    for event in run.events():
        ...

Whoever consumes the events writes down what each of them says before asking for the next one: a checkpoint is written only after
the metrics of its steps were handed over. Prefect's tasks, several processes that train together and a plain script consume the
same events.
"""

import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from igpo_core.checkpoints import checkpoint_folder, load_weights, newest_checkpoint, verify_folder
from igpo_core.config import Expectation, ExperimentConfig, RunSpec
from igpo_core.diagnostics import belief_metrics, fits_window
from igpo_core.environments import open_environment
from igpo_core.errors import ExpectationError
from igpo_core.evaluation import EvaluationResult, decode_each, first_decoding
from igpo_core.folders import write_json
from igpo_core.judge import Judge, judged_metrics
from igpo_core.memory import within_memory
from igpo_core.policies import build_policy
from igpo_core.rewards.scoring import Scored, explain_trajectories
from igpo_core.rollout.rows import unsaid_answers
from igpo_core.training import StepResult, Trainer

STOPPED = "stopped.json"  # {step: {metric: value}} of steps that stop the run, of the metrics that do
BEST = "best.json"  # {"step", "score"} of the best evaluation on dev so far


@dataclass(frozen=True)
class Said:
    """Something that a person should know, as a warning where it starts with "warning:"."""

    text: str


@dataclass(frozen=True)
class Unexpected:
    """A metric of the step is not as config.expect has it."""

    step: int
    expected: Expectation
    value: float

    @property
    def told(self) -> str:
        """Return it in words: "train/turns at least 1: 0.5 at step 20"."""
        return f"{self.expected.told}: {self.value:.4g} at step {self.step}"


@dataclass(frozen=True)
class StepDone:
    """A training step was made. Where something unexpected stops the run, a checkpoint is written, and then events() raises
    ExpectationError."""

    step: int
    """Steps done, this one included."""
    metrics: dict[str, float]
    sample: tuple[Scored, ...] = ()
    """Of a step after which dev is evaluated: trajectories that diagnostics looked at, with beliefs and gains."""
    advantages: tuple[Sequence[float], ...] = ()
    """Of the sample, a row of turns each."""
    unexpected: tuple[Unexpected, ...] = ()
    """The same in all processes: of the metrics that the first one has."""


@dataclass(frozen=True)
class Evaluated:
    """Dev was evaluated, with the first decoding, which alone decides which checkpoint is the best."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Saving:
    """A checkpoint will be written when the next event is asked for."""

    step: int


@dataclass(frozen=True)
class Checkpointed:
    """A checkpoint is whole."""

    step: int
    folder: Path
    seconds: float


@dataclass(frozen=True)
class Testing:
    """The test begins, of the weights in this checkpoint."""

    step: int
    checkpoint: Path


@dataclass(frozen=True)
class Decoded:
    """The test's first decoding is there; the others are made when the next event is asked for."""

    step: int
    result: EvaluationResult


@dataclass(frozen=True)
class Finished:
    """The run is complete. metrics: of the test."""

    step: int
    metrics: dict[str, float]
    counters: dict[str, float]
    checkpoint: Path


Event = Said | StepDone | Evaluated | Saving | Checkpointed | Testing | Decoded | Finished


class TrainingRun:
    """A training run that goes on where its folder ends. All processes of a run of several go through the same events; the
    first one writes files."""

    def __init__(
        self,
        spec: RunSpec,
        folder: Path,
        data: Path,
        start: Path,
        *,
        place: str = "cpu",
        judgements: Path | None = None,
    ) -> None:
        """Build the trainer and load the newest whole checkpoint. Sets this process's torch threads.

        folder: of the run's checkpoints; data: published; start: of the policy to start from; place: torch's device;
        judgements: file of the judge's verdicts, which runs share (None: in the run's folder).
        """
        config = spec.experiment
        torch.set_num_threads(config.training.threads)
        environment = open_environment(config, data)
        policy = build_policy(config, environment)
        with within_memory("loading", config):
            policy.model.to(place)
        load_weights(start, policy.model)
        self.spec, self.folder = spec, folder
        self.trainer = Trainer(config, environment, policy)
        self._judgements = judgements or folder / "judge.sqlite"
        self._said: list[Said] = []
        if self.trainer.left_out:
            self._say(f"{self.trainer.left_out} train questions do not fit rollout.max_tokens and are left out")
        unsaid = unsaid_answers(policy, environment, config.rollout, self.trainer.questions)
        if unsaid:
            self._say(f"warning: {unsaid}")
        checkpoint = newest_checkpoint(folder, lambda damage: self._say(f"warning: {damage}"))
        if checkpoint is not None:
            self.trainer.restore(checkpoint)
            self._say(f"resumed at step {self.trainer.step} from {checkpoint.name}")

    def _say(self, text: str) -> None:
        self._said.append(Said(text))

    def events(
        self,
        evaluated: Callable[[int], bool] = lambda step: False,
        around_step: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Generator[Event]:
        """Make all that is left of the run.

        evaluated: whether the consumer has the evaluation on dev of a step already; a run that was ended between a step and the
        evaluation due after it makes that first. around_step: entered before each step, and left once its StepDone was taken and
        the next event is asked for. Whoever stops early closes the iterator, which leaves it too.
        Raises IgpoError where a step fails, ExpectationError where one is not as config.expect wants it; a run ended on the way
        goes on from its newest checkpoint.
        """
        yield from self._said
        self._refuse_stopped()
        trainer, training = self.trainer, self.trainer.config.training
        if self._due() and not trainer.ranks.broadcast(evaluated(trainer.step)):
            yield self._evaluate()
        while not trainer.done:
            until = (trainer.step // training.steps_per_epoch + 1) * training.steps_per_epoch
            while trainer.step < until and not trainer.done:
                with around_step():
                    done = self._step()
                    yield done
                stops = _stopping(done.unexpected)
                if stops:
                    yield Saving(trainer.step)
                    yield self.save()
                    raise _stopped(stops)
                if self._due():
                    yield self._evaluate()
            yield Saving(trainer.step)
            yield self.save()
        yield from self._test()

    def _due(self) -> bool:
        return self.trainer.step % self.trainer.config.evaluation.every == 0 or self.trainer.done

    def _step(self) -> StepDone:
        result = self.trainer.run_step()
        # with the step's own line: whoever goes on from this step has its weights but not its rollouts
        found, sample, advantages = self._diagnose(result) if self._due() else ({}, (), ())
        metrics = {**result.metrics, **found}
        return StepDone(result.step, metrics, sample, advantages, self._unexpected(result.step, metrics))

    def _unexpected(self, step: int, metrics: Mapping[str, float]) -> tuple[Unexpected, ...]:
        """Return what of a step is not as config.expect has it. What stops the run is on disk then: whoever is told to end once
        the step is handed over leaves its checkpoint, from which nobody shall go on."""
        ranks, expected = self.trainer.ranks, self.trainer.config.expect
        if not expected:
            return ()
        found = ranks.broadcast(tuple(_unmet(expected, step, metrics)))  # of what the first process logs
        if ranks.is_main:
            known = read_stopped(self.folder)
            seen = {one.expected.metric: one.value for one in _stopping(found)}
            if seen != known.pop(str(step), {}):
                write_json(self.folder / STOPPED, {**known, **({str(step): seen} if seen else {})})
        return found

    def _refuse_stopped(self) -> None:
        """A run that was stopped at its newest checkpoint goes on only where that step is as expected now."""
        trainer = self.trainer
        if not trainer.config.expect:
            return
        known = trainer.ranks.broadcast(read_stopped(self.folder)).get(str(trainer.step), {})
        stops = _stopping(tuple(_unmet(trainer.config.expect, trainer.step, known)))
        if stops:
            raise _stopped(stops)

    def _diagnose(self, result: StepResult) -> tuple[dict[str, float], tuple[Scored, ...], tuple[Sequence[float], ...]]:
        """Return diagnostics/ metrics of the step's first config.evaluation.diagnostics trajectories, the same ones in every arm,
        and these trajectories with the beliefs and gains that the step trained on, where the arm has any; nothing in other
        processes than the first."""
        trainer = self.trainer
        config, policy, environment = trainer.config, trainer.policy, trainer.environment
        started = time.perf_counter()
        with within_memory("beliefs", config), trainer.whole_weights():
            if not trainer.ranks.is_main:
                return {}, (), ()
            contrast = trainer.contrast(trainer.step)
            fitting = (
                n
                for n, item in enumerate(result.scored)
                if fits_window(policy, environment, item, config.reward, contrast)
            )
            sample = list(islice(fitting, config.evaluation.diagnostics))
            if not sample:
                return {}, (), ()
            trajectories = [result.scored[n].trajectory for n in sample]
            key = (config.seed, trainer.step)
            explained = explain_trajectories(
                policy, environment, trajectories, config.reward, key=key, contrast=contrast
            )
            metrics = belief_metrics(policy, environment, explained, config.reward)
            trained_on = [result.scored[n] for n in sample]
            shown = tuple(
                item if own.beliefs is None else replace(item, beliefs=own.beliefs, gains=own.gains)
                for item, own in zip(explained, trained_on, strict=True)
            )
            metrics["time/diagnostics"] = time.perf_counter() - started
            return metrics, shown, tuple(result.credit.turns[n] for n in sample)

    def _decode(
        self, config: ExperimentConfig, split: str, limit: int, step: int
    ) -> Iterator[tuple[str, EvaluationResult]]:
        """Evaluate the weights of now with every decoding of `config`, by all processes."""
        trainer = self.trainer
        engine = trainer.engine()
        with trainer.whole_weights():
            yield from decode_each(
                trainer.policy, trainer.environment, config, split, limit, step, trainer.ranks, engine
            )

    def _evaluate(self) -> Evaluated:
        trainer, started = self.trainer, time.perf_counter()
        config = first_decoding(trainer.config)
        found: dict[str, float] = {}
        for prefix, result in self._decode(config, "dev", config.evaluation.dev_questions, trainer.step):
            found |= {f"eval{prefix}{name}": value for name, value in result.metrics.items()}
        found["time/evaluation"] = time.perf_counter() - started
        self._keep_best(found[f"eval/all/{trainer.config.data.headline}"])
        return Evaluated(trainer.step, found)

    def _keep_best(self, score: float) -> None:
        """Keep the weights of this step when the headline score on dev is higher than at any step before (the first of equals).

        A run that is killed and goes on from an earlier step meets the same values again and ends with the same best.
        """
        trainer = self.trainer
        known = trainer.ranks.broadcast(read_best(self.folder))
        if known is not None and score <= known["score"]:
            return
        folder = self.folder / "best" / f"step-{trainer.step:06d}"
        if not trainer.ranks.broadcast(folder.exists()):
            trainer.save_policy(folder)
        if not trainer.ranks.is_main:
            return
        write_json(self.folder / BEST, {"step": trainer.step, "score": score})
        for other in folder.parent.glob("step-*"):
            if other != folder:
                shutil.rmtree(other)

    def save(self, *, alone: bool = False) -> Checkpointed:
        """Write the checkpoint of the current step; keep it and the one before. alone: see Trainer.save."""
        started, trainer = time.perf_counter(), self.trainer
        folder = checkpoint_folder(self.folder, trainer.step)
        trainer.save(folder, alone=alone)
        if trainer.ranks.is_main:
            for old in sorted(folder.parent.glob("step-*"))[:-2]:
                shutil.rmtree(old)
        return Checkpointed(trainer.step, folder, time.perf_counter() - started)

    def _test(self) -> Iterator[Event]:
        """The one evaluation on test: of the last weights, and of those that were best on dev."""
        trainer = self.trainer
        config, step = trainer.config, trainer.step
        checkpoint = checkpoint_folder(self.folder, step)
        yield Testing(step, checkpoint)
        metrics: dict[str, float] = {}
        for prefix, result in self._decode(config, "test", config.evaluation.test_questions, step):
            metrics |= {f"test{prefix}{name}": value for name, value in result.metrics.items()}
            if prefix == "/":
                metrics |= self._judge(result)
                yield Decoded(step, result)
        metrics |= self._test_best(metrics)
        yield Finished(step, metrics, trainer.counters, checkpoint)

    def _judge(self, result: EvaluationResult) -> dict[str, float]:
        """test/all/judged and its agreement with EM, where a judge is asked for; the first process asks it."""
        settings = self.trainer.config.evaluation.judge
        if settings is None or not self.trainer.ranks.is_main:
            return {}
        found = judged_metrics(Judge(settings, self._judgements), result.scored)
        return {f"test/all/{name}": value for name, value in found.items()}

    def _test_best(self, last: dict[str, float]) -> dict[str, float]:
        """test_best/ metrics, of the first decoding. last: the test of the last weights, which serve where they are the best.
        The trainer has the best weights afterwards."""
        trainer = self.trainer
        best = trainer.ranks.broadcast(read_best(self.folder))
        assert best is not None  # dev is evaluated before the first step
        found = {name: last[f"test/all/{name}"] for name in trainer.config.data.rubric}
        if best["step"] != trainer.step:
            folder = self.folder / "best" / f"step-{best['step']:06d}"
            verify_folder(folder)
            trainer.load_policy(folder)
            config = first_decoding(trainer.config)
            for _, result in self._decode(config, "test", config.evaluation.test_questions, best["step"]):
                found = {name: result.metrics[f"all/{name}"] for name in config.data.rubric}
        return {
            **{f"test_best/all/{name}": value for name, value in found.items()},
            "test_best/step": float(best["step"]),
        }


def _unmet(expected: Sequence[Expectation], step: int, metrics: Mapping[str, float]) -> Iterator[Unexpected]:
    return (Unexpected(step, one, metrics[one.metric]) for one in expected if not one.met(step, metrics))


def _stopping(found: Sequence[Unexpected]) -> list[Unexpected]:
    return [one for one in found if one.expected.otherwise == "stop"]


def _stopped(found: Sequence[Unexpected]) -> ExpectationError:
    return ExpectationError(
        f"stopped, for `expect` says so: {'; '.join(one.told for one in found)}. The checkpoint of that step is whole: look at "
        "the run's curves and trajectories; with other bounds, or `otherwise: warn`, the same run goes on from there"
    )


def read_stopped(folder: Path) -> dict[str, dict[str, float]]:
    """Return what STOPPED holds; nothing where no step stopped the run."""
    path = folder / STOPPED
    if not path.is_file():
        return {}
    content: dict[str, dict[str, float]] = json.loads(path.read_text())
    return content


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return {"step", "score"} of the best evaluation on dev of a run's folder; None before the first."""
    path = folder / BEST
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text())
    return content
