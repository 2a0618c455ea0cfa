"""A sweep's runs as views of one long frame (tasks/report/frame.py), an arm and seed of a cell each."""

import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.report.frame import empty, placed, read_run
from tasks.tracking.outbox import UNEXPECTED
from tasks.tracking.server import experiment_id, find_runs

if TYPE_CHECKING:
    from pandas import DataFrame

Curve = Mapping[float, float]
Place = tuple[str, str, int]  # cell, arm, seed


@dataclass(frozen=True, eq=False)
class RunData:
    """One training run: a view of its rows of the long frame, and what MLflow says of the run."""

    run_id: str
    """MLflow's."""
    arm: str
    seed: int
    status: str
    """MLflow's."""
    frame: "DataFrame"
    """Its rows of the long frame, sorted by key and step."""
    processor: str = ""
    """What it was computed on; empty where no tag says."""
    unexpected: str = ""
    """What was not as `expect` has it; empty where no tag says."""
    folder: Path | None = None
    """On this machine; None where MLflow was read."""

    @cached_property
    def histories(self) -> Mapping[str, Curve]:
        """Return key -> step -> value, in the order of keys and steps."""
        found: dict[str, dict[float, float]] = {}
        columns = (self.frame[name].tolist() for name in ("key", "step", "value"))
        for key, step, value in zip(*columns, strict=True):
            found.setdefault(key, {})[step] = value
        return found

    @property
    def finished(self) -> bool:
        """Return whether it ended, and was tested."""
        return self.status == "FINISHED" and any(name.startswith("test/all/") for name in self.histories)

    def last(self, metric: str) -> float | None:
        """Return the value at the run's last step; None where it has none there."""
        return self.histories.get(metric, {}).get(self.steps)

    def first(self, metric: str) -> float | None:
        """Return the value at the first step that has one."""
        history = self.histories.get(metric)
        return history[min(history)] if history else None

    def over_training(self, metric: str) -> float | None:
        """Return the mean over the steps that have one."""
        history = self.histories.get(metric)
        return sum(history.values()) / len(history) if history else None

    @cached_property
    def steps(self) -> float:
        """Return the run's last step."""
        return max((step for history in self.histories.values() for step in history), default=0.0)

    def at(self, metric: str, step: float) -> float | None:
        """Return a counter's value once `step` steps were done: 0 before the first."""
        return 0.0 if step == 0 else self.histories.get(metric, {}).get(step)


@dataclass(frozen=True)
class SweepData:
    """The runs of a sweep's cell, one for each arm and seed."""

    experiment: str
    sweep: str
    arms: tuple[str, ...]
    runs: tuple[RunData, ...]
    warnings: tuple[str, ...] = ()
    """What was left out on the way."""
    absent: tuple[tuple[str, int, str], ...] = ()
    """Arm, seed, and MLflow's status or another reason of each run that was asked for and has no score."""
    rubric: Mapping[str, str] = field(kw_only=True)
    """Key of each score -> its title. Arms are compared on the first."""

    @property
    def frame(self) -> "DataFrame":
        """Return the long frame of its runs."""
        from pandas import concat

        frames = [run.frame for run in self.runs if len(run.frame)]
        return concat(frames, ignore_index=True) if frames else empty()

    @property
    def headline(self) -> str:
        """Return the key of the score that arms are compared on."""
        return next(iter(self.rubric))

    @property
    def title(self) -> str:
        """Return the title of that score."""
        return self.rubric[self.headline]

    def finished(self, arm: str | None = None) -> list[RunData]:
        """Return the finished runs, of one arm where it is named."""
        return [run for run in self.runs if run.finished and arm in (None, run.arm)]

    def scores(self, metric: str = "") -> dict[str, dict[int, float]]:
        """Return scores[arm][seed] of finished runs: the last value of a metric, where that is a finite number. Empty: the
        headline on test."""
        metric = metric or f"test/all/{self.headline}"
        return {
            arm: {
                run.seed: value
                for run in self.finished(arm)
                if (value := run.last(metric)) is not None and _finite(value)
            }
            for arm in self.arms
        }

    def select(self, arms: Sequence[str], seeds: Sequence[int]) -> "SweepData":
        """These arms, in this order, and seeds; a run asked for that did not finish, or has no finite score, is left out with a
        warning."""
        runs = [run for run in self.runs if run.arm in arms and run.seed in seeds]
        why = {(run.arm, run.seed): self._fault(run) for run in runs}
        absent = [(arm, seed, fault) for arm in arms for seed in seeds if (fault := why.get((arm, seed), "no run"))]
        named = ", ".join(f"{arm} seed {seed} ({fault})" for arm, seed, fault in absent)
        told = (
            (
                f"MISSING: {named}. Arms are compared on the seeds that both sides have, and an arm that lacks one, or whose "
                "baseline does, has no verdict.",
            )
            if absent
            else ()
        )
        kept = tuple(run for run in runs if not (run.finished and why[run.arm, run.seed]))
        return replace(self, arms=tuple(arms), runs=kept, warnings=self.warnings + told, absent=tuple(absent))

    def _fault(self, run: RunData) -> str:
        """Return why a run has no score; empty where it has one."""
        if not run.finished:
            return run.status
        score = run.last(f"test/all/{self.headline}")
        if score is None:
            return f"no test {self.title}"
        return "" if _finite(score) else f"its test {self.title} is no finite number"


