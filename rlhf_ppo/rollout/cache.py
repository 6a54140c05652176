"""A key-value cache with room to grow: no copy of everything at each token."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from rlhf_ppo.models.packing import attention_dtype

ROOM = 64  # tokens that a full buffer is enlarged by


class RoomyLayer(DynamicLayer):
    """As Transformers' DynamicLayer, but keys and values are views into larger buffers."""

    buffers: tuple[Tensor, Tensor] | None = None  # (B, heads, capacity, D)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, heads, n, D); returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # One type, the one attention asks for: not all of the cache converted at each token.
        kind = attention_dtype(key_states.device.type, key_states.dtype, value_states.dtype)
        key_states, value_states = key_states.to(kind), value_states.to(kind)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.buffers is None or self.buffers[0].shape[-2] < end:
            self.buffers = (
                _enlarged(self.keys, key_states, end + ROOM),
                _enlarged(self.values, value_states, end + ROOM),
            )
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = new
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order; only rows whose place changes are moved."""
        if self.buffers is None:
            return
        count, end = len(indices), self.get_seq_length()
        if count > len(self.buffers[0]):
            self.buffers = (self.buffers[0][indices], self.buffers[1][indices])
        else:
            moved = (indices != torch.arange(count, device=indices.device)).nonzero().squeeze(-1)
            for buffer in self.buffers:
                buffer[moved, :, :end] = buffer[indices[moved], :, :end]
            self.buffers = (self.buffers[0][:count], self.buffers[1][:count])
        self._show(end)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.buffers = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Other rows; the buffers are made again from them."""
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]  # any int64 will do
        self.buffers = None

    def batch_repeat_interleave(self, repeats: int) -> None:
        """More rows; the buffers are made again from them."""
        super().batch_repeat_interleave(repeats)
        self.buffers = None

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        assert self.buffers is not None
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers of other kinds (sliding, recurrent) stay as they are."""
    cache = DynamicCache(config=config)
    roomy: Any = RoomyLayer
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _enlarged(old: Tensor | None, like: Tensor, capacity: int) -> Tensor:
    batch, heads, _, width = like.shape
    buffer = torch.zeros(batch, heads, capacity, width, dtype=like.dtype, device=like.device)
    if old is not None and old.numel():
        buffer[:, :, : old.shape[-2]] = old
    return buffer
