"""The cache that grows in place holds what transformers' own cache holds, whatever is done to both."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, MistralConfig, Qwen2Config
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


def test_a_token_is_written_where_it_belongs_without_a_copy() -> None:
    layer = RoomyLayer()
    first, _ = layer.update(torch.zeros(1, 1, 5, 2), torch.zeros(1, 1, 5, 2))
    second, _ = layer.update(torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
    assert second.data_ptr() == first.data_ptr()
    assert second[0, 0, :, 0].tolist() == [0, 0, 0, 0, 0, 1]


def test_sliding_windows_keep_their_own_layers() -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    assert all(isinstance(layer, RoomyLayer) for layer in roomy_cache(Qwen2Config(**shape)).layers)
    sliding = MistralConfig(**shape, sliding_window=8)
    kinds = [type(layer) for layer in roomy_cache(sliding).layers]
    assert kinds == [type(layer) for layer in DynamicCache(config=sliding).layers] and RoomyLayer not in kinds
