"""A vocabulary's trie by depth, so that an automaton steps through a whole level of it at once."""

from __future__ import annotations

import numpy as np

from unspool.constraints._vocabulary import Vocabulary


class Levels:
    """The nodes of a vocabulary's trie by depth, each with its parent: a whole level is stepped at once."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        trie = vocabulary.trie
        depth = trie.depth.astype(np.int64)
        parent = np.full(len(trie), -1, dtype=np.int64)
        last = np.zeros(int(depth.max(initial=0)) + 1, dtype=np.int64)
        for node, level in enumerate(depth.tolist()):
            last[level] = node
            if level > 1:
                parent[node] = last[level - 1]
        self.levels = [np.flatnonzero(depth == level) for level in range(1, int(depth.max(initial=0)) + 1)]
        self.parent = parent
        self.byte = trie.byte.astype(np.int64)
        self.node_of_id = np.repeat(np.arange(len(trie)), np.diff(trie.first))
        self.ids = trie.ids.astype(np.int64)

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Levels:
        made: Levels | None = vocabulary.forms.get("levels")
        if made is None:
            made = vocabulary.forms["levels"] = cls(vocabulary)
        return made
