"""What a turn earns of itself: one class a gain, with its parameters and its formula; pure functions of beliefs.

A new gain is a class here, a test with a number by hand, and its name in `AnyGain` of igpo_core/config/variants.py. What it reads
decides which of the classes it is made from: BoundaryGain has the beliefs s_0..s_{T-1} at the turns' boundaries, which ride in
the rollout; the others say what they need besides.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field

from igpo_core.environments.base import Need
from igpo_core.settings import Settings

Aliases = Literal["first", "logsumexp", "max", "shortest"]


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


class Gain(Settings):
    """What a turn earns of itself."""

    unit: ClassVar[str]
    """Of a gain, for figures: "nats", "probability". Every class with a `kind` has one, or is refused as it is made."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "kind" in cls.model_fields and not hasattr(cls, "unit"):
            raise TypeError(f'{cls.__name__} needs a unit, which figures name: unit: ClassVar[str] = "nats"')

    @property
    def needs(self) -> frozenset[Need]:
        """Return what it asks of an environment. Without "beliefs" no scoring pass is made."""
        return frozenset({"beliefs"})


class BoundaryGain(Gain):
    """A gain made of the beliefs at the turns' boundaries."""

    @abstractmethod
    def gains(self, beliefs: Sequence[float]) -> list[float]:
        """Return g_1..g_{T-1} from s_0..s_{T-1}, mean log-probabilities of the gold answer."""


class DifferenceGain(BoundaryGain):
    """g_t = f(s_t) - f(s_{t-1}); against other observations: f(s_t) less what it would have been after them."""

    contrast: int = Field(
        0,
        ge=0,
        le=64,
        description="Other answers whose mean gain is taken off (igpo_core/rewards/contrast.py); 0: none.",
    )

    @abstractmethod
    def value(self, belief: float) -> float:
        """Return f(s)."""

    def gains(self, beliefs: Sequence[float]) -> list[float]:
        """Return f(s_t) - f(s_{t-1})."""
        return [self.value(after) - self.value(before) for before, after in itertools.pairwise(beliefs)]

    def against(self, beliefs: Sequence[float], others: Sequence[Sequence[float]]) -> list[float]:
        """Return g_t = f(s_t) - mean over the others of f(s'_t).

        beliefs: s_1..s_{T-1} after each turn. others[t]: beliefs had something else been observed in that turn: nothing
        (credit=observation) or what other tasks' calls returned (credit=query; IG-Search, arXiv 2604.15148).
        """
        return [
            self.value(seen) - math.fsum(map(self.value, instead)) / len(instead)
            for seen, instead in zip(beliefs, others, strict=True)
        ]


class LogProbDiff(DifferenceGain):
    """g_t = s_t - s_{t-1} (paper Eq. 4, camera-ready)."""

    kind: Literal["log_prob_diff"] = "log_prob_diff"
    unit: ClassVar[str] = "nats"

    def value(self, belief: float) -> float:
        """Return s."""
        return belief


class ProbDiff(DifferenceGain):
    """g_t = exp(s_t) - exp(s_{t-1}) (the paper's first version)."""

    kind: Literal["prob_diff"] = "prob_diff"
    unit: ClassVar[str] = "probability"

    def value(self, belief: float) -> float:
        """Return exp(s)."""
        return math.exp(belief)


class LogRatioGap(BoundaryGain):
    """g_t = log(d_{t-1} / d_t) with the gap d = gap - s: what share of the way to certainty was gone.

    TRACE, arXiv 2607.13988; its belief is of one answer, s <= 0. With logsumexp over aliases s is cut at 0.
    """

    kind: Literal["log_ratio_gap"] = "log_ratio_gap"
    unit: ClassVar[str] = "log ratio"
    gap: float = Field(0.1, gt=0, description="Of a belief of probability 1 (TRACE's eps).")

    def gains(self, beliefs: Sequence[float]) -> list[float]:
        """Return the log ratios of gaps."""
        gaps = [self.gap - min(value, 0.0) for value in beliefs]
        return [math.log(before / after) for before, after in itertools.pairwise(gaps)]


class Watermark(BoundaryGain):
    """g_t = how far s_t exceeds every belief before it, else 0: nothing is paid twice (MIG, arXiv 2602.01034)."""

    kind: Literal["watermark"] = "watermark"
    unit: ClassVar[str] = "nats"

    def gains(self, beliefs: Sequence[float]) -> list[float]:
        """Return what each belief adds to the highest one before."""
        highest = itertools.accumulate(beliefs, max)
        return [max(0.0, value - mark) for value, mark in zip(beliefs[1:], highest, strict=False)]


class LeaveOneTurnOut(Gain):
    """g_t = s_{T-1} - s_{T-1} without turn t and its observation (LOTAPO, arXiv 2607.13501, which writes "[DELETE]" where we
    leave nothing). A scoring pass over T shorter histories."""

    kind: Literal["leave_one_turn_out"] = "leave_one_turn_out"
    unit: ClassVar[str] = "nats"

    def gains(self, last: float, without: Sequence[float]) -> list[float]:
        """Return the differences. without[t]: the last belief in a history that lacks turn t."""
        return [last - value for value in without]


class FirstExposure(Gain):
    """g_t = 1 for the first observation that shows the answer, else 0 (TSPO, arXiv 2601.22776). Needs no model."""

    kind: Literal["first_exposure"] = "first_exposure"
    unit: ClassVar[str] = "exposures"

    @property
    def needs(self) -> frozenset[Need]:
        """Return that it asks an environment alone, and no model."""
        return frozenset({"exposure"})

    def gains(self, shown: Sequence[bool]) -> list[float]:
        """Return the gains. shown: of each observation, in order (Environment.exposes)."""
        first = next((t for t, value in enumerate(shown) if value), None)
        return [float(t == first) for t in range(len(shown))]
