"""Grammars of languages that come along: Python, SQL, JSON, arithmetic; each a well-formed subset, as its file says."""

from __future__ import annotations

import keyword
import re
from functools import cache
from importlib.resources import files

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._schema.expressions import Expression
from unspool.constraints._schema.patterns import found_in
from unspool.constraints._schema.spelling import pattern_of

LANGUAGES = ("arithmetic", "json", "python", "sql")
"""Their names. The command line reads the list here."""

_DEPTH = 6
"""Levels of indentation in Python."""

_SQL_WORDS = """
ALL AND AS ASC AVG BETWEEN BY CASE COALESCE COUNT DELETE DESC DISTINCT ELSE END EXCEPT EXISTS FROM GROUP
HAVING IN INNER INSERT INTERSECT INTO IS JOIN LEFT LENGTH LIKE LIMIT LOWER MAX MIN NOT NULL OFFSET ON OR ORDER
REPLACE RIGHT ROUND SELECT SET SUBSTR SUM TABLE THEN TRIM UNION UPDATE UPPER USING VALUES WHEN WHERE WITH ABS
ADD ALTER CHECK CREATE CROSS DEFAULT DROP FOREIGN FULL INDEX KEY NATURAL OUTER PRIMARY REFERENCES TO UNIQUE
VIEW WINDOW TRANSACTION COMMIT COLLATE CONSTRAINT DEFERRABLE ESCAPE GLOB ISNULL NOTNULL NOTHING RETURNING
AUTOINCREMENT IF
"""
"""Words that are no names, written in capitals or not."""


@cache
def language(name: str) -> Grammar:
    """The grammar of a language.

    Raises:
        GrammarError: if there is none of that name.
    """
    if name not in LANGUAGES:
        raise GrammarError(f"there is no grammar of the language {name!r}; there are {', '.join(LANGUAGES)}")
    text = (_folder() / f"{name}.lark").read_text(encoding="utf-8")
    if name == "python":
        words = [*keyword.kwlist, "match", "case", "type", "__debug__"]
        text = _deepened(text).replace("%NAME%", _names(found_in("^[A-Za-z_][A-Za-z0-9_]{0,40}$"), words))
    elif name == "sql":
        words = [spelled for word in _SQL_WORDS.split() for spelled in (word, word.lower())]
        text = text.replace("%NAME%", _names(found_in("^[A-Za-z_][A-Za-z0-9_]*$"), words))
    return Grammar.lark(text)


def _folder():  # type: ignore[no-untyped-def]  # a Traversable, which has no public type before Python 3.12
    return files("unspool.constraints") / "languages"


def _names(names: Expression, reserved: list[str]) -> str:
    """The pattern of names that are no keywords: a lexer that tries both would take a keyword for a name."""
    return f"/{pattern_of(names & ~found_in('^(' + '|'.join(reserved) + ')$'))[1:-1]}/"


def _deepened(text: str) -> str:
    """The rules of statements for every depth, and for inside and outside of functions and loops."""
    lines = text.splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("@ ")]
    rules = "\n".join(lines[place][2:] for place in places)
    spread = [
        _placed(rules, depth, function, loop)
        for depth in range(_DEPTH)
        for function in ("", "def")
        for loop in ("", "loop")
    ]
    # The deepest level holds simple statements alone.
    spread += [
        f"body_{_DEPTH}_{function}_{loop}: simple_{function}_{loop} (_NL_{_DEPTH} simple_{function}_{loop})*"
        for function in ("", "def")
        for loop in ("", "loop")
    ]
    unique = list(dict.fromkeys(rule for one in spread for rule in re.split(r"\n(?! )", one)))
    newlines = [
        line[3:].replace("{n}", str(depth)).replace("{n*4}", str(4 * depth))
        for line in lines
        if line.startswith("@@ ")
        for depth in range(_DEPTH + 1)
    ]
    rest = [line for line in lines if not line.startswith("@")]
    return "\n".join([*rest, *unique, *newlines]) + "\n"


def _placed(rules: str, depth: int, function: str, loop: str) -> str:
    for mark, value in (("{n+1}", str(depth + 1)), ("{n}", str(depth)), ("{f}", function), ("{l}", loop)):
        rules = rules.replace(mark, value)
    return rules
