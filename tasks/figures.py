"""Figures of a sweep: matplotlib without a screen, Okabe and Ito's colours, names beside the lines they name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.statistics import Paired, curve_band

if TYPE_CHECKING:
    from tasks.reporting import SweepData

COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")


def overview(data: "SweepData", pairs: Mapping[str, Paired], baseline: str, path: Path) -> None:
    """Four panels: dev F1, paired differences, dead groups, turns."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = dict(zip(data.arms, COLOURS, strict=False))
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.2), layout="constrained")
    curves(axes[0][0], data, "eval/all/f1", "F1 on dev questions", colours)
    forest(axes[0][1], pairs, baseline, colours)
    curves(axes[1][0], data, "advantage/dead_groups", "share of groups without any signal", colours)
    curves(axes[1][1], data, "train/turns", "turns in a training rollout", colours)
    seeds = len({run.seed for run in data.runs})
    figure.suptitle(f"{data.sweep}: mean over {seeds} seeds, 95% interval, thin lines are seeds", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curves(axis: Any, data: "SweepData", metric: str, title: str, colours: Mapping[str, str]) -> None:
    """Mean and interval by step for each arm, with the arm's name at the end of its line."""
    ends = []
    for arm in data.arms:
        rows = [run.history[metric] for run in data.runs if run.arm == arm and run.history.get(metric)]
        if not rows:
            continue
        band = curve_band(rows)
        for row in rows:
            axis.plot(list(row), list(row.values()), color=colours[arm], alpha=0.25, linewidth=0.7)
        axis.plot(band.steps, band.mean, color=colours[arm], linewidth=2)
        axis.fill_between(band.steps, band.low, band.high, color=colours[arm], alpha=0.12, linewidth=0)
        ends.append((band.mean[-1], band.steps[-1], arm))
    low, high = axis.get_ylim()
    for height, (_, step, arm) in zip(spread([end[0] for end in ends], (high - low) * 0.07), sorted(ends), strict=True):
        axis.annotate(arm, (step, height), xytext=(5, 0), textcoords="offset points", color=colours[arm], va="center")
    axis.set_xlabel("step")
    axis.set_title(title, loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in rising order, moved up where they stand closer than `gap`, so that labels do not overlap."""
    placed: list[float] = []
    for height in sorted(heights):
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed


def forest(axis: Any, pairs: Mapping[str, Paired], baseline: str, colours: Mapping[str, str]) -> None:
    """Paired difference to the baseline with its interval, one row an arm."""
    for row, (arm, pair) in enumerate(reversed(pairs.items())):
        if not pair.seeds:
            continue
        if pair.interval is not None:
            axis.plot([pair.interval.low, pair.interval.high], [row, row], color=colours[arm], linewidth=2)
        axis.plot(pair.mean, row, "o", color=colours[arm])
        axis.annotate(
            f"{arm}: {pair.mean:+.3f}", (pair.mean, row), xytext=(0, 8), textcoords="offset points", ha="center"
        )
    axis.axvline(0, color="#999999", linewidth=1)
    axis.set_yticks([])
    axis.set_ylim(-0.6, max(len(pairs) - 0.4, 0.6))
    axis.set_title(f"test F1 minus {baseline}, same seeds", loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
