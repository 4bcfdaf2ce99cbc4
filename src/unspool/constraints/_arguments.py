"""The arguments of a call as a regular expression: what a schema allows, written as JSON, in the order of the
signature.

Machines compose by concatenation: one for each type, joined by separators, optional ones skippable. Recursive types are
followed to a depth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from unspool.constraints._automaton import in_json
from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.expressions import (
    ANY,
    EMPTY_STRING,
    EVERY,
    NOTHING,
    Expression,
    both,
    chars,
    either,
    literal,
    repeat,
    sequence,
)
from unspool.constraints._schema.patterns import DIGITS, found_in

DEPTH = 4
"""Levels of a type that contains itself."""
MOST_ELEMENTS = 64
"""Elements of an array that are counted one by one."""
_FREE_DEPTH = 2
_DIGIT, _NATURAL = chars(DIGITS), either((literal("0"), sequence((chars(((0x31, 0x39),)), repeat(chars(DIGITS))))))
_FRACTION = sequence((literal("."), repeat(chars(DIGITS), 1)))
_MINUS = either((EMPTY_STRING, literal("-")))


class Arguments:
    """Reads one prepared schema.

    Args:
        schema: as ``prepare`` gives it.
        what: the tool's name, for messages.
    """

    def __init__(self, schema: Mapping[str, Any], what: str) -> None:
        self.schema = schema
        self.what = what

    def members(self, key: str, separator: str) -> Expression:
        """The properties of the schema's object one after another.

        Args:
            key: how the name goes before the value, with ``{}`` for the name.
            separator: between two of them.

        Raises:
            GrammarError: if the schema is no object of named properties.
        """
        kind = self.schema.get("type", "object")
        if kind != "object" or "anyOf" in self.schema or "enum" in self.schema:
            raise GrammarError(f"the arguments of {self.what} are no object of named properties")
        return self._properties(self.schema, key, separator, 0)

    def value(self, node: Any, depth: int) -> Expression:
        """Texts of the JSON of values."""
        if node is False or depth > DEPTH + _FREE_DEPTH:
            return NOTHING
        if node is True or not node:
            return self._anything(depth)
        if "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            return NOTHING if depth > DEPTH else self.value(self.schema["$defs"][name], depth + 1)
        if "enum" in node:
            return either(literal(_written(value)) for value in node["enum"])
        if "anyOf" in node:
            return either(self.value(one, depth) for one in node["anyOf"])
        kinds = node.get("type", ["null", "boolean", "number", "string", "array", "object"])
        return either(self._typed(kind, node, depth) for kind in ([kinds] if isinstance(kinds, str) else kinds))

    def _anything(self, depth: int) -> Expression:
        return self.value({"type": ["null", "boolean", "number", "string"]}, depth)

    def _typed(self, kind: str, node: Mapping[str, Any], depth: int) -> Expression:
        if kind == "null":
            return literal("null")
        if kind == "boolean":
            return either((literal("true"), literal("false")))
        if kind in ("integer", "number"):
            return self._number(node, whole=kind == "integer")
        if kind == "string":
            return self._string(node)
        if kind == "array":
            return self._array(node, depth + 1)
        return sequence((literal("{"), self._properties(node, '"{}": ', ", ", depth + 1), literal("}")))

    def _string(self, node: Mapping[str, Any]) -> Expression:
        patterns = [one["pattern"] for one in (node, *node.get("allOf", ())) if "pattern" in one]
        parts = [found_in(pattern) for pattern in patterns]
        if "minLength" in node or "maxLength" in node:
            parts.append(repeat(EVERY, node.get("minLength", 0), node.get("maxLength")))
        return sequence((literal('"'), in_json(both(parts) if parts else ANY), literal('"')))

    def _number(self, node: Mapping[str, Any], whole: bool) -> Expression:
        low = node.get("minimum", node.get("exclusiveMinimum", -math.inf))
        high = node.get("maximum", node.get("exclusiveMaximum", math.inf))
        if "multipleOf" in node:
            least = math.floor(low) + 1 if "exclusiveMinimum" in node else low
            step = node["multipleOf"]
            if not float(step).is_integer() or max(abs(least), abs(high)) / step > 2000:
                raise GrammarError(f"{self.what}: multipleOf is only taken with an integer and close bounds")
            values = range(math.ceil(least / step) * int(step), math.floor(high) + 1, int(step))
            return either(literal(str(v)) for v in values if v < high or "exclusiveMaximum" not in node)
        least_whole, most_whole = low, high
        if low > -math.inf:
            least_whole = math.ceil(low) + (low == math.ceil(low) and "exclusiveMinimum" in node)
        if high < math.inf:
            most_whole = math.floor(high) - (high == math.floor(high) and "exclusiveMaximum" in node)
        integers = integers_between(least_whole, most_whole)
        if whole:
            return integers
        # n.f lies above n, -n.f below -n. Some values next to bounds that are no integers are left out.
        above = integers_between(max(0, low if low == -math.inf else math.ceil(low)), high - 1)
        below = integers_between(max(0, -high if high == math.inf else math.ceil(-high)), -low - 1)
        return either((integers, sequence((above, _FRACTION)), sequence((literal("-"), below, _FRACTION))))

    def _array(self, node: Mapping[str, Any], depth: int) -> Expression:
        prefix = [self.value(one, depth) for one in node.get("prefixItems", ())]
        rest = self.value(node.get("items", True), depth)
        least, most = node.get("minItems", 0), node.get("maxItems")
        comma = literal(", ")
        counted = max(len(prefix), least, most or 0)
        if counted > MOST_ELEMENTS:
            raise GrammarError(f"{self.what}: {counted} elements are counted; {MOST_ELEMENTS} are the most")
        # From the last place backwards: what may follow place `n`.
        after = repeat(sequence((comma, rest))) if most is None else EMPTY_STRING
        for place in range(counted - 1, -1, -1):
            element = prefix[place] if place < len(prefix) else rest
            more = sequence((comma if place else EMPTY_STRING, element, after))
            after = more if place < least else either((EMPTY_STRING, more))
        if not counted and most is None:
            after = either((EMPTY_STRING, sequence((rest, after))))
        return sequence((literal("["), after, literal("]")))

    def _properties(self, node: Mapping[str, Any], key: str, separator: str, depth: int) -> Expression:
        named = dict(node.get("properties", {}))
        required = list(node.get("required", ()))
        others = node.get("additionalProperties", True)
        for name in required:
            named.setdefault(name, others)
        between = literal(separator)
        first = later = EMPTY_STRING
        if "minProperties" in node:
            raise GrammarError(f"{self.what}: properties cannot be counted here")
        if (others is not False or node.get("patternProperties")) and not named and depth:
            # An object as a map.
            names = repeat(EVERY, 1) if others is not False else NOTHING
            names = either([names, *map(found_in, node.get("patternProperties", {}))])
            value = either(self.value(one, depth) for one in (others, *node.get("patternProperties", {}).values()))
            pair = sequence((literal('"'), in_json(names), literal('": '), value))
            return either((EMPTY_STRING, sequence((pair, repeat(sequence((between, pair)))))))
        for name, inner in reversed(named.items()):
            value = self.value(inner, depth)
            shown = json.dumps(name, ensure_ascii=False)[1:-1] if '"' in key else name
            pair = sequence((literal(key.replace("{}", shown)), value))
            with_it, behind = sequence((pair, later)), sequence((between, pair, later))
            if name in required:
                first, later = with_it, behind
            else:
                first, later = either((with_it, first)), either((behind, later))
        return first


def integers_between(low: float, high: float) -> Expression:
    """The decimal texts of the integers from ``low`` to ``high``, without leading zeros."""
    if low > high:
        return NOTHING
    parts = []
    if high >= 0:
        parts.append(_naturals(max(int(low), 0) if low > -math.inf else 0, high))
    if low < 0:
        least = 1 if high >= 0 else math.ceil(-high)
        parts.append(sequence((literal("-"), _naturals(int(least), math.inf if low == -math.inf else int(-low)))))
    return either(parts)


def _naturals(low: int, high: float) -> Expression:
    if high == math.inf:
        if low == 0:
            return _NATURAL
        width = len(str(low))
        longer = sequence((chars(((0x31, 0x39),)), repeat(_DIGIT, width)))
        return either((_naturals(low, 10**width - 1), longer))
    parts = []
    for width in range(len(str(low)), len(str(int(high))) + 1):
        first = max(low, 10 ** (width - 1) if width > 1 else 0)
        last = min(int(high), 10**width - 1)
        if first <= last:
            parts.append(_same_width(str(first), str(last)))
    return either(parts)


def _same_width(low: str, high: str) -> Expression:
    """The texts of digits of one width from ``low`` to ``high``."""
    if not low:
        return EMPTY_STRING
    if low[0] == high[0]:
        return sequence((literal(low[0]), _same_width(low[1:], high[1:])))
    rest = len(low) - 1
    parts = [
        sequence((literal(low[0]), _same_width(low[1:], "9" * rest))),
        sequence((literal(high[0]), _same_width("0" * rest, high[1:]))),
    ]
    if ord(high[0]) - ord(low[0]) > 1:
        between = chars(((ord(low[0]) + 1, ord(high[0]) - 1),))
        parts.append(sequence((between, repeat(_DIGIT, rest, rest))) if rest else between)
    return either(parts)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
