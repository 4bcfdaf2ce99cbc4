"""A table of tri-grams that learns: for every pair of tokens the dozen that followed it most often.

What was counted in a corpus lies in sorted arrays, mapped from a file; what is learned lies in front of it and is
merged when it is written. Pairs that are unknown fall back on their second token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unspool.core.errors import InvalidInput, WeightsError
from unspool.core.learned import Learned

WIDTH = 12
"""Continuations that are kept of a pair."""

_ROW_BYTES = 1000
"""What a learned pair takes in CPython at most: two lists of ``WIDTH``."""

Row = tuple[list[int], list[float]]


class TrigramTable(Learned):
    """Continuations of pairs, the most frequent first, with their counts.

    A pair ``(a, b)`` has the number ``a * V + b``; what follows ``b`` after anything has ``V * V + b``.

    Args:
        pairs: of the corpus; of more the most frequent ones are kept.
        learned: pairs that differ from the corpus; of more those go that were updated longest ago.

    Attributes:
        keys: ``[P]`` int64, the pairs of the corpus, ascending.
        ends: ``[P + 1]`` int32, where the continuations of each begin and end.
        ids: ``[E]`` int32, the continuations, those of a pair by falling count.
        counts: ``[E]`` float32.
    """

    kind: ClassVar[str] = "a tri-gram table"

    def __init__(self, pairs: int = 1_000_000, learned: int = 100_000) -> None:
        for name, value in (("pairs", pairs), ("learned", learned)):
            if value < 1:
                raise InvalidInput(f"a tri-gram table cannot have {name}={value}; at least 1 is needed")
        self.pairs = pairs
        self.max_learned = learned
        self._learned: dict[int, Row] = {}
        self._take(*_nothing())

    @classmethod
    def build(cls, documents: Iterable[Sequence[int]], vocab_size: int, pairs: int = 1_000_000) -> TrigramTable:
        """Count a corpus; documents do not run into one another."""
        made = cls(pairs)
        made.vocab_size = vocab_size
        codes, totals = [], []
        for document in documents:
            text = np.asarray(document, dtype=np.int64)
            if len(text) and not 0 <= text.min() <= text.max() < vocab_size:
                raise InvalidInput(f"the corpus holds tokens outside of a vocabulary of {vocab_size}")
            codes.append((text[:-2] * vocab_size + text[1:-1]) * vocab_size + text[2:])
            totals.append((vocab_size**2 + text[:-1]) * vocab_size + text[1:])
        if codes:
            every, counts = np.unique(np.concatenate([*codes, *totals]), return_counts=True)
            made._take(*_rows(every // vocab_size, every % vocab_size, counts.astype(np.float32), pairs))
        return made

    def __len__(self) -> int:
        """Pairs that are known, those of the corpus that were learned about counted twice."""
        return len(self.keys) + len(self._learned)

    # -- asking ---------------------------------------------------------------------------------------------------

    def row(self, first: int, second: int) -> Row | None:
        """Continuations and counts of a pair, of its second token if the pair is unknown; not to be changed."""
        size = self.vocab_size or 0
        found = self._find(first * size + second)
        return found if found is not None else self._find(size * size + second)

    def _find(self, key: int) -> Row | None:
        found = self._learned.get(key)
        if found is not None:
            return found
        place = bisect_left(self._keys, key)
        if place == len(self._keys) or self._keys[place] != key:
            return None
        low, high = self._ends[place], self._ends[place + 1]
        return self._ids[low:high].tolist(), self._counts[low:high].tolist()

    # -- learning -------------------------------------------------------------------------------------------------

    def learn(self, tokens: Sequence[int], weight: float = 1.0, start: int = 2) -> None:
        """Count the tri-grams of a text that end at ``tokens[start]`` or later, ``weight`` times each."""
        size = self.vocab_size or 0
        for at in range(max(start, 1), len(tokens)):
            second, token = tokens[at - 1], tokens[at]
            self._add(size * size + second, token, weight)
            if at >= 2:
                self._add(tokens[at - 2] * size + second, token, weight)

    def add(self, first: int, second: int, token: int, weight: float) -> None:
        """Count one continuation of one pair, in parts if need be."""
        size = self.vocab_size or 0
        self._add(first * size + second, token, weight)

    def _add(self, key: int, token: int, weight: float) -> None:
        # Taken out and put back, so that the dictionary is ordered by the last update.
        row = self._learned.pop(key, None)
        if row is None:
            row = self._find(key) or ([], [])
            if len(self._learned) >= self.max_learned:
                del self._learned[next(iter(self._learned))]
        self._learned[key] = row
        ids, counts = row
        try:
            place = ids.index(token)
            weight += counts[place]
            del ids[place], counts[place]
        except ValueError:
            place = len(ids)
            if place == WIDTH:
                # Of equals the new one stays: a full row of rare tokens must not be closed for ever.
                if counts[-1] > weight:
                    return
                place -= 1
                del ids[place], counts[place]
        while place and counts[place - 1] < weight:
            place -= 1
        ids.insert(place, token)
        counts.insert(place, weight)

    # -- keeping --------------------------------------------------------------------------------------------------

    def _take(self, keys: Any, ends: Any, ids: Any, counts: Any) -> None:
        self.keys, self.ends, self.ids, self.counts = keys, ends, ids, counts
        self._keys: Any = memoryview(keys)
        self._ends: Any = memoryview(ends)
        self._ids: Any = memoryview(ids)
        self._counts: Any = memoryview(counts)

    def arrays(self) -> dict[str, Tensor]:
        """The four arrays, with what was learned in its place."""
        merged = self._merged() if self._learned else (self.keys, self.ends, self.ids, self.counts)
        return {
            name: torch.from_numpy(np.asarray(array))
            for name, array in zip(("keys", "ends", "ids", "counts"), merged, strict=True)
        }

    def _merged(self) -> tuple[Any, Any, Any, Any]:
        fresh = np.array(sorted(self._learned), dtype=np.int64)
        kept = np.repeat(~np.isin(self.keys, fresh), np.diff(self.ends))
        owners = np.repeat(self.keys, np.diff(self.ends))[kept]
        rows = [self._learned[key] for key in fresh.tolist()]
        lengths = [len(ids) for ids, _ in rows]
        keys = np.concatenate([owners, np.repeat(fresh, lengths)])
        ids = np.concatenate([self.ids[kept], np.array([token for ids, _ in rows for token in ids], dtype=np.int32)])
        counts = np.concatenate([self.counts[kept], np.array([c for _, of in rows for c in of], dtype=np.float32)])
        return _rows(keys, ids, counts, self.pairs)

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        expected = {"keys": torch.int64, "ends": torch.int32, "ids": torch.int32, "counts": torch.float32}
        if any(name not in arrays or arrays[name].dtype != dtype for name, dtype in expected.items()):
            found = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items()) or "nothing"
            raise WeightsError(
                f"{self.kind} is keys (int64), ends and ids (int32) and counts (float32); found: {found}"
            )
        keys, ends, ids, counts = (arrays[name] for name in expected)
        sound = (
            len(ends) == len(keys) + 1
            and len(ids) == len(counts) == int(ends[-1])
            and int(ends[0]) == 0
            and bool((ends.diff() > 0).all())
            and bool((keys.diff() > 0).all())
            and (not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < (self.vocab_size or 2**31)))
            and bool((counts > 0).all())
            and bool(counts.isfinite().all())
            and (not len(keys) or int(ends.diff().max()) <= WIDTH)
        )
        if not sound:
            raise WeightsError(f"{self.kind} is damaged: its {len(keys)} pairs and {len(ids)} continuations disagree")
        self._learned.clear()
        merged = tuple(array.numpy() for array in (keys, ends, ids, counts))
        if len(keys) > self.pairs:
            owners = np.repeat(merged[0], np.diff(merged[1]))
            merged = _rows(owners, merged[2], merged[3], self.pairs)
        self._take(*merged)

    def clear(self) -> None:
        self._learned.clear()
        self._take(*_nothing())

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, and for what was learned an upper estimate from what Python's lists take."""
        arrays = self.keys.nbytes + self.ends.nbytes + self.ids.nbytes + self.counts.nbytes
        return int(arrays) + _ROW_BYTES * len(self._learned)


