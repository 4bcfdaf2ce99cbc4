"""Where a text of trees stands, and which tokens cannot lead to the wanted function any more.

Every open slot has a *context*: what the output is in every row if the slot turns out 0, 1, or is not known yet. An AND
whose right operand is missing makes a 1 unknown and keeps a 0; one whose left operand is finished takes the value where
that is 1, and is 0 elsewhere. Contexts are composed as gates open, so that a leaf is judged by two operations on
whole tables whatever its depth. That says the same as going through the open gates from the slot to the root with
the leaf's table and a mask of unknown rows (Circuit Transformer, ICLR 2025, section 3.2), for all leaves at once.

Nothing that could still be right is forbidden: what is unknown may become any function, in every row by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from unspool.circuits.sequence import AND, EOS, NAND, VOCABULARY, Task
from unspool.circuits.tables import full, variable


class Context(NamedTuple):
    """Rows in which the output is known, by the value of a slot: ``(is 1, is 0)`` for 0, for 1, for unknown."""

    zero: tuple[int, int]
    one: tuple[int, int]
    unknown: tuple[int, int]


def _mixed(where: int, there: tuple[int, int], elsewhere: tuple[int, int]) -> tuple[int, int]:
    return there[0] & where | elsewhere[0] & ~where, there[1] & where | elsewhere[1] & ~where


class Gate(NamedTuple):
    """An open gate.

    Args:
        inverted: whether it is a NAND.
        left: the table of its left operand, once that is finished.
        above: the open gate that it is an operand of.
        outer: the context of its own slot.
        context: that of its next operand.
        path: the way from the root to its own slot, a bit a step, 1 for a right operand; the last step lowest.
        depth: steps of that way.
    """

    inverted: bool
    left: int | None
    above: Gate | None
    outer: Context
    context: Context
    path: int
    depth: int


def _opened(inverted: bool, outer: Context, above: Gate | None, path: int, depth: int) -> Gate:
    inner = Context(outer.one if inverted else outer.zero, outer.unknown, outer.unknown)
    return Gate(inverted, None, above, outer, inner, path, depth)


def _half(gate: Gate, left: int) -> Gate:
    outer = gate.outer
    low, high = (outer.one, outer.zero) if gate.inverted else (outer.zero, outer.one)
    inner = Context(low, _mixed(left, high, low), _mixed(left, outer.unknown, low))
    return gate._replace(left=left, context=inner)


@cache
def leaf_tables(inputs: int) -> tuple[int, ...]:
    """The tables of ``x0, ~x0, x1, ...``, in the order of their tokens."""
    return tuple(
        variable(inputs, index) ^ (full(inputs) if inverted else 0)
        for index in range(inputs)
        for inverted in (False, True)
    )


class Needs(NamedTuple):
    """What a slot has to be, by rows.

    Args:
        one: where only a 1 can lead to the target; ``zero``: where only a 0 can. Where both, nothing can.
        open_zero: where the output stays unknown if the slot is 0; ``open_one``: if it is 1.
    """

    one: int
    zero: int
    open_zero: int
    open_one: int


class Place:
    """Where a text stands; immutable.

    Args:
        task: what the trees have to do.
        output: the output that is being written; as many as there are targets when all are finished.
        gate: the innermost open gate, ``None`` at a root.
        fits: whether every finished tree does what it has to, in the rows that matter.
        stray: whether a token came that cannot stand where it did.
    """

    __slots__ = ("_needs", "fits", "gate", "output", "stray", "task")

    def __init__(
        self, task: Task, output: int = 0, gate: Gate | None = None, fits: bool = True, stray: bool = False
    ) -> None:
        self.task = task
        self.output = output
        self.gate = gate
        self.fits = fits
        self.stray = stray
        self._needs: Needs | None = None

    @property
    def finished(self) -> bool:
        """Whether all outputs are written."""
        return self.output >= len(self.task.targets)

    @property
    def depth(self) -> int:
        """Of the open slot; 0 at a root."""
        return 0 if self.gate is None else self.gate.depth + 1

    @property
    def path(self) -> int:
        """The way to the open slot, as in :class:`Gate`."""
        return 0 if self.gate is None else self.gate.path << 1 | (self.gate.left is not None)

    @property
    def context(self) -> Context:
        """Of the open slot."""
        if self.gate is not None:
            return self.gate.context
        care = self.task.cares[self.output]
        return Context((0, care), (care, 0), (0, 0))

    @property
    def needs(self) -> Needs:
        """What the open slot has to be."""
        if self._needs is None:
            task, context = self.task, self.context
            target, care = task.targets[self.output], task.cares[self.output]
            not_zero = context.zero[0] & ~target | context.zero[1] & target
            not_one = context.one[0] & ~target | context.one[1] & target
            open_zero = care & ~(context.zero[0] | context.zero[1])
            open_one = care & ~(context.one[0] | context.one[1])
            self._needs = Needs(not_zero, not_one, open_zero, open_one)
        return self._needs

    def push(self, token: int) -> Place:
        """Where the text stands with one more token. Tokens 0 and 1 change nothing but, of a finished text, are no
        strays."""
        if token < 2:
            return self if self.finished or token == 0 else self._astray()
        if self.finished or not token < VOCABULARY:
            return self._astray()
        if token >= AND:
            gate = _opened(token == NAND, self.context, self.gate, self.path, self.depth)
            return Place(self.task, self.output, gate, self.fits, self.stray)
        tables = leaf_tables(self.task.inputs)
        if token - 2 >= len(tables):
            return self._astray()
        value, above, whole = tables[token - 2], self.gate, full(self.task.inputs)
        while above is not None:
            if above.left is None:
                return Place(self.task, self.output, _half(above, value), self.fits, self.stray)
            value &= above.left
            if above.inverted:
                value ^= whole
            above = above.above
        wrong = (value ^ self.task.targets[self.output]) & self.task.cares[self.output]
        return Place(self.task, self.output + 1, None, self.fits and not wrong, self.stray)

    def _astray(self) -> Place:
        return Place(self.task, self.output, self.gate, self.fits, True)

    def leaves(self) -> list[tuple[int, bool]]:
        """The leaves that may stand in the open slot, by token, and whether each settles the output in all rows."""
        need = self.needs
        return [
            (token, not (~table & need.open_zero | table & need.open_one))
            for token, table in enumerate(leaf_tables(self.task.inputs), 2)
            if not (~table & need.one | table & need.zero)
        ]

    def allowed(self, deepest: int) -> list[int]:
        """The tokens that may follow; only the end if the text is finished or nothing else is left.

        A gate may follow at depths below ``deepest``, unless a leaf settles the output: more of it would only cost.
        """
        if self.stray:
            return []
        if self.finished:
            return [EOS]
        found = self.leaves()
        tokens = [token for token, _ in found]
        if self.depth < deepest and not any(settled for _, settled in found):
            tokens += [AND, NAND]
        return tokens or [EOS]


def place_of(task: Task, tokens: Sequence[int]) -> Place:
    """Where a whole text stands."""
    place = Place(task)
    for token in tokens:
        place = place.push(token)
    return place
