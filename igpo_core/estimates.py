"""What a run needs, counted before it starts: parameters, and bytes on an accelerator (igpo_core/step_costs.py has its time).

Pure arithmetic on a model's configuration; no weight is made or loaded. docs/scale.md compares it with measured runs.
"""

from dataclasses import dataclass
from typing import Any

from igpo_core.attention import unpackable_attention
from igpo_core.config import (
    ContinuousEngine,
    ExperimentConfig,
    Lora,
    PretrainedPolicy,
    VllmEngine,
)
from igpo_core.logprobs import LOGITS_AT_A_TIME, LOGITS_AT_A_TIME_ON_GPU
from igpo_core.models import text_config
from igpo_core.rollout.cache import room_for
from igpo_core.rollout.continuous_engine import TOKENS_A_PASS

GIB = 2**30
# Not measured. CONTEXT: CUDA's context with its kernels and cuBLAS's workspaces (about half of it) and rounding of the allocator;
# NCCL: its channels' buffers.
CONTEXT, NCCL = GIB, GIB


@dataclass(frozen=True)
class Shape:
    """The numbers of a decoder-only transformer that cost depends on. gated: whether its MLP has three matrices. packable:
    whether its sequences can be packed (igpo_core/attention.py): no window, no cap on scores."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    gated: bool = True
    packable: bool = True

    @staticmethod
    def of(config: Any) -> "Shape":
        """From a transformers configuration (Llama, Qwen2, Qwen3, Mistral and their like); of a model that takes images too,
        its language model's."""
        config = text_config(config)
        heads = int(config.num_attention_heads)
        return Shape(
            layers=int(config.num_hidden_layers),
            width=int(config.hidden_size),
            feed_forward=_feed_forward(config),
            heads=heads,
            key_value_heads=int(getattr(config, "num_key_value_heads", heads)),
            head_width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            vocabulary=int(config.vocab_size),
            tied=bool(config.tie_word_embeddings),
            packable=not unpackable_attention(config),
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


def _feed_forward(config: Any) -> int:
    """The width of the MLP; GPT-2 and its like have four times the model's where they name none, some have one each layer."""
    named = (getattr(config, name, None) for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"))
    width = next((value for value in named if value), 4 * config.hidden_size)
    return max(width) if isinstance(width, list | tuple) else int(width)


@dataclass(frozen=True)
class Memory:
    """Bytes on one accelerator, of which each process has one.

    Held all the time: weights; optimizer (gradients and moments); copies that stand in; margin. While rolling out: gathered
    (weights that are whole or cast for it), cache, passes (what the widest pass computes). In an update: activations (kept for
    the way back, and one block's work), unsharded (weights whole or cast, gradients before they are spread or copied), kept (what
    an engine holds from rollout to rollout: the continuous one its cache, its cast weights and what its graphs compute in). In a
    warm start, which comes before and has no copies: taught (its activations, casts and logits).
    """

    weights: int
    optimizer: int
    copies: int
    margin: int
    gathered: int
    cache: int
    passes: int
    activations: int
    unsharded: int
    kept: int
    taught: int

    @property
    def rollout(self) -> int:
        """Return the bytes that only a rollout holds."""
        return self.gathered + self.cache + self.passes

    @property
    def update(self) -> int:
        """Return the bytes that only an update holds."""
        return self.activations + self.unsharded + self.kept

    @property
    def steps(self) -> int:
        """Return the most bytes at one time in the run's steps."""
        return self.weights + self.optimizer + self.margin + self.copies + max(self.rollout, self.update)

    @property
    def total(self) -> int:
        """Return the most bytes at one time, the warm start before the steps among it."""
        return max(self.steps, self.weights + self.optimizer + self.margin + self.taught)


def memory(shape: Shape, config: ExperimentConfig) -> Memory:
    """Upper estimates: every rollout as long as rollout.max_tokens, every micro-batch as large as tokens_per_batch, what
    follows on one another in an update as if it were held at once."""
    policy, training = config.policy, config.training
    half = isinstance(policy, PretrainedPolicy) and policy.half
    lora = policy.lora if isinstance(policy, PretrainedPolicy) else None
    compute = 2 if half else 4
    trained = shape.adapter(lora) if lora else shape.parameters
    weights = trained * 4 + (shape.parameters * compute if lora else 0)
    # autocast casts what is trained for a pass and keeps the casts to its end: whole, also of sharded weights
    casts = 2 * trained if half else 0
    older = (config.optimizer.kl_coefficient > 0) + (config.reward.needs_beliefs and config.reward.older_scorer)
    shares = training.world if training.sharding == "fsdp" else 1
    cache, passes = _rollout(shape, config, half, lora is not None)
    return Memory(
        weights=weights // shares,
        optimizer=3 * 4 * trained // shares,  # gradient and two moments, float32
        copies=older * 4 * trained // shares,
        margin=CONTEXT + (NCCL if training.world > 1 else 0) if training.device == "cuda" else 0,
        gathered=weights - weights // shares + casts,
        cache=cache,
        passes=passes,
        activations=_activations(shape, config, half, lora),
        unsharded=_unsharded(shape, config, weights, trained, casts),
        kept=cache + casts + _graph(shape, config) if isinstance(config.rollout.engine, ContinuousEngine) else 0,
        taught=casts + _taught(shape, config, half, lora) if config.warm_start else 0,
    )


def wants_checkpointing(config: ExperimentConfig, model: Any) -> bool:
    """Whether activations are computed again on the way back: as optimizer.gradient_checkpointing says, or with "auto" where the
    run's steps would not fit the share of the accelerator that it was given. A warm start keeps its activations in any case."""
    wanted = config.optimizer.gradient_checkpointing
    if wanted != "auto":
        return wanted
    if model.device.type != "cuda":
        return False
    import torch

    kept = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"gradient_checkpointing": False})}
    )
    card: int = torch.cuda.get_device_properties(model.device).total_memory
    return memory(Shape.of(model.config), kept).steps > config.training.memory_share * card


