"""Regular expressions as one deterministic automaton over bytes.

Thompson's construction over byte ranges (a class of characters is the set of their encodings in UTF-8, so that a token
may end within a character), the subset construction, and the merging of states that cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.expressions import (
    NOTHING,
    Expression,
    Ranges,
    classes,
    common,
    derivative,
    outside,
    ranges,
)

DEAD = -1

MOST_PARTS = 400_000
"""States of the automaton before it is made deterministic."""
MOST_STATES = 12_000
"""States of the deterministic automaton."""
_MERGED = 1_000
"""Larger automata are left as they are: merging only makes them smaller, and takes longer than it saves."""

_LENGTHS = ((0x0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF))
_SURROGATES = (0xD800, 0xDFFF)

ByteRange = tuple[int, int]

IN_JSON = "json"
"""An expression of this kind holds the texts of its part as they are written within a string of JSON."""
_ESCAPED = (*range(0x20), 0x22, 0x5C, 0x7F)
_PLAIN = outside(ranges((point, point) for point in _ESCAPED))
_SHORT = {0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0C: b"f", 0x0D: b"r", 0x22: b'"', 0x5C: b"\\"}


def in_json(e: Expression) -> Expression:
    """The texts of an expression between the quotes of JSON; control characters escaped, others as they are."""
    return Expression(IN_JSON, (e,))


def _escapes(point: int) -> list[tuple[bytes, ...]]:
    """The ways to write a character that has to be escaped; each as sets of bytes."""
    ways: list[tuple[bytes, ...]] = [(b"\\", _SHORT[point])] if point in _SHORT else []
    if point not in (0x22, 0x5C):
        digits = f"{point:04x}"
        ways.append((b"\\", b"u", *(bytes({ord(d), ord(d.upper())}) for d in digits)))
    return ways


def encodings(low: int, high: int) -> Iterator[tuple[ByteRange, ...]]:
    """The encodings in UTF-8 of the characters from ``low`` to ``high``, as sequences of ranges of bytes."""
    if low <= _SURROGATES[1] and high >= _SURROGATES[0]:
        if low < _SURROGATES[0]:
            yield from encodings(low, _SURROGATES[0] - 1)
        if high > _SURROGATES[1]:
            yield from encodings(_SURROGATES[1] + 1, high)
        return
    for least, most in _LENGTHS:
        first, last = max(low, least), min(high, most)
        if first <= last:
            yield from _same_length(first, last)


def _same_length(low: int, high: int) -> Iterator[tuple[ByteRange, ...]]:
    a, b = chr(low).encode(), chr(high).encode()
    for place in range(1, len(a)):
        # Where the leading bytes differ, the bytes behind them have to run over all values.
        tail = (1 << 6 * (len(a) - place)) - 1
        if low & ~tail != high & ~tail:
            if low & tail:
                yield from _same_length(low, low | tail)
                yield from _same_length((low | tail) + 1, high)
                return
            if high & tail != tail:
                yield from _same_length(low, (high & ~tail) - 1)
                yield from _same_length(high & ~tail, high)
                return
    yield tuple(zip(a, b, strict=True))


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton over bytes; state 0 is its start.

    Args:
        delta: ``[Q, 256]`` int32, the next state, ``DEAD`` if there is none. Every state leads to a final one.
        finals: of every state the expressions that end there, by their number.
    """

    delta: NDArray[np.int32]
    finals: tuple[frozenset[int], ...]


