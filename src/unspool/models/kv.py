"""Keys and values of several sequences, side by side, written in place.

Every layer has one tensor ``[S, H, C, D]``: ``S`` slots for sequences, ``C`` positions of room. A forward pass
writes the
rows of its tree behind the committed ones; committing a path moves at most the accepted rows. Branches that are
scored together lie in neighbouring slots, so that attention reads a view and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Cache

_FIRST_ROOM = 256


class KVPool:
    """The memory of sequences that are mostly scored together."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.owners: list[KVCache] = []
        self._room = _FIRST_ROOM

    def claim(self) -> KVCache:
        """A new sequence in the next free slot."""
        cache = KVCache(self, len(self.owners))
        self.owners.append(cache)
        return cache

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in every slot; grows by doubling."""
        if positions > self._room:
            self._room = max(positions, 2 * self._room)

    def buffers(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The tensors of a layer, made or enlarged to the current number of slots and positions.

        Args:
            layer: index.
            keys, values: ``[B, H, N, D]`` rows of a forward pass; they tell shape, dtype and device.
        """
        slots, room = len(self.owners), self._room
        held = self.layers.get(layer)
        if held is not None and held[0].shape[0] >= slots and held[0].shape[2] >= room:
            return held
        fresh = []
        for place, rows in enumerate((keys, values)):
            # Zeros, not empty: masked rows get weight 0, and 0 * NaN would be NaN.
            # Forks come one by one; doubling keeps them from copying everything each time.
            before = held[0].shape[0] if held else 0
            wide = slots if before == 0 else before if slots <= before else max(slots, 2 * before)
            size = (wide, rows.shape[1], room, rows.shape[3])
            new = rows.new_zeros(size)
            if held is not None:
                old = held[place]
                new[: old.shape[0], :, : old.shape[2]] = old
            fresh.append(new)
        self.layers[layer] = (fresh[0], fresh[1])
        return self.layers[layer]

    def fork(self, source: KVCache) -> KVCache:
        twin = self.claim()
        twin.length = source.length
        for layer, (keys, values) in list(self.layers.items()):
            keys, values = self.buffers(layer, keys, values)
            keys[twin.slot, :, : source.length] = keys[source.slot, :, : source.length]
            values[twin.slot, :, : source.length] = values[source.slot, :, : source.length]
        return twin

    def release(self, cache: KVCache) -> None:
        """Free a slot; the last slot moves into the gap, so that the live ones stay neighbours."""
        last = self.owners.pop()
        if last is not cache:
            used = last.length + last.scored
            for keys, values in self.layers.values():
                if last.slot < keys.shape[0]:
                    keys[cache.slot, :, :used] = keys[last.slot, :, :used]
                    values[cache.slot, :, :used] = values[last.slot, :, :used]
            last.slot = cache.slot
            self.owners[cache.slot] = last
        if not self.owners:
            self.layers.clear()

    @property
    def slot_bytes(self) -> int:
        return sum((k[0].numel() + v[0].numel()) * k.element_size() for k, v in self.layers.values())


class KVCache(Cache):
    """One sequence's slot of a :class:`KVPool`.

    Attributes:
        length: committed positions.
        scored: nodes of the last tree, held provisionally behind them.
    """

    def __init__(self, pool: KVPool, slot: int) -> None:
        self.pool = pool
        self.slot = slot
        self.length = 0
        self.scored = 0
        self.released = False

    def commit(self, path: Sequence[int]) -> None:
        nodes = list(path)
        for node in nodes:
            if not 0 <= node < self.scored:
                raise InvalidInput(f"node {node} cannot be committed: the last tree had {self.scored} nodes")
        # Rows that already lie in place are not moved; for a chain nothing is.
        still = next((place for place, node in enumerate(nodes) if node != place), len(nodes))
        if still < len(nodes):
            rows = torch.tensor(nodes[still:], dtype=torch.int64) + self.length
            first, last = self.length + still, self.length + len(nodes)
            for keys, values in self.pool.layers.values():
                here = rows.to(keys.device)
                keys[self.slot, :, first:last] = keys[self.slot].index_select(1, here)
                values[self.slot, :, first:last] = values[self.slot].index_select(1, here)
        self.length += len(nodes)
        self.scored = 0

    def fork(self) -> KVCache:
        return self.pool.fork(self)

    def rewind(self, length: int) -> None:
        self._check_rewind(length)
        self.length, self.scored = length, 0

    @property
    def nbytes(self) -> int:
        return self.pool.slot_bytes

    def release(self) -> None:
        if not self.released:
            self.released = True
            self.pool.release(self)


class KVPass(transformers.Cache):
    """What a transformers network sees as its cache during one forward pass.

    Args:
        caches: one a row of the batch.
        starts: the position at which each row's first new key is written.
        counts: how many of the (padded) new keys of each row are real.
        depths: of all nodes of each row's tree, the known ones too; for networks that ask at which position a key is.
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