def _finite(value: float) -> bool:
    """MLflow keeps an infinite number as the largest one."""
    return math.isfinite(value) and abs(value) < sys.float_info.max


def collect(
    experiment: str,
    sweep: str,
    places: Mapping[str, Sequence[Place]] | None = None,
    *,
    rubric: Mapping[str, str],
    runs: Path | None = None,
) -> dict[str, SweepData]:
    """Return every training run of the sweep by cell ("" where there are no factors).

    places: run key -> where that run counts (one run serves all cells that its arm does not tell apart); only these runs
    are taken, so that no run of an arm edited since is taken for it. None: every run, where its tags say. Where an arm and
    seed has several runs, the newest finished one counts.

    Which runs there are, and how each ended, MLflow says. runs: the folder of all runs on this machine, from which values are
    read (tasks/report/frame.py:read_run); None: all are read from MLflow.
    """
    place = experiment_id(experiment)
    every = find_runs([place], "attributes.start_time ASC", sweep=sweep, kind="train")
    found = [run for run in every if places is None or run.data.tags["run_key"] in places]

    odd_folders: list[str] = []
    cells: dict[str, dict[tuple[str, int], RunData]] = {}
    doubled: dict[str, list[str]] = {}
    with ThreadPoolExecutor(4) as pool:
        values = [*pool.map(lambda run: read_run(run, runs, rubric, odd_folders.append), found)]
    for run, (folder, frame) in zip(found, values, strict=True):
        tags = run.data.tags
        own = [(tags.get("cell", ""), tags["arm"], int(tags["seed"]))]
        for cell, arm, seed in own if places is None else places[tags["run_key"]]:
            where, odd, rows = tags.get("processor", ""), tags.get(UNEXPECTED, ""), placed(frame, cell, arm, seed)
            data = RunData(run.info.run_id, arm, seed, run.info.status, rows, where, odd, folder)
            chosen = cells.setdefault(cell, {})
            if (arm, seed) in chosen:
                doubled.setdefault(cell, []).append(f"{arm} seed {seed}")
            if (arm, seed) not in chosen or data.finished or not chosen[arm, seed].finished:
                chosen[arm, seed] = data
    result = {}
    for cell, chosen in cells.items():
        told = (
            (f"SEVERAL RUNS of {', '.join(doubled[cell])}: the newest finished one counts.",) if cell in doubled else ()
        ) + tuple(sorted(odd_folders))
        arms = tuple(dict.fromkeys(arm for arm, _ in chosen))
        result[cell] = SweepData(place, sweep, arms, tuple(chosen[key] for key in sorted(chosen)), told, rubric=rubric)
    return result
