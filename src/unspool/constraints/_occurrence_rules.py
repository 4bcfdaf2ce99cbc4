"""Conditions on the occurrences of a symbol, as users write them: ``column_name=id|name``, ``EMAIL=!@private.txt``."""

from __future__ import annotations

import importlib
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from unspool.core.errors import InvalidInput

NOTATION = (
    "SYMBOL=a|b|c (one of these), SYMBOL=/regex/ (the whole text matches), SYMBOL=@FILE (a line of the file), "
    "SYMBOL=sqlite-tables:FILE or SYMBOL=sqlite-columns:FILE (names of a database), SYMBOL=python:MODULE:FUNCTION (it "
    "says so); with ! before the right side it must not be so"
)


@dataclass(frozen=True)
class Condition:
    """What every occurrence of a symbol has to satisfy.

    Args:
        symbol: a rule or a terminal.
        holds: called with the text of an occurrence.
    """

    symbol: str
    holds: Callable[[str], bool]

    @classmethod
    def read(cls, text: str) -> Condition:
        """See :data:`NOTATION`.

        Raises:
            InvalidInput: if it cannot be read, or what it names is not there.
        """
        symbol, equals, wanted = text.partition("=")
        symbol, wanted = symbol.strip(), wanted.strip()
        if not equals or not symbol or not wanted.lstrip("!"):
            raise InvalidInput(f"{text!r} is no condition; they are written {NOTATION}")
        inverted = wanted.startswith("!")
        holds = _test(wanted[inverted:], text)
        return cls(symbol, (lambda found: not holds(found)) if inverted else holds)


def _test(wanted: str, text: str) -> Callable[[str], bool]:
    if len(wanted) > 1 and wanted.startswith("/") and wanted.endswith("/"):
        try:
            pattern = re.compile(wanted[1:-1])
        except re.error as error:
            raise InvalidInput(f"{text!r}: the regular expression cannot be read: {error}") from error
        return lambda found: pattern.fullmatch(found) is not None
    if wanted.startswith("@"):
        try:
            lines = Path(wanted[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{text!r}: the file cannot be read: {error}") from error
        return frozenset(line.strip() for line in lines if line.strip()).__contains__
    kind, colon, rest = wanted.partition(":")
    if colon and kind in ("sqlite-tables", "sqlite-columns"):
        tables, columns = sqlite_names(rest)
        names = {name.lower() for name in (tables if kind == "sqlite-tables" else columns)}
        return lambda found: found.strip('"`[]').lower() in names
    if colon and kind == "python":
        return _function(rest, text)
    return frozenset(option.strip() for option in wanted.split("|")).__contains__


def _function(place: str, text: str) -> Callable[[str], bool]:
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInput(f"{text!r}: there is no function {name!r} in the module {module!r}: {error}") from error
    return lambda found: bool(function(found))


def sqlite_names(path: str) -> tuple[list[str], list[str]]:
    """The tables and the columns of a SQLite database; it is opened for reading only.

    Raises:
        InvalidInput: if there is none.
    """
    if not Path(path).is_file():
        raise InvalidInput(f"there is no database {path!r}")
    try:
        with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as database:
            listed = database.execute("select name from sqlite_master where type in ('table', 'view')")
            tables = [name for (name,) in listed]
            columns = [
                name
                for table in tables
                for (name,) in database.execute("select name from pragma_table_info(?)", (table,))
            ]
    except sqlite3.Error as error:
        raise InvalidInput(f"{path!r} cannot be read as a SQLite database: {error}") from error
    return tables, list(dict.fromkeys(columns))