def _rollout(shape: Shape, config: ExperimentConfig, half: bool, lora: bool) -> tuple[int, int]:
    """The cache of a batch, and what the widest pass without gradient holds beyond it.

    Columns are shared by rows and number max_tokens at most where every turn's longest row and observation fit that together.
    Under a mask keys and values are repeated for all heads of a layer; a layer that grows or is selected from stands twice.
    """
    rollout, compute = config.rollout, 2 if half else 4
    queries, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    a_token = 2 * keys * compute  # of a layer
    block = (4 if shape.gated else 3) * shape.feed_forward * compute + 16 * shape.width + 4 * (queries + keys) * 2
    # what reads histories of their own: beliefs that do not ride, diagnostics, log-probabilities of what servers sampled
    alone = max(config.optimizer.tokens_per_batch, rollout.max_tokens)
    promoted = (
        half and not lora
    )  # transformers' own cache keeps keys and values in float32 then, and attention casts them
    history = alone * (
        shape.layers * a_token * (2 if promoted else 1) + block + 2 * queries * (6 if promoted else compute)
    )
    # after the pass beliefs are projected in float32, for which weights that are kept in bfloat16 are converted
    converted = 4 * shape.vocabulary * shape.width if half and lora and config.reward.needs_beliefs else 0
    if isinstance(rollout.engine, VllmEngine):
        return 0, history + converted  # their caches are the servers'
    rows = _rows(config)
    if isinstance(rollout.engine, ContinuousEngine):  # columns of probes are a small part of those of a history
        packed = TOKENS_A_PASS * (block + 2 * queries * compute) + _graph(shape, config)
        cache = rows * (rollout.max_tokens + 128) * shape.layers * a_token
        return cache, max(packed, converted + _graph(shape, config), history - cache)
    columns = room_for(rollout.max_tokens)
    width = min(rollout.max_tokens, _widest(config))
    passes = rows * (
        columns * (2 * a_token + 2 * queries * compute)
        + width * (block + columns * (3 + compute))  # the mask as booleans, and as the kernel adds it
        + 36 * shape.vocabulary  # logits, their distribution and its sums in float64
    )
    cache = rows * columns * shape.layers * a_token
    return cache, max(passes, converted, history - cache)  # the one or the other is held


