"""Which rows of the token spanner table a pushdown automaton takes: always, never, or if the stack begins with
something.

The edges of a row's terminals are composed into conditions for the whole row, so that at run time it is one
comparison of the top of the stack with a table. The tables are padded to one width; a batch of texts is compared in
one operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._pda import PushdownParser, Stack
from unspool.constraints._scanned import ScannedGrammar
from unspool.constraints._spanner import IGNORED, Profile, Spanner

MOST_AHEAD = 250_000
"""Pairs of a top and a sequence up to which all tops are composed ahead."""
MOST_CONDITIONS = 48
"""Conditions of one row and top beyond which the row is run on the real stack."""

ANY, ABSENT = -1, -2

Integers = NDArray[np.int32]
Configuration = tuple[Stack, Stack]
"""What the stack began with (from the top down), and what these states have become (from the bottom up)."""


@dataclass(frozen=True)
class Top:
    """What one parser state on top of the stack takes.

    Args:
        accepted: ``[R]`` bool: rows that are taken whatever lies below.
        pops: ``[N, L]`` what the stack has to begin with, from the top down, ``ANY`` behind it.
        rows: ``[N]`` the rows that these conditions are of, ascending.
        unsettled: rows that are run on the real stack.
    """

    accepted: NDArray[np.bool_]
    pops: Integers
    rows: Integers
    unsettled: Integers

    @property
    def nbytes(self) -> int:
        return self.accepted.nbytes + self.pops.nbytes + self.rows.nbytes + self.unsettled.nbytes


class Conditions:
    """The table; its tops are composed ahead where that is little work, else when they are first met.

    Attributes:
        tops: by parser state, as far as they are composed.
        of_state: of every lexer state the rows that its tokens have.
    """

    def __init__(self, grammar: ScannedGrammar, parser: PushdownParser, spanner: Spanner) -> None:
        self.spanner = spanner
        self.composer = Composer(grammar, parser, spanner)
        self.tops: dict[int, Top] = {}
        self.of_state = [np.unique(spanner.entries(state)[1]) for state in range(len(grammar.scanner.delta))]
        self._here: dict[tuple[int, int], tuple[Integers, Integers, Integers]] = {}
        self._by_length: dict[tuple[int, int], list[tuple[int, dict[Stack, Integers]]]] = {}
        if len(parser.table.tops) * len(spanner.parents) <= MOST_AHEAD:
            for top in parser.table.tops:
                self.top(top)

    def top(self, state: int) -> Top:
        """What a parser state takes when it is on top."""
        found = self.tops.get(state)
        if found is None:
            found = self.tops[state] = self.composer.compose(state)
        return found

    def of(self, state: int, top: int) -> tuple[Integers, Integers, Integers]:
        """For a lexer state and a top: conditions, their rows, and rows to be run on the stack."""
        found = self._here.get((state, top))
        if found is None:
            here = self.top(top)
            kept = np.isin(here.rows, self.of_state[state])
            pops = here.pops[kept]
            width = int((pops != ANY).sum(1).max(initial=0))
            unsettled = np.intersect1d(here.unsettled, self.of_state[state], assume_unique=True)
            found = self._here[state, top] = (pops[:, :width].copy(), here.rows[kept], unsettled)
        return found

    def verdict(self, state: int, stack: Sequence[int]) -> NDArray[np.bool_]:
        """``[R]`` the rows that one text takes; without those that have to be run.

        The same as :meth:`verdicts` for one text. What the stack begins with is looked up, once for every length that
        a condition has.

        Args:
            state: of the lexer.
            stack: parser states from the top down, at least as many as a condition asks about, or all.
        """
        key = (state, stack[0])
        lengths = self._by_length.get(key)
        if lengths is None:
            lengths = self._by_length[key] = self._sorted(*self.of(*key)[:2])
        found = self.top(stack[0]).accepted.copy()
        for length, rows_of in lengths:
            rows = rows_of.get(tuple(stack[:length]))
            if rows is not None:
                found[rows] = True
        return found

    @staticmethod
    def _sorted(pops: Integers, rows: Integers) -> list[tuple[int, dict[Stack, Integers]]]:
        """Rows by the length of what they ask for, and by that."""
        found: dict[int, dict[Stack, list[int]]] = {}
        for pop, row in zip(pops.tolist(), rows.tolist(), strict=True):
            asked = tuple(pop[: pop.index(ANY)] if ANY in pop else pop)
            found.setdefault(len(asked), {}).setdefault(asked, []).append(row)
        return [
            (length, {asked: np.array(each, dtype=np.int32) for asked, each in of.items()})
            for length, of in sorted(found.items())
        ]

    def verdicts(self, places: Sequence[tuple[int, Sequence[int]]]) -> NDArray[np.bool_]:
        """``[B, R]`` the rows that texts take, all compared in one operation; without those that have to be run.

        Args:
            places: of every text its lexer state, and parser states from the top of its stack down.
        """
        parts = [self.of(state, stack[0]) for state, stack in places]
        found = np.stack([self.top(stack[0]).accepted for _, stack in places])
        width = max(part[0].shape[1] for part in parts)
        counts = [len(part[1]) for part in parts]
        if not sum(counts):
            return found
        stacks = np.full((len(places), width), ABSENT, dtype=np.int32)
        for text, (_, stack) in enumerate(places):
            stacks[text, : min(width, len(stack))] = stack[:width]
        pops = np.full((sum(counts), width), ANY, dtype=np.int32)
        begin = 0
        for part, count in zip(parts, counts, strict=True):
            pops[begin : begin + count, : part[0].shape[1]] = part[0]
            begin += count
        owner = np.repeat(np.arange(len(places)), counts)
        met = ((pops == stacks[owner]) | (pops == ANY)).all(1)
        rows = np.concatenate([part[1] for part in parts])
        found[owner[met], rows[met]] = True
        return found

    @property
    def nbytes(self) -> int:
        return sum(top.nbytes for top in self.tops.values()) + sum(rows.nbytes for rows in self.of_state)


class _Unsettled(Exception):
    """The conditions of a sequence are too many, or an edge on the way has none."""


class Composer:
    """Composes edges over the sequences of the spanner table."""

    def __init__(self, grammar: ScannedGrammar, parser: PushdownParser, spanner: Spanner) -> None:
        self.grammar = grammar
        self.parser = parser
        self.spanner = spanner

    def compose(self, top: int) -> Top:
        """Conditions for one state on top."""
        accepted = np.zeros(len(self.spanner.row_sequence), dtype=bool)
        conditions, unsettled = self._top(top, accepted)
        width = max((len(pop) for _, pop in conditions), default=0)
        pops = np.array([[*pop, *[ANY] * (width - len(pop))] for _, pop in conditions], dtype=np.int32)
        return Top(
            accepted,
            pops.reshape(len(conditions), width),
            np.array([row for row, _ in conditions], dtype=np.int32),
            np.array(sorted(unsettled), dtype=np.int32),
        )

    def _top(self, top: int, accepted: NDArray[np.bool_]) -> tuple[list[tuple[int, Stack]], list[int]]:
        """Conditions by row, and rows without any, for one state on top."""
        found: list[tuple[int, Stack]] = []
        unsettled: list[int] = []
        queue: list[tuple[int, list[Configuration]]] = [(0, [((top,), (top,))])]
        while queue:
            sequence, configurations = queue.pop()
            known: dict[int, list[Stack] | None] = {}
            for row, profile in self.spanner.rows_of[sequence]:
                if profile not in known:
                    known[profile] = self._ways(configurations, self.spanner.profiles[profile])
                ways = known[profile]
                if ways is None:
                    unsettled.append(row)
                elif (top,) in ways:
                    accepted[row] = True
                else:
                    found += [(row, way) for way in ways]
            for child in self.spanner.children[sequence]:
                try:
                    after = self.after(configurations, self.spanner.terminals[child])
                except _Unsettled:
                    self._leave(child, unsettled)
                    continue
                if after:
                    queue.append((child, after))
        found.sort(key=lambda pair: pair[0])
        return found, unsettled

    def _leave(self, sequence: int, unsettled: list[int]) -> None:
        queue = [sequence]
        while queue:
            at = queue.pop()
            unsettled.extend(row for row, _ in self.spanner.rows_of[at])
            queue.extend(self.spanner.children[at])

    def after(self, configurations: Sequence[Configuration], terminal: int) -> list[Configuration]:
        """Configurations after a terminal: those edges that agree with what is known of the stack."""
        if terminal == self.grammar.language.gap:
            return [configuration for configuration in configurations if configuration[1] != (0,)]
        found: list[Configuration] = []
        for pop, known in configurations:
            key = known[-1], terminal
            if key in self.parser.edges.single:
                raise _Unsettled
            for edge in self.parser.edges.of.get(key, ()):
                common = min(len(edge.pop), len(known))
                if edge.pop[:common] != known[: -common - 1 : -1]:
                    continue
                deeper = edge.pop[common:]
                # What the edge leaves untouched of the known part stays below what it pushes.
                found.append(((*pop, *deeper), (*known[: len(known) - common], *edge.push)))
        if len(found) > MOST_CONDITIONS:
            raise _Unsettled
        return found

    def _ways(self, configurations: Sequence[Configuration], profile: Profile) -> list[Stack] | None:
        """What the stack can begin with so that one of the terminals of a profile follows; ``None``: not settled."""
        ways: set[Stack] = set()
        settled = True
        end = self.grammar.language.end
        for terminal, kind in profile:
            try:
                after = self._going_on(configurations) if terminal == IGNORED else self.after(configurations, terminal)
            except _Unsettled:
                settled = False
                continue
            for pop, known in after:
                verdict = True if terminal == end else self._alive(known[-1], kind)
                if verdict:
                    ways.add(pop)
                elif verdict is None:
                    settled = False
        # One that begins with another says nothing more.
        least = [way for way in ways if not any(way[:length] in ways for length in range(1, len(way)))]
        if any(len(way) == 1 for way in least):
            return least
        return least if settled and len(least) <= MOST_CONDITIONS else None

    def _going_on(self, configurations: Sequence[Configuration]) -> list[Configuration]:
        """Configurations as they are, as far as another lexeme can follow."""
        found: list[Configuration] = []
        end, action = self.grammar.language.end, self.parser.table.action
        for pop, known in configurations:
            if known == (0,):
                continue
            ways = {way for t in action[known[-1]] if t != end for way, _ in self.after([(pop, known)], t)}
            found += [(way, known) for way in ways]
        return found

    def _alive(self, state: int, kind: int) -> bool | None:
        grammar = self.grammar
        if grammar.unhindered or grammar.completion.surely[state] >> kind & 1:
            return True
        return None if grammar.completion.possibly[state] >> kind & 1 else False
