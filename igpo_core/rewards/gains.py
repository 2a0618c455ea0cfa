"""What a turn earns of itself, as pure functions: beliefs or observations in, gains g_1..g_{T-1} out."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

Aliases = Literal["logsumexp", "max", "shortest", "first"]
BoundaryGain = Literal["log_prob_diff", "prob_diff", "log_ratio_gap", "watermark"]
GAP = 0.1  # TRACE's eps: the gap of a belief of probability 1


def belief(scores: Sequence[float], lengths: Sequence[int], aliases: Aliases) -> float:
    """Return one belief s from the mean log-probabilities of several accepted answers; lengths: their tokens.

    logsumexp: the log of the summed probabilities of all answers, divided by the tokens of the likeliest one. It is in the unit
    of a mean log-probability for one answer and for many; of one answer it is its mean. It exceeds 0 where answers overlap
    ("New York" is a part of "New York City"). (TIPS adds the answers' probabilities too.) max: the largest mean.
    shortest: the mean of the answer with the fewest tokens, of several the first. first: of the first one (the authors' code).
    """
    if aliases == "logsumexp":
        totals = [score * length for score, length in zip(scores, lengths, strict=True)]
        top = max(totals)
        likeliest = totals.index(top)
        return scores[likeliest] + math.log(math.fsum(math.exp(t - top) for t in totals)) / lengths[likeliest]
    if aliases == "max":
        return max(scores)
    if aliases == "shortest":
        return scores[min(range(len(scores)), key=lambda i: lengths[i])]
    if aliases == "first":
        return scores[0]
    raise ValueError(f"unknown aliases {aliases!r}: valid are {', '.join(get_args(Aliases))}")


def information_gains(beliefs: Sequence[float], gain: str) -> list[float]:
    """g_t for t = 1..T-1 from the beliefs s_0..s_{T-1} at the turns' boundaries.

    log_prob_diff: s_t - s_{t-1} (paper Eq. 4, camera-ready). prob_diff: exp(s_t) - exp(s_{t-1}) (first version).
    log_ratio_gap: log(d_{t-1} / d_t) with the gap d = eps - s, eps = 0.1: what share of the way to certainty was gone
    (TRACE, arXiv 2607.13988; its belief is of one answer, s <= 0; with logsumexp over aliases s is cut at 0).
    watermark: how far s_t exceeds every belief before it, else 0: nothing is paid twice (MIG, arXiv 2602.01034).
    """
    pairs = itertools.pairwise
    if gain == "log_prob_diff":
        return [after - before for before, after in pairs(beliefs)]
    if gain == "prob_diff":
        return [math.exp(after) - math.exp(before) for before, after in pairs(beliefs)]
    if gain == "log_ratio_gap":
        gaps = [GAP - min(value, 0.0) for value in beliefs]
        return [math.log(before / after) for before, after in pairs(gaps)]
    if gain == "watermark":
        highest = itertools.accumulate(beliefs, max)
        return [max(0.0, value - mark) for value, mark in zip(beliefs[1:], highest, strict=False)]
    raise ValueError(f"unknown gain {gain!r}: valid are {', '.join(get_args(BoundaryGain))}")


def gains_against(beliefs: Sequence[float], others: Sequence[Sequence[float]], gain: str) -> list[float]:
    """g_t = f(s_t) - mean over the others of f(s'_t), f as in information_gains (log_prob_diff or prob_diff).

    beliefs: s_1..s_{T-1} after each turn. others[t]: beliefs had something else been observed in that turn: nothing
    (credit=observation) or what other questions' searches returned (credit=query; IG-Search, arXiv 2604.15148).
    """
    value = math.exp if gain == "prob_diff" else float
    return [
        value(seen) - math.fsum(map(value, instead)) / len(instead)
        for seen, instead in zip(beliefs, others, strict=True)
    ]


def leave_one_turn_out(last: float, without: Sequence[float]) -> list[float]:
    """g_t = s_{T-1} - s_{T-1} without turn t and its observation (LOTAPO, arXiv 2607.13501, which writes "[DELETE]" where
    we leave nothing)."""
    return [last - value for value in without]


def first_exposure(shown: Sequence[bool]) -> list[float]:
    """Return 1 for the first observation that shows the answer, else 0 (TSPO, arXiv 2601.22776). Needs no model.

    shown: of each observation, in order (Environment.exposes).
    """
    first = next((t for t, value in enumerate(shown) if value), None)
    return [float(t == first) for t in range(len(shown))]
