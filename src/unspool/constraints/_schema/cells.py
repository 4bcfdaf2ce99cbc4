"""A schema as a union of *cells*: each one type of value, with conditions that all hold.

Conditions on what lies inside of a value (on a property, on an element) stay schemas, as nodes; only the top is
unfolded.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from unspool.constraints._schema.expressions import EVERY, Expression, both, repeat
from unspool.constraints._schema.formats import FORMATS, LENGTHS
from unspool.constraints._schema.nodes import Node, Schema, canonical
from unspool.constraints._schema.patterns import found_in


@dataclass(frozen=True)
class Fixed:
    """Some values of one type, each as JSON text."""

    kind: str
    values: tuple[str, ...]

    @property
    def read(self) -> list[Any]:
        return [json.loads(value) for value in self.values]


@dataclass(frozen=True)
class Numbers:
    """Numbers of a range; ``whole`` says whether they are integers (``None``: either)."""

    low: float = -math.inf
    low_open: bool = False
    high: float = math.inf
    high_open: bool = False
    whole: bool | None = None
    multiples: tuple[float, ...] = ()
    kind: str = "number"

    def inside(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def integers(self) -> tuple[float, float]:
        """The least and the largest integer in the range."""
        low, high = self.low, self.high
        if low > -math.inf:
            low = math.floor(low) + 1 if self.low_open else math.ceil(low)
        if high < math.inf:
            high = math.ceil(high) - 1 if self.high_open else math.floor(high)
        return low, high


@dataclass(frozen=True)
class Strings:
    """Strings of some length in which all ``patterns`` are found, that have all ``formats``, and are in no set of
    ``others``."""

    least: int = 0
    most: int | None = None
    patterns: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    others: tuple[Expression, ...] = ()
    kind: str = "string"

    @property
    def plain(self) -> bool:
        return self == Strings()

    def expression(self, *, lengths: bool = True) -> Expression:
        """The set of strings.

        Raises:
            Unreadable: for a pattern that is none.
        """
        parts = [found_in(pattern) for pattern in self.patterns]
        parts += [found_in(FORMATS[name]) for name in self.formats]
        parts += [~other for other in self.others]
        if lengths and (self.least or self.longest is not None):
            parts.append(repeat(EVERY, self.least, self.longest))
        return both(parts)

    @property
    def longest(self) -> int | None:
        """The most characters, those that a format has at most included."""
        bounds = [LENGTHS[name] for name in self.formats if name in LENGTHS]
        return min([*bounds, self.most] if self.most is not None else bounds, default=None)


@dataclass(frozen=True)
class Arrays:
    """Arrays: elements by place, all further ones, how many, whether all differ; of every pair of ``contains`` an
    element from that place on satisfies the node."""

    prefix: tuple[Any, ...] = ()
    rest: Any = True
    least: int = 0
    most: int | None = None
    unique: bool = False
    contains: tuple[tuple[int, Any], ...] = ()
    kind: str = "array"

    def at(self, place: int) -> Node:
        node: Node = self.prefix[place] if place < len(self.prefix) else self.rest
        return node


@dataclass(frozen=True)
class Keys:
    """A set of names of properties, with what holds of their values. ``text`` is its pattern as the schema has it."""

    names: Expression
    value: Any
    text: str | None = None


@dataclass(frozen=True)
class Objects:
    """Objects: named properties, sets of further names (disjoint), all others, which are there, how many.

    Args:
        named: name and node. What is named here is in no set of ``keys`` and not among the others.
        some: sets of names, names that do not count, and a node: there is such a property, and its value satisfies it.
    """

    named: tuple[tuple[str, Any], ...] = ()
    keys: tuple[Keys, ...] = ()
    rest: Any = True
    required: tuple[str, ...] = ()
    least: int = 0
    most: int | None = None
    some: tuple[tuple[Expression, frozenset[str], Any], ...] = ()
    kind: str = "object"

    def of(self, name: str) -> Node:
        """What holds of the value of a property."""
        for known, node in self.named:
            if known == name:
                return node
        for keys in self.keys:
            if keys.names.matches(name):
                return keys.value
        return self.rest

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.named]


Cell = Fixed | Numbers | Strings | Arrays | Objects

EVERYTHING: tuple[Cell, ...] = (
    Fixed("null", ("null",)),
    Fixed("boolean", ("true", "false")),
    Numbers(),
    Strings(),
    Arrays(),
    Objects(),
)


def kind_of(value: Any) -> str:
    """The type of a value of JSON, integers among the numbers."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def fixed(values: list[Any]) -> list[Cell]:
    """Cells for a list of values, one a type, without doubles."""
    by_kind: dict[str, dict[str, str]] = {}
    for value in values:
        by_kind.setdefault(kind_of(value), {}).setdefault(canonical(value), json.dumps(value, ensure_ascii=False))
    return [Fixed(kind, tuple(texts.values())) for kind, texts in by_kind.items()]


def cell_of(value: Any) -> Cell:
    """One array or object as a cell with conditions."""
    if isinstance(value, list):
        return Arrays(tuple(_constant(one) for one in value), False, len(value), len(value))
    return Objects(tuple((name, _constant(one)) for name, one in value.items()), (), False, tuple(value))


def _constant(value: Any) -> Node:
    return Schema({"$at": "", "enum": [value]})
