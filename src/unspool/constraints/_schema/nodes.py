"""Reads a JSON schema of any draft into one vocabulary of keywords, and finds what its references lead to.

A *node* is a dictionary of the keywords of draft 2020-12 that say something about a value, and ``$at``, the path to
where it stands in the schema, for messages. Annotations and unknown keywords are left out: by the specification they
say nothing. ``$ref`` of a node holds the JSON pointer that it leads to. True and false are nodes as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from unspool.constraints._grammar import GrammarError


class Schema(dict[str, Any]):
    """The keywords of one schema. It is not changed once it is made, and compared by what it says."""

    @cached_property
    def text(self) -> str:
        return json.dumps(self, sort_keys=True)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.text == other.text


Node = Schema | bool

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
MODERN, OLD = 2019, (3, 4, 6, 7)
MOST_DEPTH = 200

_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA = ("not", "if", "then", "else", "items", "contains", "additionalProperties", "propertyNames")
_NAMED = ("properties", "patternProperties", "dependentSchemas")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_COUNTS_TOO = ("minContains", "maxContains")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
# Holds data, not schemas: what looks like an identifier in there is none.
_DATA = ("enum", "const", "default", "examples", "example")


class Document:
    """One schema with everything that it refers to.

    Args:
        schema: as it was given.

    Raises:
        GrammarError: if it is no schema.
    """

    def __init__(self, schema: Mapping[str, Any] | bool) -> None:
        self.root: Any = schema
        declared = schema.get("$schema", "") if isinstance(schema, Mapping) else ""
        self.draft = _draft(declared if isinstance(declared, str) else "")
        self._bases: dict[str, str] = {}
        self._ids: dict[str, str] = {"": ""}
        self._known: dict[str, Node] = {}
        self._identify(schema, "", "", 0)

    def node(self, pointer: str) -> Node:
        """What stands at a JSON pointer (``""`` is the whole)."""
        if pointer not in self._known:
            at: Any = self.root
            for part in pointer.split("/")[1:]:
                part = part.replace("~1", "/").replace("~0", "~")
                at = at[int(part)] if isinstance(at, list) else at[part]
            self._known[pointer] = self.read(at, pointer)
        return self._known[pointer]

    # -- identifiers and references ------------------------------------------------------------------------------------

    def _identify(self, value: Any, pointer: str, base: str, depth: int) -> None:
        """Note every identifier and anchor with the pointer to it."""
        if depth > MOST_DEPTH:
            raise GrammarError(f"the schema is nested deeper than {MOST_DEPTH} levels", _path(pointer)[:80])
        if isinstance(value, Mapping):
            for key in ("$id", "id") if self.draft in (3, 4, MODERN) else ("$id",):
                own = value.get(key)
                if isinstance(own, str) and not (self.draft == MODERN and key == "id"):
                    base = urljoin(base, own)
                    self._bases[pointer] = base
                    self._ids.setdefault(base.removesuffix("#"), pointer)
            for key in ("$anchor", "$dynamicAnchor"):
                if isinstance(value.get(key), str):
                    self._ids.setdefault(f"{urldefrag(base)[0]}#{value[key]}", pointer)
            for key, below in value.items():
                if key not in _DATA:
                    self._identify(below, f"{pointer}/{key.replace('~', '~0').replace('/', '~1')}", base, depth + 1)
        elif isinstance(value, list):
            for place, below in enumerate(value):
                self._identify(below, f"{pointer}/{place}", base, depth + 1)

    def resolve(self, reference: Any, pointer: str, keyword: str) -> str:
        """The pointer that a reference at ``pointer`` leads to.

        Raises:
            GrammarError: if it leads nowhere, or to another document, which nobody fetches.
        """
        where = _path(pointer, keyword)
        if not isinstance(reference, str):
            raise GrammarError(f"a reference is text, not {_short(reference)}", where)
        above = pointer
        while above not in self._bases and above:
            above = above.rpartition("/")[0]
        target, fragment = urldefrag(urljoin(self._bases.get(above, ""), reference))
        fragment = unquote(fragment)
        if fragment and not fragment.startswith("/"):
            found = self._ids.get(f"{target}#{fragment}")
            if found is None:
                raise GrammarError(f"no $anchor or $id is called {reference!r}", where)
            return found
        start = self._ids.get(target)
        if start is None and target == urldefrag(self._bases.get("", ""))[0]:
            start = ""
        if start is None:
            raise GrammarError(f"{reference!r} is another document, which is not fetched: put it into $defs", where)
        found = start + fragment.rstrip("/") if fragment != "/" else start + "/"
        at: Any = self.root
        for part in found.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(at, list) and part.isdigit() and int(part) < len(at):
                at = at[int(part)]
            elif isinstance(at, Mapping) and part in at:
                at = at[part]
            else:
                raise GrammarError(f"{reference!r} leads to nothing in the schema", where)
        return found

    # -- keywords ------------------------------------------------------------------------------------------------------

    def read(self, schema: Any, at: str) -> Node:
        """A schema as a node.

        Raises:
            GrammarError: for a keyword whose value cannot be.
        """
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise GrammarError(f"a schema is an object, true or false, not {_short(schema)}", _path(at))
        if "$ref" in schema and self.draft in OLD:
            # Up to draft 7 what stands beside a reference says nothing.
            return Schema({"$at": at, "$ref": self.resolve(schema["$ref"], at, "$ref")})
        node = Schema({"$at": at})
        for key, value in schema.items():
            reader = _READERS.get(key)
            if reader is not None:
                reader(self, node, key, value, at, schema)
        if self.draft == 3:
            _draft3(self, node, schema, at)
        return node

    def below(self, schema: Any, at: str, *keys: str | int) -> Node:
        return self.read(schema, at + "".join(f"/{str(key).replace('~', '~0').replace('/', '~1')}" for key in keys))


Reader = Callable[[Document, dict[str, Any], str, Any, str, Mapping[str, Any]], None]
_READERS: dict[str, Reader] = {}


def _reads(*keys: str) -> Callable[[Reader], Reader]:
    def note(reader: Reader) -> Reader:
        _READERS.update(dict.fromkeys(keys, reader))
        return reader

    return note


@_reads("$ref")
def _ref(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    node["$ref"] = document.resolve(value, at, key)


@_reads("$dynamicRef", "$recursiveRef")
def _dynamic(
    document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]
) -> None:
    # Within one document a dynamic reference only differs from a plain one if two anchors compete.
    anchor = str(value).removeprefix("#")
    if json.dumps(document.root).count(f'"$dynamicAnchor": {json.dumps(anchor)}') > 1 or (
        key == "$recursiveRef" and '"$recursiveAnchor": true' in json.dumps(document.root)
    ):
        raise GrammarError("a dynamic reference with several anchors is not supported: use $ref", _path(at, key))
    target = document.resolve(value, at, key)
    node.setdefault("allOf", []).append(Schema({"$at": at, "$ref": target}))


@_reads("type")
def _type(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    names = value if isinstance(value, list) else [value]
    if document.draft == 3:
        names = list(TYPES) if "any" in names else names
    for name in names:
        if name not in TYPES:
            raise GrammarError(f"there is no type {_short(name)}; types are {', '.join(TYPES)}", _path(at, key))
    node["type"] = list(dict.fromkeys(names))


@_reads("enum", "const")
def _values(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if key == "enum" and not isinstance(value, list):
        raise GrammarError(f"a list is expected, not {_short(value)}", _path(at, key))
    values = value if key == "enum" else [value]
    if "enum" in node:
        kept = {canonical(one) for one in values}
        values = [one for one in node["enum"] if canonical(one) in kept]
    node["enum"] = values


@_reads(*_SCHEMAS)
def _list(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, list) or (not value and key != "prefixItems"):
        raise GrammarError(f"a list of schemas is expected, not {_short(value)}", _path(at, key))
    found = [document.below(one, at, key, place) for place, one in enumerate(value)]
    node[key] = [*node.get(key, []), *found]


@_reads("not", "if", "then", "else", "contains", "propertyNames", "additionalProperties")
def _one(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    node[key] = document.below(value, at, key)


@_reads("items")
def _items(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, list):
        node["items"] = document.below(value, at, key)
        return
    node["prefixItems"] = [document.below(one, at, key, place) for place, one in enumerate(value)]
    if "additionalItems" in schema:
        node["items"] = document.below(schema["additionalItems"], at, "additionalItems")


@_reads(*_NAMED)
def _named(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, Mapping):
        raise GrammarError(f"an object of schemas is expected, not {_short(value)}", _path(at, key))
    read = {name: document.below(one, at, key, name) for name, one in value.items()}
    node[key] = {**node.get(key, {}), **read}


@_reads("required")
def _required(
    document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]
) -> None:
    if isinstance(value, bool) and document.draft in (3, MODERN):
        return  # of draft 3, where a property says itself that it is required; read at the object
    node["required"] = list(dict.fromkeys(_names(value, at, key)))


@_reads("dependentRequired")
def _dependent(
    document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]
) -> None:
    if not isinstance(value, Mapping):
        raise GrammarError(f"an object is expected, not {_short(value)}", _path(at, key))
    read = {name: _names(needed, at, f"{key}/{name}") for name, needed in value.items()}
    node[key] = {**node.get(key, {}), **read}


@_reads("dependencies")
def _dependencies(
    document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]
) -> None:
    if not isinstance(value, Mapping):
        raise GrammarError(f"an object is expected, not {_short(value)}", _path(at, key))
    for name, needed in value.items():
        if isinstance(needed, list | str):
            names = _names([needed] if isinstance(needed, str) else needed, at, f"{key}/{name}")
            node.setdefault("dependentRequired", {})[name] = names
        else:
            node.setdefault("dependentSchemas", {})[name] = document.below(needed, at, key, name)


@_reads(*_COUNTS, *_COUNTS_TOO)
def _count(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 0:
        raise GrammarError(f"a whole number from 0 on is expected, not {_short(value)}", _path(at, key))
    node[key] = int(value)


@_reads(*_NUMBERS)
def _number(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if isinstance(value, bool) and key.startswith("exclusive") and document.draft in (3, 4, MODERN):
        plain = schema.get(key[len("exclusive")].lower() + key[len("exclusive") + 1 :])
        if value and isinstance(plain, int | float):
            node[key] = plain
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise GrammarError(f"a number is expected, not {_short(value)}", _path(at, key))
    if key == "multipleOf" and value <= 0:
        raise GrammarError(f"a number above 0 is expected, not {_short(value)}", _path(at, key))
    node[key] = value


@_reads("pattern", "format")
def _text(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, str):
        raise GrammarError(f"text is expected, not {_short(value)}", _path(at, key))
    node[key] = value


@_reads("uniqueItems")
def _flag(document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]) -> None:
    if not isinstance(value, bool):
        raise GrammarError(f"true or false is expected, not {_short(value)}", _path(at, key))
    if value:
        node[key] = True


@_reads("unevaluatedProperties", "unevaluatedItems")
def _unevaluated(
    document: Document, node: dict[str, Any], key: str, value: Any, at: str, schema: Mapping[str, Any]
) -> None:
    # Beside nothing that evaluates properties elsewhere it says what the plain keyword says.
    elsewhere = [k for k in ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas", "$dynamicRef") if k in schema]
    plain = "additionalProperties" if key.endswith("Properties") else "items"
    if elsewhere and value is not True:
        raise GrammarError(f"beside {elsewhere[0]} it is not supported: use {plain}", _path(at, key))
    if plain not in schema:
        node[plain] = document.below(value, at, key)


def _draft3(document: Document, node: dict[str, Any], schema: Mapping[str, Any], at: str) -> None:
    """What draft 3 alone says."""
    needed = [
        name
        for name, one in schema.get("properties", {}).items()
        if isinstance(one, Mapping) and one.get("required") is True
    ]
    if needed:
        node["required"] = list(dict.fromkeys([*node.get("required", []), *needed]))
    if "extends" in schema:
        more = schema["extends"] if isinstance(schema["extends"], list) else [schema["extends"]]
        node["allOf"] = [*node.get("allOf", []), *(document.below(one, at, "extends") for one in more)]
    if "divisibleBy" in schema:
        _number(document, node, "multipleOf", schema["divisibleBy"], at, schema)
    if "disallow" in schema:
        node["not"] = document.read({"type": schema["disallow"]}, f"{at}/disallow")


def _names(value: Any, at: str, key: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise GrammarError(f"a list of names is expected, not {_short(value)}", _path(at, key))
    return list(value)


def _draft(declared: str) -> int:
    for draft in (3, 4, 6, 7):
        if f"draft-0{draft}" in declared:
            return draft
    return MODERN


def _path(pointer: str, keyword: str = "") -> str:
    """How a message names a place: the pointer as a fragment, then the keyword."""
    return f"#{pointer}/{keyword}" if keyword else f"#{pointer}"


path = _path


def _short(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def canonical(value: Any) -> str:
    """Equal values of JSON give equal text (1 and 1.0 are one number)."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{json.dumps(key)}:{canonical(value[key])}" for key in sorted(value)) + "}"
    return json.dumps(value)
