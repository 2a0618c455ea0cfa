"""Random models of real shapes, a chat tokenizer trained on made-up text, and a search tool of constant length."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, Qwen2Config

from igpo_core.config import LookupWorld, NewPolicy
from igpo_core.environments.lookup import LookupEnvironment
from igpo_core.environments.searching import SEARCH, search_for
from igpo_core.policies import Policy, chat_tokenizer, make_policy
from igpo_core.trajectory import Episode, Observation, Question, ToolCall

QWEN2_HALF_BILLION = {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_SMALLEST = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 2_048, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_TINY = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 8_192, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_MIDDLE = {
    "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 8_192, "tie_word_embeddings": True,
}  # fmt: skip


def words(count: int, seed: int) -> str:
    rng = random.Random(seed)
    syllables = ["ka", "ro", "min", "tel", "su", "vor", "an", "li", "pet", "dor", "ush", "el"]
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(count))


LLAMA_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3, "vocab_size": 49_152, "tie_word_embeddings": True,
}  # fmt: skip
QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False,
}  # fmt: skip


def policy(
    shape: dict[str, Any],
    window: int = 32_768,
    dtype: torch.dtype = torch.float32,
    architecture: type[PretrainedConfig] = Qwen2Config,
) -> Policy:
    """A random model of this shape, on the GPU where there is one, made there."""
    # English as well, or the fixed sentences of prompt and probe would have three times the tokens that Qwen's give them
    english = f"{SEARCH.system_prompt} <think>\n{SEARCH.final_thought}\n</think>\n<answer>\n</answer> "
    tokenizer = chat_tokenizer(
        [words(20_000, 0), english * 100], NewPolicy(tokenizer="chat", architecture="qwen2", vocabulary=2_000)
    )
    torch.manual_seed(0)
    config = architecture(
        **shape,
        max_position_embeddings=window,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype)
    return make_policy(model, tokenizer, SEARCH)


class ConstantSearch(LookupEnvironment):
    """Every query finds the same text."""

    def __init__(self, length: int) -> None:
        super().__init__(LookupWorld(), [], 1)
        self.text = words(length, 1)

    def call(self, episode: Episode, call: ToolCall) -> Observation:
        return Observation(self.text)


class Fixed(ConstantSearch):
    """An environment of given questions, with a search of constant length: what a Trainer asks for."""

    def __init__(self, asked: Sequence[Any], length: int) -> None:
        super().__init__(length)
        self.asked = asked

    def tasks(self, split: str) -> Sequence[Any]:
        return self.asked


def questions(count: int, answer_words: int = 2) -> list[Question]:
    return [
        Question(f"q{i}", "custom", "train", f"Who is {words(12, i)} ?", (words(answer_words, 100 + i),))
        for i in range(count)
    ]


def turn_script(of: Policy, thought_words: int) -> list[int]:
    """The ids of a searching turn with a thought of so many words."""
    ids, _ = of.protocol.turn(words(thought_words, 7), search_for(words(4, 8)))
    return ids
