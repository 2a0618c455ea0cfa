"""The report of a sweep: a table and words, computed from the metrics of MLflow's runs alone."""

import csv
import json
import os
import platform
import shutil
import statistics as plain
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from igpo_core.errors import DataError
from tasks.statistics import Reached, paired, summarise_times, time_to_threshold
from tasks.tracking import client, compare_url, experiment_id, run_url, tag_filter
from tasks.watch import Moved, moved
from tasks.wording import markdown, sentences, table_rows, terminal_table

Curve = Mapping[float, float]

SCORE = "test/all/f1"  # what arms are compared on
HISTORIES = (
    "eval/all/f1",
    "eval/all/turns",
    "test/all/f1",
    "test/all/em",
    "test_greedy/all/f1",
    "train/turns",
    "advantage/dead_groups",
    "test/all/questions",
    "test/all/left_out",
    "progress/rollouts",
    "progress/questions",
    "progress/sampled_tokens",
    "progress/seconds",
)
BUDGETS = ("progress/rollouts", "progress/questions")


@dataclass(frozen=True)
class RunData:
    """One training run as MLflow has it. status: MLflow's; histories: metric -> step -> value, where the run has it."""

    run_id: str
    arm: str
    seed: int
    status: str
    histories: Mapping[str, Curve]

    @property
    def finished(self) -> bool:
        return self.status == "FINISHED" and SCORE in self.histories

    def last(self, metric: str) -> float | None:
        """The value at the last step; None where the run lacks the metric."""
        history = self.histories.get(metric)
        return history[max(history)] if history else None

    @property
    def steps(self) -> float:
        return max(self.histories.get("train/turns", {0.0: 0.0}))

    def at(self, metric: str, step: float) -> float | None:
        """A counter's value once `step` steps were done: 0 before the first."""
        return 0.0 if step == 0 else self.histories.get(metric, {}).get(step)


@dataclass(frozen=True)
class SweepData:
    """The runs of a sweep, one for each arm and seed; `warnings` say what was left out on the way."""

    experiment: str
    sweep: str
    arms: tuple[str, ...]
    runs: tuple[RunData, ...]
    warnings: tuple[str, ...] = ()

    def finished(self, arm: str | None = None) -> list[RunData]:
        return [run for run in self.runs if run.finished and arm in (None, run.arm)]

    def scores(self, metric: str = SCORE) -> dict[str, dict[int, float]]:
        """scores[arm][seed] of finished runs: the last value of the metric."""
        return {
            arm: {run.seed: value for run in self.finished(arm) if (value := run.last(metric)) is not None}
            for arm in self.arms
        }

    def select(self, arms: Sequence[str], seeds: Sequence[int]) -> "SweepData":
        """These arms, in this order, and seeds; a run asked for that did not finish gets a warning."""
        runs = tuple(run for run in self.runs if run.arm in arms and run.seed in seeds)
        status = {(run.arm, run.seed): run.status if not run.finished else "" for run in runs}
        absent = [
            f"{arm} seed {seed} ({status.get((arm, seed), 'no run')})"
            for arm in arms
            for seed in seeds
            if status.get((arm, seed), "no run")
        ]
        told = (
            (f"MISSING: {', '.join(absent)}. Arms are compared on the seeds that both sides have.",) if absent else ()
        )
        return replace(self, arms=tuple(arms), runs=runs, warnings=self.warnings + told)


@dataclass(frozen=True)
class ArmSummary:
    """A row of the table. Means over finished seeds; None where no run has the metric.

    difference, low, high, verdict: test F1 against the baseline over `pairs` seeds (tasks/statistics.py). dead_groups:
    mean over training. turns: of the last training step. *_to_threshold: until dev F1 first reached it.
    """

    arm: str
    seeds: int
    f1: float | None
    em: float | None
    greedy_f1: float | None
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    dead_groups: float | None
    turns: float | None
    steps_to_threshold: Reached
    tokens_to_threshold: Reached
    seconds_to_threshold: Reached
    seconds: float | None


@dataclass(frozen=True)
class Report:
    """Where the report is, its texts, and its table as numbers and as text cells."""

    run_id: str
    url: str
    compare: str
    markdown: str
    terminal: str
    summaries: list[ArmSummary]
    rows: list[dict[str, str]]
    moved: list[Moved]


