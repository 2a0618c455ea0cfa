"""The policy, and the supervised stages that it may start from."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from igpo_core.config.data import DemonstrationsConfig
from igpo_core.errors import ConfigError
from igpo_core.settings import LATER, WHERE, Settings, Share

GGUF = ".gguf"


def is_gguf(name: str) -> bool:
    """Return whether a policy's name means a GGUF file."""
    return name.endswith(GGUF)


class Lora(Settings):
    """A low-rank adapter is trained, in float32, in place of the model's weights (extra [lora])."""

    rank: int = Field(16, ge=1, description="Of each adapted layer's update.")
    alpha: int = Field(32, ge=1, description="The adapter's output is scaled by alpha / rank.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="Names of the layers that get an adapter; all-linear: all but the output head."
    )


class NewPolicy(Settings):
    """A small random causal LM, built here. `words`: the world's own vocabulary, one token a word.
    `chat`: a byte-level BPE trained on the corpus, with Qwen2.5's control tokens and a ChatML template."""

    kind: Literal["new"] = "new"
    architecture: Literal["llama", "qwen2"] = Field("llama", description="Of transformers.")
    tokenizer: Literal["words", "chat"] = Field("words", description="See above.")
    vocabulary: int = Field(4096, ge=300, description="Size of the BPE vocabulary (tokenizer `chat` only).")
    width: int = Field(96, ge=8, description="Size of a hidden state.")
    layers: int = Field(3, ge=1, description="Decoder layers.")
    heads: int = Field(4, ge=1, description="Attention heads a layer.")
    key_value_heads: int = Field(4, ge=1, description="Heads of keys and values, each shared by as many queries.")
    feed_forward: int = Field(192, ge=8, description="Inner size of the feed-forward part.")
    window: int = Field(1024, ge=32, description="Longest sequence in tokens, an answer probe included.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "NewPolicy":
        if self.width % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"width={self.width} must be a multiple of heads={self.heads}, and heads of "
                f"key_value_heads={self.key_value_heads}: change one of them"
            )
        return self


class PretrainedPolicy(Settings):
    """A causal LM with a chat template, from a hub name, a folder or a GGUF file, of which safetensors are made once; no other
    weights are read, and remote code is off unless asked for."""

    kind: Literal["pretrained"] = "pretrained"
    name: str = Field(
        min_length=1,
        description="Hub name, folder, GGUF file, or package:<module>/<file>.gguf for a GGUF file in an installed package.",
    )
    revision: str | None = Field(None, description="Commit of the hub; of a GGUF file its SHA-256.")
    converted: Path | None = Field(
        None,
        description="The folder with the safetensors of a GGUF file. The laboratory fills it in.",
        json_schema_extra=WHERE,
    )
    dtype: Literal["float32", "bfloat16", "auto"] = Field(
        "float32",
        description="What is computed in. Trained weights are float32 in either case: with bfloat16 they are cast as they "
        "are used; weights that LoRA leaves alone are kept in it. auto: bfloat16 where the machine that plans the sweep has "
        "instructions for it, else float32; a planned run has the one or the other.",
    )
    lora: Lora | None = Field(None, description="What is trained in place of all weights; empty: all of them.")
    thinking: bool | None = Field(
        None,
        description="Switch thinking on or off where the chat template can (enable_thinking: Qwen3, Qwen3.5, GLM-4.5); one that "
        "cannot is refused. It is settled in the tokenizer that is saved with the policy. Empty: as the template has it by "
        "itself. Other models that `evaluate` is given stay as they are.",
        json_schema_extra=LATER,
    )
    trust_remote_code: bool = Field(
        False,
        description="Run the code that comes with the model, at the commit of revision. Know whose it is. No other model's code "
        "runs, whatever `evaluate` is given.",
    )

    @property
    def is_gguf(self) -> bool:
        """Return whether the name means a GGUF file."""
        return is_gguf(self.name)

    @property
    def half(self) -> bool:
        """Return whether it is computed in bfloat16. Raises ConfigError where nobody decided yet."""
        if self.dtype == "auto":
            raise ConfigError(
                "policy.dtype=auto is decided by whoever plans a run (tasks/runs/processors.py:decided), and this one was not "
                "planned: set it to float32 or bfloat16"
            )
        return self.dtype == "bfloat16"

    @property
    def source(self) -> str:
        """Return what transformers loads: a hub name or a folder."""
        return str(self.converted or self.name)

    @model_validator(mode="after")
    def _gguf_is_converted(self) -> "PretrainedPolicy":
        if self.is_gguf and self.trust_remote_code:
            raise ValueError(f"policy.trust_remote_code: a GGUF file ({self.name}) holds no code; leave it out")
        if self.is_gguf and self.revision is not None and not re.fullmatch("[0-9a-f]{64}", self.revision):
            raise ValueError(
                f"policy.revision={self.revision}: of a GGUF file ({self.name}) it is the file's SHA-256, 64 hex digits "
                "(sha256sum)"
            )
        if self.converted is not None and not self.is_gguf:
            raise ValueError(
                f"policy.converted belongs to a GGUF file, and policy.name={self.name} is none: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _code_is_pinned(self) -> "PretrainedPolicy":
        if self.trust_remote_code and not re.fullmatch("[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"policy.trust_remote_code with policy.revision={self.revision}: the code of {self.name} may be another "
                "tomorrow; give the commit that you have read, 40 hex digits (the hub's page of the model, History)"
            )
        return self


PolicyConfig = Annotated[NewPolicy | PretrainedPolicy, Field(discriminator="kind")]


class WarmStartStage(Settings):
    """A run of supervised steps: AdamW, linear warm-up, cosine from learning_rate to final_share of it."""

    steps: int = Field(ge=1, description="Updates.")
    learning_rate: float = Field(gt=0, description="After the warm-up.")
    final_share: Share = Field(0.1, description="Share of the learning rate at the stage's end.")
    batch_size: int = Field(64, ge=1, description="Demonstrations an update.")
    warmup_steps: int = Field(50, ge=0, description="Updates until the learning rate is reached.")
    demonstrations: DemonstrationsConfig = Field(description="Where they come from.")


class WarmStart(Settings):
    """Supervised stages before reinforcement learning; shared by every arm of a seed."""

    stages: tuple[WarmStartStage, ...] = Field(min_length=1)
