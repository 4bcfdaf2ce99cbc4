"""What backends share whose caches are slots of a :class:`~unspool.models.kv.KVPool`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from unspool.core.model import Cache, LanguageModel
from unspool.models.kv import KVPool
from unspool.models.memory import Ledger


class PooledModel(LanguageModel):
    """Base of models with key-value caches in pools.

    Attributes:
        cache_block: positions by which new caches grow; ``None`` to double their room.
        ledger: counts their bytes and those of their passes; see :meth:`counted`.
        forks_share: whether a pass can read the rows of one sequence from two slots.
    """

    forks_share: bool = False
    cache_block: int | None = None
    ledger: Ledger | None = None

    def new_caches(self, count: int) -> list[Cache]:
        pool = KVPool(self.cache_block, self.ledger, shares=self.forks_share)
        return [pool.claim() for _ in range(count)]

    @contextmanager
    def counted(self, ledger: Ledger, block: int) -> Iterator[None]:
        """Caches that are made in this context grow by ``block`` positions; ``ledger`` counts them and their passes."""
        before = self.cache_block, self.ledger
        self.cache_block, self.ledger = block, ledger
        try:
            yield
        finally:
            self.cache_block, self.ledger = before
