"""Figures of a sweep: matplotlib without a screen, Okabe and Ito's colours, names beside the lines they name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import TYPE_CHECKING, Any

from igpo_core.trajectory import TURNS_TOLD
from tasks.report.colours import COLOURS
from tasks.report.metrics import GAIN, Metric, pattern, shown
from tasks.report.statistics import Interval, Paired, curve_band
from tasks.report.wording import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.report.sweeps import SweepData

FEW = 7  # arms up to which a line for each seed can be followed
BAND = 8  # seeds from which a band tells more than their lines
LIMITS = {"share": (-0.02, 1.02)}  # of an axis, by the unit of what it shows


def write_figures(data: "SweepData", pairs: Mapping[str, Paired], baseline: str, folder: Path) -> None:
    """overview.png, and every panel of it alone: score.png, difference.png, dead_groups.png, turns.png."""
    overview(data, pairs, baseline).savefig(folder / "overview.png", dpi=130)
    colours = arm_colours(data.arms, baseline)
    for metric in shown("overview"):
        figure, axes = canvas(1, 1, (7.0, 4.2))
        curves(axes[0][0], data, metric, colours)
        figure.savefig(folder / f"{metric.named(score='score').rpartition('/')[2]}.png", dpi=130)
    figure, axes = canvas(1, 1, (7.0, 3.2))
    forest(axes[0][0], pairs, baseline, colours, data.title)
    figure.savefig(folder / "difference.png", dpi=130)


def overview(data: "SweepData", pairs: Mapping[str, Paired], baseline: str) -> "Figure":
    """Four panels: the headline on dev, paired differences, dead groups, turns."""
    metrics = shown("overview")
    rows = -(-(len(metrics) + 1) // 2)
    figure, axes = canvas(rows, 2, (12.0, 3.8 * rows))
    colours = arm_colours(data.arms, baseline)
    first, differences, *others = axes.flat
    for axis, metric in zip((first, *others), metrics, strict=False):
        curves(axis, data, metric, colours)
    forest(differences, pairs, baseline, colours, data.title)
    for axis in others[len(metrics) - 1 :]:
        axis.remove()
    seeds = len({run.seed for run in data.finished()})
    figure.suptitle(
        f"{data.sweep}: {counted(seeds, 'seed')}; bold: mean"
        + (", band: 95% interval over seeds" if seeds >= BAND else "")
        + (", thin line or small dot: one seed" if len(data.arms) <= FEW else ", small dot: one seed"),
        fontsize=11,
        x=0.01,
        ha="left",
    )
    return figure


def efficiency(data: "SweepData", baseline: str) -> "Figure":
    """The headline on dev against sampled tokens: a line a run, or where arms are many the means of an arm."""
    figure, axes = canvas(1, 1, (7.0, 4.2))
    axis, colours = axes[0][0], arm_colours(data.arms, baseline)
    for arm in data.arms:
        lines = []
        for run in data.finished(arm):
            curve = run.histories.get(f"eval/all/{data.headline}", {})
            points = [(run.at("progress/sampled_tokens", step), curve[step]) for step in sorted(curve)]
            lines.append([(tokens, value) for tokens, value in points if tokens is not None])
        if len(data.arms) > FEW:  # every run was evaluated at the same steps
            lines = (
                [[(mean(t for t, _ in at), mean(f for _, f in at)) for at in zip(*lines, strict=False)]]
                if lines
                else []
            )
        for number, known in enumerate(lines):
            axis.plot(*zip(*known, strict=True), color=colours[arm], linewidth=1.4, label=None if number else arm)
    axis.set_xlabel("tokens sampled in training")
    axis.set_title(f"{data.title} on dev by sampled tokens", loc="left", fontsize=10)
    axis.set_ylim(-0.02, 1.02)
    plain(axis, legend=True)
    return figure


def belief_by_turn(data: "SweepData", baseline: str) -> "Figure":
    """The belief in the gold answer after each turn, of the trajectories that got so far, at the last evaluation: in all, in
    solved and in unsolved ones."""
    figure, axes = canvas(1, 3, (12.0, 4.0))
    colours = arm_colours(data.arms, baseline)
    for axis, part, title in zip(axes[0], ("", "_solved", "_unsolved"), ("all", "solved", "unsolved"), strict=True):
        for arm in data.arms:
            by_turn: dict[int, list[tuple[float, float]]] = {}
            for run in data.finished(arm):
                for t in range(TURNS_TOLD):
                    value, spread = (run.last(f"diagnostics/belief{std}{part}_turn_{t}") for std in ("", "_std"))
                    if value is not None:
                        by_turn.setdefault(t, []).append((value, spread or 0.0))
            turns = sorted(by_turn)
            means, stds = ([mean(pair[i] for pair in by_turn[t]) for t in turns] for i in (0, 1))
            if turns:
                axis.plot(turns, means, "o-", color=colours[arm], label=arm, markersize=4)
                if len(data.arms) <= FEW:  # a belief is a probability: the band ends where it does
                    lows, highs = (
                        [min(1.0, max(0.0, m + sign * s)) for m, s in zip(means, stds, strict=True)] for sign in (-1, 1)
                    )
                    axis.fill_between(turns, lows, highs, color=colours[arm], alpha=0.1, linewidth=0)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel("turns done")
        axis.set_title(f"Belief in the gold answer, {title}", loc="left", fontsize=9)
        plain(axis, legend=part == "")
    return figure


def turn_by_turn(data: "SweepData", baseline: str, units: Mapping[str, str]) -> "Figure":
    """What turns earn, how far their advantages spread, and what evidence has been seen, by turn; and gains by what a call found.
    Means over training, evidence at the last evaluation; then over seeds. Gains in different units have panels of their own.

    units: arm -> the unit of its gain.
    """
    panels = []
    for metric in shown("turn by turn"):
        names = _names(metric, data)
        if metric.unit != GAIN:
            panels.append(_ByName(metric, metric.unit, names, data.arms))
            continue
        for unit in dict.fromkeys(units.values()):
            panels.append(
                _ByName(metric, f"gain ({unit})", names, [arm for arm in data.arms if units.get(arm) == unit])
            )
    drawn = [panel for panel in panels if panel.means(data)]
    rows = max(1, -(-len(drawn) // 4))
    columns = min(4, max(1, len(drawn)))
    figure, axes = canvas(rows, columns, (3.8 * columns, 3.8 * rows))
    colours = arm_colours(data.arms, baseline)
    named: set[tuple[str, ...]] = set()  # a legend for the first panel of each choice of arms
    for axis, panel in zip(axes.flat, drawn, strict=False):
        curves_by_arm = panel.means(data)
        told = tuple(curves_by_arm)
        for arm, means in curves_by_arm.items():
            places = [panel.names.index(name) for name in means]
            label = None if told in named else arm
            axis.plot(places, list(means.values()), "o-", color=colours[arm], label=label, markersize=4, linewidth=1.2)
        named.add(told)
        used = sorted({panel.names.index(name) for means in curves_by_arm.values() for name in means})
        axis.set_xticks(used, [panel.names[i].replace("_", " ") for i in used], fontsize=8)
        axis.set_xlabel("turn" if "{turn}" in panel.metric.key else "what it found")
        axis.set_ylabel(panel.quantity)
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_title(panel.metric.title, loc="left", fontsize=9)
        plain(axis, legend=True)
    for axis in axes.flat[len(drawn) :]:
        axis.remove()
    return figure


def _names(metric: Metric, data: "SweepData") -> list[str]:
    """Return the turns' numbers, or what calls found in some run: misses last."""
    if "{turn}" in metric.key:
        return [str(turn) for turn in range(1, TURNS_TOLD + 1)]
    form = pattern(metric.key, data.rubric)
    matches = [form.fullmatch(name) for run in data.finished() for name in run.histories]
    return sorted({match["label"] for match in matches if match}, key=lambda name: (name == "miss", name))


