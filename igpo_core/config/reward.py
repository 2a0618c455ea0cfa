"""What an arm is: one class a kind of reward, with the choices that it has, and which of them go together."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from igpo_core.config.variants import (
    AnyAccumulation,
    AnyCredit,
    AnyGain,
    AnyGate,
    AnyNormalization,
    AnyScale,
    AnyScorer,
    CurrentScorer,
    Divided,
    LinearWeight,
    NoGate,
    NoScale,
    OutcomeSpreadGate,
    Separate,
    SignGate,
    Sum,
    TurnCredit,
    TurnGroup,
    Window,
)
from igpo_core.environments.base import Need
from igpo_core.rewards.gains import (
    Aliases,
    DifferenceGain,
    LeaveOneTurnOut,
    LogProbDiff,
)
from igpo_core.settings import Settings

# what is in `reward` and yet the same for all arms: it decides what a malformed turn costs, in whatever arm
OF_ALL_ARMS = ("format_penalty", "penalty_on")
# names of settings that have another place now -> how it is written there
RENAMED: Mapping[str, str] = {
    "gain_floor": "normalization: {kind: <its kind>, floor: <value>}",
    "contrast": "gain: {kind: <its kind>, contrast: <value>}",
    "turn_group_size": "normalization: {kind: turn_group, smallest: <value>}",
    "window": "accumulation: {kind: window, gains: <value>}",
    "gate_temperature": "gate: {kind: outcome_spread, temperature: <value>}",
    "scorer_steps": "scorer: {kind: lagged, steps: <value>}",
    "gain_weight_end": "gain_weight: {start: <value>, end: <value>, steps: <value>}",
    "gain_weight_steps": "gain_weight: {start: <value>, end: <value>, steps: <value>}",
}


class Reward(Settings):
    """What all arms have: the outcome, what a malformed trajectory costs, and how outcomes are normalised."""

    outcome: str | None = Field(
        None,
        description="Which score of the environment's rubric is the reward; empty: the first one. docs/arms.md lists them.",
    )
    format_penalty: float = Field(-1.0, le=0, description="For a trajectory without a well-formed answer.")
    penalty_on: Literal["turn", "apart", "trajectory"] = Field(
        "turn",
        description="turn: the penalty is charged to the last turn alone. apart: it is the normalised outcome, out of the "
        "outcomes' pool. trajectory: it is an outcome in their pool (the paper).",
    )
    baseline: Literal["group_mean", "leave_one_out", "batch_mean"] = Field(
        "group_mean", description="What is subtracted: GRPO's, RLOO's (with scale none), REINFORCE++'s."
    )
    scale: Literal["std", "none"] = Field("std", description="What outcomes less the baseline are divided by.")
    eps: float = Field(1e-6, gt=0, description="Added to the std that outcomes are divided by.")
    belief_tokens: int = Field(2048, ge=1, description="Most tokens in one scoring pass; small suits a CPU's cache.")

    @property
    def needs(self) -> frozenset[Need]:
        """What the arm asks of an environment."""
        return frozenset()

    @property
    def needs_gain(self) -> bool:
        """Whether turns earn something of their own."""
        return False

    @property
    def needs_beliefs(self) -> bool:
        """Whether a model is asked for beliefs; otherwise no scoring pass is made at all."""
        return False

    @property
    def beliefs_while_rolling_out(self) -> bool:
        """Whether the beliefs at turn boundaries are the policy's own, so that they ride in its rollout."""
        return False

    @property
    def belief_aliases(self) -> Aliases:
        """How beliefs in several answers become one, also where an arm is only looked into."""
        return "first"

    @property
    def others(self) -> int:
        """Other answers that a gain is compared with."""
        return 0

    @property
    def older_scorer(self) -> bool:
        """Whether beliefs are those of an older policy."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _new_names(cls, given: Any) -> Any:
        for name in given if isinstance(given, Mapping) else ():
            if name in RENAMED:
                raise ValueError(f"{name} has another place now: write {RENAMED[name]}")
            if name not in cls.model_fields and name in ARM_FIELDS:
                raise ValueError(f"reward={cls.model_fields['reward'].default} ignores {name}: leave it out")
        return given

    @model_validator(mode="after")
    def _no_inert_choice(self) -> "Reward":
        for path, reason in self.ignored().items():
            name, _, inner = path.partition(".")
            holder = getattr(self, name) if inner else self
            field = type(holder).model_fields[inner or name]
            given = {name, inner or name} <= self.model_fields_set | (holder.model_fields_set if inner else set())
            if given and getattr(holder, inner or name) != field.get_default(call_default_factory=True):
                raise ValueError(f"{reason} ignores {path}: leave it out")
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them; one within another by its path,
        normalization.floor."""
        found = {}
        if self.format_penalty == 0:
            found["penalty_on"] = "format_penalty=0"
        if self.scale == "none":
            found["eps"] = "scale=none"
        return found


