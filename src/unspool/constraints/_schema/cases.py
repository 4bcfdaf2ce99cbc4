"""Arrays and objects as unions of cases that engines can count: what they cannot say is listed, one by one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.algebra import Logic
from unspool.constraints._schema.cells import Arrays, Fixed, Objects
from unspool.constraints._schema.expressions import EVERY, Expression, repeat
from unspool.constraints._schema.joining import conj, negation
from unspool.constraints._schema.nodes import Node, Schema, path

MOST_CASES = 400
MOST_PLACES = 16
"""Places among which an element that an array has to contain is looked for, where there is no other bound."""


def refused(node: Node, what: str, keyword: str = "") -> GrammarError:
    """The error of what cannot be written, with its place."""
    return GrammarError(what, path(place_of(node), keyword))


def place_of(node: Node) -> str:
    """Where a node stands in its document."""
    return str(node["$at"]) if isinstance(node, dict) else ""


def array_cases(logic: Logic, cell: Arrays, node: Node, narrowed: list[str]) -> Iterator[Arrays]:
    """The same without ``contains`` and ``uniqueItems``, case by case.

    Args:
        node: where the arrays come from.
        narrowed: is told what is left out.

    Raises:
        GrammarError: if there are too many cases.
    """
    if cell.contains:
        (start, wanted), *more = cell.contains
        left = dataclasses.replace(cell, contains=tuple(more))
        if logic.hopeless(conj(cell.rest, negation(wanted))) and len(cell.prefix) <= start:
            yield from array_cases(logic, dataclasses.replace(left, least=max(left.least, start + 1)), node, narrowed)
            return
        last = cell.most if cell.most is not None else len(cell.prefix) if cell.rest is False else None
        if last is None or last > MOST_PLACES:
            last = start + MOST_PLACES
            narrowed.append(f"{path(place_of(node), 'contains')}: the element has to be among the first {last}")
        for place in range(start, last):
            fixed = [cell.at(before) for before in range(max(place + 1, len(cell.prefix)))]
            fixed[place] = conj(fixed[place], wanted)
            if not logic.hopeless(fixed[place]):
                case = dataclasses.replace(left, prefix=tuple(fixed), least=max(left.least, place + 1))
                yield from array_cases(logic, case, node, narrowed)
        return
    if cell.unique and not (cell.most is not None and cell.most < 2):
        yield from _different(logic, cell, node)
        return
    yield dataclasses.replace(cell, unique=False)


def _different(logic: Logic, cell: Arrays, node: Node) -> Iterator[Arrays]:
    """Arrays whose elements all differ, one by one."""
    values = [] if cell.prefix else _finite(logic, cell.rest)
    most = len(values) if values is not None and cell.most is None else min(cell.most or 0, len(values or ()))
    cases = sum(math.perm(len(values), n) for n in range(cell.least, most + 1)) if values else MOST_CASES + 1
    if not values or cases > MOST_CASES:
        raise refused(
            node,
            "that elements differ is only supported for few values (an enum of up to 5, or maxItems)",
            "uniqueItems",
        )
    for length in range(cell.least, most + 1):
        for chosen in itertools.permutations(values, length):
            fixed = tuple(Schema({"$at": "", "enum": [value]}) for value in chosen)
            yield Arrays(fixed, False, length, length)


def _finite(logic: Logic, node: Node) -> list[Any] | None:
    cells = logic.cells(node)
    if all(isinstance(cell, Fixed) for cell in cells):
        return [value for cell in cells if isinstance(cell, Fixed) for value in cell.read]
    return None


def object_cases(logic: Logic, cell: Objects, node: Node) -> Iterator[Objects]:
    """Cases in which numbers of properties follow from what is required, or only count what is not named.

    Raises:
        GrammarError: if there are too many.
    """
    optional = [n for n, inner in cell.named if n not in cell.required and not logic.hopeless(inner)]
    closed = _closed(logic, cell)
    required = len(cell.required)
    if cell.some:
        yield from _existing(logic, cell, optional, node)
        return
    if cell.most is not None and closed and cell.most >= required + len(optional):
        cell = dataclasses.replace(cell, most=None)
    short = cell.least - required
    if short <= 0 and cell.most is None:
        yield dataclasses.replace(cell, least=0)
        return
    if not optional and (closed or short <= 1):
        yield cell
        return
    if short > 1 and not closed:
        raise refused(
            node,
            "names that are not listed cannot be kept apart, so two of them cannot be counted",
            "minProperties",
        )
    room = len(optional) if cell.most is None else min(cell.most - required, len(optional))
    cases = sum(math.comb(len(optional), n) for n in range(room + 1))
    if cell.most is None and short > 0 and closed:
        # At least so many of those that may be there: one case for each choice of the first ones.
        if math.comb(len(optional), short) > MOST_CASES:
            raise refused(node, "too many ways to choose the properties", "minProperties")
        for places in itertools.combinations(range(len(optional)), short):
            there = [optional[place] for place in places]
            left_out = [name for name in optional[: places[-1]] if name not in there]
            yield _chosen(cell, there, left_out, least=0, most=None)
        return
    if cell.most is None and short == 1:
        for place, name in enumerate(optional):
            yield _chosen(cell, [name], optional[:place], least=0, most=None)
        yield _chosen(cell, [], optional, least=cell.least, most=None)
        return
    if cases > MOST_CASES:
        raise refused(node, "too many ways to choose the properties", "maxProperties")
    for count in range(room + 1):
        for there_ in itertools.combinations(optional, count):
            absent = [name for name in optional if name not in there_]
            sum_ = required + count
            if closed and sum_ < cell.least:
                continue
            yield _chosen(
                cell,
                list(there_),
                absent,
                least=cell.least if sum_ < cell.least else 0,
                most=None if closed else cell.most,
            )


def _existing(logic: Logic, cell: Objects, optional: list[str], node: Node) -> Iterator[Objects]:
    """That a property exists which is not named: a number of properties, where it can be nothing else."""
    (names, apart, wanted), *more = cell.some
    left = dataclasses.replace(cell, some=tuple(more))
    candidates = [name for name in cell.names if name not in apart and names.matches(name)]
    for name in candidates:
        if name in cell.required and logic.hopeless(conj(cell.of(name), negation(wanted))):
            yield from object_cases(logic, left, node)
            return
    for name in candidates:
        inner = conj(cell.of(name), wanted)
        if not logic.hopeless(inner):
            named = tuple((n, inner if n == name else value) for n, value in cell.named)
            required = tuple(dict.fromkeys((*cell.required, name)))
            yield from object_cases(logic, dataclasses.replace(left, named=named, required=required), node)
    others: Expression = repeat(EVERY)
    for keys in cell.keys:
        others &= ~keys.names
    unnamed = [(keys.names, keys.value) for keys in cell.keys if not logic.hopeless(keys.value)]
    if not logic.hopeless(cell.rest):
        unnamed.append((others, cell.rest))
    if not unnamed:
        return
    everywhere = all(
        (there & ~names).is_empty and logic.hopeless(conj(value, negation(wanted))) for there, value in unnamed
    )
    known = set(cell.names)
    if more or not everywhere or not apart <= known or cell.most is not None or cell.least > len(cell.required):
        raise refused(node, "that a further property exists cannot be told from what is listed", "additionalProperties")
    if 2 ** len(optional) > MOST_CASES:
        raise refused(node, "too many ways to choose the properties", "additionalProperties")
    for count in range(len(optional) + 1):
        for there in itertools.combinations(optional, count):
            absent = [name for name in optional if name not in there]
            least = len(cell.required) + count + 1
            yield dataclasses.replace(_chosen(cell, list(there), absent, least=least, most=None), some=())


def _closed(logic: Logic, cell: Objects) -> bool:
    return logic.hopeless(cell.rest) and all(logic.hopeless(keys.value) for keys in cell.keys)


def _chosen(cell: Objects, there: list[str], absent: list[str], *, least: int, most: int | None) -> Objects:
    named = tuple((name, False if name in absent else inner) for name, inner in cell.named)
    return dataclasses.replace(cell, named=named, required=(*cell.required, *there), least=least, most=most)
