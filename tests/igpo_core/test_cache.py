"""The cache that grows in place holds what transformers' own cache holds, whatever is done to both."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, MistralConfig, Qwen2Config
from transformers.cache_utils import DynamicLayer

from igpo_core.rollout.cache import COLUMNS_AT_A_TIME, RoomyLayer, roomy_cache

ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 2 * COLUMNS_AT_A_TIME)),
        st.tuples(st.just("crop"), st.integers(1, 40)),
        st.tuples(st.just("select"), st.lists(st.integers(0, 10), min_size=1, max_size=4)),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(ACTIONS)
def test_it_holds_what_a_dynamic_layer_holds(actions: list[tuple[str, Any]]) -> None:
    generator = torch.Generator().manual_seed(0)
    roomy, plain = RoomyLayer(), DynamicLayer()
    rows = 3
    for name, amount in [("append", 2), *actions]:
        if name == "append":
            keys, values = (torch.rand(rows, 2, amount, 4, generator=generator) for _ in range(2))
            for mine, theirs in zip(roomy.update(keys, values), plain.update(keys, values), strict=True):
                assert torch.equal(mine, theirs)
        elif name == "crop" and amount < plain.get_seq_length():
            roomy.crop(-amount)
            plain.crop(-amount)
        elif name == "select":
            index = torch.tensor([i % rows for i in amount])
            rows = len(index)
            roomy.batch_select_indices(index)
            plain.batch_select_indices(index)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)


def test_keys_are_kept_as_values_are_and_attention_gives_the_same_bits() -> None:
    """Full bfloat16 training: the residual is float32, rotary embedding promotes keys to it, attention casts them back."""
    config = Qwen2Config(
        hidden_size=56, intermediate_size=128, num_hidden_layers=2, num_attention_heads=7, num_key_value_heads=1, vocab_size=99
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().get_decoder()
    tokens = torch.randint(99, (2, 24))
    mask = torch.ones(2, 1, 4, 20, dtype=torch.bool).tril(16)
    found = []
    for cache in (roomy_cache(config), DynamicCache(config=config)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            parts = [decoder(input_ids=tokens[:, :16], past_key_values=cache, use_cache=True)]
            parts += [
                decoder(input_ids=tokens[:, 16:20], past_key_values=cache, attention_mask=mask, use_cache=True),
                *(
                    decoder(input_ids=tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
                    for i in range(20, 24)
                ),
            ]
        found.append(torch.cat([part.last_hidden_state for part in parts], 1))
        kinds = {(layer.keys.dtype, layer.values.dtype) for layer in cache.layers}
        if isinstance(cache.layers[0], RoomyLayer):
            assert kinds == {(torch.bfloat16, torch.bfloat16)}
        else:  # before 5.24, transformers' own has values in float32 as well, once it has grown
            assert kinds in ({(torch.float32, torch.float32)}, {(torch.float32, torch.bfloat16)})
    assert torch.equal(*found)


def test_a_token_is_written_where_it_belongs_without_a_copy() -> None:
    layer = RoomyLayer()
    first, _ = layer.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    second, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert second.data_ptr() == first.data_ptr()
    assert second[0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1]


def test_rows_that_stay_are_copied_once_and_have_room_for_a_turn() -> None:
    layer = RoomyLayer()
    layer.update(torch.arange(30.0).view(3, 1, 5, 2), torch.zeros(3, 1, 5, 2))
    layer.batch_select_indices(torch.tensor([2, 0]))
    kept = layer.keys.data_ptr()
    keys, _ = layer.update(torch.zeros(2, 1, 26, 2), torch.zeros(2, 1, 26, 2))
    assert keys.data_ptr() == kept
    assert keys[:, 0, 0].tolist() == [[20, 21], [0, 1]]
    assert layer.room[0].shape[2] == 37  # not 256: rows far apart are slow to read


def test_a_history_within_a_sliding_window_is_seen_as_a_whole() -> None:
    """Columns are shared by all rows, so that there are more of them than tokens of a row: here 12, with a window of 8."""
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 32,
    }
    config = MistralConfig(**shape, intermediate_size=16, sliding_window=8)
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().get_decoder()
    tokens = torch.randint(32, (2, 8))
    cache, parts = roomy_cache(config), []
    # a row's two parts: 6 and 2 tokens, or 2 and 6
    real = torch.tensor([[True] * 6 + [True] * 2 + [False] * 4, [True] * 2 + [False] * 4 + [True] * 6])
    padded = torch.zeros(2, 12, dtype=torch.long).masked_scatter(real, tokens)
    sees = torch.ones(12, 12, dtype=torch.bool).tril() & real[:, None]
    with torch.no_grad():
        whole = decoder(input_ids=tokens, use_cache=False).last_hidden_state
        for start, end in ((0, 6), (6, 9), (9, 12)):
            parts.append(
                decoder(
                    input_ids=padded[:, start:end],
                    attention_mask=sees[:, None, start:end, :end],
                    position_ids=(real.cumsum(1) - 1)[:, start:end],
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
            )
    assert torch.allclose(torch.cat(parts, 1)[real].view(2, 8, 16), whole, atol=1e-5)
