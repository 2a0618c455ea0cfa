"""The report in words and tables: what was shown, and what was not."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from tasks.report.statistics import ALPHA, MIN_SEEDS, coverage, seeds_for_verdict

if TYPE_CHECKING:
    from tasks.report.summaries import ArmSummary


MOST_NEEDED = 100  # seeds for the margin that are told as a number


@dataclass(frozen=True)
class Words:
    """warnings: loud lines, first; shown: what the numbers say; limits: what they do not."""

    warnings: tuple[str, ...]
    shown: tuple[str, ...]
    limits: tuple[str, ...]

    def warn(self, lines: Sequence[str]) -> "Words":
        """The same with more warnings."""
        return replace(self, warnings=(*self.warnings, *lines))

    def loud(self, width: int = 118) -> str:
        """The warnings, for a terminal. The rest is in the report."""
        return wrapped("\n".join(self.warnings), width)


def wrapped(text: str, width: int = 118) -> str:
    """Each line broken for a terminal."""
    import textwrap

    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


Part = Literal["verdict", "test", "behaviour"]


@dataclass(frozen=True)
class Column:
    """A column of the table of arms."""

    title: str
    part: Part
    """Where it belongs: up to the verdict, other numbers of the test, behaviour and speed."""
    text: "Callable[[ArmSummary], str]"
    """Its cell in an arm's row."""
    short: bool = False
    """Whether a first look wants it."""


def columns_of(summaries: Sequence["ArmSummary"], threshold: float, rubric: Mapping[str, str]) -> list[Column]:
    """Return the table's columns. rubric: title of each score, the headline first."""
    title = next(iter(rubric.values()))
    decodings = list(summaries[0].decoded) if summaries else []
    return [
        Column("arm", "verdict", lambda row: row.arm, short=True),
        Column("seeds", "verdict", lambda row: str(row.seeds), short=True),
        Column(title, "verdict", lambda row: _number(row.score), short=True),
        Column(f"difference in {title} [95%]", "verdict", difference, short=True),
        Column("verdict", "verdict", lambda row: row.verdict, short=True),
        Column("p", "verdict", lambda row: _number(row.p), short=True),
        Column("P(better)", "test", lambda row: _number(row.improvement, 2)),
        Column("seeds for margin", "test", _needed),
        *(Column(told, "test", _score(name)) for name, told in list(rubric.items())[1:]),
        *(Column(f"{name} {title}", "test", _decoded(name)) for name in decodings),
        Column(f"best-by-dev {title}", "test", lambda row: _number(row.best)),
        Column("IQM", "test", lambda row: _number(row.iqm)),
        Column("dead groups", "behaviour", lambda row: _number(row.dead_groups, 2), short=True),
        Column("turns", "behaviour", lambda row: _number(row.turns, 1), short=True),
        Column(f"reached {title} {threshold:g}", "behaviour", _reached),
        Column("steps", "behaviour", lambda row: str(row.steps_to_threshold)),
        Column("rollouts", "behaviour", lambda row: str(row.rollouts_to_threshold)),
        Column("tokens", "behaviour", lambda row: str(row.tokens_to_threshold)),
        Column("seconds", "behaviour", lambda row: str(row.seconds_to_threshold)),
        Column("s/run", "behaviour", lambda row: _number(row.seconds, 0), short=True),
    ]


def table_rows(summaries: Sequence["ArmSummary"], columns: Sequence[Column]) -> list[dict[str, str]]:
    """Return the table as text cells: one source for page, terminal, markdown, CSV and Prefect."""
    return [{column.title: column.text(row) for column in columns} for row in summaries]


def part_of(rows: "Table", columns: Sequence[Column], *parts: Part) -> list[dict[str, str]]:
    """Return the arm and the columns of these parts."""
    return _picked(rows, [column for column in columns if column.part in parts or column is columns[0]])


def _picked(rows: "Table", columns: Sequence[Column]) -> list[dict[str, str]]:
    return [{column.title: row[column.title] for column in columns} for row in rows]


def _score(name: str) -> "Callable[[ArmSummary], str]":
    return lambda row: _number(row.others[name])


def _decoded(name: str) -> "Callable[[ArmSummary], str]":
    return lambda row: _number(row.decoded[name])


def _reached(row: "ArmSummary") -> str:
    return f"{row.steps_to_threshold.reached} of {row.steps_to_threshold.of}"


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _needed(row: "ArmSummary") -> str:
    """Nothing where the spread of few seeds would be taken for the spread, and no number that nobody will run."""
    if row.difference is None or row.pairs < MIN_SEEDS or row.verdict == "learnt by heart":
        return "-"
    return f"more than {MOST_NEEDED}" if row.needed is None or row.needed > MOST_NEEDED else str(row.needed)


