"""The choices that an arm is made of."""

from typing import Literal

from pydantic import Field, model_validator

from igpo_core.environments.base import Need
from igpo_core.settings import Settings

GainName = Literal["log_prob_diff", "prob_diff", "log_ratio_gap", "watermark", "first_exposure", "leave_one_turn_out"]


class RewardConfig(Settings):
    """Where the learning signal comes from: an arm (docs/arms.md). Each is a closed choice, and they combine freely; a
    choice that the others leave without effect is refused, for an arm that says it must not be one that lacks it."""

    reward: Literal["outcome_and_gain", "outcome_only", "gain_only", "gigpo"] = Field(
        "outcome_and_gain", description="gigpo: outcome and the return among turns that had seen the same passages."
    )
    gain: GainName = Field("log_prob_diff", description="What a turn earns (igpo_core/rewards/gains.py).")
    contrast: int = Field(
        0,
        ge=0,
        le=64,
        description="Other answers whose mean gain is taken off (igpo_core/rewards/contrast.py); 0: none.",
    )
    credit: Literal["turn", "observation", "query", "trajectory"] = Field(
        "turn",
        description="What is credited: the whole turn; its observation against an empty one; the query's tokens, against "
        "other questions' observations; or all gains at once at the end (belief return).",
    )
    shuffle: Literal["none", "group", "trajectory"] = Field(
        "none",
        description="Control: gains permuted among all turns of the group, so that neither turn nor trajectory keeps its own; "
        "or among the turns of a trajectory, which keeps its total.",
    )
    normalization: Literal["separate", "joint", "raw", "root_mean_square", "turn_group", "none"] = "separate"
    turn_group_size: int = Field(3, ge=2, description="Of turn_group: fewer turns than this use the question's pool.")
    baseline: Literal["group_mean", "leave_one_out", "batch_mean"] = Field(
        "group_mean", description="What is subtracted: GRPO's, RLOO's (with scale none), REINFORCE++'s."
    )
    scale: Literal["std", "none"] = "std"
    eps: float = Field(1e-6, gt=0, description="Added to the std that outcomes are divided by.")
    gain_floor: float = Field(
        1e-4, gt=0, description="Added to the spread that gains are divided by, in the gain's own unit."
    )
    gamma: float = Field(1.0, ge=0, le=1, description="Discount of turn returns.")
    accumulation: Literal["sum", "root", "window"] = Field(
        "sum", description="root: the sum over the root of its length; window: the mean of the next `window` gains."
    )
    window: int = Field(3, ge=1, description="Gains that accumulation=window looks ahead.")
    outcome_credit: Literal["return", "broadcast"] = Field(
        "return", description="The outcome at the end of the discounted sum, or the same for every turn beside it."
    )
    gain_weight: float = Field(1.0, gt=0, description="Multiplies normalised gains.")
    gain_weight_end: float | None = Field(None, ge=0, description="The weight moves linearly from gain_weight to this,")
    gain_weight_steps: int = Field(0, ge=0, description=".. within so many steps.")
    gain_scale: Literal["none", "match_outcome"] = Field(
        "none", description="match_outcome: the batch's mean |gain| is brought to that of its outcomes."
    )
    gate: Literal["none", "sign", "outcome_spread"] = Field(
        "none",
        description="sign: a gain counts where its normalised value has its sign; outcome_spread: gains fade where "
        "outcomes differ.",
    )
    gate_temperature: float = Field(0.5, gt=0, description="Of gate=outcome_spread.")
    scorer: Literal["current", "lagged", "frozen"] = Field(
        "current", description="Whose beliefs: the policy's, or older."
    )
    scorer_steps: int = Field(10, ge=2, description="Steps between copies of scorer=lagged; 1 would be current.")
    aliases: Literal["first", "logsumexp", "max", "shortest"] = Field(
        "first", description="How the beliefs in several accepted answers become one; first: as the paper has it."
    )
    outcome: str | None = Field(
        None,
        description="Which score of the environment's rubric is the reward; empty: the first one. Of search questions: f1 "
        "(SQuAD's), em, paper_f1 (the authors', token sets).",
    )
    format_penalty: float = Field(-1.0, le=0, description="For a trajectory without a well-formed answer.")
    penalty_on: Literal["turn", "apart", "trajectory"] = Field(
        "turn",
        description="turn: the penalty is charged to the last turn alone. apart: it is the normalised outcome, out of the "
        "outcomes' pool. trajectory: it is an outcome in their pool (the paper).",
    )
    belief_tokens: int = Field(2048, ge=1, description="Most tokens in one scoring pass; small suits a CPU's cache.")

    @property
    def needs_gain(self) -> bool:
        """Whether turns earn something of their own."""
        return self.reward in ("outcome_and_gain", "gain_only")

    @property
    def needs_beliefs(self) -> bool:
        """Whether a model is asked for beliefs; otherwise no scoring pass is made at all."""
        return self.needs_gain and self.gain != "first_exposure"

    @property
    def needs(self) -> frozenset[Need]:
        """What the arm asks of an environment."""
        asked: set[Need] = set()
        if self.needs_beliefs:
            asked.add("beliefs")
        if self.needs_gain and self.contrast:
            asked.add("other_answers")
        if self.needs_gain and self.gain == "first_exposure":
            asked.add("exposure")
        if self.reward == "gigpo":
            asked.add("states")
        return frozenset(asked)

    @property
    def beliefs_while_rolling_out(self) -> bool:
        """Whether the beliefs at turn boundaries are the policy's own, so that they ride in its rollout."""
        of_boundaries = self.gain != "leave_one_turn_out" and self.credit in ("turn", "trajectory")
        return self.needs_beliefs and self.scorer == "current" and of_boundaries

    @model_validator(mode="after")
    def _impossible(self) -> "RewardConfig":
        if self.reward == "gain_only" and self.normalization == "joint":
            raise ValueError(
                "reward=gain_only has no outcomes to share a pool with (their zeros would price turns): use "
                "normalization=separate"
            )
        if self.credit in ("observation", "query") and self.gain not in ("log_prob_diff", "prob_diff"):
            raise ValueError(
                f"credit={self.credit} compares two beliefs of one turn: use gain=log_prob_diff or prob_diff, not {self.gain}"
            )
        if self.credit in ("query", "trajectory") and self.normalization in ("joint", "turn_group"):
            raise ValueError(
                f"credit={self.credit} adds gains beside the outcome: normalization={self.normalization} has no such pool; use "
                "separate, raw, root_mean_square or none"
            )
        contrasts = self.gain in ("log_prob_diff", "prob_diff") and self.credit in ("turn", "trajectory")
        if self.contrast and self.needs_gain and not contrasts:
            raise ValueError(
                f"contrast={self.contrast} compares beliefs at the ends of a turn, which gain={self.gain} with "
                f"credit={self.credit} does not: use gain=log_prob_diff or prob_diff with credit=turn or "
                "trajectory, or contrast=0"
            )
        if self.normalization == "joint" and self.penalty_on == "apart":
            raise ValueError(
                "penalty_on=apart keeps the penalty out of the outcomes' pool, and normalization=joint has one pool for all: "
                "use normalization=separate"
            )
        if self.accumulation != "sum" and self.outcome_credit == "return":
            raise ValueError(f"accumulation={self.accumulation} is of gains alone: set outcome_credit=broadcast")
        return self

    @model_validator(mode="after")
    def _no_inert_choice(self) -> "RewardConfig":
        for name, reason in self.ignored().items():
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{reason} ignores {name}: leave it out")
        return self

    def ignored(self) -> dict[str, str]:
        """Choices that the other ones leave without effect, and by which of them."""
        found: dict[str, str] = {}

        def ignore(names: str, reason: str) -> None:
            for name in names.split():
                found.setdefault(name, reason)

        of_gains = "gain contrast credit shuffle normalization gain_floor gain_scale gate scorer aliases "
        of_gains += "accumulation outcome_credit"
        if not self.needs_gain:
            ignore(of_gains, f"reward={self.reward}")
        if self.reward == "outcome_only":
            ignore("gamma gain_weight gain_weight_end", "reward=outcome_only")
        if self.reward == "gain_only":
            ignore("outcome outcome_credit gain_scale", "reward=gain_only")
            if self.gate == "outcome_spread":
                ignore("gate", "reward=gain_only")
            if self.penalty_on != "turn":
                ignore("format_penalty penalty_on", "reward=gain_only, except with penalty_on=turn,")
        if self.gain == "first_exposure":
            ignore("aliases scorer", "gain=first_exposure")
        if self.credit in ("query", "trajectory"):
            ignore("gamma accumulation outcome_credit", f"credit={self.credit}")
        if self.credit == "trajectory":
            ignore("shuffle", "credit=trajectory")
        if self.format_penalty == 0:
            ignore("penalty_on", "format_penalty=0")
        if self.reward == "gain_only" and self.normalization in ("raw", "root_mean_square", "none"):
            ignore("baseline scale", f"reward=gain_only with normalization={self.normalization}")
        if self.scale == "none":
            ignore("eps", "scale=none")
        if self.normalization in ("joint", "none"):
            ignore("gain_floor", f"normalization={self.normalization}")
        if self.normalization in ("separate", "turn_group") and self.scale == "none":
            ignore("gain_floor", "scale=none")
        if self.normalization in ("raw", "root_mean_square", "none") and self.gate == "sign":
            ignore("gate", f"normalization={self.normalization}, which changes no sign,")
        if self.normalization != "turn_group":
            ignore("turn_group_size", "any normalization but turn_group")
        if self.accumulation != "window":
            ignore("window", "any accumulation but window")
        if self.gate != "outcome_spread":
            ignore("gate_temperature", "any gate but outcome_spread")
        if self.accumulation == "window" and self.window == 1:
            ignore("gamma", "window=1")
        if self.scorer != "lagged":
            ignore("scorer_steps", "any scorer but lagged")
        if self.gain_weight_end is None:
            ignore("gain_weight_steps", "a constant gain_weight")
        elif self.gain_weight_steps == 0:
            ignore("gain_weight_end", "gain_weight_steps=0")
        elif self.gain_weight_end == self.gain_weight:
            ignore("gain_weight_end gain_weight_steps", "a constant gain_weight")
        if self.normalization == "turn_group" and self.baseline == "batch_mean":
            ignore("baseline", "normalization=turn_group, whose pools are a question's,")
        return found
