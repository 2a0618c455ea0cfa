"""What a run needs, counted before it starts: parameters, bytes on an accelerator, floating-point operations, seconds.

Pure arithmetic on a model's configuration; no weight is made or loaded. docs/scale.md compares it with measured runs.
"""

from dataclasses import dataclass
from typing import Any

from igpo_core.config import ExperimentConfig, Lora, PretrainedPolicy, VllmEngine
from igpo_core.logprobs import LOGITS_AT_A_TIME

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder-only transformer that cost depends on. gated: whether its MLP has three matrices."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    gated: bool = True

    @staticmethod
    def of(config: Any) -> "Shape":
        """From a transformers configuration (Llama, Qwen2, Qwen3, Mistral and their like)."""
        heads = int(config.num_attention_heads)
        return Shape(
            layers=int(config.num_hidden_layers),
            width=int(config.hidden_size),
            feed_forward=int(config.intermediate_size),
            heads=heads,
            key_value_heads=int(getattr(config, "num_key_value_heads", heads)),
            head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            vocabulary=int(config.vocab_size),
            tied=bool(config.tie_word_embeddings),
        )

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each linear layer of one block."""
        query, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        mlp = [(self.width, self.feed_forward)] * (2 if self.gated else 1) + [(self.feed_forward, self.width)]
        return [(self.width, query), (self.width, keys), (self.width, keys), (query, self.width), *mlp]

    @property
    def block_weights(self) -> int:
        """Of the matrices of all blocks: what a token is multiplied with, the head left out."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def parameters(self) -> int:
        """Matrices, embeddings and norms; biases of the attention are left out (under 0.1%)."""
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return self.block_weights + embeddings + (2 * self.layers + 1) * self.width

    def adapter(self, lora: Lora) -> int:
        """Parameters of a LoRA adapter on all linear layers."""
        return self.layers * lora.rank * sum(a + b for a, b in self.linears)


@dataclass(frozen=True)
class Memory:
    """Bytes on one accelerator, of which each process has one: weights with gradients and moments, copies that stand in, then
    the larger of the rollout's cache and the update's activations. gathered: sharded weights that a rollout has whole. total:
    the sum of what is held at once."""

    weights: int
    optimizer: int
    copies: int
    cache: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.copies + max(self.cache + self.gathered, self.activations)


def memory(shape: Shape, config: ExperimentConfig) -> Memory:
    """Upper estimates: every rollout as long as rollout.max_tokens, every micro-batch as large as tokens_per_batch.

    Activations that are kept for the way back, of a token in a block: inputs and outputs of its norms and matrices, queries, keys
    and values, the MLP's gate, its activation and their product; with checkpointing the block's input, and one block whole.
    """
    policy = config.policy
    half = isinstance(policy, PretrainedPolicy) and policy.dtype == "bfloat16"
    lora = policy.lora if isinstance(policy, PretrainedPolicy) else None
    compute = 2 if half else 4
    trained = shape.adapter(lora) if lora else shape.parameters
    weights = trained * 4 + (shape.parameters * compute if lora else 0)
    if half and not lora:
        weights += shape.parameters * 2  # autocast keeps the cast weights of a pass
    older = (config.optimizer.kl_coefficient > 0) + (config.reward.needs_beliefs and config.reward.scorer != "current")
    processes = config.training.world
    questions = -(-config.rollout.questions // processes)
    rollouts = min(config.rollout.batch_size, questions * config.rollout.group_size)
    if isinstance(config.rollout.engine, VllmEngine):
        rollouts = 0  # their caches are the servers'
    shares = processes if config.training.sharding == "fsdp" else 1
    a_token = 2 * shape.layers * shape.key_value_heads * shape.head_width * compute
    tokens = max(config.optimizer.tokens_per_batch, config.rollout.max_tokens)
    query, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    inner = 4 * shape.width + 2 * query + 2 * keys + (4 if shape.gated else 2) * shape.feed_forward
    block = inner * compute + 2 * shape.width * 4  # norms are computed in float32
    kept = block * shape.layers
    if config.optimizer.gradient_checkpointing:
        kept = shape.width * compute * shape.layers + block
    logits = 3 * 4 * LOGITS_AT_A_TIME
    return Memory(
        weights=weights // shares,
        optimizer=3 * 4 * trained // shares,  # gradient and two moments, float32
        copies=older * 4 * trained // shares,
        gathered=weights - weights // shares,
        cache=rollouts * config.rollout.max_tokens * a_token,
        activations=tokens * (kept + 2 * shape.width * 4) + logits,  # the last norm's as well
    )


@dataclass(frozen=True)
class Work:
    """Of one training step, of each process: operations of prefills and decoding, of beliefs, of the update; and bytes that
    decoding reads, which on an accelerator take longer than its operations. Where servers sample, `rollout` is the pass that
    computes their tokens' log-probabilities anew, and what the servers need is not counted."""

    rollout: float
    beliefs: float
    update: float
    decoding_bytes: float

    def seconds(self, operations: float, bandwidth: float, share: float = 0.4) -> float:
        """On a machine of so many operations and bytes a second, of which a `share` is reached."""
        return ((self.rollout + self.beliefs + self.update) / operations + self.decoding_bytes / bandwidth) / share


def work(shape: Shape, config: ExperimentConfig, *, tokens: float, sampled: float, probes: float) -> Work:
    """tokens, sampled: of a trajectory, all and those that the policy samples; probes: tokens of a trajectory's probes.

    Two operations a weight and token; attention over t tokens adds 2 * 2 * t / 2 * heads * head_width a token and block.
    The update costs three passes, four with checkpointing, and LoRA two in place of three: no gradient of its weights.
    What processes tell one another is left out.
    """
    questions = -(-config.rollout.questions // config.training.world)
    rollouts = questions * config.rollout.group_size
    lora = isinstance(config.policy, PretrainedPolicy) and config.policy.lora is not None
    attention = 2 * tokens * shape.heads * shape.head_width * shape.layers
    head = 2 * shape.width * shape.vocabulary
    forward = rollouts * (tokens * (2 * shape.block_weights + attention) + sampled * head)
    served = isinstance(config.rollout.engine, VllmEngine)
    beliefs = 0.0
    if config.reward.needs_beliefs:
        beliefs = rollouts * probes * (2 * shape.block_weights + 2 * attention + head)
        if served or not config.reward.beliefs_while_rolling_out:  # a pass over the histories of its own
            beliefs += rollouts * tokens * (2 * shape.block_weights + attention)
    passes = (2 if lora else 3) + config.optimizer.gradient_checkpointing
    half = isinstance(config.policy, PretrainedPolicy) and config.policy.dtype == "bfloat16"
    batches = -(-rollouts // config.rollout.batch_size)
    columns = config.rollout.max_turns * config.rollout.max_new_tokens
    steps = batches * min(columns, sampled * 1.5)  # the slowest of a batch samples longer than the mean
    a_token = 2 * shape.layers * shape.key_value_heads * shape.head_width * (2 if half else 4)
    cache = sampled * rollouts * tokens / 2 * a_token
    return Work(
        rollout=forward,
        beliefs=beliefs,
        update=forward * passes * config.optimizer.updates_per_step,
        decoding_bytes=0.0 if served else steps * (shape.block_weights + head / 2) * (2 if half else 4) + cache,
    )