def collect(experiment: str, sweep: str, run_keys: Collection[str] | None = None) -> SweepData:
    """Every training run of the sweep; with run_keys only those runs, so that no run of an arm edited since is taken for
    it. Where an arm and seed has several runs, the newest finished one counts."""
    mlflow, place = client(), experiment_id(experiment)
    found = mlflow.search_runs(
        [place], tag_filter(sweep=sweep, kind="train"), max_results=1000, order_by=["attributes.start_time ASC"]
    )
    chosen: dict[tuple[str, int], RunData] = {}
    doubled = []
    for run in found:
        if run_keys is not None and run.data.tags["run_key"] not in run_keys:
            continue
        key = run.data.tags["arm"], int(run.data.tags["seed"])
        histories = {
            name: {float(point.step): point.value for point in mlflow.get_metric_history(run.info.run_id, name)}
            for name in HISTORIES
            if name in run.data.metrics
        }
        data = RunData(run.info.run_id, *key, run.info.status, histories)
        if key in chosen:
            doubled.append(f"{key[0]} seed {key[1]}")
        if key not in chosen or data.finished or not chosen[key].finished:
            chosen[key] = data
    arms = tuple(dict.fromkeys(arm for arm, _ in chosen))
    told = (f"SEVERAL RUNS of {', '.join(doubled)}: the newest finished one counts.",) if doubled else ()
    return SweepData(place, sweep, arms, tuple(chosen[key] for key in sorted(chosen)), told)


def summarise(data: SweepData, baseline: str, threshold: float, margin: float = 0.0) -> list[ArmSummary]:
    """The table, from the runs' metrics alone: it can be computed again at any time."""
    pairs = paired(data.scores(), baseline, margin)
    rows = []
    for arm in data.arms:
        runs, pair = data.finished(arm), pairs.get(arm)
        reached = [time_to_threshold(run.histories.get("eval/all/f1", {}), threshold) for run in runs]
        dead = [run.histories.get("advantage/dead_groups", {}) for run in runs]
        rows.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                f1=_mean([run.last(SCORE) for run in runs]),
                em=_mean([run.last("test/all/em") for run in runs]),
                greedy_f1=_mean([run.last("test_greedy/all/f1") for run in runs]),
                pairs=pair.n if pair else len(runs),
                difference=pair.mean if pair else None,
                low=pair.interval.low if pair and pair.interval else None,
                high=pair.interval.high if pair and pair.interval else None,
                verdict=pair.verdict if pair else "baseline",
                dead_groups=_mean([_mean(list(history.values())) for history in dead]),
                turns=_mean([run.last("train/turns") for run in runs]),
                steps_to_threshold=summarise_times(reached, [run.steps for run in runs]),
                tokens_to_threshold=_cost(runs, reached, "progress/sampled_tokens"),
                seconds_to_threshold=_cost(runs, reached, "progress/seconds"),
                seconds=_mean([run.last("progress/seconds") for run in runs]),
            )
        )
    return rows


def _cost(runs: Sequence[RunData], steps: Sequence[float | None], metric: str) -> Reached:
    """What the counter stood at when the threshold was reached. Raises DataError where a run lacks it."""
    times: list[float | None] = []
    for run, step in zip(runs, steps, strict=True):
        value = None if step is None else run.at(metric, step)
        if step is not None and value is None:
            raise DataError(
                f"run {run.run_id} ({run.arm} seed {run.seed}) has no {metric} at step {step:g}: train it again"
            )
        times.append(value)
    return summarise_times(times, [run.last(metric) or 0.0 for run in runs])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return plain.fmean(known) if known else None


def unequal_budgets(data: SweepData) -> list[str]:
    """A loud line for every budget on which finished runs differ; none: the comparison is at equal budget."""
    runs = data.finished()
    lines = []
    for name in ("steps", *BUDGETS):
        values: dict[str, list[str]] = {}
        for run in runs:
            value = run.steps if name == "steps" else run.last(name)
            values.setdefault("none" if value is None else f"{value:g}", []).append(f"{run.arm} seed {run.seed}")
        if len(values) > 1:
            parts = "; ".join(f"{value} in {', '.join(named)}" for value, named in values.items())
            lines.append(f"!! UNEQUAL BUDGET, not comparable: {name.removeprefix('progress/')} is {parts}")
    return lines


# ---------------------------------------------------------------------------------------------------------- report


def left_out(data: SweepData) -> list[str]:
    """A loud line when test questions were not asked because their prompt does not fit."""
    lost = max((run.last("test/all/left_out") or 0.0 for run in data.finished()), default=0.0)
    asked = max((run.last("test/all/questions") or 0.0 for run in data.finished()), default=0.0)
    if not lost:
        return []
    return [
        f"NOT TESTED: {lost:.0f} questions do not fit rollout.max_tokens; the scores are over the other {asked:.0f}."
    ]