class OutcomeOnly(Reward):
    """GRPO: the outcome alone, to every turn. Scores no belief."""

    reward: Literal["outcome_only"] = "outcome_only"


class Gigpo(Reward):
    """The outcome, and gamma^(T-t) * outcome standardised among the group's turns at the same state (GiGPO, arXiv 2505.10978)."""

    reward: Literal["gigpo"] = "gigpo"
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of the outcome by the turns that are left.")
    gain_weight: Annotated[float, Field(gt=0)] | LinearWeight = Field(1.0, description="Of the part by state.")

    @property
    def needs(self) -> frozenset[Need]:
        """States."""
        return frozenset({"states"})


class TurnGains(Reward):
    """Each turn earns a gain. The class of arms with and without the outcome."""

    gain: AnyGain = Field(default_factory=LogProbDiff, description="What a turn earns (igpo_core/rewards/gains.py).")
    credit: AnyCredit = Field(
        default_factory=TurnCredit,
        description="What is credited: the whole turn; its observation against an empty one; the call's tokens, against other "
        "tasks' observations; or all gains at once at the end (belief return).",
    )
    shuffle: Literal["none", "group", "trajectory"] = Field(
        "none",
        description="Control: gains permuted among all turns of the group, so that neither turn nor trajectory keeps its own; "
        "or among the turns of a trajectory, which keeps its total.",
    )
    normalization: AnyNormalization = Field(default_factory=Separate)
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of turn returns.")
    accumulation: AnyAccumulation = Field(default_factory=Sum)
    gain_weight: Annotated[float, Field(gt=0)] | LinearWeight = Field(1.0, description="Multiplies normalised gains.")
    gate: AnyGate = Field(default_factory=NoGate)
    scorer: AnyScorer = Field(default_factory=CurrentScorer, description="Whose beliefs.")
    aliases: Aliases = Field(
        "first",
        description="How the beliefs in several accepted answers become one; first: as the paper has it.",
    )

    @property
    def floor(self) -> float | None:
        """The floor of the spread that gains are divided by; None where they are not."""
        return self.normalization.floor if isinstance(self.normalization, Divided) else None

    @property
    def needs(self) -> frozenset[Need]:
        """What the gain asks of an environment, and other answers where it is compared with these."""
        return self.gain.needs | ({"other_answers"} if self.others else set())

    @property
    def needs_gain(self) -> bool:
        """Whether turns earn something of their own."""
        return True

    @property
    def needs_beliefs(self) -> bool:
        """Whether a model is asked for beliefs; otherwise no scoring pass is made at all."""
        return "beliefs" in self.gain.needs

    @property
    def beliefs_while_rolling_out(self) -> bool:
        """Whether the beliefs at turn boundaries are the policy's own, so that they ride in its rollout."""
        of_boundaries = not isinstance(self.gain, LeaveOneTurnOut) and self.credit.kind in ("turn", "trajectory")
        return self.needs_beliefs and not self.older_scorer and of_boundaries

    @property
    def belief_aliases(self) -> Aliases:
        """How beliefs in several answers become one."""
        return self.aliases

    @property
    def others(self) -> int:
        """Other answers that a gain is compared with."""
        return self.gain.contrast if isinstance(self.gain, DifferenceGain) else 0

    @property
    def older_scorer(self) -> bool:
        """Whether beliefs are those of an older policy."""
        return not isinstance(self.scorer, CurrentScorer)

    @model_validator(mode="after")
    def _impossible(self) -> "TurnGains":
        kind = self.normalization.kind
        if self.credit.kind in ("observation", "query") and (not isinstance(self.gain, DifferenceGain) or self.others):
            raise ValueError(
                f"credit={self.credit.kind} compares two beliefs of one turn: use gain=log_prob_diff or prob_diff without a "
                f"contrast, not {self.gain.kind}"
            )
        if self.credit.kind in ("query", "trajectory") and kind in ("joint", "turn_group"):
            raise ValueError(
                f"credit={self.credit.kind} adds gains beside the outcome: normalization={kind} has no such pool; use separate, "
                "raw, root_mean_square or none"
            )
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them."""
        found, kind = super().ignored(), self.normalization.kind
        if not self.needs_beliefs:
            found |= dict.fromkeys(("aliases", "scorer"), f"gain={self.gain.kind}")
        if self.credit.kind in ("query", "trajectory"):
            found |= dict.fromkeys(("gamma", "accumulation"), f"credit={self.credit.kind}")
        if self.credit.kind == "trajectory":
            found["shuffle"] = "credit=trajectory"
        if kind in ("raw", "root_mean_square", "none") and isinstance(self.gate, SignGate):
            found["gate"] = f"normalization={kind}, which changes no sign,"
        if isinstance(self.accumulation, Window) and self.accumulation.gains == 1:
            found["gamma"] = "a window of one gain"
        if kind == "turn_group" and self.baseline == "batch_mean":
            found["baseline"] = "normalization=turn_group, whose pools are a question's,"
        divides = isinstance(self.normalization, Separate | TurnGroup)
        if self.scale == "none" and divides and self.floor != Separate().floor:
            found["normalization.floor"] = "scale=none, with which nothing is divided by the floor,"
        return found


class OutcomeAndGain(TurnGains):
    """IGPO: the outcome for the last turn, a gain for each turn before it."""

    reward: Literal["outcome_and_gain"] = "outcome_and_gain"
    outcome_credit: Literal["return", "broadcast"] = Field(
        "return", description="The outcome at the end of the discounted sum, or the same for every turn beside it."
    )
    gain_scale: AnyScale = Field(
        default_factory=NoScale,
        description="match_outcome: the batch's mean |gain| is brought to that of its outcomes (DR-Venus).",
    )

    @model_validator(mode="after")
    def _of_gains_alone(self) -> "OutcomeAndGain":
        if self.normalization.kind == "joint" and self.penalty_on == "apart":
            raise ValueError(
                "penalty_on=apart keeps the penalty out of the outcomes' pool, and normalization=joint has one pool for all: "
                "use normalization=separate"
            )
        if (
            not isinstance(self.accumulation, Sum)
            and self.outcome_credit == "return"
            and self.credit.kind in ("turn", "observation")
        ):
            raise ValueError(f"accumulation={self.accumulation.kind} is of gains alone: set outcome_credit=broadcast")
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them."""
        found = super().ignored()
        if self.credit.kind in ("query", "trajectory"):
            found["outcome_credit"] = f"credit={self.credit.kind}"
        return found