class _Parts:
    """The automaton before it is deterministic."""

    def __init__(self) -> None:
        self.as_json = False
        self.empty: list[list[int]] = []
        self.edges: list[list[tuple[int, int, int]]] = []

    def new(self) -> int:
        if len(self.edges) >= MOST_PARTS:
            raise GrammarError(
                f"the regular expressions need more than {MOST_PARTS} states: use smaller repeats or classes"
            )
        self.empty.append([])
        self.edges.append([])
        return len(self.edges) - 1

    def add(self, e: Expression, start: int) -> int:
        """Build an expression from a state on; returns the state at its end."""
        if e.op == "seq":
            for part in e.parts:
                start = self.add(part, start)
            return start
        if e.op == "eps":
            return start
        if e.op == "rep":
            return self._repeat(e, start)
        if e.op == IN_JSON:
            self.as_json = True
            end = self.add(e.parts[0], start)
            self.as_json = False
            return end
        end = self.new()
        if e.op == "alt":
            for part in e.parts:
                begin = self.new()
                self.empty[start].append(begin)
                self.empty[self.add(part, begin)].append(end)
        elif e.op == "chars":
            self._characters(e.chars, start, end)
        elif e.op in ("and", "not"):
            self._derived(e, start, end)
        return end

    def _repeat(self, e: Expression, start: int) -> int:
        part = e.parts[0]
        for _ in range(e.low):
            start = self.add(part, start)
        if e.high is None:
            # States of its own, so that the loop cannot be entered from what stands before or behind it.
            begin, end = self.new(), self.new()
            self.empty[start].append(begin)
            self.empty[begin].append(end)
            self.empty[self.add(part, begin)].append(begin)
            return end
        end = self.new()
        for _ in range(e.high - e.low):
            self.empty[start].append(end)
            start = self.add(part, start)
        self.empty[start].append(end)
        return end

    def _characters(self, given: Ranges, start: int, end: int) -> None:
        if self.as_json:
            for point in _ESCAPED:
                if any(low <= point <= high for low, high in given):
                    for written in _escapes(point):
                        self._bytes(written, start, end)
            given = common(given, _PLAIN)
        tails: dict[tuple[ByteRange, ...], int] = {(): end}
        for low, high in given:
            for run in encodings(low, high):
                for place in range(len(run) - 1, 0, -1):
                    tail = run[place:]
                    if tail not in tails:
                        tails[tail] = self.new()
                        self.edges[tails[tail]].append((*tail[0], tails[tail[1:]]))
                self.edges[start].append((*run[0], tails[run[1:]]))

    def _bytes(self, written: tuple[bytes, ...], start: int, end: int) -> None:
        """One byte of each of several sets, in a row."""
        for choices in written[:-1]:
            after = self.new()
            self.edges[start] += [(byte, byte, after) for byte in choices]
            start = after
        self.edges[start] += [(byte, byte, end) for byte in written[-1]]

    def _derived(self, e: Expression, start: int, end: int) -> None:
        """Intersections and complements, by their derivatives."""
        states = {e: self.new()}
        self.empty[start].append(states[e])
        queue = [e]
        while queue:
            at = queue.pop()
            if at.nullable:
                self.empty[states[at]].append(end)
            for piece in classes(at):
                after = derivative(at, piece[0][0])
                if after == NOTHING:
                    continue
                if after not in states:
                    states[after] = self.new()
                    queue.append(after)
                self._characters(piece, states[at], states[after])


def automaton(expressions: Sequence[Expression], spelled: NDArray[np.bool_] | None = None) -> Automaton:
    """The union of several expressions.

    Args:
        spelled: ``[256]`` the bytes that can be written at all; others are taken out of the language. ``None`` for all.

    Raises:
        GrammarError: if it has too many states.
    """
    parts = _Parts()
    root = parts.new()
    ends: dict[int, int] = {}
    for number, expression in enumerate(expressions):
        begin = parts.new()
        parts.empty[root].append(begin)
        end = parts.add(expression, begin)
        final = parts.new()
        parts.empty[end].append(final)
        ends[final] = number
    rows, finals = _determined(parts, root, ends)
    delta = np.array(rows, dtype=np.int32).reshape(-1, 256)
    if spelled is not None:
        delta[:, ~spelled] = DEAD
    return _fresh_start(*_merged(*_trimmed(delta, finals)))


def _byte_classes(parts: _Parts) -> tuple[list[int], NDArray[np.int64]]:
    """Bytes that no edge tells apart: the class where each byte begins, and ``[256]`` the class of every byte."""
    bounds = {0}
    for edges in parts.edges:
        for low, high, _ in edges:
            bounds.add(low)
            bounds.add(high + 1)
    starts = sorted(bound for bound in bounds if bound < 256)
    return starts, np.searchsorted(starts, np.arange(256), side="right") - 1


