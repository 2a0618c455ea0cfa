"""A KV cache that grows in place: transformers' DynamicCache copies the whole cache for every token it appends."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS_AT_A_TIME = 256  # a row wastes at most so many columns, and the cache is copied once in as many tokens


class RoomyLayer(DynamicLayer):
    """A DynamicLayer whose keys and values [rows, heads, columns, size] are views of tensors with room for more columns.

    Without gradients only: it writes in place.
    """

    def __init__(self) -> None:
        DynamicLayer.__init__(self)
        self.room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """Append columns; returns all keys and values."""
        # Rotary embedding promotes keys to float32 where the residual is; attention casts them back under autocast, to the same
        # bits, whether they were kept so or not: kept as values are, they take half the room.
        key_states = key_states.to(value_states.dtype)
        past = self.get_seq_length()
        columns = past + key_states.shape[-2]
        if self.room is None or columns > self.room[0].shape[-2]:
            self.room = (self._grown(self.keys, key_states, columns), self._grown(self.values, value_states, columns))
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        keys, values = self.room
        keys[:, :, past:columns] = key_states
        values[:, :, past:columns] = value_states
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keep these rows, in this order; a row may be taken several times."""
        super().batch_select_indices(indices)
        self.room = None  # keys and values are tensors of their own now

    @staticmethod
    def _grown(held: torch.Tensor | None, like: torch.Tensor, columns: int) -> torch.Tensor:
        rows, heads, _, size = like.shape
        room = like.new_empty(rows, heads, -(-columns // COLUMNS_AT_A_TIME) * COLUMNS_AT_A_TIME, size)
        if held is not None:
            room[:, :, : held.shape[-2]] = held
        return room


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration. Layers with a sliding window stay transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
