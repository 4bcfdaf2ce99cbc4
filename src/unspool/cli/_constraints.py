"""The options that say what a text has to be, for the commands that generate."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli import _declared, _options
from unspool.core.errors import InvalidInput

if TYPE_CHECKING:
    from unspool.constraints import Grammar
    from unspool.core.sockets import Constraint

PANEL = "What the text has to be"
ENGINES: tuple[str, ...] = _declared.constant("constraints/_grammar.py", "EngineName")
DEFAULT_ENGINE: str = _declared.constant("constraints/_grammar.py", "DEFAULT_ENGINE")
LANGUAGES: tuple[str, ...] = _declared.constant("constraints/_languages.py", "LANGUAGES")


def complete_language(incomplete: str) -> list[str]:
    return [name for name in LANGUAGES if name.startswith(incomplete)]


def complete_engine(incomplete: str) -> list[str]:
    return [name for name in ENGINES if name.startswith(incomplete)]


JsonSchema = Annotated[
    str | None,
    typer.Option("--json-schema", metavar="FILE|JSON", help="JSON that satisfies a schema.", rich_help_panel=PANEL),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="A text of a grammar: .lark, .gbnf, .ebnf (name ::= ...).",
        rich_help_panel=PANEL,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option("--regex", metavar="PATTERN", help="A text that the whole pattern matches.", rich_help_panel=PANEL),
]
Choices = Annotated[
    str | None,
    typer.Option(
        "--choices", metavar="A,B,C|FILE", help="One of several texts; a file has one a line.", rich_help_panel=PANEL
    ),
]
Tools = Annotated[
    str | None,
    typer.Option(
        "--tools",
        metavar="FILE[:NAMES]",
        help="A call of a tool: functions of a Python file (tools.py:first,second; they are called), a list in "
        "JSON, or an OpenAPI file.",
        rich_help_panel=PANEL,
    ),
]
Language = Annotated[
    str | None,
    typer.Option(
        "--language",
        help=f"A text of a language: {', '.join(LANGUAGES)}.",
        autocompletion=complete_language,
        rich_help_panel=PANEL,
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help=f"The grammar engine: {', '.join(ENGINES)}. \\[default: {DEFAULT_ENGINE}]",
        autocompletion=complete_engine,
        rich_help_panel=PANEL,
    ),
]
Close = Annotated[
    bool,
    typer.Option(
        "--close/--no-close", help="Bring the text to a valid end before its maximum is reached.", rich_help_panel=PANEL
    ),
]
Whitespace = Annotated[
    str | None,
    typer.Option(
        "--whitespace",
        metavar="fixed|any",
        help="In JSON: one space after a comma and a colon, or anywhere. \\[default: fixed]",
        rich_help_panel=PANEL,
    ),
]


@dataclass(frozen=True)
class Asked:
    """What the options ask for, before a model is loaded.

    Attributes:
        method: the methods, the engine among them.
        options: of ``Engine.compose``: the constraint and its settings.
        notes: what the person should know: values of a schema that are left out.
        is_json: whether the text will be JSON, so that it can be parsed for ``--json``.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_json: bool = False

    @property
    def constraint(self) -> Grammar | Constraint | None:
        return self.options.get("constraint")

    def described(self, text: str, complete: bool | None) -> dict[str, Any]:
        """What ``--json`` tells beside the text: whether it is complete, the object of a schema, the calls of tools."""
        if self.constraint is None:
            return {}
        from unspool.constraints.tooldec import ToolDec

        told: dict[str, Any] = {"complete": complete}
        if self.is_json:
            try:
                told["object"] = json.loads(text)
            except ValueError:
                told["object"] = None
        if isinstance(self.constraint, ToolDec):
            told["calls"] = [call.as_dict() for call in self.constraint.calls_in(text)]
        if self.notes:
            told["left_out"] = list(self.notes)
        return told


