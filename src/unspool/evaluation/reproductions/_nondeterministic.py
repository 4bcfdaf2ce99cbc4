"""A pushdown automaton that explores: every way to derive what was read is a stack of its own.

It is what a deterministic automaton is measured against, and it shares nothing with LR tables: stacks hold what is
still expected, and a symbol on top is replaced by each of its right sides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from unspool.constraints._rules import Rules

Stack = tuple[int, "Stack"] | None
"""What is expected: the next symbol, and the rest; ``None`` at the end of the text."""


class Explorer:
    """All stacks of a text. The grammar must not be left-recursive, and has no empty right sides.

    Args:
        rules: the grammar.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.right: dict[int, list[tuple[int, ...]]] = {}
        for left, right in rules.productions:
            self.right.setdefault(left, []).append(right)

    def start(self) -> frozenset[Stack]:
        return frozenset(self._opened((~self.rules.start, None)))

    def _opened(self, stack: Stack) -> Iterator[Stack]:
        """Stacks with a terminal on top, or none."""
        if stack is None or stack[0] >= 0:
            yield stack
            return
        for right in self.right[~stack[0]]:
            longer = stack[1]
            for symbol in reversed(right):
                longer = (symbol, longer)
            yield from self._opened(longer)

    def shift(self, stacks: frozenset[Stack], terminal: int) -> frozenset[Stack]:
        """After a terminal; empty if it may not follow."""
        below = {stack[1] for stack in stacks if stack is not None and stack[0] == terminal}
        return frozenset(opened for stack in below for opened in self._opened(stack))

    def ends(self, stacks: frozenset[Stack]) -> bool:
        return None in stacks


class Writer:
    """Random sentences of a grammar.

    Args:
        rules: every nonterminal of which has a finite text.
    """

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.right: dict[int, list[tuple[int, ...]]] = {}
        for left, right in rules.productions:
            self.right.setdefault(left, []).append(right)
        self.least: dict[int, int] = {}
        while len(self.least) < len(self.right):
            before = len(self.least)
            for left, rights in self.right.items():
                sizes = [size for right in rights if (size := self._size(right)) is not None]
                if sizes and left not in self.least:
                    self.least[left] = min(sizes) + 1
            if len(self.least) == before:
                raise ValueError("a nonterminal has no finite text")

    def _size(self, right: Sequence[int]) -> int | None:
        """Levels that a right side needs at least; ``None`` if that is not known yet."""
        if any(symbol < 0 and ~symbol not in self.least for symbol in right):
            return None
        return max((self.least[~symbol] for symbol in right if symbol < 0), default=0)

    def sentence(self, rng: random.Random, depth: int) -> list[int]:
        """Terminals; below ``depth`` levels the shortest right sides are taken."""
        found: list[int] = []
        queue: list[tuple[int, int]] = [(~self.rules.start, depth)]
        while queue:
            symbol, left = queue.pop()
            if symbol >= 0:
                found.append(symbol)
                continue
            rights = self.right[~symbol]
            if left <= 0:
                least = min(self._size(right) or 0 for right in rights)
                rights = [right for right in rights if (self._size(right) or 0) == least]
            queue += [(each, left - 1) for each in reversed(rng.choice(rights))]
        return found
