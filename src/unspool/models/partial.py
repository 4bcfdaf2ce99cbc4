"""A cache with two views of one text: everything, and a part of it that is cheaper to read.

Passes read the view that is on. The part begins with rows that were selected from the whole and grows behind them by
what is committed while it is on; the whole does not see those tokens until it is on again, when they are pending once
more and enter with the next pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from unspool.core.model import Cache
from unspool.models.kv import KVCache, KVPool


class PartialCache(Cache):
    """One sequence's whole cache and a part of it; it stands wherever a :class:`~unspool.models.kv.KVCache` does.

    Args:
        whole: the cache of the text so far; it belongs to this one from now on.

    Attributes:
        whole: rows of every position up to the last pass that read them all.
        part: rows that were selected, and what was committed since; ``None`` until the first selection.
        partial: whether the part is on.
    """

    def __init__(self, whole: KVCache) -> None:
        self.whole = whole
        self.part: KVCache | None = None
        self.partial = False

    # -- the two views --------------------------------------------------------------------------------------------

    @property
    def on(self) -> KVCache:
        """The view that passes read."""
        if self.partial:
            assert self.part is not None
            return self.part
        return self.whole

    def select(self, rows: Mapping[int, Tensor], solid: int) -> None:
        """Make the part anew out of rows of the whole, and put it on; see :meth:`KVCache.select`."""
        if self.part is None:
            self.part = self._beside().claim()
        self.part.select(rows, solid, self.whole)
        self.partial = True

    def put_on_whole(self) -> None:
        """Read everything again; what only the part has seen is pending from now on."""
        self.partial = False

    def _beside(self) -> KVPool:
        """One pool for the parts of all sequences of a pool, so that a batch of them is read as a view, too."""
        pool = self.whole.pool
        if pool.beside is None:
            pool.beside = KVPool(pool.block, pool.ledger)
        return pool.beside

    # -- a cache --------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:  # type: ignore[override]
        return self.on.length

    @property
    def held(self) -> int:
        return self.on.held

    @property
    def dropped(self) -> int:
        return self.on.dropped

    @property
    def solid(self) -> int:
        return self.on.solid

    @property
    def slot(self) -> int:
        return self.on.slot

    @property
    def lender(self) -> KVCache | None:
        return self.on.lender

    @property
    def shared(self) -> int:
        return self.on.shared

    @property
    def pool(self) -> KVPool:
        return self.on.pool

    @property
    def scored(self) -> int:
        return self.on.scored

    @scored.setter
    def scored(self, count: int) -> None:
        self.on.scored = count

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the view that is on; see :meth:`KVCache.rows`."""
        return self.on.rows(layer)

    def commit(self, path: Sequence[int]) -> None:
        self.on.commit(path)

    def fork(self) -> PartialCache:
        twin = PartialCache(self.whole.fork())
        twin.part = None if self.part is None else self.part.fork()
        twin.partial = self.partial
        return twin

    def rewind(self, length: int) -> None:
        """Step back; to before what only the part has seen, by putting the whole on."""
        self._check_rewind(length)
        if self.partial and length < self.whole.length:
            self.put_on_whole()
        self.on.rewind(length)

    @property
    def nbytes(self) -> int:
        return self.whole.nbytes + (0 if self.part is None else self.part.nbytes)

    def release(self) -> None:
        self.whole.release()
        if self.part is not None:
            self.part.release()
