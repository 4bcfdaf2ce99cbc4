"""A grammar as it is handed around: which notation, and the text. Compiling it is the engines' work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from unspool.core.errors import DeadEnd, GrammarError

if TYPE_CHECKING:
    from unspool.core.sockets import Part

__all__ = ["DEFAULT_ENGINE", "DeadEnd", "EngineName", "Grammar", "GrammarError", "Kind"]

Kind = Literal["json-schema", "lark", "gbnf", "regex", "choices"]
EngineName = Literal["llguidance", "xgrammar", "greatgramma", "pre3-dpda"]
"""The grammar engines. The command line reads the list here."""
DEFAULT_ENGINE: EngineName = "llguidance"
"""The engine for a grammar that comes without one."""
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Grammar:
    """A language in one of the notations that engines read. Hashable, so that what is compiled can be kept.

    Args:
        kind: the notation: a JSON schema, a Lark grammar (whose start is ``start``), a GBNF grammar (whose start is
            ``root``), a regular expression that the whole text has to match, or a list of texts.
        text: the schema, grammar or expression; of ``choices`` a JSON list of strings.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise GrammarError(f"there is no notation {self.kind!r}; known: {', '.join(KINDS)}")
        if not self.text.strip() and self.kind in ("json-schema", "lark", "gbnf"):
            raise GrammarError(f"the {self.kind} grammar is empty")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool | str) -> Grammar:
        """Text of JSON that satisfies a schema; the order of its properties is kept.

        Raises:
            GrammarError: for text that is no JSON, or JSON that is neither an object nor true or false.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise GrammarError(
                    f"the schema is no JSON: {error.msg}", f"line {error.lineno}, column {error.colno}"
                ) from error
            except RecursionError as error:
                raise GrammarError("the schema is nested too deeply to be read") from error
        if not isinstance(schema, Mapping | bool):
            raise GrammarError(f"a JSON schema is an object, true or false; this is {json.dumps(schema)[:60]}")
        try:
            return cls("json-schema", json.dumps(schema, ensure_ascii=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise GrammarError(f"the schema cannot be written as JSON: {error}") from error

    @classmethod
    def lark(cls, text: str) -> Grammar:
        return cls("lark", text)

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        return cls("gbnf", text)

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        return cls("regex", pattern)

    @classmethod
    def choices(cls, texts: Sequence[str]) -> Grammar:
        """One of several texts.

        Raises:
            GrammarError: if there is none, or something is no text.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise GrammarError(f"choices are a list of at least one text; this is {texts!r}"[:200])
        return cls("choices", json.dumps(list(dict.fromkeys(texts)), ensure_ascii=False))

    @classmethod
    def of(cls, given: Any) -> Grammar:
        """A grammar; its notation and text joined by a colon (``regex:[0-9]+``, ``json-schema:{"type": "string"}``);
        or a type.

        A type is a class of pydantic, a dataclass, a ``TypedDict``, any other annotation, or a function, whose
        arguments are
        meant: the grammar is the JSON of its values.

        Raises:
            GrammarError: for text without a known notation in front, or a type that has no JSON.
        """
        if isinstance(given, Grammar):
            return given
        if not isinstance(given, str):
            from unspool.constraints._typed import Typed

            return Typed.of(given).grammar
        kind, colon, text = given.partition(":")
        kind = kind.strip()
        if not colon or kind not in KINDS:
            raise GrammarError(
                f"a grammar in text begins with its notation, as in 'regex:[0-9]+'; known: {', '.join(KINDS)}; "
                f"this begins with {given[:40]!r}"
            )
        if kind == "json-schema":
            return cls.json_schema(text)
        if kind == "choices":
            text = text.strip()
            return cls.choices(_listed(text) if text.startswith("[") else [part.strip() for part in text.split("|")])
        return cls(kind, text)  # type: ignore[arg-type]

    def part(self) -> Part:
        """The default engine for it, so that a grammar can stand where methods are named."""
        from unspool.core.registry import registry

        engine = registry[DEFAULT_ENGINE]
        made: Part = engine.cls(engine.settings(grammar=self))
        return made

    @property
    def alternatives(self) -> list[str]:
        """The texts of ``choices``."""
        return _listed(self.text)


def _listed(text: str) -> list[str]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise GrammarError(f"the list of choices is no JSON: {error.msg}", f"column {error.colno}") from error
    return list(found) if isinstance(found, list) else [found]
