"""What a sweep's cell shows, as tables and words, computed from the runs' metrics alone."""

import statistics as plain
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from igpo_core.config.changes import of_cell
from igpo_core.errors import DataError
from tasks.report.alarms import alarms, unexpected
from tasks.report.decodings import differing, paired_by_decoding, scores_by_decoding, told
from tasks.report.metrics import explaining
from tasks.report.statistics import (
    Comparison,
    Paired,
    Reached,
    comparison,
    interquartile_mean,
    paired,
    probability_of_improvement,
    seeds_needed,
    summarise_times,
    time_to_threshold,
    without_verdict,
)
from tasks.report.sweeps import RunData, SweepData
from tasks.report.wording import Column, Words, columns_of, sentences, table_rows
from tasks.runs.planning import untrained
from tasks.runs.processors import mixed

EXPLAINED = "What explains it: first and last step, means over seeds"
BUDGETS = ("steps", "progress/rollouts", "progress/questions")


@dataclass(frozen=True)
class ArmSummary:
    """A row of the table. Means over finished seeds; None where no run has the metric.

    score: the headline on test; others: the other scores on test, by key; decoded: the headline under other decodings, by name;
    best: the headline of the checkpoint that was best on dev. iqm: interquartile mean. difference, low, high, verdict, p: of the
    headline on test against the baseline over `pairs` seeds, improvement: probability of it, needed: seeds that a difference of
    the margin needs (tasks/report/statistics.py). dead_groups: mean over training. turns: of the last training step.
    *_to_threshold: until the headline on dev first reached it.
    """

    arm: str
    seeds: int
    score: float | None
    others: dict[str, float | None]
    decoded: dict[str, float | None]
    best: float | None
    iqm: float | None
    pairs: int
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    p: float | None
    improvement: float | None
    needed: int | None
    dead_groups: float | None
    turns: float | None
    steps_to_threshold: Reached
    rollouts_to_threshold: Reached
    tokens_to_threshold: Reached
    seconds_to_threshold: Reached
    seconds: float | None


@dataclass(frozen=True)
class CellReport:
    """One cell's tables and words. pairs: arm -> its difference to the baseline; columns: of `rows`, which are text;
    slices: metric -> arm -> the same in it; explained: a row a diagnostic, a column an arm; by_decoding: a sentence for each
    decoding under which verdicts differ."""

    cell: str
    baseline: str
    data: SweepData
    pairs: dict[str, Paired]
    summaries: list[ArmSummary]
    columns: list[Column]
    rows: list[dict[str, str]]
    words: Words
    slices: dict[str, dict[str, Paired]]
    explained: list[dict[str, str]]
    by_decoding: list[str]

    def comparison(self, arm: str) -> Comparison:
        """The arm against the baseline."""
        return comparison(self.data.scores(), arm, self.baseline, self.pairs, self.data.title)

    @property
    def by_seed(self) -> str:
        """Return the title of the table of seeds."""
        return f"Test {self.data.title} of each seed"

    @property
    def seeds(self) -> list[dict[str, str]]:
        """Return the table of seeds."""
        return seed_rows(self.data)

    @property
    def tables(self) -> dict[str, list[dict[str, str]]]:
        """Every table but the first, by title; without those that are empty."""
        title = self.data.title
        sliced = f"Difference in test {title} by source and hops, 95% intervals, not corrected for their number"
        found = {
            self.by_seed: self.seeds,
            sliced: slice_rows(self.slices, self.baseline),
            EXPLAINED: self.explained,
        }
        return {title: rows for title, rows in found.items() if rows}