class GainOnly(TurnGains):
    """Gains alone: every outcome is 0, in a pool of its own."""

    reward: Literal["gain_only"] = "gain_only"

    @model_validator(mode="after")
    def _has_no_outcomes(self) -> "GainOnly":
        if self.normalization.kind == "joint":
            raise ValueError(
                "reward=gain_only has no outcomes to share a pool with (their zeros would price turns): use "
                "normalization=separate"
            )
        if not isinstance(self.accumulation, Sum):
            raise ValueError(
                f"accumulation={self.accumulation.kind} stands beside an outcome: use reward=outcome_and_gain"
            )
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them."""
        found = super().ignored()
        found["outcome"] = "reward=gain_only"
        if isinstance(self.gate, OutcomeSpreadGate):
            found["gate"] = "reward=gain_only"
        if self.penalty_on != "turn":
            found |= dict.fromkeys(("format_penalty", "penalty_on"), "reward=gain_only, except with penalty_on=turn,")
        if self.normalization.kind in ("raw", "root_mean_square", "none"):
            found |= dict.fromkeys(
                ("baseline", "scale"), f"reward=gain_only with normalization={self.normalization.kind}"
            )
        return found


KINDS: Mapping[str, type[Reward]] = {
    "outcome_and_gain": OutcomeAndGain,
    "outcome_only": OutcomeOnly,
    "gain_only": GainOnly,
    "gigpo": Gigpo,
}

# every choice of some kind
ARM_FIELDS: tuple[str, ...] = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.model_fields))


def kind_of(given: Any) -> str | None:
    """Return which of KINDS is described; without a name it is IGPO."""
    described = given if isinstance(given, Mapping) else vars(given) if isinstance(given, Reward) else {"reward": None}
    name = described.get("reward", "outcome_and_gain")
    return name if isinstance(name, str) else None


RewardConfig = Annotated[
    Annotated[OutcomeAndGain, Tag("outcome_and_gain")]
    | Annotated[OutcomeOnly, Tag("outcome_only")]
    | Annotated[GainOnly, Tag("gain_only")]
    | Annotated[Gigpo, Tag("gigpo")],
    Discriminator(kind_of),
]
_ADAPTER: TypeAdapter[Reward] = TypeAdapter(RewardConfig)


def reward_of(choices: Mapping[str, Any]) -> Reward:
    """Return the reward of these choices. Raises pydantic's ValidationError where they are none."""
    return _ADAPTER.validate_python(dict(choices))


