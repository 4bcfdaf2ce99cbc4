"""Computes with schemas as unions of cells: and, but not, exactly one of, is there anything at all.

Everything is exact. What cannot be said with cells is refused, with the place of the keyword that it comes from.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.cells import (
    EVERYTHING,
    Arrays,
    Cell,
    Fixed,
    Keys,
    Numbers,
    Objects,
    Strings,
    cell_of,
    fixed,
    kind_of,
)
from unspool.constraints._schema.expressions import ANY, NOTHING, Expression, TooComplex, literal
from unspool.constraints._schema.formats import FORMATS, INEXACT
from unspool.constraints._schema.nodes import Document, Node, Schema, canonical, path
from unspool.constraints._schema.patterns import Unreadable, found_in

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

COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas")
_OBJECT = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")
_OWN = {
    *("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "propertyNames", *_OBJECT),
    *("prefixItems", "items", "minItems", "maxItems", "uniqueItems", "contains"),
}


def key(node: Node) -> str:
    """Equal nodes at equal places give equal text."""
    return node.text if isinstance(node, Schema) else str(node)


def conj(*nodes: Node) -> Node:
    """All of them at once."""
    parts: dict[str, Node] = {}
    for node in nodes:
        if node is False:
            return False
        inner = node["allOf"] if isinstance(node, dict) and node.keys() == {"$at", "allOf"} else [node]
        for part in inner:
            if part is not True:
                parts.setdefault(key(part), part)
    found = list(parts.values())
    if len(found) < 2:
        return found[0] if found else True
    return Schema({"$at": found[0]["$at"], "allOf": found})  # type: ignore[index]


def negation(node: Node) -> Node:
    if isinstance(node, bool):
        return not node
    if node.keys() == {"$at", "not"}:
        return node["not"]
    return Schema({"$at": node["$at"], "not": node})


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
            if keyword in _OWN and not own_done and structured in (None, keyword):
                cells, own_done = self.meet(cells, self.own(node)), True
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

    def own(self, node: Schema) -> list[Cell]:
        """The cells of the keywords that speak of the value's type and of what lies inside of it."""
        if "enum" in node:
            plain = Schema({k: v for k, v in node.items() if k != "enum"})
            rest = self.own(plain) if plain.keys() & _OWN else list(EVERYTHING)
            return self.meet(fixed(node["enum"]), rest)
        types = node.get("type")
        found: list[Cell] = []
        for cell in EVERYTHING:
            if isinstance(cell, Numbers):
                whole = True if types is not None and "number" not in types and "integer" in types else None
                if types is None or "number" in types or "integer" in types:
                    found.append(_numbers(node, whole))
            elif types is None or cell.kind in types:
                if isinstance(cell, Strings):
                    found.append(_strings(node))
                elif isinstance(cell, Arrays):
                    found.append(_arrays(node))
                elif isinstance(cell, Objects):
                    found.append(self._objects(node))
                else:
                    found.append(cell)
        return [cell for cell in found if not self.empty(cell)]

    def _objects(self, node: Schema) -> Objects:
        named: dict[str, Node] = dict(node.get("properties", {}))
        rest: Node = node.get("additionalProperties", True)
        classes: list[Keys] = []
        for pattern, value in node.get("patternProperties", {}).items():
            there = found_in(pattern)
            named = {name: conj(inner, value) if there.matches(name) else inner for name, inner in named.items()}
            # Names in which several patterns are found have to satisfy the schemas of all of them.
            split = [
                Keys(both, conj(known.value, value)) for known in classes if not (both := known.names & there).is_empty
            ]
            if split:
                kept = [Keys(left, known.value) for known in classes if not (left := known.names & ~there).is_empty]
                alone = there
                for known in classes:
                    alone &= ~known.names
                classes = kept + split + ([] if alone.is_empty else [Keys(alone, value)])
            else:
                classes.append(Keys(there, value, pattern))
        cell = Objects(
            tuple(named.items()),
            tuple(classes),
            rest,
            tuple(node.get("required", ())),
            node.get("minProperties", 0),
            node.get("maxProperties"),
        )
        if "propertyNames" in node:
            cell = self._with_names(cell, node["propertyNames"])
        return cell

    def _with_names(self, cell: Objects, names: Node) -> Objects:
        allowed: Expression = NOTHING
        for one in self.cells(names):
            if isinstance(one, Fixed) and one.kind == "string":
                for text in one.read:
                    allowed |= literal(text)
            elif isinstance(one, Strings):
                allowed |= one.expression()
        return dataclasses.replace(
            cell,
            named=tuple((name, node if allowed.matches(name) else False) for name, node in cell.named),
            keys=(
                *(Keys(keys.names & allowed, keys.value) for keys in cell.keys),
                *([Keys(allowed & _others(cell.keys), cell.rest)] if cell.rest is not False else []),
            ),
            rest=False,
        )

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
            return _both_numbers(a, b)
        if isinstance(a, Strings) and isinstance(b, Strings):
            return Strings(
                max(a.least, b.least),
                _less(a.most, b.most),
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
                _less(a.most, b.most),
                a.unique or b.unique,
                tuple(dict.fromkeys((*a.contains, *b.contains))),
            )
        assert isinstance(a, Objects)
        assert isinstance(b, Objects)
        return Objects(
            tuple((name, conj(a.of(name), b.of(name))) for name in dict.fromkeys((*a.names, *b.names))),
            _both_keys(a, b),
            conj(a.rest, b.rest),
            tuple(dict.fromkeys((*a.required, *b.required))),
            max(a.least, b.least),
            _less(a.most, b.most),
            tuple(dict.fromkeys((*a.some, *b.some))),
        )

    # -- but not -------------------------------------------------------------------------------------------------------

    def minus(self, cells: Sequence[Cell], node: Node) -> list[Cell]:
        return self.without(cells, self.cells(node), node)

    def without(self, cells: Sequence[Cell], others: Sequence[Cell], node: Node) -> list[Cell]:
        left = list(cells)
        for other in others:
            left = [piece for cell in left for piece in self.cut(cell, other, node)]
        return self.distinct(left)

    def cut(self, cell: Cell, other: Cell, node: Node) -> list[Cell]:
        """The values of a cell that are not in another, as cells. ``node`` is where the other comes from."""
        shared = self.both(cell, other) if cell.kind == other.kind else None
        if shared is None or self.empty(shared):
            return [cell]
        if isinstance(cell, Fixed):
            kept = tuple(text for text in cell.values if not self.holds(json.loads(text), other))
            return [Fixed(cell.kind, kept)] if kept else []
        pieces: list[Cell] = []
        if isinstance(other, Fixed):
            if isinstance(cell, Strings):
                pieces = [dataclasses.replace(cell, others=(*cell.others, *map(literal, other.read)))]
            elif isinstance(cell, Numbers):
                edges = sorted(other.read)
                bounds = [-math.inf, *edges, math.inf]
                pieces = [
                    _both_numbers(cell, Numbers(low, low > -math.inf, high, high < math.inf))
                    for low, high in itertools.pairwise(bounds)
                ]
            else:
                left: list[Cell] = [cell]
                for value in other.read:
                    left = [piece for one in left for piece in self.cut(one, cell_of(value), node)]
                return left
        else:
            pieces = [
                piece
                for condition in self.opposites(other, cell, node)
                if (piece := self.both(cell, condition)) is not None
            ]
        return [piece for piece in pieces if not self.empty(piece)]

    def opposites(self, cell: Cell, within: Cell, node: Node) -> Iterator[Cell]:
        """Cells that together hold what a cell leaves out."""
        if isinstance(cell, Numbers):
            if cell.low > -math.inf:
                yield Numbers(high=cell.low, high_open=not cell.low_open)
            if cell.high < math.inf:
                yield Numbers(low=cell.high, low_open=not cell.high_open)
            if cell.whole is not None:
                yield Numbers(whole=not cell.whole)
            assert isinstance(within, Numbers)
            if set(cell.multiples) - set(within.multiples):
                raise self._refused("what is no multiple of a number", node, "multipleOf")
        elif isinstance(cell, Strings):
            if cell.least:
                yield Strings(most=cell.least - 1)
            if cell.most is not None:
                yield Strings(least=cell.most + 1)
            yield from (Strings(others=(found_in(pattern),)) for pattern in cell.patterns)
            assert isinstance(within, Strings)
            for name in cell.formats:
                if name in INEXACT and name not in within.formats:
                    raise self._refused(f"what does not have the format {name!r}", node, "format")
                yield Strings(others=(found_in(FORMATS[name]),))
            yield from (Strings(others=(~other,)) for other in cell.others)
        elif isinstance(cell, Arrays):
            yield from self._opposite_arrays(cell, node)
        elif isinstance(cell, Objects):
            assert isinstance(within, Objects)
            yield from self._opposite_objects(cell, within, node)

    def _opposite_arrays(self, cell: Arrays, node: Node) -> Iterator[Cell]:
        if cell.least:
            yield Arrays(most=cell.least - 1)
        if cell.most is not None:
            yield Arrays(least=cell.most + 1)
        for place, inner in enumerate(cell.prefix):
            if inner is not True:
                yield Arrays((*(True,) * place, negation(inner)), True, place + 1)
        if cell.rest is not True:
            yield Arrays(contains=((len(cell.prefix), negation(cell.rest)),))
        for start, inner in cell.contains:
            yield Arrays((True,) * start, negation(inner))
        if cell.unique and (cell.most is None or cell.most > 1):
            raise self._refused("arrays with equal elements", node, "uniqueItems")

    def _opposite_objects(self, cell: Objects, within: Objects, node: Node) -> Iterator[Cell]:
        for name in cell.required:
            if name not in within.required:
                yield Objects(((name, False),))
        for name, inner in cell.named:
            if inner is not True:
                yield Objects(((name, negation(inner)),), required=(name,))
        names = frozenset(cell.names)
        classes = [*cell.keys, Keys(_others(cell.keys), cell.rest)]
        for keys in classes:
            if keys.value is True:
                continue
            for name, _ in within.named:
                if name not in names and keys.names.matches(name):
                    yield Objects(((name, negation(keys.value)),), required=(name,))
            if within.rest is not False or within.keys:
                known = tuple((name, True) for name in names)
                yield Objects(known, some=((keys.names, names | set(within.names), negation(keys.value)),))
        if cell.least:
            yield Objects(most=cell.least - 1)
        if cell.most is not None:
            yield Objects(least=cell.most + 1)
        for there, apart, inner in cell.some:
            yield Objects(tuple((name, True) for name in apart), (Keys(there, negation(inner)),))

    def _refused(self, what: str, node: Node, keyword: str) -> GrammarError:
        at = node["$at"] if isinstance(node, dict) else ""
        return GrammarError(
            f"{what} cannot be told from the rest: leave the keyword out, or list the cases", path(at, keyword)
        )

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
        if isinstance(cell, Fixed):
            return not cell.values
        if isinstance(cell, Numbers):
            if cell.low > cell.high or (cell.low == cell.high and (cell.low_open or cell.high_open)):
                return True
            low, high = cell.integers()
            if cell.whole is False:
                return cell.low == cell.high == low
            return cell.whole is True and low > high
        if isinstance(cell, Strings):
            if cell.most is not None and cell.least > cell.most:
                return True
            if not (cell.patterns or cell.formats or cell.others):
                return False
            if len(cell.patterns) + len(cell.formats) == 1 and not cell.others and not cell.least and cell.most is None:
                return cell.formats == () and found_in(cell.patterns[0]).is_empty
            return cell.expression().is_empty
        if isinstance(cell, Arrays):
            if cell.most is not None and cell.least > cell.most:
                return True
            if any(self.hopeless(inner) for inner in cell.prefix[: cell.least]):
                return True
            if any(self.hopeless(inner) for _, inner in cell.contains):
                return True
            return cell.least > len(cell.prefix) and self.hopeless(cell.rest)
        if cell.most is not None and (cell.least > cell.most or len(cell.required) > cell.most):
            return True
        if any(self.hopeless(cell.of(name)) for name in cell.required):
            return True
        if cell.rest is False and not cell.keys:
            there = [name for name, inner in cell.named if inner is not False]
            return len(there) < cell.least or any(
                all(name in apart or not names.matches(name) for name in there) for names, apart, _ in cell.some
            )
        return False

    def holds(self, value: Any, cell: Cell) -> bool:
        """Whether a value is in a cell."""
        if kind_of(value) != cell.kind:
            return False
        if isinstance(cell, Fixed):
            return canonical(value) in {canonical(one) for one in cell.read}
        if isinstance(cell, Numbers):
            whole = float(value).is_integer()
            divides = all(abs(value / step - round(value / step)) < 1e-9 for step in cell.multiples)
            return cell.inside(value) and cell.whole in (None, whole) and divides
        if isinstance(cell, Strings):
            if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
                return False
            return cell.expression(lengths=False).matches(value)
        if isinstance(cell, Arrays):
            if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
                return False
            if cell.unique and len({canonical(one) for one in value}) < len(value):
                return False
            return all(self.satisfies(one, cell.at(place)) for place, one in enumerate(value)) and all(
                any(self.satisfies(one, inner) for one in value[start:]) for start, inner in cell.contains
            )
        if len(value) < cell.least or (cell.most is not None and len(value) > cell.most):
            return False
        return (
            all(name in value for name in cell.required)
            and all(self.satisfies(one, cell.of(name)) for name, one in value.items())
            and all(
                any(n not in apart and names.matches(n) and self.satisfies(one, inner) for n, one in value.items())
                for names, apart, inner in cell.some
            )
        )

    def satisfies(self, value: Any, node: Node) -> bool:
        if isinstance(node, bool):
            return node
        return any(self.holds(value, cell) for cell in self.cells(node))


