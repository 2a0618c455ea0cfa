"""The choices within a reward: one class a variant, with its own parameters."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from igpo_core.rewards.functions import FunctionGain
from igpo_core.rewards.gains import (
    FirstExposure,
    LeaveOneTurnOut,
    LogProbDiff,
    LogRatioGap,
    ProbDiff,
    Watermark,
)
from igpo_core.settings import Settings


def _spelt_out(given: Any) -> Any:
    """`prob_diff` is short for `{kind: prob_diff}`."""
    return {"kind": given} if isinstance(given, str) else given


_Short = BeforeValidator(_spelt_out)


class Divided(Settings):
    """Gains are divided by their spread in a pool, and by a floor besides, in their own unit (the authors' 1e-4)."""

    floor: float = Field(1e-4, gt=0, description="Added to the spread, in the gain's own unit; the authors' 1e-4.")


class Separate(Divided):
    """z = (g - mean) / (std + floor) among the gains of the question (paper Eq. 5)."""

    kind: Literal["separate"] = "separate"


class Joint(Settings):
    """Gains and outcomes of a question in one pool (the paper's first version)."""

    kind: Literal["joint"] = "joint"


class Raw(Divided):
    """z = g / (std + floor): the mean is kept (DR-Venus's raw_ig). It has no bound where gains are alike."""

    kind: Literal["raw"] = "raw"


class RootMeanSquare(Divided):
    """z = g / (root mean square + floor): the mean is kept, and no value exceeds the root of the pool's size."""

    kind: Literal["root_mean_square"] = "root_mean_square"


class TurnGroup(Divided):
    """As separate, among the turns of the question with the same index (A2TGPO)."""

    kind: Literal["turn_group"] = "turn_group"
    smallest: int = Field(3, ge=2, description="Fewer turns than this use the question's pool.")


class NoNormalization(Settings):
    """Gains as they are (potential-based shaping, TIPS)."""

    kind: Literal["none"] = "none"


class NoGate(Settings):
    """Every gain counts."""

    kind: Literal["none"] = "none"


class SignGate(Settings):
    """A gain counts where its normalised value has its sign (LOTAPO)."""

    kind: Literal["sign"] = "sign"


class OutcomeSpreadGate(Settings):
    """Gains fade where outcomes differ: times sigmoid(-std of the group's outcomes / temperature) (InfoPO)."""

    kind: Literal["outcome_spread"] = "outcome_spread"
    temperature: float = Field(0.5, gt=0)


class CurrentScorer(Settings):
    """Beliefs are the policy's own, and ride in its rollout."""

    kind: Literal["current"] = "current"


class LaggedScorer(Settings):
    """Beliefs are those of a copy of the policy, renewed every so many steps (TIPS)."""

    kind: Literal["lagged"] = "lagged"
    steps: int = Field(10, ge=2, description="Steps between copies; 1 would be current.")


class FrozenScorer(Settings):
    """Beliefs are those of the policy at the start of the run (TRACE, CIGPO)."""

    kind: Literal["frozen"] = "frozen"


class Sum(Settings):
    """D_t = sum over k >= t of gamma^(k-t) z_k."""

    kind: Literal["sum"] = "sum"


class Root(Settings):
    """D_t over the root of how many gains are summed (A2TGPO)."""

    kind: Literal["root"] = "root"


class Window(Settings):
    """The mean of the next gains, weighted by gamma^(k-t) (TRACE, K-step credit)."""

    kind: Literal["window"] = "window"
    gains: int = Field(3, ge=1, description="How many it looks ahead.")


class TurnCredit(Settings):
    """A gain is the whole turn's."""

    kind: Literal["turn"] = "turn"


class ObservationCredit(Settings):
    """A turn gains what its observation does against an empty one."""

    kind: Literal["observation"] = "observation"


class QueryCredit(Settings):
    """A call's tokens gain what its observation does against the mean over other questions' observations (IG-Search)."""

    kind: Literal["query"] = "query"
    observations: int = Field(
        3, ge=1, le=64, description="Observations of other questions that stand in for one (IG-Search's N)."
    )


class TrajectoryCredit(Settings):
    """All gains at once at the end, to every turn (belief return)."""

    kind: Literal["trajectory"] = "trajectory"


class NoScale(Settings):
    """Normalised gains keep their size."""

    kind: Literal["none"] = "none"


class MatchOutcome(Settings):
    """Gains are multiplied by min(max(mean |z^O|, least_outcome) / mean |z^IG|, most) over the batch (DR-Venus, IG-Scale)."""

    kind: Literal["match_outcome"] = "match_outcome"
    least_outcome: float = Field(0.3, ge=0, description="What the outcomes' mean size counts as at least.")
    most: float = Field(10.0, gt=0, description="What gains are multiplied by at most.")


class LinearWeight(Settings):
    """A weight that moves linearly from `start` to `end` within so many steps."""

    start: float = Field(gt=0)
    end: float = Field(ge=0)
    steps: int = Field(ge=1)

    @model_validator(mode="after")
    def _moves(self) -> "LinearWeight":
        if self.start == self.end:
            raise ValueError(f"start and end are both {self.start:g}: give the weight as one number")
        return self


AnyGain = Annotated[
    LogProbDiff | ProbDiff | LogRatioGap | Watermark | LeaveOneTurnOut | FirstExposure | FunctionGain,
    Field(discriminator="kind"),
    _Short,
]
AnyNormalization = Annotated[
    Separate | Joint | Raw | RootMeanSquare | TurnGroup | NoNormalization, Field(discriminator="kind"), _Short
]
AnyGate = Annotated[NoGate | SignGate | OutcomeSpreadGate, Field(discriminator="kind"), _Short]
AnyScorer = Annotated[CurrentScorer | LaggedScorer | FrozenScorer, Field(discriminator="kind"), _Short]
AnyAccumulation = Annotated[Sum | Root | Window, Field(discriminator="kind"), _Short]
AnyCredit = Annotated[
    TurnCredit | ObservationCredit | QueryCredit | TrajectoryCredit, Field(discriminator="kind"), _Short
]
AnyScale = Annotated[NoScale | MatchOutcome, Field(discriminator="kind"), _Short]