def _rows(config: ExperimentConfig) -> int:
    """Histories that a process rolls out at a time."""
    rollout, evaluation = config.rollout, config.evaluation
    questions = -(-rollout.questions // config.training.world) * rollout.group_size
    evaluated = -(-max(evaluation.dev_questions, evaluation.test_questions) // config.training.world)
    return min(rollout.batch_size, max(questions, evaluated))


def _graph(shape: Shape, config: ExperimentConfig) -> int:
    """What the continuous engine's decoding step computes in: logits, their distribution and its sums in float64."""
    return _rows(config) * 44 * shape.vocabulary


def _widest(config: ExperimentConfig) -> int:
    """Tokens of a prompt, or of an observation at two tokens a word with its probes."""
    return max(512, 128 + 2 * config.data.observation_words)


def _activations(shape: Shape, config: ExperimentConfig, half: bool, lora: Lora | None) -> int:
    """What is kept of a micro-batch for the way back: of each block, or with checkpointing its input alone and one block whole;
    then the last norm, the head's input, a chunk of logits and its gradients, and the gradients inside a block."""
    compute, residual, tokens = _sizes(config, half, lora)
    block = (_compiled_block if packs(shape, config) else _block)(shape, compute, residual, lora)
    kept = block * shape.layers
    if config.optimizer.gradient_checkpointing:
        kept = shape.width * residual * shape.layers + block
    most = LOGITS_AT_A_TIME if config.training.device == "cpu" else LOGITS_AT_A_TIME_ON_GPU
    logits = 6 * 4 * min(most, tokens * shape.vocabulary)
    return tokens * (kept + _besides(shape, compute, residual, lora)) + logits


def _taught(shape: Shape, config: ExperimentConfig, half: bool, lora: Lora | None) -> int:
    """The same of a warm start's batch, which is padded and computes nothing again; and of its taught tokens, as many of a
    trajectory as could be sampled, a float32 distribution over the vocabulary, its gradient and that of the logits."""
    compute, residual, tokens = _sizes(config, half, lora)
    rollout = config.rollout
    share = min(1.0, rollout.max_turns * rollout.max_new_tokens / rollout.max_tokens)
    kept = _block(shape, compute, residual, lora) * shape.layers + _besides(shape, compute, residual, lora)
    return tokens * kept + round(tokens * share) * 3 * 4 * shape.vocabulary


def _sizes(config: ExperimentConfig, half: bool, lora: Lora | None) -> tuple[int, int, int]:
    """Bytes of a number that is computed with, and of the residual; tokens of a micro-batch at most."""
    tokens = max(config.optimizer.tokens_per_batch, config.rollout.max_tokens)
    return 2 if half else 4, 2 if half and lora else 4, tokens


def _besides(shape: Shape, compute: int, residual: int, lora: Lora | None) -> int:
    """Bytes a token beside those of the blocks: the last norm, the head's input, the gradients inside a block."""
    norm = 4 * shape.width * (1 if lora else 2)
    return norm + (residual + compute) * shape.width + 3 * compute * shape.feed_forward + 3 * 4 * shape.width


def _block(shape: Shape, compute: int, residual: int, lora: Lora | None) -> int:
    """Bytes a token that a block keeps where every operation keeps what it needs: inputs of norms, float32, and where they are
    trained their outputs before the weight; inputs of matrices, of which autocast makes one for each; queries, keys, values, what
    attention gives; the MLP's gate, its activation, the other half and their product."""
    query, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    norm = 4 * shape.width * (1 if lora else 2)
    inputs = (10 if compute == 2 else 8) * shape.width
    attention = compute * (2 * query + 2 * keys) + 4 * shape.heads
    mlp = compute * (4 if shape.gated else 2) * shape.feed_forward
    adapter = compute * lora.rank * len(shape.linears) + (2 * query if compute == 2 else 0) if lora else 0
    return 2 * norm + inputs + attention + mlp + adapter


def _compiled_block(shape: Shape, compute: int, residual: int, lora: Lora | None) -> int:
    """The same of a compiled layer, as packed updates have them: it keeps what matrices and attention give, computes all between
    them again on the way back, and has the residual twice, before attention and before the MLP."""
    query, keys = shape.heads * shape.head_width, shape.key_value_heads * shape.head_width
    attention = compute * (2 * query + 2 * keys) + 4 * shape.heads
    mlp = compute * (2 if shape.gated else 1) * shape.feed_forward
    adapter = compute * lora.rank * len(shape.linears) if lora else 0
    return 2 * residual * shape.width + attention + mlp + adapter


def _unsharded(shape: Shape, config: ExperimentConfig, weights: int, trained: int, casts: int) -> int:
    """The larger of two moments. The end of the forward pass has the casts of all weights. The way back has them too, unless
    it computes blocks again, one by one; and a gradient of the largest matrix before it is added. To either FSDP adds the
    root's unit (embeddings, head) and two layers whole with their buffers, and on the way back gradients that are not spread
    yet with their buffers, the root's and those of three layers. DDP's buckets are a copy of all gradients. When all that
    is gone, the optimizer copies a moment."""
    root = shape.vocabulary * shape.width * (1 if shape.tied else 2)
    layer = (shape.parameters - root) // shape.layers
    head = shape.vocabulary * shape.width
    full = trained == shape.parameters
    back = min(casts, 2 * (layer + head)) if config.optimizer.gradient_checkpointing else casts
    back += 6 * max(head, shape.feed_forward * shape.width) if full else 0  # as computed, and in float32
    if config.training.sharding == "fsdp":
        a_weight, a_gradient = weights / shape.parameters, 4 * trained / shape.parameters
        whole = (root + 4 * layer) * a_weight
        return round(max(casts + whole, back + whole + (2 * root + 3 * layer) * a_gradient))
    buckets = 4 * trained if config.training.world > 1 else 0
    return buckets + max(casts, back, 4 * trained)


def packs(shape: Shape, config: ExperimentConfig) -> bool:
    """Return whether updates are packed (igpo_core.sampled.packs), as far as settings and shape tell."""
    policy, training = config.policy, config.training
    half = isinstance(policy, PretrainedPolicy) and policy.half
    return half and shape.packable and training.device == "cuda" and training.sharding == "none"