def _determined(parts: _Parts, root: int, ends: dict[int, int]) -> tuple[list[NDArray[np.int32]], list[frozenset[int]]]:
    starts, of_byte = _byte_classes(parts)
    number = {byte: place for place, byte in enumerate(starts)} | {256: len(starts)}
    edges = [[(number[low], number[high + 1], target) for low, high, target in each] for each in parts.edges]
    closures: dict[int, frozenset[int]] = {}

    def closure(state: int) -> frozenset[int]:
        """Reachable without a byte; of these only states that do something."""
        known = closures.get(state)
        if known is None:
            seen, queue = {state}, [state]
            while queue:
                for target in parts.empty[queue.pop()]:
                    if target not in seen:
                        seen.add(target)
                        queue.append(target)
            known = closures[state] = frozenset(s for s in seen if edges[s] or s in ends)
        return known

    first = closure(root)
    known = {first: 0}
    order = [first]
    rows: list[NDArray[np.int32]] = []
    sets: dict[frozenset[int], frozenset[int]] = {}
    for subset in order:
        targets: list[set[int]] = [set() for _ in starts]
        for state in subset:
            for low, high, target in edges[state]:
                for place in range(low, high):
                    targets[place].add(target)
        row = np.full(len(starts), DEAD, dtype=np.int32)
        for place, reached in enumerate(targets):
            if not reached:
                continue
            key = frozenset(reached)
            after = sets.get(key)
            if after is None:
                after = sets[key] = frozenset().union(*map(closure, key))
            if after not in known:
                if len(known) >= MOST_STATES:
                    raise GrammarError(
                        f"the lexer needs more than {MOST_STATES} states: use smaller repeats, fewer or shorter texts"
                    )
                known[after] = len(order)
                order.append(after)
            row[place] = known[after]
        rows.append(row[of_byte])
    return rows, [frozenset(ends[state] for state in subset if state in ends) for subset in order]


def _trimmed(delta: NDArray[np.int32], finals: list[frozenset[int]]) -> tuple[NDArray[np.int32], list[frozenset[int]]]:
    """Without the states that lead to no final one, or cannot be reached; the start stays."""
    count = len(delta)
    useful = np.array([bool(final) for final in finals])
    sources, _ = np.nonzero(delta >= 0)
    pairs = np.unique(np.stack([sources, delta[delta >= 0]], 1), axis=0) if len(sources) else np.zeros((0, 2), int)
    while True:
        more = useful.copy()
        more[pairs[useful[pairs[:, 1]], 0]] = True
        if (more == useful).all():
            break
        useful = more
    reached = np.zeros(count, dtype=bool)
    reached[0] = True
    while True:
        live = pairs[useful[pairs[:, 1]]]
        more = reached.copy()
        more[live[reached[live[:, 0]], 1]] = True
        if (more == reached).all():
            break
        reached = more
    kept = useful & reached
    kept[0] = True
    number = np.full(count + 1, DEAD, dtype=np.int32)
    number[:-1][kept] = np.arange(kept.sum())
    return number[delta[kept]], [final for final, keep in zip(finals, kept, strict=True) if keep]


def _merged(delta: NDArray[np.int32], finals: list[frozenset[int]]) -> tuple[NDArray[np.int32], list[frozenset[int]]]:
    """States that cannot be told apart made one (Moore's refinement)."""
    if len(delta) > _MERGED:
        return delta, finals
    distinct = {final: place for place, final in enumerate(dict.fromkeys(finals))}
    block = np.array([distinct[final] for final in finals], dtype=np.int64)
    columns = np.unique(delta, axis=1)
    while True:
        padded = np.append(block, DEAD)
        _, refined = np.unique(np.concatenate([block[:, None], padded[columns]], 1), axis=0, return_inverse=True)
        refined = refined.reshape(-1)
        if refined.max() == block.max():
            break
        block = refined
    # Numbered by their first state, so that the start stays in front.
    _, firsts = np.unique(block, return_index=True)
    order = np.sort(firsts)
    number = np.zeros(len(order) + 1, dtype=np.int32)
    number[block[order]] = np.arange(len(order))
    number[-1] = DEAD
    moved = np.append(block, -1)[delta[order]]
    return number[moved], [finals[state] for state in order]


def _fresh_start(delta: NDArray[np.int32], finals: list[frozenset[int]]) -> Automaton:
    """A start that nothing leads back to, so that it stands for 'no byte yet'."""
    if not (delta == 0).any():
        return Automaton(delta, tuple(finals))
    moved = np.where(delta >= 0, delta + 1, DEAD).astype(np.int32)
    return Automaton(np.concatenate([moved[:1], moved]), (finals[0], *finals))