def counted(number: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def smaller(margin: float) -> str:
    """What is said of a difference that was shown and does not matter."""
    return f"smaller than the margin of {margin:g} below which a difference does not matter"


def difference(row: "ArmSummary") -> str:
    """Return a difference with its interval as text; "-" where there is none."""
    if row.difference is None:
        return "-"
    bounds = "" if row.low is None or row.high is None else f" [{row.low:+.3f}, {row.high:+.3f}]"
    return f"{row.difference:+.3f}{bounds}"


def short_table(rows: "Table", columns: Sequence[Column]) -> str:
    """Return the columns that a first look wants, at most 120 wide."""
    return _narrow(_picked(rows, [column for column in columns if column.short]))


def terminal_table(rows: "Table", columns: Sequence[Column]) -> str:
    """Return a block of aligned columns for each part of the table, at most 120 wide."""
    return "\n\n".join(_narrow(part_of(rows, columns, part)) for part in get_args(Part))


def _narrow(rows: "Table") -> str:
    return aligned([{name: _shorten(text) for name, text in row.items()} for row in rows])


def aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """A table of text with columns under one another."""
    texts = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    texts.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in texts]
    return "\n".join(line.rstrip() for line in lines)


def _shorten(text: str, width: int = 36) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


Table = Sequence[Mapping[str, str]]


MARKUP = (
    r"[\\`|*~]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)"  # code, columns, emphasis, entities; outcome_only and an address have none
    r"|<(?=[\w/!?])|(?<=\])\("  # tags, links
    r"|^[\[>]|^[-+#=](?=[-+#=\s]|$)|(?<=\d)[.)](?=\s|$)"  # what makes a line another thing than a paragraph
)


def literal(text: str) -> str:
    """Text that is no markup in markdown: one line that shows as it is, in a table's cell and alone."""
    return re.sub(MARKUP, r"\\\g<0>", " ".join(text.split()))


def literal_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows for a table of Prefect's, which shows each cell as markdown of its own; numbers stay numbers."""
    return [{name: literal(value) if isinstance(value, str) else value for name, value in row.items()} for row in rows]