@dataclass(frozen=True)
class _ByName:
    """A panel of a metric for each of some names: a turn's number, or what a call found. quantity: what its axis says."""

    metric: Metric
    quantity: str
    names: Sequence[str]
    arms: Sequence[str]

    def means(self, data: "SweepData") -> dict[str, dict[str, float]]:
        """Return arm -> name -> mean over runs, of what runs have."""
        found: dict[str, dict[str, float]] = {}
        for arm in self.arms:
            runs = data.finished(arm)
            for name in self.names:
                key = self.metric.named(turn=name, label=name)
                at_end = self.metric.reducer == "at the end"
                values = [run.last(key) if at_end else run.over_training(key) for run in runs]
                known = [value for value in values if value is not None]
                if known:
                    found.setdefault(arm, {})[name] = mean(known)
        return found


def effect_by_cell(cells: "Sequence[tuple[str, Mapping[str, Paired]]]", baseline: str, score: str) -> "Figure":
    """The difference to the baseline in each cell, with its interval: how the effect moves with the factors."""
    arms = list(dict.fromkeys(arm for _, pairs in cells for arm in pairs))
    figure, axes = canvas(1, 1, (max(7.0, 1.2 * len(cells) + 3), 4.4))
    axis, colours = axes[0][0], arm_colours([baseline, *arms], baseline)
    axis.axhline(0, color="#999999", linewidth=1)
    named = set()
    for number, arm in enumerate(arms):
        shift = 0.5 * (number + 0.5) / len(arms) - 0.25
        for place, (_, pairs) in enumerate(cells):
            pair = pairs.get(arm)
            if pair is None or pair.mean is None:
                continue
            if pair.interval:
                axis.plot([place + shift] * 2, [pair.interval.low, pair.interval.high], color=colours[arm], linewidth=2)
            axis.plot(place + shift, pair.mean, "o", color=colours[arm], label=None if arm in named else arm)
            named.add(arm)
    axis.set_xticks(range(len(cells)), [cell for cell, _ in cells], rotation=20, ha="right", fontsize=8)
    axis.set_title(f"Test {score} minus that of {baseline}, 95% interval", loc="left", fontsize=10)
    plain(axis, legend=True)
    return figure


