"""A suffix array over a corpus of tokens: where did the last few tokens of a text occur before, and what followed?

All places of the corpus are sorted by the ``DEPTH`` tokens that stand there, so that the occurrences of a query are
consecutive rows, found by bisection. The array is built by prefix doubling (Manber & Myers, Suffix arrays, 1993), which
needs five sorts for 32 tokens: seconds for ten megabytes of text. It lies in one file that is mapped into memory, not
read, so that a large index costs the memory of what is looked up.

REST (He et al., Retrieval-Based Speculative Decoding, 2023) drafts from such an array.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unspool.core.errors import InvalidInput, WeightsError
from unspool.core.learned import Learned

LONGEST = 16
"""Tokens of the longest query."""

DEPTH = 2 * LONGEST
"""Tokens by which places are sorted: those of a query and at least the one after it."""

END = -1
"""Stands between documents in the corpus, and after the end of a continuation."""

Ints = NDArray[np.int32]


@dataclass(frozen=True)
class Hits:
    """What a corpus knows about the end of a text.

    Args:
        matched: tokens of the longest suffix that occurs; 0 if none does.
        count: its occurrences.
        rows: ``[H, length]`` int32 what followed them, ``END`` after the end of a document; ``H <= count``.
    """

    matched: int
    count: int
    rows: Ints

    @property
    def weight(self) -> float:
        """Occurrences that a row stands for."""
        return self.count / len(self.rows) if len(self.rows) else 0.0


class SuffixArray(Learned):
    """The sorted places of a corpus. Documents do not run into one another.

    Attributes:
        tokens: ``[T]`` int32, the documents, ``END`` after each and ``LONGEST`` times after the last.
        suffixes: ``[S]`` int32, the places of all tokens, sorted by the ``DEPTH`` tokens from there, then by place.
        starts: ``[V + 1]`` int32, the rows of ``suffixes`` where the places of each token begin.
    """

    kind: ClassVar[str] = "a suffix array"

    def __init__(self) -> None:
        self._take(*(torch.zeros(size, dtype=torch.int32) for size in (0, 0, 1)))

    @classmethod
    def build(cls, documents: Iterable[Sequence[int]], vocab_size: int) -> SuffixArray:
        """Sort a corpus.

        Args:
            documents: token ids.
            vocab_size: ``V``.

        Raises:
            InvalidInput: if a token is outside of the vocabulary, or there are 2^31 tokens or more.
        """
        ending = np.array([END], dtype=np.int32)
        pieces = [piece for document in documents for piece in (np.asarray(document, dtype=np.int32), ending)]
        tokens: Ints = np.concatenate([*pieces, np.full(LONGEST, END, dtype=np.int32)])
        if len(tokens) >= 2**31:
            raise InvalidInput(f"a suffix array holds fewer than 2^31 tokens; {len(tokens):,} were given")
        if tokens.max() >= vocab_size or tokens.min() < END:
            wrong = tokens.max() if tokens.max() >= vocab_size else tokens.min()
            raise InvalidInput(f"the corpus holds token {wrong}; the vocabulary has tokens 0 to {vocab_size - 1}")
        suffixes = _sorted_places(tokens, vocab_size)
        starts = np.zeros(vocab_size + 1, dtype=np.int32)
        np.cumsum(np.bincount(tokens[tokens != END], minlength=vocab_size), out=starts[1:])
        made = cls()
        made.vocab_size = vocab_size
        made._take(*(torch.from_numpy(array) for array in (tokens, suffixes, starts)))
        return made

    def __len__(self) -> int:
        """Tokens of the corpus."""
        return len(self.suffixes)

    # -- looking up -----------------------------------------------------------------------------------------------

    def find(self, query: Sequence[int]) -> range:
        """The rows of :attr:`suffixes` whose places begin with ``query`` and go on after it.

        What stands at the end of a document says nothing about what follows, so it does not count as an occurrence.

        Raises:
            InvalidInput: if the query has not 1 to ``LONGEST`` tokens.
        """
        if not 0 < len(query) <= LONGEST:
            raise InvalidInput(f"a query of {len(query)} tokens; 1 to {LONGEST} can be looked up")
        first = query[0]
        if not 0 <= first < len(self.starts) - 1:
            return range(0)
        tokens, suffixes = self._tokens, self._suffixes
        low, high = self._starts[first], self._starts[first + 1]
        for depth in range(1, len(query)):
            if low == high:
                break
            # Within the rows that agree so far the next tokens stand in order.
            low = bisect_left(suffixes, query[depth], low, high, key=lambda place: tokens[place + depth])
            high = bisect_right(suffixes, query[depth], low, high, key=lambda place: tokens[place + depth])
        # `END` sorts before all tokens.
        return range(bisect_right(suffixes, END, low, high, key=lambda place: tokens[place + len(query)]), high)

    def longest(self, text: Sequence[int], most: int = LONGEST, least: int = 1) -> tuple[int, range]:
        """The length of the longest suffix of ``text`` that occurs and goes on, within bounds, and its rows;
        ``(0, no rows)`` if none does."""
        tail = text[-min(most, LONGEST) :]
        best = range(0)
        low, high = least - 1, len(tail)
        # A suffix can only occur if all shorter ones do, so that the length is found by bisection as well.
        while low < high:
            middle = (low + high + 1) // 2
            rows = self.find(tail[len(tail) - middle :])
            if rows:
                low, best = middle, rows
            else:
                high = middle - 1
        return (low, best) if best else (0, best)

    def continuations(self, rows: range, skip: int, length: int, limit: int) -> Ints:
        """``[H, length]`` int32: the tokens from ``skip`` after the places of ``rows`` on, ``END`` after the end of a
        document.

        Of more than ``limit`` rows that many are taken at even distances. Rows are sorted by what follows, so every
        continuation is represented as often as it deserves.
        """
        picked: NDArray[np.int64] = np.arange(rows.start, rows.stop, dtype=np.int64)
        if len(rows) > limit:
            picked = rows.start + (2 * np.arange(limit, dtype=np.int64) + 1) * len(rows) // (2 * limit)
        places = self._suffix_array[picked].astype(np.int64)[:, None] + np.arange(skip, skip + length)
        found: Ints = self._token_array[np.minimum(places, len(self._token_array) - 1)]
        found[np.logical_or.accumulate(found == END, axis=1)] = END
        return found

    def retrieve(self, text: Sequence[int], length: int, limit: int = 512, most: int = LONGEST, least: int = 1) -> Hits:
        """What followed the longest suffix of ``text`` that occurs.

        Args:
            text: committed tokens; their end is looked up.
            length: tokens of a continuation.
            limit: continuations to return at most.
            most, least: bounds of the suffix.
        """
        matched, rows = self.longest(text, most, least)
        return Hits(matched, len(rows), self.continuations(rows, matched, length, limit))

    # -- keeping --------------------------------------------------------------------------------------------------

    def _take(self, tokens: Tensor, suffixes: Tensor, starts: Tensor) -> None:
        self.tokens, self.suffixes, self.starts = tokens, suffixes, starts
        self._token_array, self._suffix_array = tokens.numpy(), suffixes.numpy()
        # A memory view gives Python's integers several times faster than an array does.
        self._tokens, self._suffixes, self._starts = map(_view, (tokens, suffixes, starts))

    def arrays(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens, "suffixes": self.suffixes, "starts": self.starts}

    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`arrays` gave. The order of the suffixes is not checked: a wrong one costs hits only."""
        tokens, suffixes, starts = (arrays.get(name) for name in ("tokens", "suffixes", "starts"))
        if tokens is None or suffixes is None or starts is None:
            raise WeightsError(
                f"{self.kind} consists of tokens, suffixes and starts; found: {', '.join(arrays) or '-'}"
            )
        if any(array.dtype != torch.int32 or array.ndim != 1 for array in (tokens, suffixes, starts)):
            raise WeightsError(f"{self.kind} consists of three int32 arrays of one dimension")
        vocabulary = len(starts) - 1
        if self.vocab_size is not None and vocabulary not in (0, self.vocab_size):
            raise WeightsError(f"{self.kind} is of a vocabulary of {vocabulary} tokens; {self.vocab_size} are needed")
        sound = (
            vocabulary >= 0
            and _within(tokens, END, vocabulary)
            and _within(suffixes, 0, len(tokens) - LONGEST)
            and _within(starts, 0, len(suffixes) + 1)
            and bool((starts.diff() >= 0).all())
            and (not len(tokens) or bool((tokens[-LONGEST:] == END).all()))
        )
        if not sound:
            raise WeightsError(f"{self.kind} is damaged: its places lie outside of its {len(tokens)} tokens")
        self._take(tokens, suffixes, starts)

    def clear(self) -> None:
        self._take(*(torch.zeros(size, dtype=torch.int32) for size in (0, 0, 1)))

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.suffixes.nbytes + self.starts.nbytes


def _view(array: Tensor) -> memoryview:
    values: Any = array.numpy()
    return memoryview(values)


def _within(array: Tensor, low: int, end: int) -> bool:
    """Whether all values are at least ``low`` and below ``end``."""
    if not len(array):
        return True
    least, greatest = array.aminmax()
    return int(least) >= low and int(greatest) < end


def _sorted_places(tokens: Ints, vocab_size: int) -> Ints:
    """The places of all tokens but ``END``, sorted by the ``DEPTH`` tokens from there; equal ones by place."""
    # Ranks by the first `known` tokens; `END` sorts before all tokens.
    rank = tokens.astype(np.int64) + 1
    bound, known = vocab_size + 1, 1
    while known < DEPTH:
        key = rank * bound
        key[:-known] += rank[known:]
        order = np.argsort(key)
        in_order = key[order]
        rank = np.empty_like(key)
        rank[order] = np.concatenate([[0], np.cumsum(in_order[1:] != in_order[:-1])])
        bound, known = int(rank[order[-1]]) + 1, 2 * known
    # Places in the low digits settle ties, in the same way on every machine.
    places = np.sort(rank * len(tokens) + np.arange(len(tokens))) % len(tokens)
    return places[tokens[places] != END].astype(np.int32)
