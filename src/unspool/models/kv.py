"""Keys and values of several sequences, side by side, written in place.

Every layer has one tensor ``[S, H, C, D]``: ``S`` slots for sequences, ``C`` positions of room. A forward pass
writes the rows of its tree behind the committed ones; committing a path moves at most the accepted rows. Branches that
are scored together lie in neighbouring slots, so that attention reads a view and nothing is copied.

The room behind the committed positions is the scratch of the candidates: each tree is written over the last one. By
default a pool grows by doubling, which copies least; with a ``block`` it holds no more than what is needed, rounded up
to whole blocks, and gives slots back at once.

A cache need not hold every position of its text (:meth:`KVCache.select`). Keys are stored as the network made them,
with their true positions in them, so what is left needs no new numbers: ``length`` says where the text goes on,
``held`` how many rows there are.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Cache
from unspool.models.memory import Ledger

_FIRST_ROOM = 256


class KVPool:
    """The memory of sequences that are mostly scored together.

    Args:
        block: positions by which the room grows; ``None`` to double it.
        ledger: counts the bytes, and may refuse some.

    Attributes:
        beside: a pool for parts of the same sequences, where there are any.
    """

    def __init__(self, block: int | None = None, ledger: Ledger | None = None) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.owners: list[KVCache] = []
        self.block = block
        self.ledger = ledger
        self.beside: KVPool | None = None
        # The tensors' addresses, until one of them is exchanged.
        self._addresses: Any = None
        self._room = _FIRST_ROOM if block is None else 0

    def claim(self) -> KVCache:
        """A new sequence in the next free slot."""
        cache = KVCache(self, len(self.owners))
        self.owners.append(cache)
        return cache

    def reserve(self, positions: int) -> None:
        """Make room for so many positions in every slot; grows by doubling, or by whole blocks."""
        if positions > self._room:
            grown = 2 * self._room if self.block is None else -(-positions // self.block) * self.block
            self._room = max(positions, grown)

    def grow(self) -> None:
        """Enlarge all layers now, one after the other, instead of each when a pass comes to it."""
        for layer in list(self.layers):
            self.buffers(layer, *self.layers[layer])

    @property
    def room(self) -> int:
        """Positions that every slot has room for in the layers that are there."""
        return min((keys.shape[2] for keys, _ in self.layers.values()), default=0)

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
        # Forks come one by one; doubling keeps them from copying everything each time.
        before = held[0].shape[0] if held else 0
        wide = slots if before == 0 or self.block else before if slots <= before else max(slots, 2 * before)
        self._count(keys, values, wide, room)
        fresh = []
        for place, rows in enumerate((keys, values)):
            # Zeros, not empty: masked rows get weight 0, and 0 * NaN would be NaN.
            size = (wide, rows.shape[1], room, rows.shape[3])
            new = rows.new_zeros(size)
            if held is not None:
                old = held[place]
                new[: old.shape[0], :, : old.shape[2]] = old
            fresh.append(new)
        self.layers[layer] = (fresh[0], fresh[1])
        self._addresses = None
        self._uncount(held)
        return self.layers[layer]

    def addresses(self, layers: int, like: Tensor) -> Any:
        """Where keys and values of all layers lie, in turn: an array of C for kernels that write them themselves.

        Args:
            layers: how many there are; they are made or enlarged first, to the room that was reserved.
            like: ``[B, H, N, D]`` as for :meth:`buffers`.
        """
        first = self.layers.get(0)
        if (
            self._addresses is None
            or first is None
            or first[0].shape[0] < len(self.owners)
            or first[0].shape[2] < self._room
        ):
            tensors = [tensor for layer in range(layers) for tensor in self.buffers(layer, like, like)]
            self._addresses = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        return self._addresses

    def _count(self, keys: Tensor, values: Tensor, slots: int, room: int) -> None:
        if self.ledger is not None:
            size = keys.shape[1] * keys.shape[3] * keys.element_size()
            size += values.shape[1] * values.shape[3] * values.element_size()
            self.ledger.take("cache", slots * room * size)

    def _uncount(self, held: tuple[Tensor, Tensor] | None) -> None:
        if self.ledger is not None and held is not None:
            self.ledger.give("cache", sum(tensor.numel() * tensor.element_size() for tensor in held))

    def fork(self, source: KVCache) -> KVCache:
        twin = self.claim()
        twin.length, twin.dropped, twin.solid = source.length, source.dropped, source.solid
        for layer in list(self.layers):
            keys, values = self.buffers(layer, *self.layers[layer])
            keys[twin.slot, :, : source.held] = keys[source.slot, :, : source.held]
            values[twin.slot, :, : source.held] = values[source.slot, :, : source.held]
        return twin

    def release(self, cache: KVCache) -> None:
        """Free a slot; the last slot moves into the gap, so that the live ones stay neighbours."""
        last = self.owners.pop()
        if last is not cache:
            used = last.held + last.scored
            for keys, values in self.layers.values():
                if last.slot < keys.shape[0]:
                    keys[cache.slot, :, :used] = keys[last.slot, :, :used]
                    values[cache.slot, :, :used] = values[last.slot, :, :used]
            last.slot = cache.slot
            self.owners[cache.slot] = last
        if not self.owners:
            for held in self.layers.values():
                self._uncount(held)
            self.layers.clear()
            self._addresses = None
        elif self.block is not None:
            self._fit()

    def _fit(self) -> None:
        """Give back the slots that nobody owns, a layer at a time."""
        slots = len(self.owners)
        for layer in list(self.layers):
            keys, values = self.layers[layer]
            if keys.shape[0] > slots:
                self._count(keys, values, slots, keys.shape[2])
                self.layers[layer] = (keys[:slots].clone(), values[:slots].clone())
                self._addresses = None
                self._uncount((keys, values))

    @property
    def slot_bytes(self) -> int:
        return sum((k.nbytes + v.nbytes) // k.shape[0] for k, v in self.layers.values())


class KVCache(Cache):
    """One sequence's slot of a :class:`KVPool`.

    Attributes:
        length: committed positions.
        dropped: how many of them have no row any more.
        solid: the first position from which on none was dropped; their rows are the last ones, in order.
        scored: nodes of the last tree, held provisionally behind them.
        kept: whether it outlives its request: ``release`` does nothing then.
    """

    def __init__(self, pool: KVPool, slot: int) -> None:
        self.pool = pool
        self.slot = slot
        self.length = 0
        self.dropped = 0
        self.solid = 0
        self.scored = 0
        self.released = False
        self.kept = False

    @property
    def held(self) -> int:
        """Committed rows."""
        return self.length - self.dropped

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """``[H, held, D]`` keys and values of the committed rows of a layer: views."""
        keys, values = self.pool.layers[layer]
        return keys[self.slot, :, : self.held], values[self.slot, :, : self.held]

    def select(self, rows: Mapping[int, Tensor], solid: int, source: KVCache | None = None) -> None:
        """Hold these rows of ``source`` (of this cache itself, if there is none) and nothing else.

        Args:
            rows: for every layer ``[H, K]`` committed rows to keep of each head, ascending; as many everywhere.
            solid: the first position from which on everything is kept.
            source: another cache of the same text and network, which is left as it is.
        """
        source = source or self
        counts = {index.shape[-1] for index in rows.values()}
        if rows.keys() != source.pool.layers.keys() or len(counts) != 1:
            raise InvalidInput("as many rows must be selected of every head in every layer")
        (count,) = counts
        self.pool.reserve(count)
        for layer, index in rows.items():
            picked = []
            for held in source.rows(layer):
                wide = index.to(held.device)[:, :, None].expand(-1, -1, held.shape[-1])
                picked.append(held.gather(1, wide))
            keys, values = self.pool.buffers(layer, picked[0][None], picked[1][None])
            keys[self.slot, :, :count], values[self.slot, :, :count] = picked
        self.length, self.dropped, self.solid = source.length, source.length - count, solid
        self.scored = 0

    def commit(self, path: Sequence[int]) -> None:
        nodes = list(path)
        for node in nodes:
            if not 0 <= node < self.scored:
                raise InvalidInput(f"node {node} cannot be committed: the last tree had {self.scored} nodes")
        # Rows that already lie in place are not moved; for a chain nothing is.
        still = next((place for place, node in enumerate(nodes) if node != place), len(nodes))
        if still < len(nodes):
            rows = torch.tensor(nodes[still:], dtype=torch.int64) + self.held
            first, last = self.held + still, self.held + len(nodes)
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
        if length < self.solid:
            raise InvalidInput(f"cannot rewind to {length}: rows before position {self.solid} were dropped")
        self.length, self.scored = length, 0

    @property
    def nbytes(self) -> int:
        return self.pool.slot_bytes

    def release(self) -> None:
        if not self.released and not self.kept:
            self.released = True
            self.pool.release(self)
