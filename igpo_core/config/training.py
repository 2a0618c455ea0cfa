"""Rollout, update, budget and evaluation."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from igpo_core.http_settings import KEY_VARIABLE, HttpSettings
from igpo_core.settings import WHERE, Decoding, Settings, Share


class TransformersEngine(Settings):
    """The policy itself, in the training process. Same seed, same machine, on its CPU: same bits."""

    kind: Literal["transformers"] = "transformers"


class VllmEngine(Settings):
    """vLLM servers that are given the policy's weights before each step's rollouts (igpo_core/rollout/served_engine.py)."""

    kind: Literal["vllm"] = "vllm"
    urls: tuple[Annotated[str, Field(pattern=r"^https?://[^/@]+$")], ...] = Field(
        min_length=1,
        description="One for each training process, or fewer, as http://host:port.",
        json_schema_extra=WHERE,
    )
    weights: Path = Field(
        description="Folder that this run writes and the servers read; each run its own.", json_schema_extra=WHERE
    )
    concurrency: int = Field(
        64, ge=1, le=4096, description="Episodes at a time, of a process.", json_schema_extra=WHERE
    )
    timeout: float = Field(
        600.0, gt=0, description="Seconds for one turn, or for loading weights.", json_schema_extra=WHERE
    )
    attempts: int = Field(4, ge=1, le=20, description="Of one request before the run fails.", json_schema_extra=WHERE)
    correction: Literal["none", "truncated"] = Field(
        "truncated",
        description="truncated: a token weighs its probability by the trainer over that by the server, at most `cap`.",
    )
    cap: float = Field(2.0, ge=1, description="Most that a token weighs.")


class ContinuousEngine(Settings):
    """The policy itself, in the training process, on a GPU: continuous batching in rollout.batch_size slots
    (igpo_core/rollout/continuous_engine.py)."""

    kind: Literal["continuous"] = "continuous"


EngineConfig = Annotated[TransformersEngine | ContinuousEngine | VllmEngine, Field(discriminator="kind")]


class RolloutConfig(Settings):
    """How trajectories are sampled."""

    questions: int = Field(16, ge=1, description="Questions a step.")
    group_size: int = Field(8, description="Trajectories a question, at least two.")
    max_turns: int = Field(6, ge=1, le=64, description="Model turns, the answer included.")
    max_new_tokens: int = Field(16, ge=1, description="Sampled tokens a turn.")
    max_tokens: int = Field(512, ge=16, description="Tokens of a whole trajectory.")
    temperature: float = Field(1.0, gt=0, description="Of training rollouts and of `sampled` evaluation.")
    batch_size: int = Field(256, ge=1, description="Trajectories that share one KV cache.")
    engine: EngineConfig = Field(default_factory=TransformersEngine, description="What samples.")

    @field_validator("group_size")
    @classmethod
    def _group_has_spread(cls, size: int) -> int:
        if size < 2:
            raise ValueError(f"a group of {size} has no spread to learn from: give at least 2 trajectories a question")
        return size


class OptimizerConfig(Settings):
    """AdamW and the clipped surrogate."""

    learning_rate: float = Field(3e-4, gt=0, description="After the warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Linear warm-up; constant afterwards.")
    betas: tuple[Share, Share] = Field((0.9, 0.99), description="Decay of both moments.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled, as AdamW has it.")
    max_grad_norm: float = Field(1.0, gt=0, description="A gradient of a larger norm is scaled down to it.")
    clip_low: float = Field(0.2, gt=0, lt=1, description="The ratio is clipped below 1 - clip_low.")
    clip_high: float = Field(0.2, gt=0, description="The ratio is clipped above 1 + clip_high.")
    dual_clip: float | None = Field(
        None,
        gt=1,
        description="Bound of the ratio where the advantage is negative; the paper's code has 3. None: no bound.",
    )
    kl_coefficient: float = Field(0.0, ge=0, description="k3 estimate to the start of the run; 0: no reference pass.")
    entropy_coefficient: float = Field(0.0, ge=0, description="Of the bonus for the entropy of sampled tokens.")
    denominator: Literal["sequence", "token", "constant"] = Field(
        "sequence",
        description="sequence: mean over trajectories of the mean over their tokens; token: over all tokens; constant: "
        "over as many as could be sampled (Dr. GRPO).",
    )
    dead_groups: Literal["keep", "drop"] = Field(
        "keep",
        description="Whether groups without any advantage count in the denominator; dropped ones are in no term of the loss.",
    )
    ratio: Literal["token", "turn", "sequence"] = Field(
        "token", description="What the probability ratio is of; sequence: GSPO. The same with one update a step."
    )
    updates_per_step: int = Field(1, ge=1, description="Updates on the same rollouts; with 1 the ratio is 1.")
    tokens_per_batch: int = Field(2048, ge=1, description="Most tokens (padding included) in one forward pass.")
    gradient_checkpointing: bool | Literal["auto"] = Field(
        False,
        description="Keep each layer's input alone and compute the rest again on the way back: less memory, 4/3 time. auto: "
        "where the run would not fit its share of the accelerator otherwise.",
    )

    @model_validator(mode="after")
    def _on_policy_ratio_is_one(self) -> "OptimizerConfig":
        inert = [name for name in ("ratio", "clip_low", "clip_high", "dual_clip") if name in self.model_fields_set]
        inert = [name for name in inert if getattr(self, name) != type(self).model_fields[name].default]
        if self.updates_per_step == 1 and inert:
            raise ValueError(
                f"updates_per_step=1 ignores {', '.join(inert)}: the ratio is 1 on rollouts of the policy itself; leave it out, "
                "or set updates_per_step to 2 or more"
            )
        return self


class TrainingConfig(Settings):
    """How long, and how often it is saved. Every arm of a comparison has the same budget."""

    epochs: int = Field(4, ge=1, description="Each ends with a checkpoint.")
    steps_per_epoch: int = Field(10, ge=1, description="Steps from one checkpoint to the next.")
    budget: Literal["steps", "sampled_tokens", "seconds"] = Field(
        "steps",
        description="What is equal for all arms. steps: and with them rollouts. sampled_tokens, seconds (of steps, which no "
        "two runs repeat to the bit): a run ends with the step that reaches `amount`, at the latest with its last epoch.",
    )
    amount: float | None = Field(None, gt=0, description="Of sampled tokens or seconds.")
    threads: int = Field(1, ge=1, description="Torch threads of a training process.")
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="What it is computed on; cuda: an accelerator for each process.", json_schema_extra=WHERE
    )
    memory_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Of an accelerator's memory that a process may take: several runs on one card each keep to theirs.",
        json_schema_extra=WHERE,
    )
    processes: int = Field(
        1, ge=1, description="Processes a machine that train together, an accelerator each.", json_schema_extra=WHERE
    )
    nodes: int = Field(1, ge=1, description="Machines (docs/scale.md).", json_schema_extra=WHERE)
    sharding: Literal["none", "fsdp"] = Field(
        "none",
        description="fsdp: weights, gradients and moments are spread over the processes (FSDP2); none: each has all (DDP).",
        json_schema_extra=WHERE,
    )

    @property
    def steps(self) -> int:
        """The most steps that are made."""
        return self.epochs * self.steps_per_epoch

    @property
    def world(self) -> int:
        """Processes of all machines."""
        return self.processes * self.nodes

    @model_validator(mode="after")
    def _shards_for_several(self) -> "TrainingConfig":
        if self.sharding == "fsdp" and self.world == 1:
            raise ValueError(
                "training.sharding=fsdp with one process: there is nothing to spread over; set training.processes"
            )
        return self

    @model_validator(mode="after")
    def _amount_of_budget(self) -> "TrainingConfig":
        if (self.amount is None) is not (self.budget == "steps"):
            raise ValueError(
                f"training.budget={self.budget} with amount={self.amount}: sampled_tokens and seconds need an amount, and "
                "steps are given by epochs and steps_per_epoch"
            )
        return self


class JudgeSettings(HttpSettings):
    """A language model that judges the test's answers (igpo_core/judge.py), at an endpoint like OpenAI's."""

    model: str = Field(min_length=1)
    key_variable: str = Field("JUDGE_API_KEY", pattern=KEY_VARIABLE, description="Environment variable of its key.")
    timeout: float = Field(60.0, gt=0, description="Seconds for one call.")
    temperature: float | None = Field(
        0.0, ge=0, description="Asked for. null asks for none: some models take no other than their own."
    )


class EvaluationConfig(Settings):
    """What is evaluated. Dev during training; test once, at the end."""

    every: int = Field(5, ge=1, description="Steps between evaluations on dev.")
    dev_questions: int = Field(128, ge=1, description="So many of split dev, the first of each source alike.")
    test_questions: int = Field(512, ge=1, description="So many of split test, the first of each source alike.")
    decoding: tuple[Decoding, ...] = Field(
        ("sampled", "greedy"),
        min_length=1,
        description="Of the test. The first is the headline, and the only one on dev.",
    )
    threshold: float = Field(
        0.5, gt=0, le=1, description="The first score on dev whose first reaching gives steps, tokens and seconds."
    )
    traces: int = Field(4, ge=0, description="Test trajectories logged as MLflow traces.")
    diagnostics: int = Field(
        32, ge=0, description="Training trajectories whose beliefs are looked into at each evaluation, in every arm."
    )
    judge: JudgeSettings | None = Field(
        None, description="Judges the test's answers, first decoding, at the run's end."
    )
    kept: int = Field(4, ge=0, description="Of these, kept whole for the report's trajectory viewer.")
