"""Which terminals every token completes, from every state of the lexer: the token spanner table.

A token read from lexer state ``q`` completes a sequence of terminals ``alpha`` and leaves the lexer in a state ``q'``
in the middle of a lexeme, which can still become some terminals. ``alpha`` and what ``q'`` can become are a *row*;
there are few rows, many tokens share one, and whether a parser takes a token depends on its row alone. (A sequence
``alpha T`` with one of these terminals is what the paper calls realizable.) The table is stored by token: the row of
every token that the lexer does not refuse. Ignored terminals are left out of ``alpha``; only of one in front of all
others a mark stays (``Language.gap``), because nothing is ignored at the start of a text.

Paper: Park et al., Flexible and Efficient Grammar-Constrained Decoding, 2025 (sections 3 and 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._grammar import GrammarError
from unspool.constraints._lexing import Language
from unspool.constraints._vocabulary import Trie, Vocabulary

MOST_PAIRS = 120_000_000
"""Pairs of a lexer state and a trie node that are looked at."""
MOST_SEQUENCES = 400_000
_AT_ONCE = 1_500_000

IGNORED = -1
"""In a profile: a lexeme that is ignored, which is right wherever the text can go on."""

Integers = NDArray[np.int32]
Profile = frozenset[tuple[int, int]]
"""What a lexeme can become: terminals, or ``IGNORED``, or the end of the text; each with the class where it ends."""


@dataclass(frozen=True)
class Spanner:
    """The table.

    Args:
        parents, terminals: the sequences as a tree: sequence ``s`` is ``parents[s]`` and then ``terminals[s]``;
            sequence 0 is empty.
        profiles: the distinct profiles.
        row_sequence, row_profile: ``[R]`` of every row its sequence and its profile.
        first: ``[Q + 1]`` where the entries of each lexer state begin in ``tokens`` and ``rows``.
        tokens: ``[E]`` tokens that the lexer does not refuse, by lexer state; stop tokens among them.
        rows: ``[E]`` their rows.
    """

    parents: list[int]
    terminals: list[int]
    profiles: list[Profile]
    row_sequence: Integers
    row_profile: Integers
    first: NDArray[np.int64]
    tokens: Integers
    rows: Integers

    @cached_property
    def children(self) -> list[list[int]]:
        """The sequences that are one terminal longer than each."""
        found: list[list[int]] = [[] for _ in self.parents]
        for sequence in range(1, len(self.parents)):
            found[self.parents[sequence]].append(sequence)
        return found

    @cached_property
    def rows_of(self) -> list[list[tuple[int, int]]]:
        """The rows of every sequence, each with its profile."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.parents]
        pairs = zip(self.row_sequence.tolist(), self.row_profile.tolist(), strict=True)
        for row, (sequence, profile) in enumerate(pairs):
            found[sequence].append((row, profile))
        return found

    def entries(self, state: int) -> tuple[Integers, Integers]:
        """Tokens and rows of a lexer state."""
        begin, end = self.first[state], self.first[state + 1]
        return self.tokens[begin:end], self.rows[begin:end]

    @property
    def nbytes(self) -> int:
        arrays = (self.row_sequence, self.row_profile, self.first, self.tokens, self.rows)
        return sum(array.nbytes for array in arrays)


def span(
    language: Language, vocabulary: Vocabulary, with_classes: bool, tell: Callable[[int, int], None] | None = None
) -> Spanner:
    """Walk the trie of the vocabulary once for every state of the lexer, many states side by side.

    Args:
        with_classes: whether profiles tell classes apart; where every stack can be completed they need not.
        tell: called with the states that are done and their number.

    Raises:
        GrammarError: if the table would be too large.
    """
    return _Walk(language, vocabulary, with_classes).run(tell)


