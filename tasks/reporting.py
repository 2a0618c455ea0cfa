"""The report of a sweep, computed from MLflow's runs alone."""

import json
import math
import platform
import statistics as plain
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from igpo_core.errors import IgpoError
from tasks.statistics import Reached, first_at, paired, summarise_reached
from tasks.tracking import client, compare_url, experiment_id, run_url

HISTORIES = (
    "eval/all/f1",
    "advantage/dead_groups",
    "train/turns",
    "progress/sampled_tokens",
    "progress/seconds",
    "progress/rollouts",
    "progress/questions",
)
PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "prefect",
    "mlflow",
    "pandas",
    "great-expectations",
    "bm25s",
    "numpy",
)


@dataclass(frozen=True)
class RunData:
    """One run as MLflow has it. history: metric name -> step -> value; status: MLflow's."""

    run_id: str
    arm: str
    seed: int
    status: str
    metrics: Mapping[str, float]
    history: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class SweepData:
    """The finished runs of a sweep, and those that are not finished by name."""

    sweep: str
    arms: tuple[str, ...]
    runs: tuple[RunData, ...]
    unfinished: tuple[str, ...]

    def scores(self, metric: str) -> dict[str, dict[int, float]]:
        """scores[arm][seed] of a final metric, where the run has it."""
        return {
            arm: {run.seed: run.metrics[metric] for run in self.runs if run.arm == arm and metric in run.metrics}
            for arm in self.arms
        }


@dataclass(frozen=True)
class ArmSummary:
    """A row of the table. Scores are means over seeds; None where no run has the metric."""

    arm: str
    seeds: int
    f1: float
    em: float
    greedy_f1: float | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    dead_groups: float
    turns: float
    steps_to_threshold: Reached
    tokens_to_threshold: Reached
    seconds_to_threshold: Reached
    seconds: float


@dataclass(frozen=True)
class Report:
    """Where the report is, and its texts."""

    run_id: str
    url: str
    compare: str
    markdown: str
    terminal: str
    rows: list[dict[str, Any]]


def collect(study: str, sweep: str, arms: Sequence[str], seeds: Sequence[int]) -> SweepData:
    """The runs of a sweep for these arms and seeds, in this order of arms."""
    mlflow, experiment = client(), experiment_id(study)
    found = mlflow.search_runs(
        [experiment],
        f"tags.sweep = '{sweep}' and tags.kind = 'train'",
        max_results=5000,
        order_by=["attributes.start_time"],
    )
    runs = []
    for run in found:
        arm, seed = run.data.tags["arm"], int(run.data.tags["seed"])
        if arm not in arms or seed not in seeds or run.info.status != "FINISHED":
            continue
        history = {
            name: {point.step: point.value for point in mlflow.get_metric_history(run.info.run_id, name)}
            for name in HISTORIES
            if name in run.data.metrics
        }
        runs.append(RunData(run.info.run_id, arm, seed, run.info.status, run.data.metrics, history))
    done = {(run.arm, run.seed) for run in runs}
    missing = tuple(f"{arm} seed {seed}" for arm in arms for seed in seeds if (arm, seed) not in done)
    return SweepData(sweep, tuple(arms), tuple(sorted(runs, key=lambda run: (run.arm, run.seed))), missing)


def summarise(data: SweepData, baseline: str, threshold: float) -> list[ArmSummary]:
    """The table, from final metrics and histories alone: it can be computed again from the runs."""
    pairs = paired(data.scores("test/all/f1"), baseline)
    rows = []
    for arm in data.arms:
        runs = [run for run in data.runs if run.arm == arm]
        if not runs:
            continue
        steps = [first_at(run.history["eval/all/f1"], threshold) for run in runs]
        pair = pairs.get(arm)
        greedy = [run.metrics["test_greedy/all/f1"] for run in runs if "test_greedy/all/f1" in run.metrics]
        rows.append(
            ArmSummary(
                arm=arm,
                seeds=len(runs),
                f1=_mean([run.metrics["test/all/f1"] for run in runs]),
                em=_mean([run.metrics["test/all/em"] for run in runs]),
                greedy_f1=_mean(greedy) if greedy else None,
                difference=pair.mean if pair and pair.seeds else None,
                low=pair.interval.low if pair and pair.interval else None,
                high=pair.interval.high if pair and pair.interval else None,
                verdict=pair.verdict if pair else "baseline",
                dead_groups=_mean([_mean(list(run.history["advantage/dead_groups"].values())) for run in runs]),
                turns=_mean([run.metrics["train/turns"] for run in runs]),
                steps_to_threshold=summarise_reached([None if s is None else float(s) for s in steps]),
                tokens_to_threshold=_cost(runs, steps, "progress/sampled_tokens"),
                seconds_to_threshold=_cost(runs, steps, "progress/seconds"),
                seconds=_mean([run.metrics["progress/seconds"] for run in runs]),
            )
        )
    return rows


