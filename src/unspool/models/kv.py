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

Where passes can read a sequence from two slots, a fork copies nothing of what it shares with its source: its first rows
stay in the slot of the *lender*, for as long as nobody writes there. Who is about to copies them to those who need them
first; when a lender ends, the fork that borrows most takes its slot over.
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
        shares: whether forks leave the rows that they have in common where they are.

    Attributes:
        beside: a pool for parts of the same sequences, where there are any.
    """

    def __init__(self, block: int | None = None, ledger: Ledger | None = None, *, shares: bool = False) -> None:
        self.shares = shares
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
            for owner in self.owners if held is not None else []:
                old = held[place]  # type: ignore[index]
                if owner.slot < old.shape[0]:
                    used = slice(owner.shared, owner.held + owner.scored)
                    new[owner.slot, :, used] = old[owner.slot, :, used]
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
        if self.shares and source.held and not source.dropped:
            twin.borrow(source.lender or source, source.shared if source.lender else source.held)
        for layer in list(self.layers):
            self.buffers(layer, *self.layers[layer])
        self.copy(source.slot, twin.slot, twin.shared, source.held)
        return twin

    def copy(self, source: int, target: int, first: int, last: int) -> None:
        """Copy the rows from ``first`` up to ``last`` of one slot to another, in every layer."""
        if first < last:
            for tensors in self.layers.values():
                for tensor in tensors:
                    tensor[target, :, first:last] = tensor[source, :, first:last]

    def release(self, cache: KVCache) -> None:
        """Free a slot; the last slot moves into the gap, so that the live ones stay neighbours."""
        cache.give_back()
        if cache.borrowers:
            self._bequeath(cache)
        last = self.owners.pop()
        if last is not cache:
            if any(last.slot < keys.shape[0] for keys, _ in self.layers.values()):
                self.copy(last.slot, cache.slot, last.shared, last.held + last.scored)
            last.slot = cache.slot
            self.owners[cache.slot] = last
        if not self.owners:
            for held in self.layers.values():
                self._uncount(held)
            self.layers.clear()
            self._addresses = None
        elif self.block is not None:
            self._fit()

    def _bequeath(self, cache: KVCache) -> None:
        """The one that borrows most of ``cache`` takes its slot, and lends to the others."""
        heir = max(cache.borrowers, key=lambda one: one.shared)
        self.copy(heir.slot, cache.slot, heir.shared, heir.held + heir.scored)
        heir.slot, cache.slot = cache.slot, heir.slot
        self.owners[heir.slot], self.owners[cache.slot] = heir, cache
        others = [(one, one.shared) for one in cache.borrowers if one is not heir]
        heir.give_back()
        for one, shared in others:
            one.give_back()
            one.borrow(heir, shared)

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
        lender: the cache in whose slot the first rows lie, if it is not this one.
        shared: how many these are.
        borrowers: the caches whose first rows lie here.
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
        self.lender: KVCache | None = None
        self.shared = 0
        self.borrowers: list[KVCache] = []

    # -- sharing -----------------------------------------------------------------------------------------------------

    def borrow(self, lender: KVCache, rows: int) -> None:
        """Have the first rows in another's slot."""
        self.lender, self.shared = lender, rows
        lender.borrowers.append(self)

    def give_back(self) -> None:
        """Borrow nothing any more; the rows are not copied."""
        if self.lender is not None:
            self.lender.borrowers.remove(self)
            self.lender, self.shared = None, 0

    def _own(self, first: int) -> None:
        """Borrow no more than ``first`` rows: copy what is beyond them."""
        if self.lender is not None and first < self.shared:
            self.pool.copy(self.lender.slot, self.slot, first, self.shared)
            self.shared = first
            if not first:
                self.give_back()

    def _before_writing(self, first: int) -> None:
        """Rows from ``first`` on are about to be written: nobody may borrow them."""
        for borrower in list(self.borrowers):
            borrower._own(first)

    # -- rows --------------------------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Committed rows."""
        return self.length - self.dropped

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """``[H, held, D]`` keys and values of the committed rows of a layer, not to be written to."""
        keys, values = self.pool.layers[layer]
        own = [tensor[self.slot, :, self.shared : self.held] for tensor in (keys, values)]
        if self.lender is None:
            return own[0], own[1]
        lent = [tensor[self.lender.slot, :, : self.shared] for tensor in (keys, values)]
        return torch.cat([lent[0], own[0]], dim=1), torch.cat([lent[1], own[1]], dim=1)

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
        self._before_writing(0)
        self.pool.reserve(count)
        for layer, index in rows.items():
            picked = []
            for held in source.rows(layer):
                wide = index.to(held.device)[:, :, None].expand(-1, -1, held.shape[-1])
                picked.append(held.gather(1, wide))
            keys, values = self.pool.buffers(layer, picked[0][None], picked[1][None])
            keys[self.slot, :, :count], values[self.slot, :, :count] = picked
        self.give_back()
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
        self._before_writing(length - self.dropped)
        if self.lender is not None and length < self.shared:
            self.shared = length
            if not length:
                self.give_back()
        self.length, self.scored = length, 0

    @property
    def nbytes(self) -> int:
        return self.pool.slot_bytes

    def release(self) -> None:
        if not self.released and not self.kept:
            self.released = True
            self.pool.release(self)
