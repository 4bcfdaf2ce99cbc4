"""A grammar by brute force: a prefix parser after Earley, over bytes, without tokens, tables or lexers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Symbol = str | frozenset[int]
Rules = Mapping[str, Sequence[Sequence[Symbol]]]


def text(string: str) -> list[Symbol]:
    """A literal, as one set of bytes after the other."""
    return [frozenset({byte}) for byte in string.encode()]


def one_of(characters: str) -> Symbol:
    """One of several characters of one byte each."""
    return frozenset(characters.encode())


Item = tuple[str, int, int, int]
"""Rule, alternative, place of the dot, column where it began."""


@dataclass(frozen=True)
class State:
    """The columns of an Earley chart."""

    columns: tuple[frozenset[Item], ...]


class Oracle:
    """A recogniser of prefixes. Every nonterminal has to have a finite text.

    Args:
        rules: alternatives by nonterminal; ``start`` is the start.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.start = State((self._closed({("start", i, 0, 0) for i in range(len(rules["start"]))}, (), 0),))

    def _closed(self, items: set[Item], before: Sequence[frozenset[Item]], column: int) -> frozenset[Item]:
        while True:
            found = set(items)
            for name, alternative, dot, began in items:
                sequence = self.rules[name][alternative]
                if dot == len(sequence):
                    for parent in items if began == column else before[began]:
                        above = self.rules[parent[0]][parent[1]]
                        if parent[2] < len(above) and above[parent[2]] == name:
                            found.add((parent[0], parent[1], parent[2] + 1, parent[3]))
                elif isinstance(symbol := sequence[dot], str):
                    found |= {(symbol, i, 0, column) for i in range(len(self.rules[symbol]))}
            if found == items:
                return frozenset(items)
            items = found

    def push(self, state: State, byte: int) -> State | None:
        """The state after one more byte; ``None`` if no text of the language begins so."""
        moved = set()
        for name, alternative, dot, began in state.columns[-1]:
            sequence = self.rules[name][alternative]
            if dot < len(sequence) and not isinstance(sequence[dot], str) and byte in sequence[dot]:
                moved.add((name, alternative, dot + 1, began))
        if not moved:
            return None
        return State((*state.columns, self._closed(moved, state.columns, len(state.columns))))

    def read(self, state: State | None, data: bytes) -> State | None:
        for byte in data:
            if state is None:
                return None
            state = self.push(state, byte)
        return state

    def complete(self, state: State) -> bool:
        """Whether the text so far is in the language."""
        return any(
            name == "start" and began == 0 and dot == len(self.rules[name][alternative])
            for name, alternative, dot, began in state.columns[-1]
        )

    def next_bytes(self, state: State) -> set[int]:
        return {byte for byte in range(256) if self.push(state, byte) is not None}