def summarise(
    data: SweepData, pairs: Mapping[str, Paired], baseline: str, threshold: float, margin: float = 0.0
) -> list[ArmSummary]:
    """The table, from the runs' metrics alone: it can be computed again at any time."""
    scores, headline, decoded = data.scores(), data.headline, scores_by_decoding(data)
    rows = []
    for arm in data.arms:
        runs, pair = data.finished(arm), pairs.get(arm)
        reached = [time_to_threshold(run.histories.get(f"eval/all/{headline}", {}), threshold) for run in runs]
        dead = [run.histories.get("advantage/dead_groups", {}) for run in runs]
        rows.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                score=_mean([run.last(f"test/all/{headline}") for run in runs]),
                others={
                    name: _mean([run.last(f"test/all/{name}") for run in runs])
                    for name in data.rubric
                    if name != headline
                },
                decoded={name: _mean([*by_arm[arm].values()]) for name, by_arm in decoded.items()},
                best=_mean([run.last(f"test_best/all/{headline}") for run in runs]),
                iqm=interquartile_mean([run.last(f"test/all/{headline}") or 0.0 for run in runs]),
                pairs=pair.n if pair else len(runs),
                difference=pair.mean if pair else None,
                low=pair.interval.low if pair and pair.interval else None,
                high=pair.interval.high if pair and pair.interval else None,
                verdict=pair.verdict if pair else "baseline",
                p=pair.p if pair else None,
                improvement=probability_of_improvement([*scores[arm].values()], [*scores.get(baseline, {}).values()])
                if pair
                else None,
                needed=seeds_needed(differences(scores, arm, baseline), margin, compared=len(pairs)) if pair else None,
                dead_groups=_mean([_mean(list(history.values())) for history in dead]),
                turns=_mean([run.last("train/turns") for run in runs]),
                steps_to_threshold=summarise_times(reached, [run.steps for run in runs]),
                rollouts_to_threshold=_cost(runs, reached, "progress/rollouts"),
                tokens_to_threshold=_cost(runs, reached, "progress/sampled_tokens"),
                seconds_to_threshold=_cost(runs, reached, "progress/seconds"),
                seconds=_mean([run.last("progress/seconds") for run in runs]),
            )
        )
    return rows


def differences(scores: Mapping[str, Mapping[int, float]], arm: str, baseline: str) -> list[float]:
    """Of each seed that both have."""
    reference = scores.get(baseline, {})
    return [scores[arm][seed] - reference[seed] for seed in sorted(scores[arm]) if seed in reference]


def seed_rows(data: SweepData) -> list[dict[str, str]]:
    """A row an arm, a column a seed: what every mean, interval and p-value is computed from. "-": no finished run."""
    scores = data.scores()
    seeds = sorted({seed for of_arm in scores.values() for seed in of_arm})
    return [
        {"arm": arm, **{f"seed {seed}": f"{of_arm[seed]:.3f}" if seed in of_arm else "-" for seed in seeds}}
        for arm, of_arm in scores.items()
    ]


def slice_differences(data: SweepData, baseline: str) -> dict[str, dict[str, Paired]]:
    """Paired differences in the headline on test for each source, where there are several, and for each hop count of a source
    that has several."""
    end = f"/{data.headline}"
    every = {
        name for run in data.finished() for name in run.histories if name.startswith("test/") and name.endswith(end)
    }
    names = sorted(name.removeprefix("test/").removesuffix(end) for name in every - {f"test/all{end}"})
    sources = [name for name in names if "/" not in name]
    kept = []
    for name in names:
        source = name.split("/")[0]
        siblings = sources if name == source else [other for other in names if other.startswith(f"{source}/")]
        if len(siblings) > 1:
            kept.append(name)
    return {name: paired(data.scores(f"test/{name}{end}"), baseline) for name in kept}


def slice_rows(slices: Mapping[str, Mapping[str, Paired]], baseline: str) -> list[dict[str, str]]:
    """A row a slice, a column an arm: difference with interval."""
    rows = []
    for name, pairs in slices.items():
        row = {"slice": name}
        for arm, pair in pairs.items():
            bounds = f" [{pair.interval.low:+.3f}, {pair.interval.high:+.3f}]" if pair.interval else ""
            row[f"{arm} - {baseline}"] = "-" if pair.mean is None else f"{pair.mean:+.3f}{bounds} (n={pair.n})"
        rows.append(row)
    return rows


def explain(data: SweepData) -> list[dict[str, str]]:
    """A row a diagnostic that some run has, a column an arm: means over seeds, of the first and the last step, or of what the
    metric's reducer says. A row whose first step is a later one says so: arms are alike only before the first update."""
    read: Mapping[str, tuple[Callable[[RunData, str], float | None], ...]] = {
        "first to last": (RunData.first, RunData.last),
        "over training": (RunData.over_training,),
        "at the end": (RunData.last,),
    }
    rows = []
    for metric, title, reducer in explaining(data.rubric):
        known = [min(run.histories[metric]) for run in data.finished() if run.histories.get(metric)]
        later = f", from step {min(known):g}" if reducer == "first to last" and known and min(known) > 1 else ""
        row = {"metric": title + later}
        for arm in data.arms:
            runs = data.finished(arm)
            values = [_mean([reduce(run, metric) for run in runs]) for reduce in read[reducer]]
            shown = ["-" if value is None else f"{value:.3g}" for value in values]
            row[arm] = " → ".join(shown) if values[0] is not None else "-"
        if known:
            rows.append(row)
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