def _cost(runs: Sequence[RunData], steps: Sequence[int | None], metric: str) -> Reached:
    """What `metric` stood at when the threshold was reached; step 0 is before training and costs nothing."""
    costs = [
        None if step is None else run.history[metric].get(step, 0.0) for run, step in zip(runs, steps, strict=True)
    ]
    return summarise_reached(costs)


def unequal_budgets(data: SweepData) -> list[str]:
    """Lines that name every budget on which finished runs differ; empty when the comparison is at equal budget."""
    lines = []
    for name in ("progress/rollouts", "progress/questions"):
        values = {run.metrics[name] for run in data.runs}
        if len(values) > 1:
            lines.append(f"UNEQUAL BUDGET: {name} differs between runs: {sorted(values)}")
    steps = {len(run.history["advantage/dead_groups"]) for run in data.runs}
    if len(steps) > 1:
        lines.append(f"UNEQUAL BUDGET: the number of steps differs between runs: {sorted(steps)}")
    return lines


def table_rows(rows: Sequence[ArmSummary], threshold: float) -> list[dict[str, str]]:
    """The table as text cells: one source for terminal, markdown and Prefect."""
    return [
        {
            "arm": row.arm,
            "seeds": str(row.seeds),
            "F1": f"{row.f1:.3f}",
            "EM": f"{row.em:.3f}",
            "greedy F1": "-" if row.greedy_f1 is None else f"{row.greedy_f1:.3f}",
            "difference [95%]": _difference(row),
            "verdict": row.verdict,
            "dead": f"{row.dead_groups:.2f}",
            "turns": f"{row.turns:.1f}",
            f"steps to {threshold:g}": _reached(row.steps_to_threshold),
            "s/run": f"{row.seconds:.0f}",
        }
        for row in rows
    ]


def _difference(row: ArmSummary) -> str:
    if row.difference is None:
        return "-"
    bounds = "" if row.low is None else f" [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{row.difference:+.3f}{bounds}"


def _reached(reached: Reached) -> str:
    median = "-" if reached.median is None else f"{reached.median:.0f}"
    return f"{median} ({reached.reached}/{reached.runs})"


