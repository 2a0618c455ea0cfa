"""The report in words and tables: what was shown, and what was not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.statistics import MIN_SEEDS

if TYPE_CHECKING:
    from tasks.reporting import ArmSummary


@dataclass(frozen=True)
class Words:
    """warnings: loud lines, first; shown: what the numbers say; limits: what they do not."""

    warnings: tuple[str, ...]
    shown: tuple[str, ...]
    limits: tuple[str, ...]

    def warn(self, lines: Sequence[str]) -> "Words":
        """The same with more warnings."""
        return replace(self, warnings=(*self.warnings, *lines))

    def plain(self, width: int = 118) -> str:
        """For a terminal."""
        import textwrap

        lines = [textwrap.fill(text, width) for text in (*self.warnings, *self.shown)]
        lines += ["Not shown:", *(textwrap.fill(f"- {text}", width, subsequent_indent="  ") for text in self.limits)]
        return "\n".join(lines)


def table_rows(summaries: Sequence["ArmSummary"], threshold: float) -> list[dict[str, str]]:
    """The table as text cells: one source for terminal, markdown, CSV and Prefect."""
    return [
        {
            "arm": row.arm,
            "seeds": str(row.seeds),
            "F1": _number(row.f1),
            "EM": _number(row.em),
            "greedy F1": _number(row.greedy_f1),
            "best-by-dev F1": _number(row.best_f1),
            "IQM": _number(row.iqm),
            "difference in F1 [95%]": difference(row),
            "verdict": row.verdict,
            "P(better)": _number(row.improvement, 2),
            "seeds for margin": "-" if row.needed is None else str(row.needed),
            "dead groups": _number(row.dead_groups, 2),
            "turns": _number(row.turns, 1),
            f"reached F1 {threshold:g}": f"{row.steps_to_threshold.reached} of {row.steps_to_threshold.of}",
            "steps": str(row.steps_to_threshold),
            "tokens": str(row.tokens_to_threshold),
            "seconds": str(row.seconds_to_threshold),
            "s/run": _number(row.seconds, 0),
        }
        for row in summaries
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def difference(row: "ArmSummary") -> str:
    if row.difference is None:
        return "-"
    bounds = "" if row.low is None or row.high is None else f" [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{row.difference:+.3f}{bounds}"


def terminal_table(cells: Sequence[Mapping[str, str]]) -> str:
    """Three blocks of aligned columns, at most 120 wide: scores, comparison, then behaviour and speed."""
    names = list(cells[0])
    compared, behaviour = names.index("difference in F1 [95%]"), names.index("dead groups")
    blocks = []
    for columns in (names[:compared], [names[0], *names[compared:behaviour]], [names[0], *names[behaviour:]]):
        texts = [columns, *([_shorten(row[name]) for name in columns] for row in cells)]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        texts.insert(1, ["-" * width for width in widths])
        lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in texts]
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


def _shorten(text: str, width: int = 36) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def markdown(sweep: str, cells: Sequence[tuple[str, Sequence[Mapping[str, str]], Words]], compare: str) -> str:
    """The whole report: a table and words for each cell."""
    parts = [f"# {sweep}"]
    for cell, rows, words in cells:
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        parts += [f"# {cell}"] if cell else []
        parts += [f"> **{text}**" for text in words.warnings]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
        parts += ["## What was shown", "\n".join(f"- {text}" for text in words.shown)]
        parts += ["## What was not shown", "\n".join(f"- {text}" for text in words.limits)]
    return "\n\n".join([*parts, f"[Compare the runs in MLflow]({compare})"]) + "\n"


def sentences(
    summaries: Sequence["ArmSummary"],
    specification: Mapping[str, Any],
    baseline: str,
    threshold: float,
    warnings: Sequence[str],
) -> Words:
    """Plain words for a reader who does not want to believe it."""
    base = specification["base"]
    steps = base["training"]["epochs"] * base["training"]["steps_per_epoch"]
    size = f"{steps} steps of {base['rollout']['questions']} questions x {base['rollout']['group_size']} rollouts"
    shown = [
        f"Every run trained for {size}, and was tested once, at the end, on up to "
        f"{base['evaluation']['test_questions']} held-out questions. Columns are means over seeds.",
        *(_compared(row, baseline, specification["margin"]) for row in summaries if row.arm != baseline),
        f"Until dev F1 {threshold:g}, median over seeds (a run that never got there counts as later than any other): "
        + "; ".join(_speed(row) for row in summaries)
        + ".",
    ]
    return Words(tuple(warnings), tuple(shown), tuple(_limits(summaries, base, specification["factors"], baseline)))


def _compared(row: "ArmSummary", baseline: str, margin: float) -> str:
    if row.difference is None:
        return f"{row.arm} and {baseline} have no seed in common: nothing was compared."
    start = f"{row.arm} against {baseline}: {difference(row)} F1 over {row.pairs} paired seeds"
    if row.verdict == "too few seeds":
        return f"{start}: too few seeds for a verdict ({MIN_SEEDS} are needed), whatever the numbers look like."
    if row.verdict == "equal":
        return (
            f"{start}: equal at this budget. The whole interval behind the verdict lies within {margin:g} F1, below which a "
            "difference does not matter here (margin in the specification): no difference is claimed."
        )
    if row.verdict == "no difference shown":
        stricter = ""
        if row.low is not None and row.high is not None and not row.low <= 0 <= row.high:
            stricter = " The 95% interval leaves zero out, but the stricter one behind the verdicts (below) does not."
        return f"{start}: no difference was shown.{stricter} That is not evidence that there is none."
    return f"{start}: {row.verdict} at this budget."


def _speed(row: "ArmSummary") -> str:
    steps, tokens, seconds = row.steps_to_threshold, row.tokens_to_threshold, row.seconds_to_threshold
    return (
        f"{row.arm} {steps} steps, {tokens} sampled tokens, {seconds} s ({steps.reached} of {steps.of} runs got there)"
    )


def _certainty(pairs: int, compared: int) -> str:
    """What the interval and the verdict of so many seeds can say at most."""
    if not pairs:
        return "Certainty: no seeds are paired."
    text = (
        f"Certainty beyond {pairs} seeds. The 95% interval is an expanded percentile bootstrap over seeds, not over "
        f"questions; it never reaches beyond the seeds' own range, which holds the true mean with probability "
        f"{1 - 2 ** (1 - pairs):.3f} at most."
    )
    strict = 0.05 / compared
    if 2 ** (1 - pairs) <= strict:
        return f"{text} Verdicts are stricter: the interval at level {1 - strict:.2%} must exclude zero (Bonferroni)."
    needed = math.ceil(1 - math.log2(strict))
    return (
        f"{text} A verdict needs all {pairs} seeds to agree, which chance alone brings about in {2 ** (1 - pairs):.1%} of "
        f"comparisons of equal arms; {needed} or more seeds would hold {strict:.1%}, five percent over the {compared} "
        "compared."
    )


def _limits(
    summaries: Sequence["ArmSummary"], base: Mapping[str, Any], factors: Mapping[str, Any], baseline: str
) -> list[str]:
    levels = [settings.get("reward.format_penalty") for factor in factors.values() for settings in factor.values()]
    crossed = sorted({level for level in levels if level is not None})
    penalties = " and ".join(f"{penalty:g}" for penalty in crossed or [base["reward"]["format_penalty"]])
    elsewhere = "the other cells" if crossed else "the preset of the other penalty"
    compared = max(1, len(summaries) - 1)
    pairs = min((row.pairs for row in summaries if row.arm != baseline and row.pairs), default=0)
    lines = [
        "The ceiling. A gap at this budget may be one of speed alone: with more steps the arms may end level.",
        f"Any other format penalty than {penalties}, which decides how an arm fails: compare with {elsewhere}.",
        _certainty(pairs, compared),
        f"Any other world, model size, learning rate or task than this one (data: {base['data']['kind']}).",
    ]
    if base["warm_start"] is not None:
        lines.append(
            "Any other sparsity of the outcome. How rarely the policy succeeds before training was made on purpose, by the "
            "warm start's demonstrations, and the size of the effect depends on it."
        )
    return lines