def unequal_budgets(data: SweepData, budget: str = "steps", amount: float | None = None) -> list[str]:
    """A loud line for every budget on which finished runs differ; none: the comparison is at equal budget.

    budget sampled_tokens or seconds: runs differ in steps on purpose, and each must have spent the amount.
    """
    runs = data.finished()
    if budget != "steps":
        short = [
            f"{run.arm} seed {run.seed}" for run in runs if (run.last(f"progress/{budget}") or 0.0) < (amount or 0.0)
        ]
        if not short:
            return []
        return [f"!! UNEQUAL BUDGET: {', '.join(short)} ended with their last epoch before {budget} reached {amount:g}"]
    lines = []
    for name in BUDGETS:
        values: dict[str, list[str]] = {}
        for run in runs:
            value = run.steps if name == "steps" else run.last(name)
            values.setdefault("none" if value is None else f"{value:g}", []).append(f"{run.arm} seed {run.seed}")
        if len(values) > 1:
            parts = "; ".join(f"{value} in {', '.join(named)}" for value, named in values.items())
            lines.append(f"!! UNEQUAL BUDGET, not comparable: {name.removeprefix('progress/')} is {parts}")
    return lines


def left_out(data: SweepData) -> list[str]:
    """A loud line when test questions were not asked because their prompt does not fit."""
    lost = max((run.last("test/all/left_out") or 0.0 for run in data.finished()), default=0.0)
    asked = max((run.last("test/all/questions") or 0.0 for run in data.finished()), default=0.0)
    if not lost:
        return []
    return [
        f"NOT TESTED: {lost:.0f} questions do not fit rollout.max_tokens; the scores are over the other {asked:.0f}."
    ]


def cell_reports(
    specification: Mapping[str, Any],
    found: Mapping[str, SweepData],
    cells: Sequence[str],
    by_heart: Mapping[str, Sequence[str]] | None = None,
) -> list[CellReport]:
    """Tables and words of every cell that has a finished run, from the runs' metrics alone; the first report names the cells
    that have none. by_heart: as of tasks.report.reporting.write_report. Raises DataError where no cell has one."""
    baseline, margin = specification["baseline"], specification["margin"]
    reports: list[CellReport] = []
    empty_cells = []
    for cell in cells:
        base = of_cell(specification["base"], specification["factors"], cell)
        threshold, training = base["evaluation"]["threshold"], base["training"]
        empty = next(iter(found.values()), SweepData("", "", (), (), rubric={}))
        data = found.get(cell, replace(empty, arms=(), runs=(), warnings=()))
        data = data.select(list(specification["arms"]), list(specification["seeds"]))
        if not data.finished():
            empty_cells.append(f"{cell or data.sweep}: {' '.join(data.warnings)}")
            continue
        pairs = paired(data.scores(), baseline, margin, specification["seeds"])
        budgets = unequal_budgets(data, training["budget"], training["amount"])
        others = paired_by_decoding(data, baseline, margin, specification["seeds"])
        heart = (by_heart or {}).get(cell, [])
        if heart:
            pairs, others = without_verdict(pairs), {name: without_verdict(own) for name, own in others.items()}
        summaries = summarise(data, pairs, baseline, threshold, margin)
        computed = mixed((f"{run.arm} seed {run.seed}", run.processor) for run in data.finished())
        warnings = [*heart, *untrained(base), *budgets, *computed, *left_out(data), *data.warnings]
        warnings += [*unexpected(data), *alarms(data)]
        headline = base["evaluation"]["decoding"][0]
        words = sentences(summaries, {**specification, "base": base}, baseline, threshold, warnings, data.title)
        words = replace(words, limits=(*told(headline, pairs, others, baseline, data.title), *words.limits))
        columns, slices = columns_of(summaries, threshold, data.rubric), slice_differences(data, baseline)
        rows = table_rows(summaries, columns)
        by_decoding = differing(headline, pairs, others, baseline)
        reports.append(
            CellReport(cell, baseline, data, pairs, summaries, columns, rows, words, slices, explain(data), by_decoding)
        )
    if not reports:
        raise DataError(f"no run to report on is finished. {' '.join(empty_cells)}")
    lost = [f"NO FINISHED RUN in {told}" for told in empty_cells]
    return [replace(reports[0], words=reports[0].words.warn(lost)), *reports[1:]]
