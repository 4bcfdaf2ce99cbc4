"""The stack of a parser, as frames that never change: texts that share a beginning share their frames."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from unspool.constraints._lr import Table


class Frame:
    """A stack: its top, and the stack below.

    Attributes:
        state: of the parser.
        below: the rest; ``None`` at the bottom.
        depth: frames below.
        ends: how a text can end above this frame, once asked for (see ``_completion``).
    """

    __slots__ = ("below", "depth", "ends", "state")

    def __init__(self, state: int, below: Frame | None) -> None:
        self.state = state
        self.below = below
        self.depth: int = 0 if below is None else below.depth + 1
        self.ends: Any = None

    def states(self, count: int | None = None) -> list[int]:
        """States from the top down, at most ``count``."""
        found: list[int] = []
        frame: Frame | None = self
        while frame is not None and (count is None or len(found) < count):
            found.append(frame.state)
            frame = frame.below
        return found


class Parser:
    """A table, driven step by step.

    Attributes:
        lowest: the least depth of a frame that was looked at since it was set, ``-1`` for the bottom and that nothing
            lies below it. What lies below it had no part in what was found. For whoever reads it to set; texts
            share a parser, so that such a one makes its own.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.action = table.action
        self.goto = table.goto
        self.reductions = table.reductions
        self.lowest = 0

    def start(self) -> Frame:
        return Frame(0, None)

    def shift(self, frame: Frame, terminal: int) -> Frame | None:
        """The stack after a terminal, all reductions before it included; ``None`` if it may not follow."""
        reduced = self.reduced(frame, terminal)
        if reduced is None:
            return None
        return Frame(self.action[reduced.state][terminal], reduced)

    def reduced(self, frame: Frame, terminal: int) -> Frame | None:
        """The stack from which a terminal is shifted, or the text accepted if it is the end."""
        while True:
            act = self.action[frame.state].get(terminal)
            if act is None:
                return None
            if act >= -1:
                return frame
            count, left = self.reductions[~act]
            base = frame
            for _ in range(count):
                base = base.below  # type: ignore[assignment]
            if base.depth < self.lowest:
                self.lowest = base.depth
            frame = Frame(self.goto[base.state][left], base)

    def ends(self, frame: Frame) -> bool:
        """Whether the text is whole."""
        return self.reduced(frame, self.table.grammar.end) is not None

    def probe(self, depth: int) -> Parser:
        """A parser that does the same and notes how far below ``depth`` it looks."""
        twin = copy(self)
        twin.lowest = depth
        return twin

    def follow(self, frame: Frame, terminals: Sequence[int]) -> Frame | None:
        """The stack after several terminals."""
        at: Frame | None = frame
        for terminal in terminals:
            if at is None:
                return None
            at = self.shift(at, terminal)
        return at
