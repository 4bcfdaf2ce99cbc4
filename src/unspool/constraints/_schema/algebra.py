"""Computes with schemas as unions of cells: and, but not, exactly one of, is there anything at all.

Everything is exact. What cannot be said with cells is refused, with the place of the keyword that it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.cells import EVERYTHING, Arrays, Cell, Fixed, Numbers, Objects, Strings
from unspool.constraints._schema.expressions import TooComplex
from unspool.constraints._schema.joining import both_keys, both_numbers, conj, key, less
from unspool.constraints._schema.keywords import COMBINED, OWN, own
from unspool.constraints._schema.leaving_out import cut
from unspool.constraints._schema.members import empty, holds
from unspool.constraints._schema.nodes import Document, Node, Schema, path
from unspool.constraints._schema.patterns import Unreadable

_WITHIN = ""
"""In the list of what is being unfolded: from here on it is what lies within an object or an array."""


class _Circular(Exception):
    """What is judged leads back to what is being unfolded."""


class _Enough(Exception):
    """The search for a value has taken long enough."""


MOST_CELLS = 20_000
MOST_SPENT = 40_000
MOST_JUDGED = 600
"""Cells that are made at most to find out whether there is any value."""

MOST_NESTED = 60


class Logic:
    """The algebra over one document."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self._unfolded: dict[str, list[Cell]] = {}
        self._opened: list[str] = []
        self._judging: set[str] = set()
        self._hopeless: dict[str, bool] = {}
        self._made = 0
        self._judged: int | None = None
        self._spent = 0

    # -- unfolding -----------------------------------------------------------------------------------------------------

    def cells(self, node: Node) -> list[Cell]:
        """The union that a node stands for.

        Raises:
            GrammarError: if it leads back to itself without an object or an array between, or cannot be said with
                cells.
        """
        if isinstance(node, bool):
            return list(EVERYTHING) if node else []
        name = key(node)
        if name not in self._unfolded:
            at = path(node["$at"])
            if name in self._opened:
                if _WITHIN in self._opened[self._opened.index(name) :]:
                    raise _Circular
                raise GrammarError("the schema refers to itself, and never to a value", at)
            if len(self._opened) > MOST_NESTED:
                raise GrammarError(f"schemas within schemas, deeper than {MOST_NESTED} levels", at)
            self._opened.append(name)
            try:
                found = self._unfold(node)
            except Unreadable as error:
                raise GrammarError(str(error), path(node["$at"], "pattern")) from error
            except TooComplex as error:
                raise GrammarError("its patterns, taken together, have too many states", at) from error
            finally:
                if self._opened:
                    self._opened.pop()
            self._count(len(found), node)
            self._unfolded[name] = found
        return self._unfolded[name]

    def _count(self, more: int, node: Schema) -> None:
        self._made += more
        if self._judged is not None and self._made > self._judged:
            raise _Enough
        if self._made > MOST_CELLS:
            raise GrammarError(f"the schema unfolds into more than {MOST_CELLS} alternatives", path(node["$at"]))

    def _unfold(self, node: Schema) -> list[Cell]:
        cells = list(EVERYTHING)
        own_done = False
        structured = next((k for k in node if k in ("properties", "patternProperties")), None)
        for keyword in node:
            if keyword in OWN and not own_done and structured in (None, keyword):
                cells, own_done = self.meet(cells, own(self, node)), True
            elif keyword in COMBINED:
                cells = self.combined(cells, node, keyword)
            self._count(len(cells), node)
        return cells

    def combined(self, cells: list[Cell], node: Schema, keyword: str) -> list[Cell]:
        """What one of the keywords that hold schemas of the value itself leaves of some cells."""
        value = node[keyword]
        if keyword == "$ref":
            return self.meet(cells, self.cells(self.document.node(value)))
        if keyword == "allOf":
            for part in value:
                cells = self.meet(cells, self.cells(part))
            return cells
        if keyword == "anyOf":
            return self.distinct(cell for part in value for cell in self.meet(cells, self.cells(part)))
        if keyword == "oneOf":
            return self.exactly_one(cells, value)
        if keyword == "not":
            return self.minus(cells, value)
        if keyword == "if":
            met = self.meet(self.meet(cells, self.cells(value)), self.cells(node.get("then", True)))
            otherwise = self.cells(node.get("else", True))
            return self.distinct([*met, *self.meet(self.minus(cells, value), otherwise)])
        for name, needed in value.items():
            without: Node = Schema({"$at": node["$at"], "properties": {name: False}})
            then: Node = needed
            if keyword == "dependentRequired":
                then = Schema({"$at": node["$at"], "required": needed})
            there: Node = Schema({"$at": node["$at"], "type": ["object"], "required": [name]})
            cells = self.distinct(
                [
                    *self.meet(self.meet(cells, self.cells(there)), self.cells(then)),
                    *self.meet(cells, self.cells(without)),
                ]
            )
        return cells

    def exactly_one(self, cells: list[Cell], branches: Sequence[Node]) -> list[Cell]:
        unfolded = [self.meet(cells, self.cells(branch)) for branch in branches]
        found: list[Cell] = []
        for place, ours in enumerate(unfolded):
            for other, theirs in enumerate(unfolded):
                if other != place:
                    ours = self.without(ours, theirs, branches[other])
            found.extend(ours)
        return self.distinct(found)

    def distinct(self, cells: Iterator[Cell] | Sequence[Cell]) -> list[Cell]:
        return list(dict.fromkeys(cells))

    # -- and -----------------------------------------------------------------------------------------------------------

    def meet(self, ours: Sequence[Cell], theirs: Sequence[Cell]) -> list[Cell]:
        if list(theirs) == list(EVERYTHING):
            return list(ours)
        if list(ours) == list(EVERYTHING):
            return list(theirs)
        found = []
        for a in ours:
            for b in theirs:
                if a.kind == b.kind and (c := self.both(a, b)) is not None and not self.empty(c):
                    found.append(c)
        return self.distinct(found)

    def both(self, a: Cell, b: Cell) -> Cell | None:
        """Values that are in two cells of one type."""
        self._spent += 1
        if self._spent > MOST_SPENT:
            raise GrammarError(f"it takes more than {MOST_SPENT} comparisons to tell its alternatives apart", "#")
        if isinstance(a, Fixed) or isinstance(b, Fixed):
            these, other = (a, b) if isinstance(a, Fixed) else (b, a)
            assert isinstance(these, Fixed)
            kept = tuple(text for text in these.values if self.holds(json.loads(text), other))
            return Fixed(these.kind, kept) if kept else None
        if isinstance(a, Numbers) and isinstance(b, Numbers):
            return both_numbers(a, b)
        if isinstance(a, Strings) and isinstance(b, Strings):
            return Strings(
                max(a.least, b.least),
                less(a.most, b.most),
                tuple(dict.fromkeys((*a.patterns, *b.patterns))),
                tuple(dict.fromkeys((*a.formats, *b.formats))),
                tuple(dict.fromkeys((*a.others, *b.others))),
            )
        if isinstance(a, Arrays) and isinstance(b, Arrays):
            length = max(len(a.prefix), len(b.prefix))
            return Arrays(
                tuple(conj(a.at(place), b.at(place)) for place in range(length)),
                conj(a.rest, b.rest),
                max(a.least, b.least),
                less(a.most, b.most),
                a.unique or b.unique,
                tuple(dict.fromkeys((*a.contains, *b.contains))),
            )
        assert isinstance(a, Objects)
        assert isinstance(b, Objects)
        return Objects(
            tuple((name, conj(a.of(name), b.of(name))) for name in dict.fromkeys((*a.names, *b.names))),
            both_keys(a, b),
            conj(a.rest, b.rest),
            tuple(dict.fromkeys((*a.required, *b.required))),
            max(a.least, b.least),
            less(a.most, b.most),
            tuple(dict.fromkeys((*a.some, *b.some))),
        )

    # -- but not -------------------------------------------------------------------------------------------------------

    def minus(self, cells: Sequence[Cell], node: Node) -> list[Cell]:
        return self.without(cells, self.cells(node), node)

    def without(self, cells: Sequence[Cell], others: Sequence[Cell], node: Node) -> list[Cell]:
        left = list(cells)
        for other in others:
            left = [piece for cell in left for piece in cut(self, cell, other, node)]
        return self.distinct(left)

    # -- is there anything ---------------------------------------------------------------------------------------------

    def hopeless(self, node: Node) -> bool:
        """Whether no value satisfies a node; ``False`` where that would take an endless search."""
        if isinstance(node, bool):
            return not node
        name = key(node)
        if name in self._hopeless:
            return self._hopeless[name]
        if name in self._judging or len(self._judging) > 12:
            return False
        self._judging.add(name)
        depth, outermost = len(self._opened), self._judged is None
        if outermost:
            self._judged = self._made + MOST_JUDGED
        self._opened.append(_WITHIN)
        try:
            found = all(self.empty(cell) for cell in self.cells(node))
        except _Circular:
            return False
        except _Enough:
            if not outermost:
                raise
            self._made = self._judged - MOST_JUDGED  # type: ignore[operator]
            found = False
        finally:
            self._judging.discard(name)
            del self._opened[depth:]
            if outermost:
                self._judged = None
        self._hopeless[name] = found
        return found

    def forgo(self, nodes: Sequence[Node]) -> None:
        """Take it that no value satisfies these nodes."""
        self._hopeless = {key(node): True for node in nodes} | {k: v for k, v in self._hopeless.items() if v}
        self._unfolded.clear()

    def empty(self, cell: Cell) -> bool:
        """Whether a cell has no value."""
        return empty(self, cell)

    def holds(self, value: Any, cell: Cell) -> bool:
        """Whether a value is in a cell."""
        return holds(self, value, cell)

    def satisfies(self, value: Any, node: Node) -> bool:
        """Whether a value is in what a node stands for."""
        if isinstance(node, bool):
            return node
        return any(self.holds(value, cell) for cell in self.cells(node))
