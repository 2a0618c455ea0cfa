"""Memory and seconds of the presets for real models, counted from the models' published shapes: no hub, no accelerator.

python -m benchmarks.presets
"""

from transformers import Qwen2Config

from igpo_core.estimates import GIB, Shape, memory
from igpo_core.step_costs import work
from tasks.specification.presets import load_specification

SEVEN = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064, tie_word_embeddings=False,
)  # fmt: skip
# Qwen2.5-Instruct as its config.json files have it; tokens of a trajectory, and how many of them are sampled
MODELS = {
    "qwen-0-5b": (Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ), 2100, 400),
    "qwen-1-5b": (Qwen2Config(
        hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
        vocab_size=151936, tie_word_embeddings=True,
    ), 2100, 400),
    "qwen-7b": (SEVEN, 8000, 2500),
    "qwen-7b-two-nodes": (SEVEN, 8000, 2500),
}  # fmt: skip
PROBE, H100, BANDWIDTH = 20, 989e12, 3.35e12  # tokens of a probe; bfloat16 operations and bytes a second


def main() -> None:
    for preset, (config, tokens, sampled) in MODELS.items():
        specification, shape = load_specification(preset), Shape.of(config)
        arms = [specification.experiment(arm, 0, specification.cells[0]) for arm in specification.arms]
        experiment = max(arms, key=lambda arm: memory(shape, arm).total)
        held = memory(shape, experiment)
        parts = {**vars(held), "rollout": held.rollout, "update": held.update}
        step = work(
            shape, experiment, tokens=tokens, sampled=sampled, probes=PROBE * experiment.rollout.max_turns
        ).seconds(H100, BANDWIDTH)
        listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        print(f"{preset}: {held.total / GIB:.1f} GiB ({listed}); {step:.0f} s a step")


if __name__ == "__main__":
    main()
