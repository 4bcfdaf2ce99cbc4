"""Both of two: nodes, bounds, sets of names, numbers. What of the algebra needs no document."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.constraints._schema.cells import Keys, Numbers, Objects
from unspool.constraints._schema.expressions import ANY, Expression
from unspool.constraints._schema.nodes import Node, Schema


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


def less(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)


def others(keys: Sequence[Keys]) -> Expression:
    """Names that are in none of the sets."""
    found: Expression = ANY
    for one in keys:
        found &= ~one.names
    return found


def both_keys(a: Objects, b: Objects) -> tuple[Keys, ...]:
    if not a.keys:
        return tuple(Keys(keys.names, conj(a.rest, keys.value), keys.text) for keys in b.keys)
    if not b.keys:
        return tuple(Keys(keys.names, conj(keys.value, b.rest), keys.text) for keys in a.keys)
    if a.keys == b.keys:
        return a.keys
    found = []
    for ours in (*a.keys, Keys(others(a.keys), a.rest)):
        for theirs in (*b.keys, Keys(others(b.keys), b.rest)):
            if ours.text is None and theirs.text is None and ours not in a.keys and theirs not in b.keys:
                continue
            if not (names := ours.names & theirs.names).is_empty:
                text = ours.text if names == ours.names else theirs.text if names == theirs.names else None
                found.append(Keys(names, conj(ours.value, theirs.value), text))
    return tuple(found)


def both_numbers(a: Numbers, b: Numbers) -> Numbers:
    low, low_open = max((a.low, a.low_open), (b.low, b.low_open))
    high, high_closed = min((a.high, not a.high_open), (b.high, not b.high_open))
    whole = a.whole if b.whole is None else b.whole if a.whole is None or a.whole == b.whole else False
    if a.whole is not None and b.whole is not None and a.whole != b.whole:
        low, high = 1.0, 0.0
    return Numbers(low, low_open, high, not high_closed, whole, tuple(dict.fromkeys((*a.multiples, *b.multiples))))