class _Walk:
    def __init__(self, language: Language, vocabulary: Vocabulary, with_classes: bool) -> None:
        self.language = language
        self.scanner = language.scanner
        self.vocabulary = vocabulary
        self.trie = vocabulary.trie
        self.levels, self.first_child, self.children = _levels(self.trie)
        self.sequences: dict[tuple[int, int], int] = {}
        self.parents = [0]
        self.terminals = [-1]
        self.profile_of = self._profiles(with_classes)
        self.rows: dict[tuple[int, int], int] = {}
        self.walked = 0

    def _profiles(self, with_classes: bool) -> list[int]:
        """Of every state its profile."""
        skipped = self.scanner.skipped
        self.profiles: dict[Profile, int] = {}
        found = []
        for reach in self.scanner.reach:
            profile = frozenset((IGNORED if skipped[t] else t, c if with_classes else 0) for t, c in reach)
            found.append(self.profiles.setdefault(profile, len(self.profiles)))
        return found

    def run(self, tell: Callable[[int, int], None] | None) -> Spanner:
        count = len(self.scanner.delta)
        per_state = max(1, _AT_ONCE // max(1, len(self.trie)))
        tokens: list[Integers] = []
        rows: list[Integers] = []
        first = [np.zeros(1, dtype=np.int64)]
        for begin in range(0, count, per_state):
            states = np.arange(begin, min(count, begin + per_state), dtype=np.int32)
            owner, token, row = self._walk(states)
            # Stable on 16 bits is a radix sort, which takes a tenth of the time.
            order = np.argsort(owner.astype(np.int16), kind="stable")
            owner, token, row = owner[order], token[order], row[order]
            first.append(np.bincount(owner, minlength=len(states)).astype(np.int64))
            tokens.append(token)
            rows.append(row)
            if tell is not None:
                tell(int(states[-1]) + 1, count)
        keys = np.array(list(self.rows), dtype=np.int32).reshape(-1, 2)
        return Spanner(
            self.parents,
            self.terminals,
            list(self.profiles),
            keys[:, 0].copy(),
            keys[:, 1].copy(),
            np.cumsum(np.concatenate(first)),
            np.concatenate(tokens),
            np.concatenate(rows),
        )

    def _walk(self, states: Integers) -> tuple[Integers, Integers, Integers]:
        """All tokens from some states: place of the state among these, token, row."""
        trie, step, emits = self.trie, self.scanner.step, self.scanner.emits
        skipped = self.scanner.ignored
        roots = self.levels[0] if self.levels else np.zeros(0, dtype=np.int32)
        owner = np.repeat(np.arange(len(states), dtype=np.int32), len(roots))
        node = np.tile(roots, len(states))
        state = np.repeat(states, len(roots))
        sequence = np.zeros(len(node), dtype=np.int32)
        found: list[tuple[Integers, Integers, Integers, Integers]] = []
        while len(node):
            self.walked += len(node)
            if self.walked > MOST_PAIRS:
                raise GrammarError(
                    f"the table of this grammar and vocabulary has more than {MOST_PAIRS // 1_000_000} million entries "
                    f"({len(self.scanner.delta)} lexer states): use smaller repeats, or the engine llguidance"
                )
            byte = trie.byte[node]
            after, emitted = step[state, byte], emits[state, byte]
            alive = np.flatnonzero(after >= 0)
            owner, node, state = owner[alive], node[alive], after[alive]
            sequence = self._extended(sequence[alive], emitted[alive], skipped)
            has = np.flatnonzero(trie.first[node + 1] > trie.first[node])
            found.append((owner[has], node[has], state[has], sequence[has]))
            counts = self.first_child[node + 1] - self.first_child[node]
            parent = np.repeat(np.arange(len(node), dtype=np.int32), counts)
            offset = np.arange(len(parent)) - np.repeat(np.cumsum(counts) - counts, counts)
            node, owner = self.children[self.first_child[node[parent]] + offset], owner[parent]
            state, sequence = state[parent], sequence[parent]
        return self._collected(states, found)

    def _extended(self, sequence: Integers, emitted: Integers, skipped: NDArray[np.bool_]) -> Integers:
        """Sequences after what was emitted."""
        longer = np.flatnonzero(emitted >= 0)
        left_out = skipped[emitted[longer]]
        terminal = np.where(left_out, self.language.gap, emitted[longer])
        kept = ~left_out | (sequence[longer] == 0)
        longer, terminal = longer[kept], terminal[kept]
        if not len(longer):
            return sequence
        width = self.language.gap + 1
        distinct, place = np.unique(sequence[longer].astype(np.int64) * width + terminal, return_inverse=True)
        numbers = [self.sequence(*divmod(int(pair), width)) for pair in distinct]
        sequence = sequence.copy()
        sequence[longer] = np.array(numbers, dtype=np.int32)[place.reshape(-1)]
        return sequence

    def sequence(self, before: int, terminal: int) -> int:
        """The number of a sequence."""
        known = self.sequences.get((before, terminal))
        if known is None:
            known = self.sequences[before, terminal] = len(self.parents)
            if known > MOST_SEQUENCES:
                raise GrammarError(
                    f"the tokens complete more than {MOST_SEQUENCES} sequences of terminals: join terminals of single "
                    "characters to longer ones, or use the engine llguidance"
                )
            self.parents.append(before)
            self.terminals.append(terminal)
        return known

    def row(self, sequence: int, profile: int) -> int:
        return self.rows.setdefault((sequence, profile), len(self.rows))

    def _collected(
        self, states: Integers, found: list[tuple[Integers, Integers, Integers, Integers]]
    ) -> tuple[Integers, Integers, Integers]:
        """Entries of the tokens that end at the nodes found, and of the stop tokens."""
        owner, node, state, sequence = (np.concatenate(each) for each in zip(*found, strict=True))
        profile = np.array(self.profile_of, dtype=np.int64)[state]
        width = len(self.profiles) + 1
        distinct, place = np.unique(sequence.astype(np.int64) * width + profile, return_inverse=True)
        numbers = np.array([self.row(*divmod(int(pair), width)) for pair in distinct], dtype=np.int32)
        row = numbers[place.reshape(-1)] if len(numbers) else np.zeros(0, dtype=np.int32)
        counts = self.trie.first[node + 1] - self.trie.first[node]
        entry = np.repeat(np.arange(len(node)), counts)
        offset = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
        token = self.trie.ids[self.trie.first[node[entry]] + offset]
        stops = [
            (place, stop, self._end(int(state)))
            for place, state in enumerate(states)
            if state == 0 or self.scanner.labels[state] >= 0
            for stop in sorted(self.vocabulary.stop)
        ]
        ends = np.array(stops, dtype=np.int32).reshape(-1, 3)
        return (
            np.concatenate([owner[entry], ends[:, 0]]),
            np.concatenate([token, ends[:, 1]]),
            np.concatenate([row[entry], ends[:, 2]]),
        )

    def _end(self, state: int) -> int:
        """The row of ending the text in a state."""
        label = self.scanner.labels[state]
        ignored = state and self.scanner.skipped[label]
        sequence = self.sequence(0, self.language.gap if ignored else label) if state else 0
        return self.row(sequence, self.profiles.setdefault(frozenset({(self.language.end, 0)}), len(self.profiles)))


def _levels(trie: Trie) -> tuple[list[Integers], Integers, Integers]:
    """Nodes by depth; and of every node where its children begin in the list of all children."""
    levels: list[Integers] = []
    depth = 1
    counts = np.zeros(len(trie) + 1, dtype=np.int32)
    while True:
        nodes = np.flatnonzero(trie.depth == depth).astype(np.int32)
        if not len(nodes):
            break
        if levels:
            parents = levels[-1][np.searchsorted(levels[-1], nodes) - 1]
            np.add.at(counts, parents + 1, 1)
        levels.append(nodes)
        depth += 1
    first = np.cumsum(counts, dtype=np.int32)
    children = np.zeros(int(first[-1]), dtype=np.int32)
    for above, nodes in itertools.pairwise(levels):
        parents = above[np.searchsorted(above, nodes) - 1]
        # Children of one parent are neighbours in their level, in the order of their bytes.
        place = np.arange(len(nodes)) - np.searchsorted(parents, parents)
        children[first[parents] + place] = nodes
    return levels, first, children
