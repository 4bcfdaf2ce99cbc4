"""A pool of n-grams: what followed a token lately, a few continuations for each, the oldest forgotten first.

Lookahead decoding, Ouroboros and hierarchy drafting keep their n-grams in one; CodeSwift keeps what it retrieved and
what the model wrote in pools whose keys are several tokens long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from unspool.core.errors import InvalidInput, WeightsError
from unspool.core.learned import Learned

Key = int | tuple[int, ...]
"""A token, or, in a pool of ``context`` > 1, that many."""

_ENTRY_BYTES, _KEY_BYTES, _TOKEN_BYTES = 120, 330, 40
"""What CPython takes for a continuation (tuple, dictionary slot), a key (dictionary) and a token (integer, pointer)."""


class NgramPool(Learned):
    """For every key the continuations that were inserted last, newest first.

    Inserting a continuation that is there already makes it the newest again. Of a key with more than ``capacity``
    continuations the oldest goes; of more than ``keys`` keys the one goes whose last insertion is longest ago.

    Args:
        capacity: continuations a key may have.
        keys: keys in all.
        context: tokens that a key consists of; keys of one token are written as plain integers.
    """

    kind: ClassVar[str] = "an n-gram pool"

    def __init__(self, capacity: int = 7, keys: int = 65_536, context: int = 1) -> None:
        for name, value in (("capacity", capacity), ("keys", keys), ("context", context)):
            if value < 1:
                raise InvalidInput(f"an n-gram pool cannot have {name}={value}; at least 1 is needed")
        self.capacity = capacity
        self.max_keys = keys
        self.context = context
        # Both levels are ordered from the oldest to the newest; the inner values mean nothing.
        self._pool: dict[Key, dict[tuple[int, ...], None]] = {}
        self._entries = 0
        self._tokens = 0

    def __len__(self) -> int:
        """Continuations in all."""
        return self._entries

    @property
    def keys(self) -> list[Key]:
        """The keys that have continuations, the one inserted to last at the end."""
        return list(self._pool)

    def get(self, key: Key) -> list[tuple[int, ...]]:
        """The continuations of a key, newest first; empty if it is unknown."""
        found = self._pool.get(key)
        return list(reversed(found)) if found else []

    def insert(self, key: Key, continuation: tuple[int, ...]) -> None:
        """Make ``continuation`` the newest of ``key``. An empty one is passed over."""
        if not continuation:
            return
        found = self._pool.pop(key, None)
        if found is None:
            if len(self._pool) >= self.max_keys:
                self._forget(self._pool.pop(next(iter(self._pool))))
            found = {}
        self._pool[key] = found
        if continuation in found:
            del found[continuation]
        else:
            self._entries += 1
            self._tokens += len(continuation)
            if len(found) >= self.capacity:
                oldest = next(iter(found))
                del found[oldest]
                self._forget((oldest,))
        found[continuation] = None

    def insert_text(self, tokens: Sequence[int], size: int, start: int = 0) -> None:
        """Insert every continuation of ``size`` tokens of a text, from left to right.

        Args:
            tokens: the text.
            size: tokens of a continuation, its key not counted.
            start: only n-grams that end at ``tokens[start]`` or later: those that new tokens have completed.
        """
        context = self.context
        text = tuple(tokens[max(start - size + 1 - context, 0) :])
        for first in range(context, len(text) - size + 1):
            key: Key = text[first - 1] if context == 1 else text[first - context : first]
            self.insert(key, text[first : first + size])

    def key_of(self, tokens: Sequence[int]) -> Key | None:
        """The key that the end of a text makes; ``None`` if it is too short."""
        if len(tokens) < self.context:
            return None
        return tokens[-1] if self.context == 1 else tuple(tokens[-self.context :])

    def _forget(self, gone: dict[tuple[int, ...], None] | tuple[tuple[int, ...], ...]) -> None:
        self._entries -= len(gone)
        self._tokens -= sum(map(len, gone))

    # -- keeping --------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Tensor]:
        """``keys`` ``[E, context]``, ``lengths`` ``[E]`` and ``tokens`` of the ``E`` continuations, oldest first."""
        entries = [(key, continuation) for key, found in self._pool.items() for continuation in found]
        keys = [[key] if isinstance(key, int) else list(key) for key, _ in entries]
        return {
            "keys": torch.tensor(keys, dtype=torch.int32).reshape(len(entries), self.context),
            "lengths": torch.tensor([len(continuation) for _, continuation in entries], dtype=torch.int32),
            "tokens": torch.tensor([t for _, continuation in entries for t in continuation], dtype=torch.int32),
        }

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`arrays` gave; what exceeds this pool's bounds is left out, the oldest first."""
        keys, lengths, tokens = (arrays.get(name) for name in ("keys", "lengths", "tokens"))
        if keys is None or lengths is None or tokens is None:
            raise WeightsError(f"{self.kind} consists of keys, lengths and tokens; found: {', '.join(arrays) or '-'}")
        if any(array.dtype != torch.int32 for array in (keys, lengths, tokens)) or (keys.ndim, lengths.ndim) != (2, 1):
            raise WeightsError(f"{self.kind} consists of int32 arrays: keys [E, context], lengths [E] and tokens")
        if keys.shape[1] != self.context:
            raise WeightsError(f"the keys of this pool have {self.context} tokens, those of the file {keys.shape[1]}")
        if len(keys) != len(lengths) or (lengths < 1).any() or int(lengths.sum()) != tokens.numel():
            raise WeightsError(
                f"{self.kind} is damaged: {len(keys)} keys, {len(lengths)} lengths, {len(tokens)} tokens"
            )
        for array in (keys, tokens):
            if array.numel() and (int(array.min()) < 0 or int(array.max()) >= (self.vocab_size or 2**31)):
                raise WeightsError(
                    f"{self.kind} holds tokens {int(array.min())} to {int(array.max())}, outside of the vocabulary"
                )
        self.clear()
        ends = [0, *lengths.cumsum(0).tolist()]
        flat = tokens.tolist()
        for key, (first, last) in zip(keys.tolist(), pairwise(ends), strict=True):
            self.insert(key[0] if self.context == 1 else tuple(key), tuple(flat[first:last]))

    def clear(self) -> None:
        self._pool.clear()
        self._entries = self._tokens = 0

    @property
    def nbytes(self) -> int:
        """Bytes in memory, estimated from what Python's objects take."""
        return _KEY_BYTES * len(self._pool) + _ENTRY_BYTES * self._entries + _TOKEN_BYTES * self._tokens