def _nothing() -> tuple[Any, Any, Any, Any]:
    return (
        np.zeros(0, dtype=np.int64),
        np.zeros(1, dtype=np.int32),
        np.zeros(0, dtype=np.int32),
        np.zeros(0, dtype=np.float32),
    )


def _rows(keys: Any, ids: Any, counts: Any, pairs: int) -> tuple[Any, Any, Any, Any]:
    """The table's arrays from triples ``[E]`` of pair, continuation and count: the ``WIDTH`` most frequent of each
    pair, and the ``pairs`` pairs that occur most often."""
    order = np.lexsort((ids, -counts, keys))
    keys, ids, counts = keys[order], ids[order], counts[order]
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(begins, len(keys)))
    place = np.arange(len(keys)) - np.repeat(begins, lengths)
    kept = place < WIDTH
    if len(begins) > pairs:
        totals = np.add.reduceat(counts, begins)
        # The stable sort prefers the pair of the smaller number among equals.
        frequent = np.zeros(len(begins), dtype=bool)
        frequent[np.argsort(-totals, kind="stable")[:pairs]] = True
        kept &= np.repeat(frequent, lengths)
    keys, ids, counts = keys[kept], ids[kept], counts[kept]
    unique, begins = np.unique(keys, return_index=True)
    ends = np.append(begins, len(keys)).astype(np.int32)
    return unique, ends, ids.astype(np.int32), counts.astype(np.float32)
