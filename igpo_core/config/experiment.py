"""One training run, whole."""

from pydantic import Field, model_validator

from igpo_core.config.data import DataConfig
from igpo_core.config.expect import Expectation
from igpo_core.config.policy import NewPolicy, PolicyConfig, PretrainedPolicy, WarmStart
from igpo_core.config.reward import OutcomeAndGain, RewardConfig, TurnGains
from igpo_core.config.training import EvaluationConfig, OptimizerConfig, RolloutConfig, TrainingConfig
from igpo_core.environments.base import NEEDS
from igpo_core.environments.lookup import LookupWorld
from igpo_core.settings import WHERE, Settings


class ExperimentConfig(Settings):
    """One training run, whole: with a seed and a data version it determines every number."""

    seed: int = Field(0, ge=0, description="Weights, warm start, order of questions, sampling.")
    replicate: int = Field(
        0, ge=0, description="Another draw of the training rollouts from the same start: for A/A comparisons."
    )
    data: DataConfig = Field(default_factory=LookupWorld, description="The environment and its questions.")
    policy: PolicyConfig = Field(default_factory=NewPolicy, description="What is trained.")
    warm_start: WarmStart | None = Field(None, description="Empty: the policy as it is.")
    reward: RewardConfig = Field(default_factory=OutcomeAndGain, description="The only thing that arms differ in.")
    rollout: RolloutConfig = Field(default_factory=RolloutConfig, description="How trajectories are sampled.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="The update.")
    training: TrainingConfig = Field(
        default_factory=TrainingConfig, description="The budget, and where it is computed."
    )
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="On dev and on test.")
    expect: tuple[Expectation, ...] = Field(
        (),
        description="What warns of a run or stops it as it trains. Other ones make no other run: no number depends on them.",
        json_schema_extra=WHERE,
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentConfig":
        if isinstance(self.policy, NewPolicy):
            if self.policy.tokenizer == "words" and "vocabulary" not in self.data.offers:
                raise ValueError(
                    f"policy.tokenizer=words knows a closed vocabulary only, which data.kind={self.data.kind} lacks: use "
                    "tokenizer=chat"
                )
            if self.policy.tokenizer == "chat" and "texts" not in self.data.offers:
                raise ValueError(
                    f"policy.tokenizer=chat is trained on texts, which data.kind={self.data.kind} lacks: use tokenizer=words"
                )
            if self.rollout.max_tokens > self.policy.window:
                raise ValueError(
                    f"rollout.max_tokens={self.rollout.max_tokens} exceeds policy.window={self.policy.window}: "
                    "lower the one or raise the other"
                )
        lora = isinstance(self.policy, PretrainedPolicy) and self.policy.lora is not None
        if self.rollout.engine.kind == "vllm" and lora and self.training.sharding != "none":
            raise ValueError(
                "rollout.engine.kind=vllm takes merged weights, which policy.lora with training.sharding=fsdp has in pieces: an "
                "adapter is small, set training.sharding=none"
            )
        if self.rollout.engine.kind == "continuous" and self.training.sharding != "none":
            raise ValueError(
                "rollout.engine.kind=continuous reads all weights in every process, which training.sharding=fsdp spreads over "
                "them: set training.sharding=none, or rollout.engine.kind=transformers"
            )
        if isinstance(self.reward, TurnGains) and self.reward.credit.kind == "query" and self.rollout.questions < 2:
            raise ValueError(
                "reward.credit=query compares with what other questions' calls returned: set rollout.questions to 2 or more"
            )
        for need in sorted(self.reward.needs - self.data.offers):
            raise ValueError(
                f"reward asks for {NEEDS[need]}, which data.kind={self.data.kind} does not offer: use another reward"
            )
        if self.reward.outcome == self.data.headline:  # one experiment has one spelling
            raise ValueError(
                f"reward.outcome={self.reward.outcome} is what data.kind={self.data.kind} has anyway: leave it out"
            )
        if self.reward.outcome is not None and self.reward.outcome not in self.data.rubric:
            raise ValueError(
                f"reward.outcome={self.reward.outcome} is no score of data.kind={self.data.kind}: it has "
                f"{', '.join(self.data.rubric)}"
            )
        for number, stage in enumerate(self.warm_start.stages if self.warm_start else (), start=1):
            if stage.demonstrations.kind != self.data.kind:
                raise ValueError(
                    f"warm_start stage {number} has demonstrations of kind {stage.demonstrations.kind!r} but data is of "
                    f"kind {self.data.kind!r}: use kind {self.data.kind!r}"
                )
        return self

    @model_validator(mode="after")
    def _expected_is_measured(self) -> "ExperimentConfig":
        named = [item.metric for item in self.expect]
        if self.rollout.engine.kind == "transformers" and any(name.startswith("engine/") for name in named):
            raise ValueError(
                "expect: engine/ metrics compare the engine's log-probabilities with the trainer's, which are the same with "
                "rollout.engine.kind=transformers: leave them out"
            )
        if "train/kl" in named and not self.optimizer.kl_coefficient:
            raise ValueError(
                "expect: train/kl is measured where optimizer.kl_coefficient is above 0: leave it out, or set that"
            )
        for item in self.expect:
            if item.first_step > self.training.steps:
                raise ValueError(
                    f"expect: first_step={item.first_step} of {item.metric} is never reached: a run ends with step "
                    f"{self.training.steps}, training.epochs={self.training.epochs} of training.steps_per_epoch="
                    f"{self.training.steps_per_epoch}; name an earlier step, or train longer"
                )
        return self

    @model_validator(mode="after")
    def _demonstrations_can_be_made(self) -> "ExperimentConfig":
        for number, stage in enumerate(self.warm_start.stages if self.warm_start else (), start=1):
            lacking = self.data.lacking(stage.demonstrations)
            if lacking is not None:
                raise ValueError(f"warm_start stage {number} {lacking}")
        return self
