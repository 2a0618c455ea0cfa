"""A KV cache that grows in place: transformers' DynamicCache copies the whole cache for every token it appends."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

COLUMNS_AT_A_TIME = 32


def room_for(columns: int) -> int:
    """Columns that a cache of so many gets: an eighth more, and COLUMNS_AT_A_TIME at least.

    Much more would cost time in a short cache: rows that lie far apart share few cache lines and pages of memory.
    """
    return columns + max(COLUMNS_AT_A_TIME, columns // 8)


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
            self.room = (self._room(key_states, columns), self._room(value_states, columns))
            for room, held in zip(self.room, (self.keys, self.values), strict=True):
                if held is not None:
                    room[:, :, :past] = held
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        keys, values = self.room
        keys[:, :, past:columns] = key_states
        values[:, :, past:columns] = value_states
        self.keys, self.values = keys[:, :, :columns], values[:, :, :columns]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Only keep these rows, in this order; a row may be taken several times."""
        columns = self.get_seq_length()
        if columns == 0:
            return
        assert self.keys is not None and self.values is not None
        held = (self.keys, self.values)
        self.room = (self._room(self.keys, columns, len(indices)), self._room(self.values, columns, len(indices)))
        self.keys, self.values = (room[:, :, :columns] for room in self.room)
        for kept, whole in zip((self.keys, self.values), held, strict=True):
            torch.index_select(whole, 0, indices, out=kept)

    @staticmethod
    def _room(like: torch.Tensor, columns: int, rows: int | None = None) -> torch.Tensor:
        count, heads, _, size = like.shape
        return like.new_empty(count if rows is None else rows, heads, room_for(columns), size)


def roomy_cache(config: Any) -> DynamicCache:
    """An empty cache for a model of this configuration. Layers with a sliding window keep everything too: what is sampled is no
    longer than the window (igpo_core/models.py), and masks say what is seen."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() for _ in cache.layers]
    return cache