def write_report(
    experiment: str,
    sweep: str,
    specification: Mapping[str, Any],
    data_version: str,
    baseline: str,
    threshold: float,
    run_keys: Collection[str],
) -> Report:
    """The one run tagged kind=report of this sweep, made or brought up to date, for the specification's arms and seeds."""
    import yaml

    from tasks.figures import write_figures

    data = collect(experiment, sweep, run_keys).select(list(specification["arms"]), list(specification["seeds"]))
    if not data.finished():
        raise DataError(f"sweep {sweep} has no finished run to report on: {' '.join(data.warnings)}")
    summaries = summarise(data, baseline, threshold, specification["margin"])
    cells = table_rows(summaries, threshold)
    comparison = _comparison(specification)
    left = moved(data.experiment, comparison, sweep, summaries)
    warnings = [*unequal_budgets(data), *left_out(data), *data.warnings, *(arm.sentence() for arm in left)]
    words = sentences(summaries, specification, baseline, threshold, warnings)
    compare = compare_url(data.experiment, [run.run_id for run in data.finished()])
    text = markdown(sweep, cells, words, compare)
    run_id = _report_run(data.experiment, sweep, specification, data_version, comparison)
    mlflow = client()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "report.md").write_text(text)
        (folder / "table.json").write_text(json.dumps([asdict(row) for row in summaries], indent=1))
        _write_csv(folder / "table.csv", cells)
        (folder / "specification.yaml").write_text(yaml.safe_dump(dict(specification), sort_keys=False))
        (folder / "versions.json").write_text(json.dumps(versions(data_version), indent=1))
        write_figures(data, baseline, folder, specification["margin"])
        mlflow.log_artifacts(run_id, str(folder))
    _log_summaries(run_id, summaries)
    mlflow.set_tag(run_id, "mlflow.note.content", text)  # what the run's page shows first
    mlflow.set_terminated(run_id)
    terminal = terminal_table(cells) + "\n\n" + words.plain()
    return Report(run_id, run_url(data.experiment, run_id), compare, text, terminal, summaries, cells, left)


def _comparison(specification: Mapping[str, Any]) -> str:
    """The same for sweeps that compare the same: tasks/watch.py compares those."""
    from igpo_core.config import fingerprint

    return fingerprint({name: specification[name] for name in ("name", "base", "arms", "baseline", "seeds")})


def _report_run(place: str, sweep: str, specification: Mapping[str, Any], data_version: str, comparison: str) -> str:
    """Each choice of arms and seeds has a report of its own: one never overwrites another."""
    mlflow = client()
    arms, seeds = ",".join(specification["arms"]), ",".join(map(str, specification["seeds"]))
    tags = {"kind": "report", "sweep": sweep, "arms": arms, "seeds": seeds}
    found = mlflow.search_runs([place], tag_filter(**tags), max_results=1)
    tags |= {"specification": comparison, "data_version": data_version}
    if found:
        return str(found[0].info.run_id)
    name = f"report {sweep}: {len(specification['arms'])} arms, seeds {seeds}"
    return str(mlflow.create_run(place, tags=tags, run_name=name).info.run_id)


def _log_summaries(run_id: str, summaries: Sequence[ArmSummary]) -> None:
    """Numbers of the table as metrics; a report written again adds only those that changed."""
    from mlflow.entities import Metric

    mlflow, now = client(), int(time.time() * 1000)
    known = mlflow.get_run(run_id).data.metrics
    numbers = {
        f"report/{row.arm}/{name}": float(value)
        for row in summaries
        for name, value in vars(row).items()
        if isinstance(value, (int, float))
    }
    fresh = [Metric(name, value, now, 0) for name, value in numbers.items() if known.get(name) != value]
    mlflow.log_batch(run_id, metrics=fresh)


def _write_csv(path: Path, cells: Sequence[Mapping[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(cells[0]))
        writer.writeheader()
        writer.writerows(cells)


def _commit() -> str:
    """The commit of this checkout, or why none is known."""
    if shutil.which("git") is None:
        return "no commit known: git is not installed"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() if git.returncode == 0 else f"no commit known: {git.stderr.strip()}"


def versions(data_version: str) -> dict[str, Any]:
    """What computed the numbers: code, data, interpreter, machine and every installed package."""
    from importlib.metadata import distributions

    from igpo_core.config import code_version

    return {
        "data": data_version,
        "code": code_version(),
        "git": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "packages": dict(sorted((item.metadata["Name"], item.version) for item in distributions())),
    }
