"""What an arm's difference and verdict are under the decodings that are not the headline's.

The first decoding of a specification is the headline: it was declared before the first run. The test asks the same checkpoints
the same questions with the others too. A reader who sees these scores beside the headline asks whether the verdicts hold there.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, get_args

from igpo_core.config import Decoding
from tasks.report.statistics import Paired, paired

if TYPE_CHECKING:
    from tasks.report.sweeps import SweepData

ByDecoding = Mapping[str, Mapping[str, Paired]]
"""Decoding -> arm -> its difference to the baseline."""


def scores_by_decoding(data: "SweepData") -> dict[str, dict[str, dict[int, float]]]:
    """Return decoding -> arm -> seed -> the headline score on test, of each other decoding that some run was tested with."""
    found = {name: data.scores(f"test_{name}/all/{data.headline}") for name in get_args(Decoding)}
    return {name: scores for name, scores in found.items() if any(scores.values())}


def paired_by_decoding(
    data: "SweepData", baseline: str, margin: float = 0.0, asked: Sequence[int] = ()
) -> dict[str, dict[str, Paired]]:
    """Return tasks.report.statistics.paired of each other decoding: p-values are adjusted for its arms, as the headline's are."""
    return {name: paired(scores, baseline, margin, asked) for name, scores in scores_by_decoding(data).items()}


def told(headline: str, pairs: Mapping[str, Paired], others: ByDecoding, baseline: str, title: str) -> list[str]:
    """Return a paragraph for each other decoding: difference and verdict of every arm, and the headline's where that is another.

    headline: the decoding of `pairs`.
    """
    paragraphs = []
    for name, compared in others.items():
        changed = _changed(pairs, compared)
        tested = any(pair.p is not None for pair in compared.values())
        arms = [
            f"{arm} {_numbers(pair)}" + (f" [{headline}: {pairs[arm].verdict}]" if arm in changed else "")
            for arm, pair in compared.items()
        ]
        paragraphs.append(
            f"The headline is the {headline} decoding, declared before the first run. Under {name} decoding, of the same "
            f"checkpoints on the same questions, test {title} minus that of {baseline} is: {'; '.join(arms)}."
            + (
                " These verdicts are further ones: a p is adjusted for the arms of this decoding alone."
                if tested
                else ""
            )
            + ("" if changed else " No verdict differs.")
        )
    return paragraphs


def differing(headline: str, pairs: Mapping[str, Paired], others: ByDecoding, baseline: str) -> list[str]:
    """Return a sentence for each other decoding under which some arm has another verdict."""
    sentences = []
    for name, compared in others.items():
        changed = _changed(pairs, compared)
        if changed:
            arms = "; ".join(f"{arm} {_numbers(compared[arm], bounds=False)}" for arm in changed)
            tested = any(compared[arm].p is not None for arm in changed)
            adjusted = "; each p is adjusted for the arms of this decoding alone" if tested else ""
            differ = "the verdict against {} differs" if len(changed) == 1 else "verdicts against {} differ"
            sentences.append(
                f"Under {name} decoding {differ.format(baseline)}: {arms}{adjusted}. The headline is the {headline} decoding, "
                "declared before the first run."
            )
    return sentences


def _changed(pairs: Mapping[str, Paired], compared: Mapping[str, Paired]) -> list[str]:
    return [arm for arm, pair in compared.items() if pair.verdict != pairs[arm].verdict]


def _numbers(pair: Paired, *, bounds: bool = True) -> str:
    """Return difference, interval, verdict and p as text."""
    if pair.mean is None:
        return "shares no seed with it"
    span = f" [{pair.interval.low:+.3f}, {pair.interval.high:+.3f}]" if bounds and pair.interval else ""
    p = "" if pair.p is None else f" (p = {pair.p:.3f})"
    return f"{pair.mean:+.3f}{span}, {pair.verdict}{p}"
