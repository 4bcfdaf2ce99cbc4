"""Which parts of a grammar have finite texts: what leads back to itself for ever is told, or taken out, beforehand.

Engines follow a text and do not ask whether it can come to an end. An object that requires an object of its own kind
would keep a model writing until its maximum.
"""

from __future__ import annotations

import json
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._lark_reader import read_lark

_PLAIN = frozenset({"null", "boolean", "number", "integer", "string"})


def finite_schema(text: str) -> str:
    """A prepared schema without definitions that no finite value satisfies: they are ``false`` there.

    Raises:
        GrammarError: if the schema itself is of that kind.
    """
    schema = json.loads(text)
    definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
    if not definitions:
        return text
    ending: set[str] = set()
    while more := {name for name, node in definitions.items() if name not in ending and _ends(node, ending)}:
        ending |= more
    if not _ends(schema, ending):
        raise GrammarError("no finite value satisfies the schema: what it requires requires itself", "#")
    if len(ending) == len(definitions):
        return text
    schema["$defs"] = {name: node if name in ending else False for name, node in definitions.items()}
    return json.dumps(schema, ensure_ascii=False)


def _ends(node: Any, ending: set[str]) -> bool:
    """Whether some finite value satisfies ``node``, if definitions in ``ending`` have one."""
    if not isinstance(node, dict):
        return bool(node)
    if "$ref" in node and node["$ref"].startswith("#/$defs/") and node["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if "anyOf" in node and not any(_ends(inner, ending) for inner in node["anyOf"]):
        return False
    if "enum" in node or "const" in node:
        return True
    kinds = node.get("type", [*_PLAIN, "object", "array"])
    kinds = {kinds} if isinstance(kinds, str) else set(kinds)
    if kinds & _PLAIN:
        return True
    if "object" in kinds:
        properties, others = node.get("properties", {}), node.get("additionalProperties", True)
        if all(_ends(properties.get(name, others), ending) for name in node.get("required", ())):
            return True
    if "array" in kinds:
        least, first = node.get("minItems", 0), node.get("prefixItems", [])
        rest = least <= len(first) or _ends(node.get("items", True), ending)
        return rest and all(_ends(inner, ending) for inner in first[:least])
    return False


def check_lark(text: str) -> None:
    """Refuse a Lark grammar with rules that no finite text satisfies.

    What only the engine's own dialect can read is not looked into.

    Raises:
        GrammarError: with the rules.
    """
    try:
        rules = read_lark(text)
    except GrammarError:
        return
    ending: set[int] = set()
    while more := {
        left
        for left, right in rules.productions
        if left not in ending and all(symbol >= 0 or ~symbol in ending for symbol in right)
    }:
        ending |= more
    if endless := [name for number, name in enumerate(rules.names) if number not in ending]:
        raise GrammarError(
            f"no text satisfies {'rule' if len(endless) == 1 else 'rules'} {', '.join(endless[:5])} of the grammar: "
            "every way leads back to itself"
        )