def asked(
    method: str,
    *,
    json_schema: JsonSchema = None,
    grammar: GrammarFile = None,
    regex: Regex = None,
    choices: Choices = None,
    tools: Tools = None,
    language: Language = None,
    engine: EngineOption = None,
    close: Close = True,
    whitespace: Whitespace = None,
) -> Asked:
    """What the options ask for. Commands are given them by :func:`options`.

    Raises:
        InvalidInput: if two of them exclude one another, or one says nothing without another.
        GrammarError: if a file or a grammar cannot be used.
    """
    given: dict[str, Callable[[], Asked]] = {}
    if json_schema is not None:
        given["--json-schema"] = lambda: _schema(method, json_schema, whitespace)
    if grammar is not None:
        given["--grammar"] = lambda: _plain(method, _file(grammar))
    if regex is not None:
        given["--regex"] = lambda: _plain(method, _regex(regex))
    if choices is not None:
        given["--choices"] = lambda: _plain(method, _choices(choices))
    if language is not None:
        given["--language"] = lambda: _language(method, language)
    if tools is not None:
        given["--tools"] = lambda: _tools(method, tools, close)
    if len(given) > 1:
        raise InvalidInput(f"{' and '.join(given)} each say what the whole text has to be: take one of them")
    if engine is not None and engine not in ENGINES:
        raise InvalidInput(f"there is no grammar engine {engine!r}; there are {', '.join(ENGINES)}")
    if whitespace not in (None, "any", "fixed"):
        raise InvalidInput(f"--whitespace is {whitespace!r}; it is fixed or any")
    if whitespace is not None and json_schema is None:
        raise InvalidInput("--whitespace says how the JSON of --json-schema is laid out: give both")
    if engine is not None and (not given or tools is not None):
        other = "makes calls by its own machine, without a grammar engine" if tools else "is for a grammar"
        raise InvalidInput(f"--engine {engine}: {'--tools ' if tools else '--engine '}{other}: leave it out")
    if not given:
        return Asked(method)
    ((_, make),) = given.items()
    made = make()
    if tools is not None:
        return made
    slug = engine or DEFAULT_ENGINE
    settings = {f"{slug}.close": True} if close else {}
    return Asked(f"{method}+{slug}", {**made.options, "settings": settings}, made.notes, made.is_json)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of :func:`asked` in the place of its parameter ``constraint``, in which their values
    arrive by name."""
    every = inspect.signature(asked, eval_str=True).parameters.values()
    flags = [flag for flag in every if flag.kind is inspect.Parameter.KEYWORD_ONLY]
    return _options.spread(command, "constraint", flags, dict)


def _plain(method: str, grammar: Grammar) -> Asked:
    return Asked(method, {"constraint": grammar})


def _file(path: Path) -> Grammar:
    from unspool.constraints._files import grammar_file

    return grammar_file(path, "--grammar")


def _regex(pattern: str) -> Grammar:
    from unspool.constraints import Grammar

    if not pattern:
        raise InvalidInput("--regex is empty: only the empty text matches it")
    return Grammar.regex(pattern)


def _choices(given: str) -> Grammar:
    from unspool.constraints import Grammar
    from unspool.constraints._files import read_text

    path = Path(given)
    if "," not in given and path.is_file():
        listed = read_text(path, "--choices").splitlines()
    elif "," not in given and path.suffix in (".txt", ".csv"):
        raise InvalidInput(f"--choices {given}: there is no such file, and a single choice is none")
    else:
        listed = [choice.strip() for choice in given.split(",")]
    listed = [choice for choice in listed if choice.strip()]
    if not listed:
        raise InvalidInput(f"--choices {given!r} holds no text")
    return Grammar.choices(listed)


def _language(method: str, name: str) -> Asked:
    from unspool.constraints._languages import language

    return Asked(method, {"constraint": language(name)}, is_json=name == "json")


def _schema(method: str, given: str, whitespace: str | None) -> Asked:
    from unspool.constraints import Grammar
    from unspool.constraints._files import read_text
    from unspool.constraints._schema import prepare
    from unspool.core.errors import GrammarError

    inline = given.lstrip().startswith(("{", "true", "false"))
    text = given if inline else read_text(Path(given), "--json-schema")
    where = "--json-schema" if inline else f"--json-schema {given}"
    try:
        schema = json.loads(Grammar.json_schema(text).text)
        own = isinstance(schema, dict) and "x-guidance" in schema and whitespace is None
        prepared = prepare(schema, None if own else "any" if whitespace == "any" else "fixed")
    except GrammarError as error:
        raise GrammarError(str(error), where) from error
    return Asked(method, {"constraint": Grammar.json_schema(prepared.text)}, prepared.narrowed, is_json=True)


def _tools(method: str, given: str, close: bool) -> Asked:
    from unspool.constraints._tools import read_tools
    from unspool.constraints.tooldec import ToolDec

    part = ToolDec.of(read_tools(given), when="now", calls=1, close=close)
    return Asked(method, {"constraint": part})