def settled(choices: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return choices without those that have no effect in an arm: that its kind lacks, or that its other choices leave inert.

    choices: the arm's over the base's. own: the arm's, which stay and are refused where they are inert.
    """
    kind = KINDS.get(str(kind_of(choices)))
    if kind is None:
        return dict(choices)  # refused where it is validated
    known = {name: value for name, value in choices.items() if name in kind.model_fields or name in own}
    lost = {path for path in _lost(kind, known) if path.partition(".")[0] not in own}
    kept = {name: value for name, value in known.items() if name not in lost}
    for name, _, inner in (path.partition(".") for path in lost if "." in path):
        kept[name] = {key: value for key, value in kept[name].items() if key != inner}
    return kept


_NESTED: Mapping[str, TypeAdapter[Any]] = {
    "gain": TypeAdapter(AnyGain),
    "normalization": TypeAdapter(AnyNormalization),
    "gate": TypeAdapter(AnyGate),
    "scorer": TypeAdapter(AnyScorer),
    "accumulation": TypeAdapter(AnyAccumulation),
    "credit": TypeAdapter(AnyCredit),
    "gain_scale": TypeAdapter(AnyScale),
}


def _lost(kind: type[Reward], known: Mapping[str, Any]) -> dict[str, str]:
    """What is inert in these choices; nothing where they are wrong, as their validation will tell."""
    fields = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
    try:
        for name, value in known.items():
            fields[name] = _NESTED[name].validate_python(value) if name in _NESTED else value
        return kind.model_construct(**fields).ignored()
    except ValidationError:
        return {}
