"""The sentence that answers the question of a sweep."""

from collections.abc import Mapping, Sequence
from typing import Any

from igpo_core.config.specification import spell_changes
from tasks.report.statistics import Comparison, Paired, seeds_for_verdict
from tasks.report.wording import budget, counted, smaller


def answer(
    specification: Mapping[str, Any],
    cells: Sequence[tuple[str, Sequence[Comparison] | None]],
    exploratory: Sequence[str],
    missing: Sequence[str] = (),
    added: Sequence[int] = (),
    decodings: Sequence[str] = (),
) -> str:
    """The sentence that answers the question of a sweep, what it is of, and what weakens it; a line each where no single
    comparison answers it.

    cells: the comparisons that answer in each cell, None where no run of it is finished. exploratory: in what the sweep departs
    from its preset, in words. missing: runs of the other arms that have no score. added: seeds that `until` added.
    decodings: sentences on decodings under which verdicts differ.
    """
    compared = max(1, len(specification["arms"]) - 1)
    lines = []
    for cell, comparisons in cells:
        start = f"{cell}: " if cell else ""
        if comparisons is None:
            lines.append(f"{start}Not decided: no run of it is finished.")
        else:
            lines += [start + outcome(one, specification["margin"], compared) for one in comparisons]
    single = len(lines) == 1
    lines += decodings
    if missing:
        lines.append(
            f"Missing besides: {', '.join(missing)}. An arm that lacks a run has no verdict, and stays among those that a p is "
            "adjusted for."
        )
    if added:
        until = specification["until"]
        lines.append(
            f"{'Seed' if len(added) == 1 else 'Seeds'} {', '.join(map(str, added))} {'was' if len(added) == 1 else 'were'} added "
            f"until every interval was at most {until['width']:g} wide or there were {until['seeds']} seeds: the width alone "
            "decided, never where an interval lay."
        )
    if exploratory:
        lines.append(
            f"Exploratory: {'; '.join(exploratory)}, against the preset. Whoever chooses seeds or arms after a look at the "
            "result finds too many differences."
        )
    lines.append(worth(specification))
    return (" " if single else "\n").join(lines)


def outcome(one: Comparison, margin: float, compared: int) -> str:
    """Better, worse, no difference that matters, or not decided, with its numbers. compared: arms besides the baseline."""
    arm, baseline, pair = one.arm, one.baseline, one.pair
    if pair.mean is None:
        return " ".join(
            filter(None, [f"Not decided: {arm} and {baseline} have no finished seed in common.", lost(one)])
        )
    span = pair.interval
    numbers = (
        f"test {one.title} {one.score:.3f} against {one.baseline_score:.3f}, a difference of {pair.mean:+.3f}"
        + ("" if span is None else f" (95% interval {span.low:+.3f} to {span.high:+.3f})")
        + f", {_above(one)}"
    )
    if pair.verdict in ("better", "worse"):
        small = f" The mean difference is {smaller(margin)}." if abs(pair.mean) < margin else ""
        return f"{arm} is {pair.verdict} than {baseline}: {numbers} ({_p(pair, compared)}).{small}"
    if pair.verdict == "within margin":
        return (
            f"{arm} and {baseline} do not differ by an amount that matters: {numbers}. The whole interval lies within the "
            f"margin of {margin:g}."
        )
    return f"Not decided whether {arm} is better or worse than {baseline}: {numbers}. {_why(one, margin, compared)}"


def _why(one: Comparison, margin: float, compared: int) -> str:
    """Return why nothing is decided."""
    pair, needed = one.pair, seeds_for_verdict(compared)
    if pair.verdict == "runs missing":
        return f"{lost(one)} An arm that fails on some seeds would be judged by those on which it does not."
    if pair.verdict == "learnt by heart":
        reason = (
            "The warm start is learnt by heart, as the warning says, and what arms differ by then says nothing of the method: it "
            "carries no verdict, however many seeds there are."
        )
        return " ".join(filter(None, [reason, lost(one)]))
    few = f"{counted(pair.n, 'seed')} {'is' if pair.n == 1 else 'are'} too few for a verdict on {counted(compared, 'arm')}"
    if pair.verdict == "too few seeds":
        reason = f"{few}, whatever the numbers look like: {needed} fixed before the first result are the fewest."
        return " ".join(filter(None, [reason, lost(one)]))
    chance = f"Chance alone may do as much ({_p(pair, compared)})"
    if margin == 0:
        reason = f"{chance}, and with a margin of 0 no interval shows that there is no difference."
    else:
        assert pair.interval is not None  # or there were no p
        beyond = pair.interval.low < -margin or pair.interval.high > margin
        reason = (
            f"{chance}, and the interval reaches {'beyond ' if beyond else ''}the margin of {margin:g}: neither a difference "
            "nor its absence was shown."
        )
    if pair.n < needed:
        reason += f" {few} alone: {needed} fixed before the first result are the fewest."
    return reason


def _p(pair: Paired, compared: int) -> str:
    """Return p as text, and that it is adjusted where that does anything: an interval beside it may then leave zero out alone."""
    adjusted = f", adjusted for {compared} arms; the interval is not" if compared > 1 else ""
    return f"p = {pair.p:.3f}{adjusted}"


def lost(one: Comparison) -> str:
    """Return which runs of the two arms are missing, as a sentence; empty where none is."""
    if not one.missing:
        return ""
    named = [
        f"{arm} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}" for arm, seeds in one.missing.items()
    ]
    return f"Missing: {'; '.join(named)}."


def _above(one: Comparison) -> str:
    """Return on how many seeds the arm is above the baseline, and on how many level with it."""
    places = [f"above on {one.above}"] if one.above or not one.equal else []
    places += [f"equal on {one.equal}"] if one.equal else []
    both = " that both have" if one.missing else ""
    return f"{' and '.join(places)} of {'the ' if both else ''}{counted(one.pair.n, 'seed')}{both}"


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
    alone = (
        " A p is adjusted for the arms of its own cell alone: of twenty cells in which all arms are equal, one is called "
        "different by chance."
        if crossed
        else ""
    )
    if specification["changes"]:
        world += f" with {spell_changes(specification['changes'])} set over the preset"
    return f"It holds for {world}, this budget ({budget(base)}) and {start}{cell}, and says nothing of others.{alone}"
