"""Values that satisfy a schema, and values that do not: made at random, judged by the jsonschema library.

The benchmark's data holds schemas alone. A value is made by following the schema; it counts as valid only if the
library says so, whatever the writer here understood. Values that do not satisfy it are made from those by one change
each, and again the library decides. Keys stand in the order in which the schema names them, then others: engines write
them so.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any
from urllib.parse import unquote

from unspool.core.errors import InvalidInput
from unspool.evaluation.scoring import InvalidSchema, json_validity, optional

_WORDS = ("alpha", "Berlin", "café", "a b", "x_1", "north", "日本", "value 7", "green", "M")
_FORMATS = {
    "date": ("2024-02-29", "1999-12-31"),
    "time": ("12:30:00Z", "23:59:59+02:00"),
    "date-time": ("2024-02-29T12:30:00Z", "1999-12-31T23:59:59+02:00"),
    "email": ("ann@example.org", "b.c@mail.example.com"),
    "hostname": ("example.org", "www.example.com"),
    "ipv4": ("192.168.0.1", "10.1.2.3"),
    "ipv6": ("2001:db8::1", "::1"),
    "uri": ("https://example.org/path?x=1", "http://example.com"),
    "uri-reference": ("/path/to", "https://example.org"),
    "url": ("https://example.org/path?x=1", "http://example.com"),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000",),
    "duration": ("P1DT2H", "PT5M"),
    "regex": ("[a-z]+",),
    "json-pointer": ("/a/b",),
    "color": ("red", "#00ff00"),
}
_DEEPEST = 6


class _Stuck(Exception):
    """No value is found here."""


class Writer:
    """Random values that mostly satisfy a schema.

    Args:
        schema: of any draft.
        rng: the source of chance.
    """

    def __init__(self, schema: Any, rng: random.Random) -> None:
        self.schema = schema
        self.rng = rng

    def value(self, node: Any = None, depth: int = 0) -> Any:
        """A value for a part of the schema; for all of it without one."""
        node = self._flat(self.schema if node is None else node, 0)
        if node is False or depth > 2 * _DEEPEST:
            raise _Stuck
        if node is True:
            return self.rng.choice(_WORDS)
        if "const" in node:
            return copy.deepcopy(node["const"])
        if isinstance(node.get("enum"), list) and node["enum"]:
            return copy.deepcopy(self.rng.choice(node["enum"]))
        return self._of_type(self._type(node), node, depth)

    def _flat(self, node: Any, depth: int) -> Any:
        """A node with its references followed, one alternative taken and all that hold together joined."""
        if isinstance(node, bool) or not isinstance(node, Mapping):
            return bool(node)
        if depth > 2 * _DEEPEST:
            raise _Stuck
        found = dict(node)
        reference = found.pop("$ref", None)
        if isinstance(reference, str):
            found = self._joined(found, self._flat(self._target(reference), depth + 1))
        for inner in found.pop("allOf", ()):
            found = self._joined(found, self._flat(inner, depth + 1))
        for keyword in ("anyOf", "oneOf"):
            if isinstance(choices := found.pop(keyword, None), list) and choices:
                found = self._joined(found, self._flat(self.rng.choice(choices), depth + 1))
        return found

    @staticmethod
    def _joined(one: dict[str, Any], other: Any) -> dict[str, Any]:
        if other is False:
            raise _Stuck
        if other is True:
            return one
        found = {**one, **other}
        for keyword in ("properties", "patternProperties"):
            if keyword in one and keyword in other:
                found[keyword] = {**one[keyword], **other[keyword]}
        if "required" in one and "required" in other:
            found["required"] = list(dict.fromkeys([*one["required"], *other["required"]]))
        if "properties" in one and "additionalProperties" in other and "additionalProperties" not in one:
            found.pop("additionalProperties")
        return found

    def _target(self, reference: str) -> Any:
        at = self.schema
        if not reference.startswith("#"):
            raise _Stuck
        for part in unquote(reference[1:]).split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            try:
                at = at[int(part)] if isinstance(at, list) else at[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise _Stuck from error
        return at

    def _type(self, node: Mapping[str, Any]) -> str:
        told = node.get("type")
        if isinstance(told, list) and told:
            return str(self.rng.choice(told))
        if isinstance(told, str):
            return told
        for kind, keywords in (
            ("object", ("properties", "required", "additionalProperties", "patternProperties", "minProperties")),
            ("array", ("items", "prefixItems", "minItems", "maxItems")),
            ("string", ("pattern", "minLength", "maxLength", "format")),
            ("number", ("minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum")),
        ):
            if any(keyword in node for keyword in keywords):
                return kind
        return self.rng.choice(("string", "integer", "boolean"))

    def _of_type(self, kind: str, node: Mapping[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                return self._object(node, depth)
            case "array":
                return self._array(node, depth)
            case "string":
                return self._string(node)
            case "integer" | "number":
                return self._number(node, whole=kind == "integer")
            case "boolean":
                return self.rng.random() < 0.5
            case "null":
                return None
        raise _Stuck

    def _object(self, node: Mapping[str, Any], depth: int) -> dict[str, Any]:
        rng = self.rng
        properties = node.get("properties") or {}
        required = node.get("required") if isinstance(node.get("required"), list) else []
        chance = 0.7 if depth < 2 else 0.2 if depth < _DEEPEST else 0.0
        found: dict[str, Any] = {}
        for name, inner in properties.items():
            if name in required or rng.random() < chance:
                try:
                    found[name] = self.value(inner, depth + 1)
                except _Stuck:
                    if name in required:
                        raise
        for name in required or ():
            if name not in found:
                found[name] = self._further(node, name, depth)
        more = node.get("additionalProperties", True)
        wanted = int(node.get("minProperties", 0))
        if isinstance(more, Mapping) and depth < _DEEPEST and not properties:
            wanted = max(wanted, rng.randint(1, 3))
        for place in range(wanted - len(found)):
            found[self._key(node, place)] = self._further(node, self._key(node, place), depth)
        return found

    def _key(self, node: Mapping[str, Any], place: int) -> str:
        patterns = list(node.get("patternProperties") or ())
        if patterns and node.get("additionalProperties", True) is False:
            if not (fitting := matching(patterns[0])):
                raise _Stuck
            return self.rng.choice(fitting)
        return f"key{place}"

    def _further(self, node: Mapping[str, Any], name: str, depth: int) -> Any:
        """A value of a property that is not named."""
        for pattern, inner in (node.get("patternProperties") or {}).items():
            if name in matching(pattern):
                return self.value(inner, depth + 1)
        more = node.get("additionalProperties", True)
        return self.rng.choice(_WORDS) if more is True else self.value(more, depth + 1)

    def _array(self, node: Mapping[str, Any], depth: int) -> list[Any]:
        items = node.get("items", True)
        first = node.get("prefixItems") or (items if isinstance(items, list) else [])
        rest = node.get("additionalItems", True) if isinstance(items, list) else items
        least = int(node.get("minItems", 0))
        most = int(node.get("maxItems", least + 3 if depth < _DEEPEST else least))
        size = self.rng.randint(least, max(least, min(most, least + 2)))
        size = max(size, min(len(first), most)) if first else size
        found: list[Any] = []
        for place in range(size):
            inner = first[place] if place < len(first) else rest
            if inner is False:
                break
            for _ in range(8):
                value = self.value(inner, depth + 1)
                if not node.get("uniqueItems") or value not in found:
                    break
            found.append(value)
        return found

    def _string(self, node: Mapping[str, Any]) -> str:
        least, most = int(node.get("minLength", 0)), int(node.get("maxLength", 1_000_000))
        if "pattern" in node:
            fitting = [text for text in matching(node["pattern"]) if least <= len(text) <= most]
            if not fitting:
                raise _Stuck
            return self.rng.choice(fitting)
        if (form := node.get("format")) in _FORMATS:
            return self.rng.choice(_FORMATS[form])
        text = self.rng.choice(_WORDS)
        while len(text) < least:
            text += " " + self.rng.choice(_WORDS)
        return text[:most]

    def _number(self, node: Mapping[str, Any], whole: bool) -> float | int:
        low, high = node.get("minimum"), node.get("maximum")
        for bound, sign in (("exclusiveMinimum", 1), ("exclusiveMaximum", -1)):
            told = node.get(bound)
            given = {1: low, -1: high}[sign] if told is True else told if not isinstance(told, bool) else None
            if given is not None:
                step = sign * (1 if whole else 0.5)
                low, high = (given + step, high) if sign > 0 else (low, given + step)
        low = low if low is not None else (0 if high is None else high - 100)
        high = high if high is not None else low + 100
        if step := node.get("multipleOf"):
            value = round(self.rng.uniform(low, high) / step) * step
            return int(value) if whole or value == int(value) else value
        if whole:
            low, high = -(-low // 1), high // 1
            if low > high:
                raise _Stuck
            return self.rng.randint(int(low), int(high))
        return round(self.rng.uniform(low, high), 2) if high > low else low


@cache
def matching(pattern: str) -> tuple[str, ...]:
    """Some strings in which a pattern is found, the same ones every time; none for what Python cannot read.

    Raises:
        InvalidInput: if the library that makes them is not installed.
    """
    try:
        import hypothesis
        from hypothesis import strategies
    except ImportError as error:
        raise InvalidInput('strings of patterns need hypothesis: pip install "unspool[dev]"') from error
    found: dict[str, None] = {}

    @hypothesis.seed(0)
    @hypothesis.settings(
        max_examples=20,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(
        strategies.from_regex(pattern, alphabet=strategies.characters(min_codepoint=32, max_codepoint=0x24F))
    )
    def collect(text: str) -> None:
        if "\x7f" not in text:
            found[text] = None

    try:
        collect()
    except (hypothesis.errors.HypothesisException, ValueError, re.error, OverflowError):
        return ()
    return tuple(found)


def _changed(value: Any, rng: random.Random) -> Any:
    """A copy with one change somewhere."""
    found = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = [(None, None), *_places(found)]
    holder, key = rng.choice(places)
    old = found if holder is None else holder[key]
    ways: list[Callable[[], Any]] = [
        lambda: rng.choice([{"a": 1}, [1], "text", 12345, True, None, -0.5, ""]),
    ]
    if isinstance(old, dict):
        ways += [lambda: {name: old[name] for name in list(old)[1:]}, lambda: {**old, "unexpected key": 1}]
        if old:
            gone = rng.choice(list(old))
            ways.append(lambda: {name: each for name, each in old.items() if name != gone})
    elif isinstance(old, list):
        ways += [lambda: [*old, *old], list, lambda: [*old, {"unexpected": None}]]
    elif isinstance(old, str):
        ways += [lambda: old + "~", lambda: old[:-1], lambda: old * 40, lambda: old.upper()]
    elif isinstance(old, int | float) and not isinstance(old, bool):
        ways += [lambda: old + 100_000, lambda: -old - 1, lambda: old + 0.5]
    new = rng.choice(ways)()
    if holder is None:
        return new
    holder[key] = new
    return found


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def instances(schema: Any, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of JSON that satisfy a schema, and texts that do not; at most ``count`` of each, perhaps none.

    Raises:
        InvalidInput: if jsonschema or hypothesis is not installed.
    """
    optional("jsonschema", "jsonschema", "the benchmark of constraints")
    rng = random.Random(seed)
    valid: dict[str, Any] = {}
    for _ in range(6 * count):
        if len(valid) == count:
            break
        try:
            value = Writer(schema, rng).value()
        except _Stuck:
            continue
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            # A schema with keywords of wrong types: there are such in the wild, and nothing can be made of them.
            continue
        text = json.dumps(value, ensure_ascii=False)
        if len(text) < 4000 and _satisfies(text, schema):
            valid[text] = value
    invalid: dict[str, None] = {}
    for _ in range(8 * count if valid else 0):
        if len(invalid) == count:
            break
        text = json.dumps(_changed(rng.choice(list(valid.values())), rng), ensure_ascii=False)
        if _satisfies(text, schema) is False:
            invalid[text] = None
    return list(valid), list(invalid)


def _satisfies(text: str, schema: Any) -> bool | None:
    """Whether jsonschema says so; ``None`` if it cannot judge by this schema."""
    try:
        return bool(json_validity(text, schema)["valid"])
    except InvalidSchema:
        return None
