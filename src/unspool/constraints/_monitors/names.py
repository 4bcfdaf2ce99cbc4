"""Which tokens may come where one of some names has to come: two queries of the vocabulary's trie for every name.

A token is allowed if it is a beginning of a name, or a name and behind it something that cannot belong to a name. All
names walk down the trie together, a level at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._vocabulary import Vocabulary

T = TypeVar("T")

_REMEMBERED = 512
"""Masks that are kept; each has a byte for every token."""

_TOP = -1
"""The place above the top nodes of the trie."""


class NameTable:
    """A vocabulary's trie with its edges by (parent, byte).

    Args:
        vocabulary: what the tokens write.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._trie = trie = vocabulary.trie
        parents = np.full(len(trie), _TOP, dtype=np.int64)
        open_nodes: list[int] = []
        for node, depth in enumerate(trie.depth.tolist()):
            del open_nodes[depth - 1 :]
            if open_nodes:
                parents[node] = open_nodes[-1]
            open_nodes.append(node)
        keys = (parents - _TOP) * 256 + trie.byte
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]
        self._counts = np.diff(trie.first)
        # The stop tokens and what else writes nothing: allowed where a name may end.
        self._stop = np.array(sorted(vocabulary.stop), dtype=np.int64)
        self._starts: dict[tuple[bytes, int], NDArray[np.bool_]] = {}
        self._remembered: OrderedDict[Hashable, Any] = OrderedDict()

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> NameTable:
        """The table of a vocabulary; the same object when asked again."""
        known: NameTable = vocabulary.forms.setdefault("names", None) or cls(vocabulary)
        vocabulary.forms["names"] = known
        return known

    def _children(self, nodes: NDArray[np.int64], byte: NDArray[np.int64]) -> NDArray[np.int64]:
        """The child of each node under each byte; ``-1`` where there is none. Arrays of one shape."""
        keys = (nodes - _TOP) * 256 + byte
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        return np.where(self._keys[places] == keys, self._order[places], -1)

    def mask(self, names: Sequence[bytes], breaks: bytes) -> NDArray[np.bool_]:
        """``[V]`` tokens that may follow.

        Args:
            names: what remains of each name to be written; an empty one is complete.
            breaks: bytes that end a name.
        """
        trie = self._trie
        allowed = np.zeros(len(trie), dtype=bool)
        spans = np.zeros(len(trie) + 1, dtype=np.int64)
        after = np.frombuffer(breaks, dtype=np.uint8).astype(np.int64)
        unique = sorted(set(names))
        width = max(map(len, unique), default=0)
        table = np.zeros((len(unique), width), dtype=np.int64)
        for row, name in enumerate(unique):
            table[row, : len(name)] = np.frombuffer(name, dtype=np.uint8)
        lengths = np.array([len(name) for name in unique], dtype=np.int64)
        nodes = np.full(len(unique), _TOP, dtype=np.int64)
        rows = np.arange(len(unique))
        for depth in range(width + 1):
            ended = nodes[rows[lengths[rows] == depth]]
            if len(ended):
                beyond = self._children(np.repeat(ended, len(after)), np.tile(after, len(ended)))
                beyond = beyond[beyond >= 0]
                np.add.at(spans, beyond, 1)
                np.add.at(spans, beyond + trie.size[beyond], -1)
            rows = rows[lengths[rows] > depth]
            if not len(rows):
                break
            nodes[rows] = self._children(nodes[rows], table[rows, depth])
            rows = rows[nodes[rows] >= 0]
            allowed[nodes[rows]] = True
        allowed |= np.cumsum(spans[:-1]) > 0
        mask = np.zeros(self.vocabulary.size, dtype=bool)
        mask[trie.ids[np.repeat(allowed, self._counts)]] = True
        if b"" in unique:
            mask[self._stop] = True
        return mask

    def remembered(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` made when the key was last seen; the least recently used of many are forgotten."""
        if key not in self._remembered:
            self._remembered[key] = make()
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        found: T = self._remembered[key]
        return found

    @cached_property
    def blank(self) -> NDArray[np.bool_]:
        """``[V]`` tokens of nothing but white space. Not to be changed."""
        return np.array([string is not None and not string.strip() for string in self.vocabulary.tokens], dtype=bool)

    @cached_property
    def calling(self) -> NDArray[np.bool_]:
        """``[V]`` tokens that open a round bracket first, behind blanks at most. Not to be changed."""
        strings = self.vocabulary.tokens
        return np.array([string is not None and string.lstrip(b" ").startswith(b"(") for string in strings], dtype=bool)

    def starting(self, lead: bytes) -> NDArray[np.bool_]:
        """``[V]`` tokens that begin with ``lead`` and go on behind it. Not to be changed."""
        return self.starting_with(lead, longer=1)

    def starting_with(self, lead: bytes, longer: int = 0) -> NDArray[np.bool_]:
        """``[V]`` tokens that begin with ``lead`` and are at least so much longer. Not to be changed."""
        known = self._starts.get((lead, longer))
        if known is None:
            known = np.array(
                [
                    string is not None and len(string) >= len(lead) + longer and string.startswith(lead)
                    for string in self.vocabulary.tokens
                ],
                dtype=bool,
            )
            self._starts[lead, longer] = known
        return known
