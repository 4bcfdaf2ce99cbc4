"""But not: the values of one cell that are not in another, as cells again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.cells import Arrays, Cell, Fixed, Keys, Numbers, Objects, Strings, cell_of
from unspool.constraints._schema.expressions import literal
from unspool.constraints._schema.formats import FORMATS, INEXACT
from unspool.constraints._schema.joining import both_numbers, negation, others
from unspool.constraints._schema.nodes import Node, path
from unspool.constraints._schema.patterns import found_in

if TYPE_CHECKING:
    from unspool.constraints._schema.algebra import Logic


def cut(logic: Logic, cell: Cell, other: Cell, node: Node) -> list[Cell]:
    """The values of a cell that are not in another, as cells. ``node`` is where the other comes from."""
    shared = logic.both(cell, other) if cell.kind == other.kind else None
    if shared is None or logic.empty(shared):
        return [cell]
    if isinstance(cell, Fixed):
        kept = tuple(text for text in cell.values if not logic.holds(json.loads(text), other))
        return [Fixed(cell.kind, kept)] if kept else []
    pieces: list[Cell] = []
    if isinstance(other, Fixed):
        if isinstance(cell, Strings):
            pieces = [dataclasses.replace(cell, others=(*cell.others, *map(literal, other.read)))]
        elif isinstance(cell, Numbers):
            edges = sorted(other.read)
            bounds = [-math.inf, *edges, math.inf]
            pieces = [
                both_numbers(cell, Numbers(low, low > -math.inf, high, high < math.inf))
                for low, high in itertools.pairwise(bounds)
            ]
        else:
            left: list[Cell] = [cell]
            for value in other.read:
                left = [piece for one in left for piece in cut(logic, one, cell_of(value), node)]
            return left
    else:
        pieces = [
            piece for condition in opposites(other, cell, node) if (piece := logic.both(cell, condition)) is not None
        ]
    return [piece for piece in pieces if not logic.empty(piece)]


def opposites(cell: Cell, within: Cell, node: Node) -> Iterator[Cell]:
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
            raise _refused("what is no multiple of a number", node, "multipleOf")
    elif isinstance(cell, Strings):
        if cell.least:
            yield Strings(most=cell.least - 1)
        if cell.most is not None:
            yield Strings(least=cell.most + 1)
        yield from (Strings(others=(found_in(pattern),)) for pattern in cell.patterns)
        assert isinstance(within, Strings)
        for name in cell.formats:
            if name in INEXACT and name not in within.formats:
                raise _refused(f"what does not have the format {name!r}", node, "format")
            yield Strings(others=(found_in(FORMATS[name]),))
        yield from (Strings(others=(~other,)) for other in cell.others)
    elif isinstance(cell, Arrays):
        yield from _opposite_arrays(cell, node)
    elif isinstance(cell, Objects):
        assert isinstance(within, Objects)
        yield from _opposite_objects(cell, within, node)


def _opposite_arrays(cell: Arrays, node: Node) -> Iterator[Cell]:
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
        raise _refused("arrays with equal elements", node, "uniqueItems")


def _opposite_objects(cell: Objects, within: Objects, node: Node) -> Iterator[Cell]:
    for name in cell.required:
        if name not in within.required:
            yield Objects(((name, False),))
    for name, inner in cell.named:
        if inner is not True:
            yield Objects(((name, negation(inner)),), required=(name,))
    names = frozenset(cell.names)
    classes = [*cell.keys, Keys(others(cell.keys), cell.rest)]
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


def _refused(what: str, node: Node, keyword: str) -> GrammarError:
    at = node["$at"] if isinstance(node, dict) else ""
    return GrammarError(
        f"{what} cannot be told from the rest: leave the keyword out, or list the cases", path(at, keyword)
    )
