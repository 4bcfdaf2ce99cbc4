"""A deterministic pushdown automaton made of LR(1) tables: edges that are conditioned on what the stack begins with.

An LR parser reads one terminal in several steps: reductions, each of which looks at what it uncovers, and a shift.
Here all of them are folded into one *edge*: if the stack begins, from the top down, with ``pop``, these states are
replaced by ``push``. The edges of a state and a terminal exclude one another, so a terminal is one comparison and one
splice.

What a reduction uncovers is not known when edges are made; every state that can lie there makes an edge of its own.
For right recursion (``list: item "," list | item``) that has no end: each element leaves a lap of the same states on
the stack, and all are popped at once when the list ends. Where a lap says nothing, because all reductions over it
only lead back to where it began, the edge that would complete a second lap is *absorbing*: it leaves the stack as the
first lap did. Then no stack holds two laps, and edges are finite. Where a lap does say something and edges still have
no end, the reductions of that state and terminal are made one by one on the real stack: exact, only slower.

Paper: Chen et al., Pre^3: Enabling Deterministic Pushdown Automata for Faster Structured LLM Generation, 2025
(sections 3 and 4). Beyond it: when a lap may be absorbed is decided by running the parser over it; single reductions
are the fallback.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from unspool.constraints._lr import Table
from unspool.constraints._stack import Frame, Parser

LONGEST_LAP = 12
MOST_LAP_STEPS = 100_000
LONGEST_POP = 40
MOST_ALTERNATIVES = 256
"""Edges of one state and terminal beyond which single reductions are made."""

Stack = tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """One way to read a terminal.

    Args:
        pop: what the stack has to begin with, from the top down.
        push: what takes its place, from the bottom up; empty where the text ends.
    """

    pop: Stack
    push: Stack


class Absorber:
    """Laps that leave no trace on a stack.

    Attributes:
        laps: by their first state, which a terminal enters; each lap from the bottom up.
    """

    def __init__(self, table: Table, enabled: bool = True) -> None:
        self.table = table
        self.steps = 0
        self.laps: dict[int, list[Stack]] = {}
        after = [
            sorted({*goto.values(), *(target for target in action.values() if target >= 0)})
            for action, goto in zip(table.action, table.goto, strict=True)
        ]
        for first in table.tops if enabled else ():
            if not self._only_ends(first):
                continue
            found = [lap for lap in self._cycles(first, after) if self._says_nothing(lap)]
            if found:
                self.laps[first] = found

    def _only_ends(self, state: int) -> bool:
        """Whether all that a state waits for is the last symbol of a right side."""
        right = self.table.grammar.right
        kernel = self.table.kernels[state]
        return all(p and dot == len(right[p]) - 1 and right[p][dot] < 0 for p, dot in kernel)

    def _cycles(self, first: int, after: list[list[int]]) -> Iterator[Stack]:
        queue: list[Stack] = [(first,)]
        while queue:
            path = queue.pop()
            for target in after[path[-1]]:
                self.steps += 1
                if target == first:
                    yield path
                elif len(path) < LONGEST_LAP and target not in path and self.steps < MOST_LAP_STEPS:
                    queue.append((*path, target))

    def _says_nothing(self, lap: Stack) -> bool:
        """Whether all that is completed above a lap comes back, by reductions alone, to where the lap began."""
        first, table = lap[0], self.table
        for production, dot in table.kernels[first]:
            target = table.goto[first].get(~table.grammar.right[production][dot])
            if target is None:
                return False
            for terminal, act in table.action[target].items():
                if act >= 0 or not self._comes_back([*lap, first, target], terminal):
                    return False
        return True

    def _comes_back(self, stack: list[int], terminal: int) -> bool:
        first, target = stack[-2:]
        table = self.table
        for _ in range(4 * LONGEST_LAP):
            act = table.action[stack[-1]].get(terminal)
            if act is None or act >= -1:
                return False
            count, left = table.reductions[~act]
            if count >= len(stack):
                return False
            del stack[len(stack) - count :]
            stack.append(table.goto[stack[-1]][left])
            if len(stack) == 2:
                return stack == [first, target]
        return False

    def impossible(self, pop: Stack) -> bool:
        """Whether no stack can begin with these states, the last of which was added now: they hold a second lap."""
        for lap in self.laps.get(pop[-1], ()):
            size = len(lap)
            if len(pop) > size and pop[-1 - size] == lap[0] and pop[: -1 - size : -1] == lap:
                return True
        return False

    def shifted(self, known: Stack, state: int) -> Stack | None:
        """The known part of a stack after ``state`` is put on it; ``None`` if one state more has to be known.

        Args:
            known: from the bottom up.
        """
        for lap in self.laps.get(state, ()):
            size = len(lap)
            if known[-size:] == lap:
                return (*known[:-size], state)
            if len(known) < size and known == lap[size - len(known) :]:
                return None
        return (*known, state)

    def shift(self, frame: Frame, state: int) -> Frame:
        """The same on a whole stack."""
        for lap in self.laps.get(state, ()):
            at: Frame | None = frame
            for expected in reversed(lap):
                if at is None or at.state != expected:
                    break
                below, at = at, at.below
            else:
                return below
        return Frame(state, frame)


class Edges:
    """All edges of an LR(1) table.

    Attributes:
        of: by state on top and terminal (the end of the text is one).
        single: pairs whose reductions are made one by one.
    """

    def __init__(self, table: Table, absorber: Absorber) -> None:
        self.table = table
        self.absorber = absorber
        self.of: dict[tuple[int, int], tuple[Edge, ...]] = {}
        self.single: set[tuple[int, int]] = set()
        for top in table.tops:
            for terminal in table.action[top]:
                found = self._made(top, terminal)
                if found is None:
                    self.single.add((top, terminal))
                else:
                    self.of[top, terminal] = found

    def _made(self, top: int, terminal: int) -> tuple[Edge, ...] | None:
        found: list[Edge] = []
        queue: list[tuple[Stack, Stack]] = [((top,), (top,))]
        while queue:
            pop, known = queue.pop()
            done, known = self._advanced(known, terminal)
            if done is not None:
                found.append(Edge(pop, done))
            elif known:
                for below in self.table.before[known[0]]:
                    longer = (*pop, below)
                    if not self.absorber.impossible(longer):
                        queue.append((longer, (below, *known)))
            if len(found) + len(queue) > MOST_ALTERNATIVES or len(pop) > LONGEST_POP:
                return None
        return tuple(found)

    def _advanced(self, known: Stack, terminal: int) -> tuple[Stack | None, Stack]:
        """Reduce and shift as far as the known part of the stack allows.

        Returns:
            What it became, or ``None`` and how far it came; nothing at all if the terminal is refused.
        """
        table = self.table
        while True:
            act = table.action[known[-1]].get(terminal)
            if act is None:
                return None, ()
            if act == -1:
                return (), ()
            if act >= 0:
                done = self.absorber.shifted(known, act)
                return done, known
            count, left = table.reductions[~act]
            if count >= len(known):
                return None, known
            base = known[: len(known) - count]
            known = (*base, table.goto[base[-1]][left])

    def deterministic(self) -> bool:
        """Whether at most one edge fits any stack: no condition begins with another of its state and terminal."""
        for edges in self.of.values():
            pops = sorted(edge.pop for edge in edges)
            if any(b[: len(a)] == a for a, b in itertools.pairwise(pops)):
                return False
        return True


class PushdownParser(Parser):
    """The automaton, driven by terminals."""

    def __init__(self, table: Table, absorb: bool = True) -> None:
        super().__init__(table)
        self.absorber = Absorber(table, absorb)
        self.edges = Edges(table, self.absorber)
        self._by_length: dict[tuple[int, int], list[tuple[int, dict[Stack, Stack]]]] = {}
        for key, edges in self.edges.of.items():
            lengths: dict[int, dict[Stack, Stack]] = {}
            for edge in edges:
                lengths.setdefault(len(edge.pop), {})[edge.pop] = edge.push
            self._by_length[key] = sorted(lengths.items())

    def match(self, frame: Frame, terminal: int) -> tuple[int, Stack] | None:
        """How many states the edge that fits replaces, and by what."""
        lengths = self._by_length.get((frame.state, terminal))
        if lengths is None:
            return None
        states: list[int] = []
        at: Frame | None = frame
        for length, edges in lengths:
            while len(states) < length:
                if at is None:
                    self.lowest = -1
                    return None
                states.append(at.state)
                at = at.below
            self.lowest = min(self.lowest, frame.depth - length + 1)
            push = edges.get(tuple(states))
            if push is not None:
                return length, push
        return None

    def shift(self, frame: Frame, terminal: int) -> Frame | None:
        if (frame.state, terminal) in self.edges.single:
            reduced = self.reduced(frame, terminal)
            if reduced is None:
                return None
            # How much of the stack the absorbing looks at is bounded by the longest lap.
            self.lowest = min(self.lowest, max(-1, reduced.depth - LONGEST_LAP))
            return self.absorber.shift(reduced, self.action[reduced.state][terminal])
        found = self.match(frame, terminal)
        if found is None:
            return None
        length, push = found
        at: Frame | None = frame
        for _ in range(length):
            at = at.below  # type: ignore[union-attr]
        for state in push:
            at = Frame(state, at)
        return at

    def ends(self, frame: Frame) -> bool:
        end = self.table.grammar.end
        if (frame.state, end) in self.edges.single:
            return self.reduced(frame, end) is not None
        return self.match(frame, end) is not None
