"""Writes the simplest schema of the same meaning that only uses what engines enforce exactly.

What a schema says in words that engines know stays as it is; the rest is unfolded where it stands, and no further. A
schema that still cannot be written is refused.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._layout import LAYOUTS, OPTIONS, Layout
from unspool.constraints._schema.algebra import Logic
from unspool.constraints._schema.cases import MOST_CASES, array_cases, object_cases, refused
from unspool.constraints._schema.cells import EVERYTHING, Arrays, Cell, Fixed, Keys, Numbers, Objects, Strings
from unspool.constraints._schema.expressions import EVERY, Expression, TooComplex, either, literal, repeat
from unspool.constraints._schema.formats import FORMATS
from unspool.constraints._schema.joining import key
from unspool.constraints._schema.keywords import COMBINED
from unspool.constraints._schema.nodes import Document, Node, Schema, path
from unspool.constraints._schema.patterns import Unreadable, found_in, is_simple
from unspool.constraints._schema.spelling import pattern_of


@dataclass(frozen=True)
class Prepared:
    """A schema as engines get it.

    Attributes:
        text: of the schema, as JSON.
        narrowed: places where some values that satisfy the schema are left out, because no engine can tell them from
            values that do not; each with what is left out. What is generated satisfies the schema in any case.
    """

    text: str
    narrowed: tuple[str, ...] = ()


def prepare(schema: Mapping[str, Any] | bool | str, layout: Layout | None = None, *, strict: bool = False) -> Prepared:
    """A schema of the same meaning in the words that engines enforce exactly.

    Left are: ``type``, ``enum``, ``anyOf``, ``allOf`` of patterns, ``$ref`` into ``$defs``; bounds, ``multipleOf``;
    lengths, ``pattern`` (without assertions but the outer anchors); ``prefixItems``, ``items``, numbers of elements;
    ``properties``, ``patternProperties`` (disjoint), ``additionalProperties``, ``required``, and numbers of properties
    where all that are named are required.

    Args:
        schema: of any draft.
        layout: white space: ``any``, or ``fixed`` to one space after a comma and a colon; ``None`` leaves it to the
            schema's own ``x-guidance``.
        strict: refuse what would be narrowed.

    Raises:
        GrammarError: for what is no schema, what no value satisfies, and what cannot be enforced, with path and
            keyword.
    """
    if isinstance(schema, str):
        schema = json.loads(schema)
    assert not isinstance(schema, str)
    try:
        prepared = _prepared(json.dumps(schema), layout)
    except RecursionError as error:
        raise GrammarError("the schema is nested too deeply") from error
    if strict and prepared.narrowed:
        raise GrammarError(prepared.narrowed[0])
    return prepared


@lru_cache(maxsize=256)
def _prepared(text: str, layout: Layout | None) -> Prepared:
    schema = json.loads(text)
    document = Document(schema)
    writer = _Writer(document)
    root = document.node("")
    while True:
        if writer.logic.hopeless(root):
            raise GrammarError("no value satisfies the schema", "#")
        written = writer.whole(root)
        if written is False:
            raise GrammarError("no value satisfies the schema", "#")
        if not writer.vanished:
            break
        # What was left out may have been all of a definition: what requires it cannot be either.
        writer.logic.forgo(writer.vanished)
        writer = _Writer(document, writer.logic)
    if isinstance(written, dict):
        own = schema.get(OPTIONS)
        if layout is not None:
            written[OPTIONS] = LAYOUTS[layout]
        elif isinstance(own, dict):
            written[OPTIONS] = own
    return Prepared(json.dumps(written, ensure_ascii=False), tuple(dict.fromkeys(writer.narrowed)))


class _Writer:
    def __init__(self, document: Document, logic: Logic | None = None) -> None:
        self.document = document
        self.logic = logic or Logic(document)
        self.vanished: list[Node] = []
        self._names: dict[str, str] = {}
        self._pending: list[tuple[str, Node]] = []
        self._work = 0
        self.narrowed: list[str] = []

    def whole(self, root: Node) -> dict[str, Any] | bool:
        written = self.schema(root)
        definitions: dict[str, Any] = {}
        while self._pending:
            name, node = self._pending.pop()
            definitions[name] = self.schema(node)
            if definitions[name] is False:
                self.vanished.append(node)
        if isinstance(written, dict) and definitions:
            written = {**written, "$defs": definitions}
        return written

    def child(self, node: Node) -> Any:
        """A schema within another; references stay references, so that recursion stays finite."""
        if isinstance(node, bool):
            return node
        if self.logic.hopeless(node):
            return False
        if node.keys() == {"$at", "$ref"}:
            return self._defined(node["$ref"], self.document.node(node["$ref"]))
        if node.keys() == {"$at", "allOf"} or node.keys() == {"$at", "not"}:
            # Made by the algebra: it may come back within itself.
            return self._defined(key(node), node)
        return self.schema(node)

    def _defined(self, name: str, node: Node) -> Any:
        if isinstance(node, bool):
            return node
        if name not in self._names:
            self._names[name] = f"s{len(self._names)}"
            self._pending.append((self._names[name], node))
        return {"$ref": f"#/$defs/{self._names[name]}"}

    def schema(self, node: Node) -> Any:
        if isinstance(node, bool):
            return node
        at = path(node["$at"])
        self._work += 1
        if self._work > 20_000:
            raise GrammarError("the schema unfolds into too many parts", at)
        try:
            if node.keys() == {"$at", "$ref"}:
                self.logic.cells(node)  # finds references that only lead to themselves
                return self.child(node)
            written = self._direct(node)
            return self._unfolded(self.logic.cells(node), node) if written is None else written
        except Unreadable as error:
            raise GrammarError(str(error), path(node["$at"], "pattern")) from error
        except TooComplex as error:
            raise GrammarError("its patterns, taken together, have too many states", at) from error

    # -- as it stands --------------------------------------------------------------------------------------------------

    def _direct(self, node: Schema) -> dict[str, Any] | None:
        """The schema keyword by keyword, if all of them are of those that engines know; else ``None``."""
        combined = [k for k in node if k in COMBINED]
        if combined not in ([], ["anyOf"], ["oneOf"]):
            return None
        own = {k: v for k, v in node.items() if k not in COMBINED}
        if combined and len(own) > 1:
            return None
        if combined:
            branches = node[combined[0]]
            if combined == ["oneOf"] and not self._disjoint(branches):
                return None
            kept = [branch for branch in branches if not self.logic.hopeless(branch)]
            if len(kept) == 1:
                return self.child(kept[0])
            return {"anyOf": [self.child(branch) for branch in kept]}
        if "enum" in own and len(own) > 2:
            return None
        cells = self.logic.cells(node)
        if any(isinstance(cell, Arrays) and (cell.unique or cell.contains) for cell in cells):
            return None
        return self._typed(cells, node)

    def _disjoint(self, branches: list[Node]) -> bool:
        unfolded = [self.logic.cells(branch) for branch in branches]
        return not any(self.logic.meet(a, b) for a, b in itertools.combinations(unfolded, 2))

    def _typed(self, cells: list[Cell], node: Node) -> dict[str, Any] | None:
        """At most one cell a type, as one schema."""
        if cells == list(EVERYTHING):
            return {}
        if not all(isinstance(cell, Fixed) for cell in cells):
            if len({cell.kind for cell in cells}) < len(cells):
                return None
            written = [one for cell in cells for one in self._cell(cell, node)]
            if len(written) != len(cells):
                return None
            merged: dict[str, Any] = (
                {"type": [one["type"] for one in written]} if all("type" in w for w in written) else {}
            )
            if not merged:
                return None
            for one in written:
                merged.update({k: v for k, v in one.items() if k != "type"})
            if len(merged["type"]) == 1:
                merged["type"] = merged["type"][0]
            return merged
        return {"enum": [value for cell in cells if isinstance(cell, Fixed) for value in cell.read]}

    # -- unfolded ------------------------------------------------------------------------------------------------------

    def _unfolded(self, cells: list[Cell], node: Node) -> Any:
        if not cells:
            return False
        if cells == list(EVERYTHING):
            return {}
        written, error = [], None
        for cell in cells:
            noted = len(self.narrowed)
            try:
                written += self._cell(cell, node)
            except GrammarError as reason:
                # What cannot be written may be left out as long as something remains; it is told.
                error = reason
                del self.narrowed[noted:]
                self.narrowed.append(str(reason))
        if error is not None and not written:
            raise error
        if len(written) > MOST_CASES:
            raise refused(node, f"it stands for {len(written)} cases; {MOST_CASES} are the most")
        plain = [one["type"] for one in written if one.keys() == {"type"}]
        rest = [one for one in written if one.keys() != {"type"}]
        if plain:
            rest.insert(0, {"type": plain if len(plain) > 1 else plain[0]})
        return rest[0] if len(rest) == 1 else {"anyOf": rest} if rest else False

    def _cell(self, cell: Cell, node: Node) -> list[dict[str, Any]]:
        """One cell as a union of schemas."""
        if isinstance(cell, Fixed):
            if len(cell.values) == {"null": 1, "boolean": 2}.get(cell.kind):
                return [{"type": cell.kind}]
            return [{"enum": cell.read}]
        if isinstance(cell, Numbers):
            return [self._numbers(cell, node)]
        if isinstance(cell, Strings):
            return [self._strings(cell, node)]
        if isinstance(cell, Arrays):
            return [self._arrays(one, node) for one in array_cases(self.logic, cell, node, self.narrowed)]
        return [self._objects(one) for one in object_cases(self.logic, cell, node)]

    def _numbers(self, cell: Numbers, node: Node) -> dict[str, Any]:
        if cell.whole is False:
            raise refused(node, "numbers that are no integers cannot be told from integers", "type")
        written: dict[str, Any] = {"type": "integer" if cell.whole else "number"}
        if cell.low > -math.inf:
            written["exclusiveMinimum" if cell.low_open else "minimum"] = cell.low
        if cell.high < math.inf:
            written["exclusiveMaximum" if cell.high_open else "maximum"] = cell.high
        if len(cell.multiples) == 1:
            written["multipleOf"] = cell.multiples[0]
        elif cell.multiples:
            if not all(float(step).is_integer() for step in cell.multiples):
                raise refused(node, "several steps are only supported if all are integers", "multipleOf")
            written["multipleOf"] = math.lcm(*(int(step) for step in cell.multiples))
        return written

    def _strings(self, cell: Strings, node: Node) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "string"}
        if cell.least:
            written["minLength"] = cell.least
        if cell.longest is not None:
            written["maxLength"] = cell.longest
        patterns = [_simple(pattern) for pattern in cell.patterns]
        patterns += [_simple(FORMATS[name]) for name in cell.formats]
        # Engines know no `not`, but what is left out can be said by what is left in.
        patterns += [pattern_of(~other) for other in cell.others]
        if patterns:
            written["pattern"] = patterns[0]
        if len(patterns) > 1:
            written["allOf"] = [{"pattern": pattern} for pattern in patterns[1:]]
        return written

    def _arrays(self, cell: Arrays, node: Node) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "array"}
        prefix, rest, most = list(cell.prefix), cell.rest, cell.most
        for place, inner in enumerate(prefix):
            if self.logic.hopeless(inner):
                # Nothing can stand there, so the array ends before.
                prefix, rest, most = prefix[:place], False, place if most is None else min(most, place)
                break
        if rest is not False and self.logic.hopeless(rest):
            rest = False
        if rest is False:
            most = len(prefix) if most is None else min(most, len(prefix))
        if prefix:
            written["prefixItems"] = [self.child(inner) for inner in prefix]
        if rest is not True:
            written["items"] = self.child(rest)
        if cell.least:
            written["minItems"] = cell.least
        if most is not None:
            written["maxItems"] = most
        return written

    # -- objects -------------------------------------------------------------------------------------------------------

    def _objects(self, cell: Objects) -> dict[str, Any]:
        written: dict[str, Any] = {"type": "object"}
        named = dict(cell.named)
        if named:
            written["properties"] = {
                name: False if name not in cell.required and self.logic.hopeless(inner) else self.child(inner)
                for name, inner in named.items()
            }
        listed = [self._unnamed(one, named) for one in cell.keys]
        if keys := [one for one in listed if not self.logic.hopeless(one.value) and not one.names.is_empty]:
            written["patternProperties"] = {
                one.text if one.text is not None and is_simple(one.text) else pattern_of(one.names): self.child(
                    one.value
                )
                for one in keys
            }
        blocked = [one for one in listed if one not in keys and not one.names.is_empty]
        if blocked and cell.rest is not False:
            # Names that are not allowed: all others are, and say so by a pattern.
            free: Expression = repeat(EVERY)
            for one in cell.keys:
                free &= ~one.names
            written.setdefault("patternProperties", {})[pattern_of(free)] = self.child(cell.rest)
            written["additionalProperties"] = False
        elif cell.rest is not True:
            written["additionalProperties"] = False if self.logic.hopeless(cell.rest) else self.child(cell.rest)
        if cell.required:
            written["required"] = list(cell.required)
        if cell.least > len(cell.required):
            written["minProperties"] = cell.least
        if cell.most is not None:
            written["maxProperties"] = cell.most
        return written

    @staticmethod
    def _unnamed(keys: Keys, named: Mapping[str, Node]) -> Keys:
        """A set of names without those that have a schema of their own: in there both have been taken together."""
        # Engines apply the schema of the pattern to named properties too: no harm, unless a reference meets itself.
        apart = [name for name, inner in named.items() if isinstance(inner, Schema) and keys.names.matches(name)]
        if any("$ref" in named[name].text for name in apart):  # type: ignore[union-attr]
            return Keys(keys.names & ~either(map(literal, apart)), keys.value)
        return keys


@lru_cache(maxsize=4096)
def _simple(pattern: str) -> str:
    """The pattern, or one without assertions that finds the same strings."""
    return pattern if is_simple(pattern) else pattern_of(found_in(pattern))
