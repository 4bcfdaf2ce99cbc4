"""The cells of keywords that speak of a value's type and of what lies inside of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.cells import EVERYTHING, Arrays, Cell, Fixed, Keys, Numbers, Objects, Strings, fixed
from unspool.constraints._schema.expressions import NOTHING, Expression, literal
from unspool.constraints._schema.formats import FORMATS
from unspool.constraints._schema.joining import both_numbers, conj, others
from unspool.constraints._schema.nodes import Node, Schema, path
from unspool.constraints._schema.patterns import found_in

if TYPE_CHECKING:
    from unspool.constraints._schema.algebra import Logic

COMBINED = ("$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentRequired", "dependentSchemas")
_OBJECT = ("properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties")
OWN = {
    *("type", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format", "propertyNames", *_OBJECT),
    *("prefixItems", "items", "minItems", "maxItems", "uniqueItems", "contains"),
}
"""Keywords that hold schemas of the value itself, and those that say something of it themselves."""


def own(logic: Logic, node: Schema) -> list[Cell]:
    """The cells of the keywords that speak of the value's type and of what lies inside of it."""
    if "enum" in node:
        plain = Schema({k: v for k, v in node.items() if k != "enum"})
        rest = own(logic, plain) if plain.keys() & OWN else list(EVERYTHING)
        return logic.meet(fixed(node["enum"]), rest)
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
                found.append(_objects(logic, node))
            else:
                found.append(cell)
    return [cell for cell in found if not logic.empty(cell)]


def _objects(logic: Logic, node: Schema) -> Objects:
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
        cell = _with_names(logic, cell, node["propertyNames"])
    return cell


def _with_names(logic: Logic, cell: Objects, names: Node) -> Objects:
    allowed: Expression = NOTHING
    for one in logic.cells(names):
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
            *([Keys(allowed & others(cell.keys), cell.rest)] if cell.rest is not False else []),
        ),
        rest=False,
    )


def _numbers(node: Schema, whole: bool | None) -> Numbers:
    cell = Numbers(whole=whole, multiples=(node["multipleOf"],) if "multipleOf" in node else ())
    if "minimum" in node:
        cell = both_numbers(cell, Numbers(low=node["minimum"]))
    if "exclusiveMinimum" in node:
        cell = both_numbers(cell, Numbers(low=node["exclusiveMinimum"], low_open=True))
    if "maximum" in node:
        cell = both_numbers(cell, Numbers(high=node["maximum"]))
    if "exclusiveMaximum" in node:
        cell = both_numbers(cell, Numbers(high=node["exclusiveMaximum"], high_open=True))
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
