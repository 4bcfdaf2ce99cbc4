"""Instances of classes: what is constructed can be constructed, and what is raised or caught is an exception.

Python has no ``new`` that would tell where a class has to come. It tells by three other things: a bracket behind the
name of a class constructs it, so none may open behind a class that is abstract or a protocol; behind ``raise`` and
``except`` an exception has to come, so of the classes there only those may; and arguments in the brackets are the
constructor's.
"""

from __future__ import annotations

import builtins
import re

from unspool.constraints._monitors.base import Answer, Cursor, Names, NotCalled, Question, Trigger
from unspool.constraints._monitors.calls import PythonCalls
from unspool.constraints._monitors.python import Asked, PythonMonitor

_CLASS = re.compile(r"(?:^|[^\w])(_*[A-Z]\w*)( *)$")
"""By its name, as is the custom; what is written otherwise is not asked about."""

_DEFINED = re.compile(r"\s*(?:class|def|async\s+def|import|from)\b")
_EXCEPTION = re.compile(r"\s*(?:raise|except\*?)(\s+|\s*\(\s*(?:\w+\s*,\s*)*)(\w*)")
_AWAITED = re.compile(r"\s*(?:raise|except\*?)")


class PythonConstructible(PythonMonitor):
    """No bracket opens behind a class that cannot be constructed."""

    slug = "instances"

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code or _DEFINED.match(cursor.statement):
            return None
        found = _CLASS.search(cursor.tail())
        return Trigger(len(cursor.data) - len(found[2])) if found else None

    def analyse(self, question: Question) -> Answer | None:
        with self._python.asked(question) as at:
            found = at.infer(-1)
            refused = [at.classes.constructible(one) is False for one in found if one.type == "class"]
        return NotCalled() if refused and len(refused) == len(found) and all(refused) else None


class PythonExceptions(PythonMonitor):
    """What is raised or caught is no class that is no exception."""

    slug = "instances"

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code:
            return None
        statement = cursor.statement
        if _AWAITED.fullmatch(statement):
            return Trigger(len(cursor.data), lead=b" ", what="first")
        if found := _EXCEPTION.fullmatch(statement):
            return Trigger(cursor.word, what="" if "(" in found[1] else "first")
        return None

    def analyse(self, question: Question) -> Answer | None:
        with self._python.asked(question) as at:
            names = [one.name for one in at.script.complete(at.line, at.column) if _may_be_raised(one, at)]
        names = sorted({name for name in names if name.isidentifier()})
        return Names(tuple(name.encode() for name in names), b"(" if question.what else b")", blanks=True)


def _may_be_raised(name: object, at: Asked) -> bool:
    kind = name.type  # type: ignore[attr-defined]
    if kind == "keyword":
        return False
    if kind != "class":
        return True  # What it gives when it is called, or what is in it, nobody knows.
    (found, *more) = name.infer() or [None]  # type: ignore[attr-defined]
    if found is not None and found.module_name == "builtins":
        known = getattr(builtins, found.name, None)
        return not isinstance(known, type) or issubclass(known, BaseException)
    return found is None or bool(more) or at.classes.is_a(found, "builtins.BaseException") is not False


class PythonConstructors(PythonCalls):
    """Classes are constructed with arguments that they take."""

    slug = "instances"

    def analyse(self, question: Question) -> Answer | None:
        with self._python.asked(question) as at:
            found = at.infer(-2)
        return super().analyse(question) if found and all(one.type == "class" for one in found) else None
