"""Grammars out of files, by the ending of the name."""

from __future__ import annotations

from pathlib import Path

from unspool.constraints._grammar import Grammar, GrammarError

MOST_BYTES = 8_000_000

NOTATIONS = {
    ".lark": "lark",
    ".gbnf": "gbnf",
    ".ebnf": "gbnf",
    ".bnf": "gbnf",
    ".json": "json-schema",
    ".regex": "regex",
    ".txt": "choices",
}


def read_text(path: Path, option: str) -> str:
    """A text file.

    Raises:
        GrammarError: if it is not there, no text, or larger than any grammar.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise GrammarError(f"the file is larger than {MOST_BYTES // 1_000_000} MB", f"{option} {path}")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise GrammarError(f"it cannot be read: {error.strerror or error}", f"{option} {path}") from error
    except UnicodeDecodeError as error:
        raise GrammarError(f"it is no UTF-8 text: {error.reason} at byte {error.start}", f"{option} {path}") from error


def grammar_file(path: Path, option: str = "the grammar") -> Grammar:
    """The grammar in a file: ``.lark``; ``.gbnf`` or ``.ebnf`` (rules ``name ::= ...`` from ``root``); ``.json`` (a
    schema); ``.regex``; ``.txt`` (one choice a line).

    Raises:
        GrammarError: if it cannot be read, or its name ends otherwise.
    """
    kind = NOTATIONS.get(path.suffix.lower())
    if kind is None:
        raise GrammarError(
            f"the ending {path.suffix!r} is of no notation known here; known: {', '.join(NOTATIONS)}",
            f"{option} {path}",
        )
    text = read_text(path, option)
    if not text.strip():
        raise GrammarError("the file is empty", f"{option} {path}")
    try:
        if kind == "choices":
            return Grammar.choices([line for line in text.splitlines() if line.strip()])
        if kind == "json-schema":
            return Grammar.json_schema(text)
        if kind == "regex":
            return Grammar.regex(text.removesuffix("\n"))
        if kind == "gbnf" and "::=" not in text:
            raise GrammarError("rules are written name ::= ..., and the first is called root")
        return Grammar(kind, text)  # type: ignore[arg-type]
    except GrammarError as error:
        raise GrammarError(str(error), f"{option} {path}") from error