def terminal_table(cells: Sequence[Mapping[str, str]]) -> str:
    """Aligned columns."""
    names = list(cells[0])
    widths = [max(len(name), *(len(row[name]) for row in cells)) for name in names]
    lines = ["  ".join(name.ljust(width) for name, width in zip(names, widths, strict=True))]
    lines.append("  ".join("-" * width for width in widths))
    lines += ["  ".join(row[name].ljust(width) for name, width in zip(names, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)


def words(data: SweepData, rows: Sequence[ArmSummary], specification: Mapping[str, Any], threshold: float) -> list[str]:
    """What was and what was not shown, as sentences."""
    base, baseline = specification["base"], specification["baseline"]
    test = base["evaluation"]["test_questions"]
    lines = [
        f"At {base['training']['epochs'] * base['training']['steps_per_epoch']} steps of {base['rollout']['questions']} "
        f"questions x {base['rollout']['group_size']} rollouts, on up to {test} held-out questions:"
    ]
    for row in rows:
        if row.difference is None:
            continue
        text = f"{row.arm} against {baseline}: {_difference(row)} F1 over {row.seeds} paired seeds: {row.verdict}."
        if row.verdict == "no difference shown":
            text += " This is not evidence that there is none."
        lines.append(text)
    speed = [f"{row.arm} {_cost_words(row)}" for row in rows]
    lines.append(
        f"Until dev F1 {threshold:g} (median over seeds, and how many seeds got there): " + "; ".join(speed) + "."
    )
    lines += unequal_budgets(data)
    if data.unfinished:
        lines.append(f"MISSING: {', '.join(data.unfinished)}. Arms are compared on the seeds that both sides have.")
    lines.append(
        "Not shown: whether a gap at this budget remains when training goes on (a gap in speed is no gap in the ceiling); "
        f"any other format penalty than {base['reward']['format_penalty']:g}; any other sparsity of the outcome, world, "
        "model or learning rate. The interval is over seeds (expanded percentile bootstrap); the verdict is corrected for "
        f"{max(1, len(rows) - 1)} comparisons."
    )
    if base["data"]["kind"] != "files" and base["warm_start"] is not None:
        lines.append(
            "The world is synthetic and the start is made: how rarely the warm-started policy succeeds is a setting of the "
            "demonstrations, and the size of the effect depends on it."
        )
    return lines


def _cost_words(row: ArmSummary) -> str:
    reached = row.steps_to_threshold
    if reached.median is None:
        return f"not within the budget in most seeds ({reached.reached} of {reached.runs} did)"
    tokens, seconds = row.tokens_to_threshold.median or 0.0, row.seconds_to_threshold.median or 0.0
    return f"{reached.median:.0f} steps, {tokens:,.0f} sampled tokens, {seconds:.0f} s ({reached.reached} of {reached.runs})"


def write_report(
    study: str, sweep: str, specification: Mapping[str, Any], data_version: str, baseline: str, threshold: float
) -> Report:
    """The one run tagged kind=report of this sweep, made or brought up to date."""
    import yaml

    from tasks.figures import overview

    data = collect(study, sweep, list(specification["arms"]), specification["seeds"])
    rows = summarise(data, baseline, threshold)
    if not rows:
        raise IgpoError(f"sweep {sweep} has no finished run to report on; missing: {', '.join(data.unfinished)}")
    cells = table_rows(rows, threshold)
    sentences = words(data, rows, specification, threshold)
    header = "| " + " | ".join(cells[0]) + " |\n|" + "---|" * len(cells[0])
    body = "\n".join("| " + " | ".join(row.values()) + " |" for row in cells)
    compare = compare_url(experiment_id(study), [run.run_id for run in data.runs])
    markdown = (
        f"# {sweep}\n\n{header}\n{body}\n\n" + "\n\n".join(sentences) + f"\n\n[Compare the runs in MLflow]({compare})\n"
    )

    mlflow, experiment = client(), experiment_id(study)
    run_id = _report_run(study, sweep, data_version)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "report.md").write_text(markdown)
        (folder / "table.json").write_text(json.dumps([_plain(row) for row in rows], indent=1))
        (folder / "specification.yaml").write_text(yaml.safe_dump(dict(specification), sort_keys=False))
        (folder / "versions.json").write_text(json.dumps(versions(data_version), indent=1))
        overview(data, paired(data.scores("test/all/f1"), baseline), baseline, folder / "overview.png")
        mlflow.log_artifacts(run_id, str(folder))
    for row in rows:
        mlflow.log_metric(run_id, f"report/{row.arm}/f1", row.f1)
        if row.difference is not None:
            mlflow.log_metric(run_id, f"report/{row.arm}/difference", row.difference)
    mlflow.set_terminated(run_id)
    terminal = terminal_table(cells) + "\n\n" + "\n".join(sentences)
    return Report(run_id, run_url(experiment, run_id), compare, markdown, terminal, list(cells))


def _report_run(study: str, sweep: str, data_version: str) -> str:
    mlflow, experiment = client(), experiment_id(study)
    found = mlflow.search_runs([experiment], f"tags.sweep = '{sweep}' and tags.kind = 'report'", max_results=1)
    if found:
        return str(found[0].info.run_id)
    tags = {"kind": "report", "sweep": sweep, "data_version": data_version}
    return str(mlflow.create_run(experiment, tags=tags, run_name=f"report {sweep}").info.run_id)


def _plain(row: ArmSummary) -> dict[str, Any]:
    values = dict(vars(row))
    return {name: vars(value) if isinstance(value, Reached) else value for name, value in values.items()}


def versions(data_version: str) -> dict[str, Any]:
    """What computed the numbers."""
    from importlib.metadata import version

    from igpo_core.config import code_version

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "data": data_version,
        "code": code_version(),
        "git": commit.stdout.strip() or "not a git checkout",
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
    }


def _mean(values: Sequence[float]) -> float:
    return plain.fmean(values) if values else math.nan
