"""Differences and verdicts under the decodings that are not the headline's, with numbers worked out by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tasks.report.decodings import differing, paired_by_decoding, told
from tasks.report.reporting import _answer
from tasks.report.statistics import paired
from tasks.report.summaries import CellReport, cell_reports
from tasks.report.sweeps import RunData, SweepData
from tests.tasks.test_reporting import RUBRIC, SPECIFICATION, with_curves

ARMS: dict[str, Any] = {
    "outcome_only": {"reward": "outcome_only"},
    "igpo": {},
    "rms": {"normalization": {"kind": "root_mean_square"}},
}
ASKED = {**SPECIFICATION, "arms": ARMS, "primary": "rms", "seeds": list(range(7))}
APART = [0.3, -0.3, 0.3, -0.3, 0.3, -0.3, 0.3]  # of seven sums of signs as many are above as below: no p under one
AHEAD = [0.3, 0.4, 0.3, 0.4, 0.3, 0.4, 0.3]
UNSURE = [-0.3, 0.1, 0.25, 0.4, 0.4, 0.4, 0.4]


def sweep(
    first: Mapping[str, Sequence[float]], other: Mapping[str, Sequence[float]], name: str = "greedy"
) -> SweepData:
    """Differences to a baseline of .5, by arm and seed, under the first decoding and another."""
    level = {"outcome_only": [0.0] * 7}
    first, other = {**level, **first}, {**level, **other}
    runs = [
        with_curves(
            f"{arm}-{seed}",
            arm,
            seed,
            {"test/all/f1": {4.0: 0.5 + gain}, f"test_{name}/all/f1": {4.0: 0.5 + other[arm][seed]}, "train/turns": {4.0: 1.0}},
        )
        for arm, gains in first.items()
        for seed, gain in enumerate(gains)
    ]  # fmt: skip
    return SweepData("1", "study-1", tuple(first), tuple(runs), rubric=RUBRIC)


def sampled_alone(run: RunData) -> RunData:
    kept = {name: dict(history) for name, history in run.histories.items() if "greedy" not in name}
    return with_curves(run.run_id, run.arm, run.seed, kept)


def report(data: SweepData, **changes: Any) -> CellReport:
    (one,) = cell_reports({**ASKED, **changes}, {"": data}, [""])
    return one


def test_a_verdict_that_turns_with_the_decoding_is_told_with_its_numbers() -> None:
    """Sampled, rms is ahead on all seven seeds: p = 2 / 2^7, times two arms. Greedy, igpo is, by 2.4 / 7. Of rms' differences
    1.65 / 7 is the mean, and of 128 subsets four have a sum of at most zero (none, -.3 alone, and that with .1 or with .25):
    p = 2 x 4 / 128 = .0625, the larger of two, which stays. The third lowest of its subset means is (.25 - .3) / 2, the third
    highest .4."""
    one = report(sweep({"igpo": APART, "rms": AHEAD}, {"igpo": AHEAD, "rms": UNSURE}))
    assert [row.verdict for row in one.summaries] == ["baseline", "no difference shown", "better"]
    assert one.words.limits[0] == (
        "The headline is the sampled decoding, declared before the first run. Under greedy decoding, of the same checkpoints on "
        "the same questions, test F1 minus that of outcome_only is: igpo +0.343 [+0.300, +0.400], better (p = 0.031) [sampled: "
        "no difference shown]; rms +0.236 [-0.025, +0.400], no difference shown (p = 0.062) [sampled: better]. These verdicts "
        "are further ones: a p is adjusted for the arms of this decoding alone."
    )
    sentence = (
        "Under greedy decoding verdicts against outcome_only differ: igpo +0.343, better (p = 0.031); rms +0.236, no difference "
        "shown (p = 0.062); each p is adjusted for the arms of this decoding alone. The headline is the sampled decoding, "
        "declared before the first run."
    )
    assert one.by_decoding == [sentence]
    text = _answer(ASKED, [""], [one], [], [])
    assert text.startswith("rms is better than outcome_only: ") and f". {sentence} It holds for " in text
    assert [row["greedy F1"] for row in one.rows] == ["0.500", "0.843", "0.736"]


def test_verdicts_that_agree_are_told_and_are_not_in_the_answer() -> None:
    one = report(sweep({"igpo": APART, "rms": AHEAD}, {"igpo": APART, "rms": AHEAD}))
    assert one.words.limits[0].endswith(
        "rms +0.343 [+0.300, +0.400], better (p = 0.031). These verdicts are further ones: a p is adjusted for the arms "
        "of this decoding alone. No verdict differs."
    )
    assert one.by_decoding == [] and "greedy" not in _answer(ASKED, [""], [one], [], [])


def test_one_verdict_that_differs_is_told_alone() -> None:
    one = report(sweep({"igpo": APART, "rms": AHEAD}, {"igpo": APART, "rms": [-gain for gain in AHEAD]}))
    assert one.by_decoding == [
        "Under greedy decoding the verdict against outcome_only differs: rms -0.343, worse (p = 0.031); each p is adjusted for "
        "the arms of this decoding alone. The headline is the sampled decoding, declared before the first run."
    ]


def test_the_headline_may_be_the_greedy_decoding() -> None:
    base = {**ASKED["base"], "evaluation": {**ASKED["base"]["evaluation"], "decoding": ["greedy", "sampled"]}}
    one = report(sweep({"igpo": APART, "rms": AHEAD}, {"igpo": AHEAD, "rms": AHEAD}, "sampled"), base=base)
    assert (
        one.words.limits[0].startswith("The headline is the greedy decoding") and "[greedy: no" in one.words.limits[0]
    )
    assert one.by_decoding[0].startswith("Under sampled decoding") and "sampled F1" in one.rows[0]


def test_a_sweep_of_one_decoding_says_nothing_of_others() -> None:
    data = sweep({"igpo": APART, "rms": AHEAD}, {"igpo": AHEAD, "rms": AHEAD})
    one = report(replace(data, runs=tuple(map(sampled_alone, data.runs))))
    assert one.words.limits[0].startswith("The ceiling.") and one.by_decoding == [] and "greedy F1" not in one.rows[0]


def test_a_run_without_the_other_decoding_takes_its_verdict_there() -> None:
    """Seed 6 of rms was not tested with it: six seeds of seven are left, and the seeds asked for are seven."""
    data = sweep({"igpo": APART, "rms": AHEAD}, {"igpo": APART, "rms": AHEAD})
    runs = [sampled_alone(item) if (item.arm, item.seed) == ("rms", 6) else item for item in data.runs]
    data = replace(data, runs=tuple(runs))
    others = paired_by_decoding(data, "outcome_only", 0.03, range(7))
    assert others["greedy"]["rms"].missing_seeds == (6,)
    (sentence,) = differing("sampled", paired(data.scores(), "outcome_only", 0.03, range(7)), others, "outcome_only")
    assert "rms +0.350, runs missing. The" in sentence  # 2.1 / 6


def test_arms_without_a_common_seed_have_no_numbers() -> None:
    scores = {"outcome_only": {0: 0.5}, "igpo": {1: 0.5}}
    pairs = paired(scores, "outcome_only")
    (text,) = told("sampled", pairs, {"greedy": pairs}, "outcome_only", "F1")
    assert text.endswith("igpo shares no seed with it. No verdict differs.")


@pytest.mark.parametrize("seeds", [2, 5])
def test_few_seeds_carry_no_verdict_under_any_decoding(seeds: int) -> None:
    data = sweep({"igpo": APART, "rms": AHEAD}, {"igpo": AHEAD, "rms": UNSURE})
    one = report(replace(data, runs=tuple(r for r in data.runs if r.seed < seeds)), seeds=list(range(seeds)))
    assert one.by_decoding == [] and one.words.limits[0].endswith("too few seeds. No verdict differs.")
