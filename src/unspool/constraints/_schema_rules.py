"""JSON schemas as rules over lexemes.

A schema is first brought into the words that engines enforce (``_schema``). Of those this reader takes types,
enumerations, patterns and lengths of strings, arrays, objects with named and other properties, alternatives and
references; bounds of numbers are refused with their path.

Scalars are lexemes: a string, key, number or name with its quotes. Lexemes of several kinds overlap (``"id"`` is a
key and a string); the lexer tells them apart as far as needed, and a kind is a choice among what it emits. Properties
are written in the order of the schema, others behind them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from unspool.constraints._automaton import in_json
from unspool.constraints._grammar import GrammarError
from unspool.constraints._regex import literal_expression, read_regex
from unspool.constraints._rules import MOST_PRODUCTIONS, Production, Rules, Terminal
from unspool.constraints._schema import prepare
from unspool.constraints._schema.expressions import (
    ANY,
    EVERY,
    NOTHING,
    Expression,
    both,
    literal,
    repeat,
    sequence,
)
from unspool.constraints._schema.nodes import canonical, path
from unspool.constraints._schema.patterns import Unreadable, found_in

INTEGER = r"-?(0|[1-9][0-9]*)"
NUMBER = INTEGER + r"(\.[0-9]+)?([eE][+-]?[0-9]+)?"
SPACE = r"[ \t\n\r]+"
MOST_ELEMENTS = 1_000
"""Elements or properties that are counted one by one."""

_KNOWN = {
    "type", "enum", "anyOf", "$ref", "pattern", "allOf", "minLength", "maxLength", "items", "prefixItems", "minItems",
    "maxItems", "properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties",
    "$defs", "x-guidance",
}  # fmt: skip
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_OF_TYPE = {
    "pattern": "string", "allOf": "string", "minLength": "string", "maxLength": "string", "items": "array",
    "prefixItems": "array", "minItems": "array", "maxItems": "array", "properties": "object",
    "patternProperties": "object", "additionalProperties": "object", "required": "object", "minProperties": "object",
    "maxProperties": "object",
}  # fmt: skip

Node = Mapping[str, Any] | bool


@dataclass(frozen=True)
class _Value:
    """What a schema allows: lexemes, and nonterminals of arrays and objects."""

    terminals: frozenset[int] = frozenset()
    nested: frozenset[int] = frozenset()

    def __or__(self, other: _Value) -> _Value:
        return _Value(self.terminals | other.terminals, self.nested | other.nested)


def read_schema(text: str) -> Rules:
    """A JSON schema as rules.

    Raises:
        GrammarError: with the path and keyword of what is not taken.
    """
    try:
        return _Reader(json.loads(prepare(json.loads(text)).text)).run()
    except RecursionError as error:
        raise GrammarError("the schema is nested too deeply") from error


class _Reader:
    def __init__(self, schema: Node) -> None:
        self.schema = schema
        self.names: list[str] = []
        self.productions: list[Production] = []
        self.terminals: list[Terminal] = []
        self.numbers: dict[tuple[str, Any], int] = {}
        self.known: dict[Any, int] = {}
        self.waiting: list[tuple[int, Mapping[str, Any], str]] = []
        self.resolving: set[str] = set()
        layout = schema.get("x-guidance", {}) if isinstance(schema, Mapping) else {}
        self.comma = layout.get("item_separator", ",")
        self.colon = layout.get("key_separator", ":")
        self.flexible = layout.get("whitespace_flexible", "item_separator" not in layout)

    def run(self) -> Rules:
        start = self.new("#")
        self.choose(start, self.value(self.schema, ""))
        while self.waiting:
            nonterminal, node, at = self.waiting.pop()
            (self.array if node["type"] == "array" else self.object)(nonterminal, node, at)
        ignored = frozenset({self.pattern("white space", read_regex(SPACE))}) if self.flexible else frozenset()
        return Rules(
            tuple(self.terminals), ignored, tuple(self.names), tuple(self.productions), start, by_priority=False
        )

    # -- parts --------------------------------------------------------------------------------------------------------

    def new(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1

    def add(self, left: int, *right: int) -> None:
        if len(self.productions) >= MOST_PRODUCTIONS:
            raise GrammarError(f"the schema unfolds into more than {MOST_PRODUCTIONS} rules: use the engine llguidance")
        self.productions.append((left, right))

    def choose(self, left: int, value: _Value) -> None:
        if value.terminals:
            self.add(left, self.one_of(value.terminals))
        for nested in sorted(value.nested):
            self.add(left, ~nested)

    def one_of(self, terminals: frozenset[int]) -> int:
        """One terminal for several, so that a text which is two of them is one way to go on, not two."""
        if len(terminals) == 1:
            return next(iter(terminals))
        number = self.numbers.get(("one of", terminals))
        if number is None:
            number = self.numbers["one of", terminals] = len(self.terminals)
            self.terminals.append(Terminal("a scalar", NOTHING, among=terminals))
        return number

    def symbol(self, value: _Value, at: str) -> int:
        """A symbol for a value; the same for equal ones."""
        if not value.nested:
            return self.one_of(value.terminals)
        if len(value.nested) == 1 and not value.terminals:
            return ~next(iter(value.nested))
        if value not in self.known:
            self.known[value] = self.new(path(at))
            self.choose(self.known[value], value)
        return ~self.known[value]

    def pattern(self, name: str, expression: Expression, key: Any = None) -> int:
        number = self.numbers.get((name, key))
        if number is None:
            number = self.numbers[name, key] = len(self.terminals)
            self.terminals.append(Terminal(name, expression))
        return number

    def text(self, text: str) -> int:
        return self.pattern(text, literal_expression(text), "text")

    def string(self, expression: Expression, name: str) -> int:
        whole = sequence((literal('"'), in_json(expression), literal('"')))
        return self.pattern(name, whole, expression)

    def constant_string(self, text: str) -> int:
        return self.string(literal(text), json.dumps(text, ensure_ascii=False))

    # -- values -------------------------------------------------------------------------------------------------------

    def value(self, node: Node, at: str) -> _Value:
        if node is False:
            return _Value()
        if node is True:
            node = {}
        assert isinstance(node, Mapping)
        for keyword in node:
            if keyword not in _KNOWN:
                raise GrammarError("this engine does not take it; llguidance does", path(at, keyword))
        if "$ref" in node:
            return self.reference(node["$ref"], at)
        if "enum" in node:
            found = _Value()
            for constant in node["enum"]:
                found |= self.constant(constant, at)
            return found
        if "anyOf" in node:
            found = _Value()
            for place, one in enumerate(node["anyOf"]):
                found |= self.value(one, f"{at}/anyOf/{place}")
            return found
        types = node.get("type", _TYPES)
        found = _Value()
        for name in [types] if isinstance(types, str) else types:
            found |= self.of_type(name, node, at)
        return found

    def reference(self, target: str, at: str) -> _Value:
        if target in self.resolving:
            raise GrammarError(f"{target} leads to itself without anything between", path(at, "$ref"))
        self.resolving.add(target)
        node: Any = self.schema
        for part in target.removeprefix("#").split("/")[1:]:
            node = node[part.replace("~1", "/").replace("~0", "~")]
        found = self.value(node, target.removeprefix("#"))
        self.resolving.discard(target)
        return found

    def of_type(self, name: str, node: Mapping[str, Any], at: str) -> _Value:
        if name == "null":
            return _Value(frozenset({self.text("null")}))
        if name == "boolean":
            return _Value(frozenset({self.text("true"), self.text("false")}))
        if name in ("integer", "number"):
            return _Value(frozenset({self.pattern(name, read_regex(INTEGER if name == "integer" else NUMBER))}))
        if name == "string":
            return _Value(frozenset({self.string_of(node, at)}))
        own = {key: value for key, value in node.items() if _OF_TYPE.get(key) == name} | {"type": name}
        key = canonical(own)
        if key not in self.known:
            self.known[key] = self.new(f"{path(at)} ({name})")
            self.waiting.append((self.known[key], own, at))
        return _Value(nested=frozenset({self.known[key]}))

    def string_of(self, node: Mapping[str, Any], at: str) -> int:
        patterns = [node["pattern"]] if "pattern" in node else []
        for place, one in enumerate(node.get("allOf", ())):
            if set(one) != {"pattern"}:
                raise GrammarError("this engine does not take it; llguidance does", path(f"{at}/allOf/{place}"))
            patterns.append(one["pattern"])
        try:
            parts = [found_in(pattern) for pattern in patterns]
        except Unreadable as error:
            raise GrammarError(str(error), path(at, "pattern")) from error
        low, high = node.get("minLength", 0), node.get("maxLength")
        if low or high is not None:
            parts.append(repeat(EVERY, low, high))
        if not parts:
            return self.string(ANY, "string")
        expression = both(parts)
        if expression == NOTHING:
            raise GrammarError("no string satisfies it", path(at))
        return self.string(expression, f"string at {path(at)}")

    def constant(self, value: Any, at: str) -> _Value:
        if isinstance(value, str):
            return _Value(frozenset({self.constant_string(value)}))
        if isinstance(value, list):
            items = [{"enum": [one]} for one in value]
            return self.of_type(
                "array", {"prefixItems": items, "items": False, "minItems": len(items), "maxItems": len(items)}, at
            )
        if isinstance(value, dict):
            members = {name: {"enum": [one]} for name, one in value.items()}
            return self.of_type(
                "object", {"properties": members, "required": list(members), "additionalProperties": False}, at
            )
        if isinstance(value, bool) or value is None:
            return _Value(frozenset({self.text(json.dumps(value))}))
        return _Value(frozenset({self.text(_number(value))}))

    # -- arrays and objects -------------------------------------------------------------------------------------------

    def array(self, left: int, node: Mapping[str, Any], at: str) -> None:
        """Elements from the left on, so that the parser's stack does not grow with them."""
        first = [self.value(one, f"{at}/prefixItems/{i}") for i, one in enumerate(node.get("prefixItems", []))]
        rest = self.value(node.get("items", True), f"{at}/items")
        low, high = node.get("minItems", 0), node.get("maxItems")
        counted = max(len(first), low, high or 0)
        if counted > MOST_ELEMENTS:
            raise GrammarError(
                f"{counted} elements are counted, up to {MOST_ELEMENTS} are taken; use the engine llguidance",
                path(at, "maxItems" if high == counted else "minItems"),
            )
        opening, closing, comma = self.text("["), self.text("]"), self.text(self.comma)
        if low == 0:
            self.add(left, opening, closing)
        before = None
        for place in range(counted if high is None else high):
            value = first[place] if place < len(first) else rest
            if value == _Value():
                return
            so_far = self.new(f"{path(at)} up to {place + 1}")
            element = self.symbol(value, f"{at}/{place}")
            self.add(so_far, *((element,) if before is None else (~before, comma, element)))
            if place + 1 >= low:
                self.add(left, opening, ~so_far, closing)
            before = so_far
        if high is None and rest != _Value():
            element = self.symbol(rest, f"{at}/items")
            more = self.new(f"{path(at)} elements")
            self.add(more, *((element,) if before is None else (~before, comma, element)))
            self.add(more, ~more, comma, element)
            self.add(left, opening, ~more, closing)

    def object(self, left: int, node: Mapping[str, Any], at: str) -> None:
        named: dict[str, Node] = dict(node.get("properties", {}))
        required = list(node.get("required", ()))
        others = node.get("additionalProperties", True)
        for name in required:
            named.setdefault(name, others)
        pairs = self._others(node, named, others, at)
        low, high = node.get("minProperties", 0), node.get("maxProperties")
        if (low or high is not None) and set(named) - set(required):
            raise GrammarError(
                "properties are counted where all that are named are required; llguidance takes more",
                path(at, "maxProperties" if low == 0 else "minProperties"),
            )
        least, most = max(0, low - len(named)), None if high is None else high - len(named)
        if max(least, most or 0) > MOST_ELEMENTS:
            raise GrammarError(f"up to {MOST_ELEMENTS} properties are counted", path(at, "maxProperties"))
        opening, closing, comma, colon = map(self.text, ("{", "}", self.comma, self.colon))
        first, later = self._tail(pairs, least, most, comma, at)
        for name, one in reversed(named.items()):
            value = self.value(one, f"{at}/properties/{name}")
            here = [self.new(f"{path(at)} from {name}"), self.new(f"{path(at)} from , {name}")]
            if value != _Value():
                pair = (self.constant_string(name), colon, self.symbol(value, f"{at}/properties/{name}"))
                self.add(here[0], *pair, ~later)
                self.add(here[1], comma, *pair, ~later)
            if name not in required:
                self.add(here[0], ~first)
                self.add(here[1], ~later)
            first, later = here
        self.add(left, opening, ~first, closing)

    def _others(
        self, node: Mapping[str, Any], named: Mapping[str, Node], others: Node, at: str
    ) -> list[tuple[int, int, int]]:
        """Pairs whose names are not in the schema: key, colon, value."""
        colon = self.text(self.colon)
        found = []
        sets: list[int] = []
        for pattern, one in node.get("patternProperties", {}).items():
            try:
                key = self.string(found_in(pattern), f"key /{pattern}/")
            except Unreadable as error:
                raise GrammarError(str(error), path(at, "patternProperties")) from error
            sets.append(key)
            value = self.value(one, f"{at}/patternProperties/{pattern}")
            if value != _Value():
                found.append(
                    (self._without(key, named), colon, self.symbol(value, f"{at}/patternProperties/{pattern}"))
                )
        value = self.value(others, f"{at}/additionalProperties")
        if value != _Value():
            key = self._without(self.string(ANY, "string"), named, sets)
            found.append((key, colon, self.symbol(value, f"{at}/additionalProperties")))
        return found

    def _without(self, key: int, named: Mapping[str, Node], sets: list[int] | None = None) -> int:
        """A key that is none of some others."""
        without = frozenset([*map(self.constant_string, named), *(sets or [])])
        if not without:
            return key
        number = self.numbers.get(("other keys", (key, without)))
        if number is None:
            number = self.numbers["other keys", (key, without)] = len(self.terminals)
            self.terminals.append(Terminal("another key", NOTHING, among=frozenset({key}), without=without))
        return number

    def _tail(
        self, pairs: list[tuple[int, int, int]], least: int, most: int | None, comma: int, at: str
    ) -> tuple[int, int]:
        """What stands behind the named properties: at the start of an object, and behind others."""
        first, later = self.new(f"{path(at)} others"), self.new(f"{path(at)} , others")
        if least == 0:
            self.add(first)
            self.add(later)
        if not pairs or (most is not None and most <= 0):
            return first, later
        following = self.new(f"{path(at)} further")
        if most is None:
            for pair in pairs:
                self.add(following, *pair)
                self.add(following, *pair, comma, ~following)
            most = max(1, least)
            last = True
        else:
            last = False
        # Counted from the end: ``following`` is what may stand from the last counted one on.
        for count in range(most, 0, -1):
            here = following if last and count == most else self.new(f"{path(at)} further from {count}")
            if not (last and count == most):
                for pair in pairs:
                    if count >= least:
                        self.add(here, *pair)
                    if count < most:
                        self.add(here, *pair, comma, ~following)
            following = here
        self.add(first, ~following)
        self.add(later, comma, ~following)
        return first, later


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
