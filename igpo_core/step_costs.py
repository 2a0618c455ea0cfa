"""What a training step costs, counted before a run starts: floating-point operations, bytes, and seconds on a GPU.

Pure arithmetic on a model's shape and the settings. docs/scale.md compares it with measured steps.
"""

from dataclasses import dataclass

from igpo_core.config import ExperimentConfig, PretrainedPolicy, TransformersEngine, VllmEngine
from igpo_core.estimates import Shape, packs

# How a GPU runs a step, fitted to steps on H100s (2026-11-26 and 27; docs/scale.md compares, tests/tasks/test_figures.py holds it
# there). Shares of the data sheet's operations and bytes a second that passes and decoding reach. What an update moves besides
# its products, in bytes for each token, layer and number of the residual. Seconds that the processor needs for a layer of a
# decoding step, whose kernels are small, and for a turn of a trajectory, whose text it encodes.
PASSES_REACH, DECODING_REACHES = 0.52, 0.5
MOVED_PACKED, MOVED_PADDED = 520, 1300
LAYER_STARTS = {"transformers": 1.3e-3, "continuous": 1.05e-4}
TURN_TAKES = 1e-3


@dataclass(frozen=True)
class Work:
    """Of one training step, of each process: operations of prefills, of decoding, of beliefs, of the update; bytes that decoding
    reads; bytes that an update moves besides its products; seconds that a GPU waits for
    its kernels in decoding, and for texts between turns. Where servers sample, `prefill` is the pass that computes their tokens'
    log-probabilities anew, and what the servers need is not counted."""

    prefill: float
    decoding: float
    beliefs: float
    update: float
    decoding_bytes: float
    update_bytes: float
    decoding_waits: float
    turns_wait: float

    @property
    def rollout(self) -> float:
        """Return the operations of prefills and decoding."""
        return self.prefill + self.decoding

    def rollout_seconds(self, operations: float, bandwidth: float) -> float:
        """Return the seconds of a rollout with its beliefs on a GPU that has so many operations and bytes a second by its data
        sheet."""
        reading = self.decoding_bytes / bandwidth / DECODING_REACHES
        computing = self.decoding / operations / PASSES_REACH
        passes = (self.prefill + self.beliefs) / operations / PASSES_REACH
        return passes + max(reading, computing, self.decoding_waits) + self.turns_wait

    def update_seconds(self, operations: float, bandwidth: float) -> float:
        """Return the seconds of an update there."""
        return self.update / operations / PASSES_REACH + self.update_bytes / bandwidth

    def seconds(self, operations: float, bandwidth: float) -> float:
        """Return the seconds of a step there."""
        return self.rollout_seconds(operations, bandwidth) + self.update_seconds(operations, bandwidth)


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
    passes = (2 if lora else 3) + bool(config.optimizer.gradient_checkpointing)  # "auto": the longer one
    half = isinstance(config.policy, PretrainedPolicy) and config.policy.half
    at_a_time = min(rollouts, config.rollout.batch_size)
    columns = config.rollout.max_turns * config.rollout.max_new_tokens
    steps = -(-rollouts // at_a_time) * min(
        columns, sampled * 1.5
    )  # the slowest of a batch samples longer than the mean
    a_token = 2 * shape.layers * shape.key_value_heads * shape.head_width * (2 if half else 4)
    # the exact engine reads the columns of every row of a batch in each step, the others what each has
    padded = isinstance(config.rollout.engine, TransformersEngine)
    cache = (steps * at_a_time if padded else sampled * rollouts) * tokens / 2 * a_token
    decoding = 0.0 if served else rollouts * sampled * (2 * shape.block_weights + attention + head)
    moved = rollouts * tokens * shape.layers * shape.width * (MOVED_PACKED if packs(shape, config) else MOVED_PADDED)
    return Work(
        prefill=forward - decoding,
        decoding=decoding,
        beliefs=beliefs,
        update=forward * passes * config.optimizer.updates_per_step,
        decoding_bytes=0.0 if served else steps * (shape.block_weights + head / 2) * (2 if half else 4) + cache,
        update_bytes=moved * passes / 3 * config.optimizer.updates_per_step,
        decoding_waits=0.0 if served else steps * shape.layers * LAYER_STARTS[config.rollout.engine.kind],
        turns_wait=0.0 if served else rollouts * config.rollout.max_turns * TURN_TAKES,
    )
