"""A comparison of models as tables, words and a figure."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tasks.report.colours import COLOURS
from tasks.report.compared import MEAN, Score
from tasks.report.figures import canvas, plain
from tasks.report.statistics import Interval
from tasks.report.wording import aligned, counted, markdown_table, wrapped


def bounds(value: float | None, interval: Interval | None, sign: str = "") -> str:
    """Return a number with its interval as text; "-" where there is none."""
    if value is None:
        return "-"
    ends = f" [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]" if interval else ""
    return f"{value:{sign}.3f}{ends}"


def whole_of(scores: Sequence[Score]) -> str:
    """Return the slice that models are compared on."""
    return scores[0].part


def main_rows(scores: Sequence[Score], unseen: Collection[str], title: str) -> list[dict[str, str]]:
    """Return a row a model: its score in each source, the whole, and the difference to the first model. unseen: sources without
    a question in training."""
    whole, first = whole_of(scores), scores[0].model
    parts = [part for part in dict.fromkeys(row.part for row in scores) if "/hops_" not in part and part != whole]
    by_part = {(row.part, row.model): row for row in scores}
    return [
        {
            "model": row.model,
            "seeds": f"{row.seeds} {'training' if row.trained else 'sampling'}",
            **{_named(part, unseen): f"{by_part[part, row.model].score:.3f}" for part in parts},
            f"{title}, {_named(whole, unseen)} [95%]": bounds(row.score, row.interval),
            f"difference to {first} [95%]": bounds(row.difference, row.difference_interval, "+"),
            "verdict": row.verdict or "reference",
            "p": "-" if row.p is None else f"{row.p:.3f}",
        }
        for row in scores
        if row.part == whole
    ]


def slice_rows(scores: Sequence[Score], unseen: Collection[str]) -> list[dict[str, str]]:
    """Return a row a slice: its questions, each model's score and each difference to the first, with intervals."""
    first, rows = scores[0].model, []
    for part in dict.fromkeys(row.part for row in scores):
        own = [row for row in scores if row.part == part]
        rows.append(
            {
                "slice": _named(part, unseen),
                "questions": str(own[0].questions),
                **{row.model: bounds(row.score, row.interval) for row in own},
                **{f"{row.model} - {first}": bounds(row.difference, row.difference_interval, "+") for row in own[1:]},
            }
        )
    return rows


def _named(part: str, unseen: Collection[str]) -> str:
    return f"{part} (out of domain)" if part in unseen else part


def told(scores: Sequence[Score], split: str, title: str, draws: int) -> str:
    """Return in words what was compared, and what the intervals are of."""
    whole = [row for row in scores if row.part == whole_of(scores)]
    first, total = whole[0], sum(row.questions for row in scores[:1])
    said = [
        f"{counted(len(whole), 'model')} on {total} {split} questions, {counted(draws, 'sampling seed')}: {title}"
        + (", each source counting the same" if first.part == MEAN else "")
        + ". Intervals are over seeds and questions: training seeds where a model has several, else sampling seeds."
    ]
    said += [
        f"{row.model} against {first.model}: {row.verdict}, {bounds(row.difference, row.difference_interval, '+')}"
        + (f", p {row.p:.3f}" if row.p is not None else "")
        for row in whole[1:]
    ]
    return "\n".join(said)


def terminal(rows: Sequence[dict[str, str]], words: str) -> str:
    """Return what is told when an evaluation ends."""
    return f"{aligned(rows)}\n\n{wrapped(words)}"


def page(
    study: str, words: str, rows: Sequence[dict[str, str]], by_slice: Sequence[dict[str, str]], links: Sequence[str]
) -> str:
    """Return the comparison as markdown. links: markdown, a line each."""
    parts = [f"# {study}: models compared", *words.splitlines(), markdown_table(rows)]
    parts += ["## By source and hops", "Intervals are not corrected for their number.", markdown_table(by_slice)]
    return "\n\n".join([*parts, "## Runs", "\n".join(links)]) + "\n"


def note(study: str, words: str, rows: Sequence[dict[str, str]], links: Sequence[str], most: int) -> str:
    """Return what the run's page shows first, of at most so many characters: words, table and links. comparison.md has the rest,
    and what does not fit: the table goes before links do, and each leaves a line that says so."""
    start = [f"# {study}: models compared", "The slices, and all of this: comparison.md among the artifacts."]
    for table in (markdown_table(rows), "The table is too long for this page: see comparison.md."):
        text = "\n\n".join([*start, *words.splitlines(), table, "## Runs", "\n".join(links)]) + "\n"
        if len(text) <= most:
            return text
    rest = "\n\nThe rest is too long for this page: see comparison.md.\n"
    return text[: most - len(rest)].rpartition("\n")[0] + rest


def draw(scores: Sequence[Score], unseen: Collection[str], title: str, path: Path) -> None:
    """Write a figure of two panels as PNG: scores by slice, and differences to the first model, with their intervals. A
    dollar sign in a name is one, and begins no formula."""
    parts = list(dict.fromkeys(row.part for row in scores))
    models = list(dict.fromkeys(row.model for row in scores))
    shown = {name: name.replace("$", r"\$") for name in (*models, *(_named(part, unseen) for part in parts))}
    height = max(3.2, 0.28 * len(parts) * len(models) + 1.2)
    figure, axes = canvas(1, 2, (12.0, height))
    by_part = {(row.part, row.model): row for row in scores}
    for axis, differences in zip(axes[0], (False, True), strict=True):
        for number, model in enumerate(models[1:] if differences else models, start=int(differences)):
            colour = COLOURS[number % len(COLOURS)]
            for place, part in enumerate(parts):
                row = by_part[part, model]
                value, span = (row.difference, row.difference_interval) if differences else (row.score, row.interval)
                at = -place + 0.8 * (0.5 - (number + 0.5) / len(models))
                if span is not None:
                    axis.plot([span.low, span.high], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
                axis.plot(value, at, "o", color=colour, markersize=5, label=None if place else shown[model])
        axis.set_yticks(
            [-place for place in range(len(parts))], [shown[_named(part, unseen)] for part in parts], fontsize=8
        )
        axis.set_title(
            f"{title} minus that of {shown[models[0]]}, 95% interval" if differences else f"{title}, 95% interval",
            loc="left",
            fontsize=10,
        )
        axis.set_ylim(0.5 - len(parts), 0.5)
        plain(axis, legend=False)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=8)
    axes[0][1].axvline(0, color="#999999", linewidth=1, zorder=0)
    figure.savefig(path, dpi=130)