def _less(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def _others(keys: Sequence[Keys]) -> Expression:
    """Names that are in none of the sets."""
    found: Expression = ANY
    for one in keys:
        found &= ~one.names
    return found


def _both_keys(a: Objects, b: Objects) -> tuple[Keys, ...]:
    if not a.keys:
        return tuple(Keys(keys.names, conj(a.rest, keys.value), keys.text) for keys in b.keys)
    if not b.keys:
        return tuple(Keys(keys.names, conj(keys.value, b.rest), keys.text) for keys in a.keys)
    if a.keys == b.keys:
        return a.keys
    found = []
    for ours in (*a.keys, Keys(_others(a.keys), a.rest)):
        for theirs in (*b.keys, Keys(_others(b.keys), b.rest)):
            if ours.text is None and theirs.text is None and ours not in a.keys and theirs not in b.keys:
                continue
            if not (names := ours.names & theirs.names).is_empty:
                text = ours.text if names == ours.names else theirs.text if names == theirs.names else None
                found.append(Keys(names, conj(ours.value, theirs.value), text))
    return tuple(found)


def _both_numbers(a: Numbers, b: Numbers) -> Numbers:
    low, low_open = max((a.low, a.low_open), (b.low, b.low_open))
    high, high_closed = min((a.high, not a.high_open), (b.high, not b.high_open))
    whole = a.whole if b.whole is None else b.whole if a.whole is None or a.whole == b.whole else False
    if a.whole is not None and b.whole is not None and a.whole != b.whole:
        low, high = 1.0, 0.0
    return Numbers(low, low_open, high, not high_closed, whole, tuple(dict.fromkeys((*a.multiples, *b.multiples))))


def _numbers(node: Schema, whole: bool | None) -> Numbers:
    cell = Numbers(whole=whole, multiples=(node["multipleOf"],) if "multipleOf" in node else ())
    if "minimum" in node:
        cell = _both_numbers(cell, Numbers(low=node["minimum"]))
    if "exclusiveMinimum" in node:
        cell = _both_numbers(cell, Numbers(low=node["exclusiveMinimum"], low_open=True))
    if "maximum" in node:
        cell = _both_numbers(cell, Numbers(high=node["maximum"]))
    if "exclusiveMaximum" in node:
        cell = _both_numbers(cell, Numbers(high=node["exclusiveMaximum"], high_open=True))
    return cell


def _strings(node: Schema) -> Strings:
    named = node.get("format")
    return Strings(
        node.get("minLength", 0),
        node.get("maxLength"),
        (node["pattern"],) if "pattern" in node else (),
        (named,) if named in FORMATS else (),
    )


def _arrays(node: Schema) -> Arrays:
    contains: tuple[tuple[int, Any], ...] = ()
    if "contains" in node:
        least = node.get("minContains", 1)
        if least > 1 or "maxContains" in node:
            raise GrammarError(
                "elements cannot be counted", path(node["$at"], "minContains" if least > 1 else "maxContains")
            )
        contains = ((0, node["contains"]),) if least else ()
    return Arrays(
        tuple(node.get("prefixItems", ())),
        node.get("items", True),
        node.get("minItems", 0),
        node.get("maxItems"),
        node.get("uniqueItems", False),
        contains,
    )