def markdown_table(rows: Table) -> str:
    """Return a table in markdown."""
    lines = [[literal(name) for name in rows[0]], ["---"] * len(rows[0])]
    lines += [[literal(value) for value in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sentences(
    summaries: Sequence["ArmSummary"],
    specification: Mapping[str, Any],
    baseline: str,
    threshold: float,
    warnings: Sequence[str],
    title: str,
) -> Words:
    """Plain words for a reader who does not want to believe it."""
    base = specification["base"]
    shown = [
        f"Every run trained for {budget(base)}. Its last checkpoint, and the one that was best on dev, were tested once, at the "
        f"end, on up to {base['evaluation']['test_questions']} held-out questions. Columns are means over all finished seeds of "
        "an arm, differences over the seeds that both arms have.",
        *(_compared(row, baseline, specification["margin"], title) for row in summaries if row.arm != baseline),
        f"Until dev {title} {threshold:g}, median over seeds (a run that never got there counts as later than any other): "
        + "; ".join(_speed(row) for row in summaries)
        + ".",
    ]
    return Words(tuple(warnings), tuple(shown), tuple(_limits(summaries, base, specification["factors"], baseline)))


def budget(base: Mapping[str, Any]) -> str:
    """Return what every run may spend, in words."""
    training, rollout = base["training"], base["rollout"]
    steps = training["epochs"] * training["steps_per_epoch"]
    size = f"steps of {rollout['questions']} questions x {rollout['group_size']} rollouts"
    if training["budget"] == "steps":
        return f"{steps} {size}"
    return f"{training['amount']:g} {training['budget'].replace('_', ' ')} in {size}, {steps} steps at most"


def _compared(row: "ArmSummary", baseline: str, margin: float, title: str) -> str:
    if row.difference is None:
        return f"{row.arm} and {baseline} have no seed in common: nothing was compared."
    start = f"{row.arm} against {baseline}: {difference(row)} {title} over {counted(row.pairs, 'paired seed')}"
    if row.verdict == "too few seeds":
        return f"{start}: too few seeds for a verdict, whatever the numbers look like."
    if row.verdict == "runs missing":
        return f"{start}: no verdict, since a run of either is missing."
    if row.verdict == "learnt by heart":
        return f"{start}: no verdict, since the warm start is learnt by heart."
    if row.verdict == "within margin":
        return (
            f"{start}: within the margin. The whole interval lies within {margin:g} {title}, below which a difference does not "
            "matter here (margin in the specification): no difference is claimed. A run that collapses in one seed of "
            f"{row.pairs} would have been missed with a chance of {(1 - 1 / row.pairs) ** row.pairs:.0%}."
        )
    p = f" (p = {row.p:.3f}, adjusted)"
    if row.verdict == "no difference shown":
        apart = ""
        if row.low is not None and row.high is not None and not row.low <= 0 <= row.high:
            apart = " Its interval leaves zero out, as if no other arm were compared; adjusted for the others that is not enough."
        return f"{start}: no difference was shown{p}.{apart} That is not evidence that there is none."
    small = f" The mean difference is {smaller(margin)}." if abs(row.difference) < margin else ""
    return f"{start}: {row.verdict} at this budget{p}.{small}"


def _speed(row: "ArmSummary") -> str:
    steps, rollouts = row.steps_to_threshold, row.rollouts_to_threshold
    return (
        f"{row.arm} {steps} steps, {rollouts} rollouts, {row.tokens_to_threshold} sampled tokens, {row.seconds_to_threshold} s "
        f"({steps.reached} of {steps.of} runs got there)"
    )


def _certainty(pairs: int, compared: int) -> str:
    """What the interval and the verdict of so many seeds can say at most."""
    if not pairs:
        return "Certainty: no seeds are paired."
    text = (
        f"Certainty beyond {counted(pairs, 'seed')}. The 95% interval is over seeds, not over questions: what no seed showed, "
        "as a collapse in one run of many, is not in it. It holds the differences that a sign-flip test does not reject. A "
        f"verdict is of that test, adjusted for the {counted(compared, 'arm')} compared here (Benjamini and Hochberg, "
        f"{ALPHA:.0%}), each cell by itself."
    )
    if 2 <= pairs < MIN_SEEDS:
        text += f" With {pairs} seeds the interval is the range of the differences, which covers at most {coverage(pairs):.0%}."
    needed = seeds_for_verdict(compared)
    if pairs < MIN_SEEDS:
        few = f"{counted(pairs, 'seed')} cannot carry one: {needed} can"
        return f"{text} {few}, where their number was fixed before the first result."
    if pairs < needed:
        return f"{text} With {pairs} seeds several arms can get one together, but none alone: for that {needed} are needed."
    return text


def penalty(reward: Mapping[str, Any]) -> str:
    """Return the format penalty of an arm's reward in words."""
    if reward["format_penalty"] == 0:
        return "no format penalty"
    places = {
        "turn": "on the malformed turn",
        "apart": "apart from the outcomes' pool",
        "trajectory": "in the outcomes' pool, as the paper has it",
    }
    return f"a format penalty of {reward['format_penalty']:g} {places[reward['penalty_on']]}"


def _other_penalty(reward: Mapping[str, Any], factors: Mapping[str, Any]) -> str:
    settings = {name for levels in factors.values() for level in levels.values() for name in level}
    if settings & {"reward.format_penalty", "reward.penalty_on"}:
        return "Other format penalties than those of the cells. A penalty decides how an arm fails."
    own = penalty(reward)
    paper = (
        ""
        if reward["penalty_on"] == "trajectory" and reward["format_penalty"]
        else (
            ". The paper has it in the outcomes' pool, so an arm as published is so in gain, normalisation, alias and floor"
        )
    )
    return f"Another format penalty, which decides how an arm fails. Every arm had {own}{paper}. PRESET=penalties compares three."


def _limits(
    summaries: Sequence["ArmSummary"], base: Mapping[str, Any], factors: Mapping[str, Any], baseline: str
) -> list[str]:
    compared = max(1, len(summaries) - 1)
    pairs = min((row.pairs for row in summaries if row.arm != baseline and row.pairs), default=0)
    lines = [
        "The ceiling. A gap at this budget may be one of speed alone: with more steps the arms may end level.",
        _other_penalty(base["reward"], factors),
        _certainty(pairs, compared),
        f"Any other world, model size, learning rate or task than this one (data: {base['data']['kind']}).",
    ]
    if base["warm_start"] is not None:
        lines.append(
            "Any other sparsity of the outcome. How rarely the policy succeeds before training is made by the warm start's "
            "demonstrations, and the size of the effect depends on it."
        )
    return lines
