"""Monitors of Python through jedi: attributes and imports that exist, members of an enum in a match statement."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unspool.constraints._monitors.base import Answer, Attributes, Cursor, Monitor, Names, Question, Trigger
from unspool.constraints._monitors.classes import Classes
from unspool.constraints._monitors.parameters import Parameters

if TYPE_CHECKING:
    import jedi

T = TypeVar("T")

# jedi's caches are shared by everything in the process, and it does not guard them.
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Asked:
    """jedi at a place.

    Attributes:
        script: what it has read.
        classes: what is known of classes there.
        line, column: the place, lines from 1.
    """

    script: jedi.Script
    classes: Classes
    line: int
    column: int

    def infer(self, beside: int = 0) -> list[Any]:
        """What the expression is that ends at the place, or so many characters beside it."""
        return list(self.script.infer(self.line, max(self.column + beside, 0)))


class Python:
    """jedi, asked about one file of a project.

    Args:
        path: of the file, below the project or absolute; it need not exist.
        project: the folder of the repository; the current one if there is none.
    """

    def __init__(self, path: str | None = None, project: str | None = None) -> None:
        import jedi

        self._jedi = jedi
        root = Path(project or ".").resolve()
        self.path = None if path is None else str(root / path)
        self._project = jedi.Project(str(root))

    def script(self, text: str) -> jedi.Script:
        return self._jedi.Script(text, path=self.path, project=self._project)

    def other(self, path: Path, text: str) -> jedi.Script:
        """The same of another file."""
        return self._jedi.Script(text, path=path, project=self._project)

    @contextmanager
    def asked(self, question: Question) -> Iterator[Asked]:
        """jedi at the place of a question, for nobody else meanwhile."""
        text = question.before + question.variants()[-1]
        line, column = question.position
        with _ONE_AT_A_TIME:
            yield Asked(self.script(text), Classes(self, text, line + 1), line + 1, column)

    def complete(self, question: Question) -> list[str]:
        """The names that may stand at the trigger: with the code behind it as it is, and with open brackets closed."""
        line, column = question.position
        with _ONE_AT_A_TIME:
            found = {
                name.name
                for after in question.variants()
                for name in self.script(question.before + after).complete(line + 1, column)
            }
        return sorted(name for name in found if name.isidentifier())

    def signatures(self, question: Question, read: Callable[[Any], T]) -> list[T]:
        """The signatures of what is called at the trigger, which stands behind the opening bracket, as ``read`` reads
        them; what jedi returns asks it again for everything that one wants to know of it."""
        line, column = question.position
        with _ONE_AT_A_TIME:
            script = self.script(question.before + question.variants()[-1])
            return [read(signature) for signature in script.get_signatures(line + 1, column)]

    def constructor(self, question: Question) -> list[Parameters]:
        """What the named tuples and dataclasses that are called at the trigger are made of; jedi takes the one for a
        call of ``NamedTuple``, and of the other all fields for positional parameters."""
        with self.asked(question) as at:
            found = [at.classes.fields(one) for one in at.infer(-2) if one.type == "class"]
            return [one for one in found if one is not None]

    def members(self, before: str, subject: str) -> tuple[str, list[str]] | None:
        """The class and the members of the enum that an expression is of, asked behind ``before``."""
        with _ONE_AT_A_TIME:
            line = before.count("\n") + 1
            column = len(before) - before.rfind("\n") - 1
            kinds = self.script(before + subject).infer(line, column + len(subject))
            hints = {kind.get_type_hint() for kind in kinds if kind.type == "instance"}
            if len(hints) != 1 or len(kinds) != len(hints):
                return None
            (name,) = hints
            if not re.fullmatch(r"[^\W\d][\w.]*", name):
                return None
            end = column + len(name)
            if not any(
                c.name == "_generate_next_value_" for c in self.script(f"{before}{name}.").complete(line, end + 1)
            ):
                return None
            classes = self.script(before + name).infer(line, end)
            found = [
                member.name
                for made in classes
                for member in made.defined_names()
                if member.type == "statement" and not member.name.startswith("_")
            ]
            return (name, list(dict.fromkeys(found))) if found else None


class PythonMonitor(Monitor):
    """Base of monitors that ask jedi."""

    languages = frozenset({"python"})

    def __init__(self, python: Python) -> None:
        self._python = python


class PythonAttributes(Attributes):
    """The names behind a dot are those that the type in front of it has."""

    slug = "attributes"
    languages = frozenset({"python"})

    def __init__(self, python: Python, merged: bool = False) -> None:
        super().__init__(merged=merged)
        self._python = python

    def analyse(self, question: Question) -> Answer | None:
        names = self._python.complete(question)
        return Names(tuple(name.encode() for name in names)) if names else None


_IMPORTED = r"(?:[\w.]+(?:\s+as\s+\w+)?\s*,\s*)*"
_IMPORT = re.compile(rf"\s*import\s+{_IMPORTED}[\w.]*")
_FROM = re.compile(r"\s*from\s+\.*[\w.]*")
_FROM_IMPORT = re.compile(rf"\s*from\s+[\w.]+\s+import(\s+|\s*\(\s*){_IMPORTED}\w*")
_AWAITED = re.compile(
    rf"\s*(?:import|from|from\s+[\w.]+\s+import)|\s*import\s+{_IMPORTED}[\w.]+(?:\s+as\s+\w+)?\s*,"
    rf"|\s*from\s+[\w.]+\s+import\s+{_IMPORTED}[\w.]+(?:\s+as\s+\w+)?\s*,"
)
"""A space and a name have to follow, and the next token may bring both."""


class PythonImports(PythonMonitor):
    """Modules that are imported exist, and so do the names that are imported from them."""

    slug = "imports"

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code:
            return None
        statement = cursor.statement
        if _AWAITED.fullmatch(statement):
            first = statement.rstrip().endswith("import")
            return Trigger(len(cursor.data), lead=b" ", what="first" if first and "from" in statement else "")
        if parts := _FROM_IMPORT.fullmatch(statement):
            listed = "(" in parts[1]
            first = not re.search(r"import\s*\(?\s*\S+\s*,", statement)
            return Trigger(cursor.word, what="listed" if listed else "first" if first else "")
        if _FROM.fullmatch(statement):
            before = cursor.data[: cursor.word].decode(errors="replace")
            return Trigger(cursor.word, what="relative" if re.search(r"from\s+\.+$", before) else "from")
        if _IMPORT.fullmatch(statement):
            return Trigger(cursor.word)
        return None

    def analyse(self, question: Question) -> Answer | None:
        names = tuple(name.encode() for name in self._python.complete(question))
        instead = {"first": b"(*", "from": b".", "relative": b" ."}.get(question.what, b"")
        return Names(names, instead, blanks=question.what == "listed") if names else None


_CASE = re.compile(r"\s*case\s+(?:[\w.]+\s*\|\s*)*([\w.]*)")
_CASE_AWAITED = re.compile(r"\s*case|\s*case\s+(?:[\w.]+\s*\|\s*)*[\w.]+\s*\|")


class PythonEnumMembers(PythonMonitor):
    """Of a ``match`` on a value of an enum, every ``case`` is a member that was not named yet, or ``_``."""

    slug = "enum-members"

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code:
            return None
        statement = cursor.statement
        if _CASE_AWAITED.fullmatch(statement):
            return Trigger(len(cursor.data), lead=b" ")
        if found := _CASE.fullmatch(statement):
            return Trigger(len(cursor.data) - len(found[1].encode()))
        return None

    def analyse(self, question: Question) -> Answer | None:
        lines = question.before.split("\n")
        indent = len(lines[-1]) - len(lines[-1].lstrip())
        for place in range(len(lines) - 2, -1, -1):
            line = lines[place]
            if line.strip() and len(line) - len(line.lstrip()) < indent:
                break
        else:
            return None
        subject = re.fullmatch(r"(\s*)match\s+(.+):\s*(?:#.*)?", line)
        if subject is None:
            return None
        found = self._python.members("".join(f"{row}\n" for row in lines[:place]) + subject[1], subject[2].strip())
        if found is None:
            return None
        name, members = found
        cases = [row for row in lines[place + 1 :] if re.match(rf"\s{{{indent}}}case\b", row)]
        named = {member for row in cases for member in re.findall(rf"\b{re.escape(name)}\.(\w+)", row)}
        left = [f"{name}.{member}" for member in members if member not in named]
        return Names(tuple(text.encode() for text in [*left, "_"]))
