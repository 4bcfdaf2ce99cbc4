"""The keys and values of a pass, as a network of transformers wants to see them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from unspool.models.kv import KVCache


class KVPass(transformers.Cache):
    """What a transformers network sees as its cache during one forward pass.

    Args:
        caches: one a row of the batch.
        starts: the position at which each row's first new key is written.
        counts: how many of the (padded) new keys of each row are real.
        depths: of all nodes of each row's tree, the known ones too; for networks that ask at which position a key is.

    Attributes:
        read: elements of keys and values that were handed out to be attended to, padding aside.
    """

    def __init__(
        self,
        caches: Sequence[KVCache],
        starts: Sequence[int],
        counts: Sequence[int],
        depths: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(layers=[])
        self.depths = depths
        self.caches = caches
        self.starts = starts
        self.counts = counts
        self.read = 0
        self.end = max(start + count for start, count in zip(starts, counts, strict=True))
        self.pools = {id(cache.pool): cache.pool for cache in caches}
        for pool in self.pools.values():
            pool.reserve(self.end)
        slots = [cache.slot for cache in caches]
        # Neighbours in one pool are read as a view; anything else is gathered.
        self.first = (
            slots[0] if len(self.pools) == 1 and slots == list(range(slots[0], slots[0] + len(slots))) else None
        )

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write ``[B, H, N, D]`` new rows; return ``[B, H, end, D]`` keys and values to attend to."""
        size = key_states.shape[1] * (key_states.shape[3] + value_states.shape[3])
        self.read += size * (sum(self.starts) + sum(self.counts))
        for row, (cache, start, count) in enumerate(zip(self.caches, self.starts, self.counts, strict=True)):
            keys, values = cache.pool.buffers(layer_idx, key_states, value_states)
            keys[cache.slot, :, start : start + count] = key_states[row, :, :count]
            values[cache.slot, :, start : start + count] = value_states[row, :, :count]
        if self.first is not None:
            last = self.first + len(self.caches)
            return keys[self.first : last, :, : self.end], values[self.first : last, :, : self.end]
        held = [cache.pool.layers[layer_idx] for cache in self.caches]
        return (
            torch.stack([k[cache.slot, :, : self.end] for cache, (k, _) in zip(self.caches, held, strict=True)]),
            torch.stack([v[cache.slot, :, : self.end] for cache, (_, v) in zip(self.caches, held, strict=True)]),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.starts[0]

    def __len__(self) -> int:
        return 0