def svg(figure: "Figure") -> str:
    """The figure as an SVG element to put into a page."""
    import io
    import re

    text = io.StringIO()
    figure.savefig(text, format="svg")
    return re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL)


def plain(axis: Any, *, legend: bool) -> None:
    """Take what is not needed off an axis; name its lines where asked."""
    axis.grid(axis="y", color="#e4e4e4", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    if legend and axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=8)


def arm_colours(arms: Sequence[str], baseline: str) -> dict[str, str]:
    """Black for the baseline; the others in order, round again where there are more arms than colours. In MLflow the runs of a
    specification that names its baseline first have the same ones."""
    others = [arm for arm in arms if arm != baseline]
    return {baseline: COLOURS[0], **{arm: COLOURS[1 + i % (len(COLOURS) - 1)] for i, arm in enumerate(others)}}


def canvas(rows: int, columns: int, size: tuple[float, float]) -> "tuple[Figure, Any]":
    """Return a figure that needs no screen, and its axes as [rows, columns]. size: in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def curves(axis: Any, data: "SweepData", metric: Metric, colours: Mapping[str, str]) -> None:
    """The mean by step of each arm, its interval where seeds are many, a thin line a seed where arms are few, and the arm's name
    at the end of its line."""
    ends = []
    few, name, limits = len(data.arms) <= FEW, metric.named(score=data.headline), LIMITS.get(metric.unit)
    for arm in data.arms:
        rows = [run.histories[name] for run in data.finished(arm) if run.histories.get(name)]
        for row in rows if few else ():
            axis.plot(sorted(row), [row[step] for step in sorted(row)], color=colours[arm], alpha=0.3, linewidth=0.7)
        band = curve_band(rows)
        if not band:
            continue
        steps, means = [point.step for point in band], [point.mean for point in band]
        if len(rows) >= BAND:
            edges = [point.interval or Interval(point.mean, point.mean) for point in band]
            lows, highs = [edge.low for edge in edges], [edge.high for edge in edges]
            axis.fill_between(steps, lows, highs, color=colours[arm], alpha=0.12 if few else 0.05, linewidth=0)
        axis.plot(steps, means, color=colours[arm], linewidth=2.2, solid_capstyle="round")
        ends.append((means[-1], steps[-1], arm))
    if limits is not None:
        axis.set_ylim(*limits)
    low, high = axis.get_ylim()
    ends.sort()
    for height, (_, step, arm) in zip(spread([end[0] for end in ends], low, high), ends, strict=True):
        axis.annotate(
            arm,
            (step, height),
            xytext=(6, 0),
            textcoords="offset points",
            color=colours[arm],
            va="center",
            fontsize=9,
            annotation_clip=False,
        )
    if not ends:
        axis.text(0.5, 0.5, f"no run has {name}", transform=axis.transAxes, ha="center", color="#666666")
    axis.set_xlabel("training step")
    axis.set_title(metric.title.format(title=data.title), loc="left", fontsize=10)
    axis.margins(x=0)
    plain(axis, legend=False)


def spread(heights: Sequence[float], low: float, high: float) -> list[float]:
    """Rising heights moved apart to a readable distance, then back below the top, so that no two labels overlap."""
    gap = (high - low) * 0.065
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = high
    for place in range(len(placed) - 1, -1, -1):
        placed[place] = min(placed[place], ceiling)
        ceiling = placed[place] - gap
    return placed


def forest(axis: Any, pairs: Mapping[str, Paired], baseline: str, colours: Mapping[str, str], score: str) -> None:
    """Paired difference to the baseline with its interval and those of single seeds, one row an arm; the first arm on top."""
    compared = [(arm, pair) for arm, pair in pairs.items() if pair.mean is not None]
    axis.axvline(0, color="#999999", linewidth=1, zorder=1)
    for row, (arm, pair) in enumerate(reversed(compared)):
        span = pair.interval
        if span is not None:
            axis.plot([span.low, span.high], [row, row], color=colours[arm], linewidth=2.5, solid_capstyle="butt")
        axis.plot(
            pair.differences, [row] * pair.n, "o", color=colours[arm], markersize=3.5, alpha=0.45, markeredgewidth=0
        )
        axis.plot(pair.mean, row, "o", color=colours[arm], markersize=7)
        bounds = f" [{span.low:+.3f}, {span.high:+.3f}]" if span else ""
        axis.text(
            0.0,
            row + 0.2,
            f"{arm}   {pair.mean:+.3f}{bounds}   {pair.verdict} (n={pair.n})",
            transform=axis.get_yaxis_transform(),
            color=colours[arm],
            fontsize=9,
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            zorder=1.5,  # above the line at zero, below every interval: with many arms rows are close
        )
    axis.set_yticks([])
    axis.set_ylim(-0.5, max(len(compared), 1) - 0.2)
    axis.set_xlabel(f"test {score} minus that of {baseline}, same seeds, 95% interval")
    axis.set_title("Paired difference on test questions", loc="left", fontsize=10)
    axis.spines[["top", "right", "left"]].set_visible(False)
