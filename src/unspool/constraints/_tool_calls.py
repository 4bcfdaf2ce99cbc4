"""How calls of tools are written, and how what was written is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.expressions import ANY, Expression, chars, literal, outside, repeat, sequence


@dataclass(frozen=True)
class Style:
    """How calls are written.

    Args:
        trigger: what begins a call.
        open, key, separator, close: around the arguments, before a value (with ``{}`` for the name), between two.
        end: behind the call.
    """

    trigger: str
    open: str
    key: str
    separator: str
    close: str
    end: str


@dataclass(frozen=True)
class Called:
    """One call that was written.

    Attributes:
        tool: its name.
        arguments: as they were written.
        result: what the function gave, or the message of what it raised; ``None`` if nothing was called.
        failed: whether it raised.
    """

    tool: str
    arguments: dict[str, Any]
    result: Any = None
    failed: bool = False

    @property
    def key(self) -> str:
        return f"{self.tool} {json.dumps(self.arguments, sort_keys=True)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``--json``."""
        return {"tool": self.tool, "arguments": self.arguments, "result": shown(self.result), "failed": self.failed}


def shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(value)


def parsed(text: str, names: Sequence[str], style: Style) -> dict[str, Any]:
    """Arguments as they were written, by name.

    Raises:
        GrammarError: if they were not restricted, and are none.
    """
    reader = json.JSONDecoder()
    found: dict[str, Any] = {}
    place = 0
    while place < len(text):
        name = next((n for n in names if n not in found and text.startswith(style.key.replace("{}", n), place)), None)
        if name is None:
            raise GrammarError(f"the arguments {text!r} cannot be read behind character {place}")
        place += len(style.key.replace("{}", name))
        try:
            found[name], place = reader.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise GrammarError(f"the value of {name} in {text!r} is no JSON: {error.msg}") from error
        if text.startswith(style.separator, place):
            place += len(style.separator)
    return found


def anything_until(end: str) -> Expression:
    """Any one line, then the end: for calls whose arguments are not restricted."""
    line = repeat(chars(outside(((10, 10),))))
    holds = sequence((ANY, literal(end), ANY))
    return sequence((line & ~holds, literal(end)))
