"""The sentence that answers the question of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from igpo_core.config.specification import spell_changes
from tasks.report.statistics import Comparison, seeds_for_verdict
from tasks.report.wording import budget, counted


def answer(
    specification: Mapping[str, Any], cells: Sequence[tuple[str, Sequence[Comparison]]], exploratory: Sequence[str]
) -> str:
    """The sentence that answers the question of a sweep, what it is of, and what weakens it; a line each where no single
    comparison answers it.

    cells: the comparisons that answer in each cell. exploratory: in what the sweep departs from its preset, in words.
    """
    compared = max(1, len(specification["arms"]) - 1)
    lines = []
    for cell, comparisons in cells:
        start = f"{cell}: " if cell else ""
        lines += [start + outcome(one, specification["margin"], compared) for one in comparisons]
    if exploratory:
        lines.append(
            f"Exploratory: {'; '.join(exploratory)}, against the preset. Whoever chooses seeds or arms after a look at the "
            "result finds too many differences."
        )
    lines.append(worth(specification))
    single = sum(len(comparisons) for _, comparisons in cells) == 1
    return (" " if single else "\n").join(lines)


def outcome(one: Comparison, margin: float, compared: int) -> str:
    """Better, worse, no difference that matters, or not decided, with its numbers. compared: arms besides the baseline."""
    arm, baseline, pair = one.arm, one.baseline, one.pair
    if pair.mean is None:
        return f"Not decided: {arm} and {baseline} have no finished seed in common."
    span = pair.interval
    numbers = (
        f"test {one.title} {one.score:.3f} against {one.baseline_score:.3f}, a difference of {pair.mean:+.3f}"
        + ("" if span is None else f" (95% interval {span.low:+.3f} to {span.high:+.3f})")
        + f", above on {one.above} of {counted(pair.n, 'seed')}"
    )
    if pair.verdict in ("better", "worse"):
        return f"{arm} is {pair.verdict} than {baseline}: {numbers} (p = {pair.p:.3f})."
    if pair.verdict == "within margin":
        return (
            f"{arm} and {baseline} do not differ by an amount that matters: {numbers}. The whole interval lies within the "
            f"margin of {margin:g}."
        )
    needed = seeds_for_verdict(compared)
    few = f"{counted(pair.n, 'seed')} {'is' if pair.n == 1 else 'are'} too few for a verdict on {counted(compared, 'arm')}"
    if pair.verdict == "too few seeds":
        reason = f"{few}, whatever the numbers look like: {needed} fixed before the first result are the fewest."
    else:
        reason = (
            f"Chance alone may do as much (p = {pair.p:.3f}), and the interval reaches beyond the margin of {margin:g}: "
            "neither a difference nor its absence was shown."
        )
        if pair.n < needed:
            reason += f" {few} alone: {needed} fixed before the first result are the fewest."
    return f"Not decided whether {arm} is better or worse than {baseline}: {numbers}. {reason}"


def worth(specification: Mapping[str, Any]) -> str:
    """What an answer is of."""
    base, crossed = specification["base"], bool(specification["factors"])
    kind = base["data"]["kind"]
    world = "these questions and passages" if kind == "files" else f"this world ({kind})"
    start = (
        "this warm start"
        if base["warm_start"] is not None
        else f"this start ({base['policy']['kind']} policy, no warm start)"
    )
    cell = ", each line for its own cell" if crossed else ""
    if specification["changes"]:
        world += f" with {spell_changes(specification['changes'])} set over the preset"
    return f"It holds for {world}, this budget ({budget(base)}) and {start}{cell}, and says nothing of others."
