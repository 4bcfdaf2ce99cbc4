"""What a class of Python is, read off its source and that of its bases: whether it can be constructed, and from what.

jedi finds the sources, here they are read. What cannot be found out is left open (``None``), and then nothing is
claimed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.constraints._monitors.parameters import Parameters

if TYPE_CHECKING:
    from unspool.constraints._monitors.python import Python

_DEEPEST = 12
"""Bases of bases that are followed."""

_ABSTRACT = frozenset(
    {"abstractmethod", "abstractproperty", "abstractclassmethod", "abstractstaticmethod"}
)  # of the module abc


@dataclass(frozen=True)
class Source:
    """A class as it stands in a file.

    Attributes:
        name: with its module, as in ``collections.abc.Sized``.
        node: its definition.
        bases: those in the order of the definition.
    """

    name: str
    node: ast.ClassDef
    bases: tuple[Source, ...]

    @property
    def order(self) -> list[Source] | None:
        """The class and its bases in the order in which attributes are looked up (C3); ``None`` if there is none."""
        rows = []
        for base in self.bases:
            row = base.order
            if row is None:
                return None
            rows.append(row)
        rows.append(list(self.bases))
        found = [self]
        while rows := [row for row in rows if row]:
            for row in rows:
                if not any(row[0].name in {one.name for one in other[1:]} for other in rows):
                    first = row[0]
                    break
            else:
                return None
            found.append(first)
            rows = [[one for one in row if one.name != first.name] for row in rows]
        return found

    def defines(self) -> Iterator[tuple[str, bool]]:
        """The attributes that the body gives, each with whether it is abstract."""
        for line in self.node.body:
            if isinstance(line, ast.FunctionDef | ast.AsyncFunctionDef):
                yield line.name, any(_last(decorator) in _ABSTRACT for decorator in line.decorator_list)
            elif isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                yield line.target.id, False
            elif isinstance(line, ast.Assign):
                yield from ((target.id, False) for target in line.targets if isinstance(target, ast.Name))
            elif isinstance(line, ast.ClassDef):
                yield line.name, False

    @property
    def bare(self) -> list[str]:
        """The last parts of the bases' names, as they are written."""
        return [_last(base) for base in self.node.bases]


def _last(node: ast.expr) -> str:
    """The last name of ``a.b``, ``a.b[c]`` or ``a.b(c)``."""
    if isinstance(node, ast.Call):
        return _last(node.func)
    if isinstance(node, ast.Subscript):
        return _last(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


class Classes:
    """Reads classes, each once for a text.

    Args:
        python: finds them.
        text: of the file that is being written; what it defines is read there.
        line: that is being written. Of a class around it the rest is not known yet.
    """

    def __init__(self, python: Python, text: str, line: int) -> None:
        self._python = python
        self._text = text
        self._line = line
        self._known: dict[tuple[str, int], Source | None] = {}
        self._files: dict[str, tuple[list[str], Any]] = {}

    def source(self, found: Any, depth: int = 0) -> Source | None:
        """The source of a class that jedi has found; ``None`` if it, or one of its bases, is not found."""
        where = found.module_path
        if found.type != "class" or found.line is None or depth > _DEEPEST:
            return None
        key = (str(where), found.line)
        if key not in self._known:
            self._known[key] = None  # a class that leads back to itself
            self._known[key] = self._read(found, depth)
        return self._known[key]

    def _read(self, found: Any, depth: int) -> Source | None:
        own = found.module_path is None or str(found.module_path) == self._python.path
        lines, script = self._file(None if own else found.module_path)
        node, end = _definition(lines, found.line)
        if node is None or (own and found.line <= self._line <= end):
            return None
        bases = []
        for base in node.bases:
            inner: ast.expr = base.value if isinstance(base, ast.Subscript) else base
            if _last(inner) in ("Protocol", "Generic", "object", "NamedTuple"):
                continue  # marks, which give no attributes
            line = found.line - 1 + inner.end_lineno
            classes = script.infer(line, max((inner.end_col_offset or 1) - 1, 0))
            sources = [self.source(one, depth + 1) for one in classes]
            if len(sources) != 1 or sources[0] is None:
                return None
            bases.append(sources[0])
        return Source(found.full_name or found.name, node, tuple(bases))

    def _file(self, path: Path | None) -> tuple[list[str], Any]:
        """The lines of a file, and jedi's view of it; without a path of the one that is being written."""
        if str(path) not in self._files:
            if path is None:
                made = self._text.split("\n"), self._python.script(self._text)
            else:
                text = path.read_text(encoding="utf-8", errors="replace")
                made = text.split("\n"), self._python.other(path, text)
            self._files[str(path)] = made
        return self._files[str(path)]

    # -- construction ----------------------------------------------------------------------------------------------

    def constructible(self, found: Any) -> bool | None:
        """Whether a class can be called: it is no protocol, and no method of it is left abstract."""
        source = self.source(found)
        if source is None:
            return None
        if "Protocol" in source.bare:
            return False
        order = source.order
        if order is None:
            return None
        watched = any(
            keyword.arg == "metaclass" and _last(keyword.value) == "ABCMeta"
            for one in order
            for keyword in one.node.keywords
        )
        if not watched and not any("Protocol" in one.bare for one in order):
            return True  # Nobody keeps watch over what is abstract.
        seen: dict[str, bool] = {}
        for one in order:
            # Of overloads and properties with setters the first counts: either all are abstract or none is.
            for name, left in one.defines():
                if name not in seen:
                    seen[name] = left
        return not any(seen.values())

    def is_a(self, found: Any, name: str) -> bool | None:
        """Whether a class is, or is derived from, the class with a name."""
        source = self.source(found)
        order = None if source is None else source.order
        return None if order is None else any(one.name == name for one in order)

    def fields(self, found: Any) -> Parameters | None:
        """What a named tuple or a dataclass is constructed from; ``None`` for all others."""
        source = self.source(found)
        order = None if source is None else source.order
        if source is None or order is None:
            return None
        if "NamedTuple" in source.bare:
            return _constructor(_annotated(source.node), {})
        if _dataclass(source) is None or {"__init__", "__new__"} & {name for name, _ in source.defines()}:
            return None
        rows: dict[str, tuple[ast.AnnAssign, bool]] = {}
        for one in reversed(order):
            options = _dataclass(one)
            if options is None:
                continue
            if options.get("init") is False:
                return None
            by_name = bool(options.get("kw_only"))
            for line in _annotated(one.node):
                assert isinstance(line.target, ast.Name)
                if _last(line.annotation) == "KW_ONLY":
                    by_name = True
                elif _last(line.annotation) != "ClassVar":
                    rows[line.target.id] = (line, by_name)
        return _constructor([line for line, _ in rows.values()], {name: by for name, (_, by) in rows.items()})


def _definition(lines: list[str], line: int) -> tuple[ast.ClassDef | None, int]:
    """The class whose name stands on a line, cut out of the text, which need not be whole; and its last line."""
    first = lines[line - 1]
    indent = len(first) - len(first.lstrip())
    start = line
    while start > 1 and lines[start - 2].startswith(" " * indent + "@"):
        start -= 1
    end = line
    while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
        end += 1
    # A header over several lines goes on at its own indentation with the closing bracket.
    while end < len(lines) and lines[end].lstrip()[:1] in (")", "]"):
        end += 1
        while end < len(lines) and (not lines[end].strip() or len(lines[end]) - len(lines[end].lstrip()) > indent):
            end += 1
    body = [row[indent:] if row.strip() else "" for row in lines[start - 1 : end]]
    while len(body) > line - start:
        try:
            (node,) = ast.parse("\n".join(body)).body
        except (SyntaxError, ValueError):
            body.pop()  # the class that is being written
            continue
        if not isinstance(node, ast.ClassDef):
            return None, end
        # Lines from that of the name on, columns as in the file: where its bases are asked about.
        ast.increment_lineno(node, start - line)
        for inner in ast.walk(node):
            if isinstance(inner, ast.expr):
                inner.end_col_offset = (inner.end_col_offset or 0) + indent
        return node, end
    return None, end


def _annotated(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [line for line in node.body if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]


def _dataclass(source: Source) -> dict[str, Any] | None:
    """The options of ``@dataclass``, if it stands above the class."""
    for decorator in source.node.decorator_list:
        if _last(decorator) == "dataclass":
            given = decorator.keywords if isinstance(decorator, ast.Call) else []
            return {one.arg: one.value.value for one in given if one.arg and isinstance(one.value, ast.Constant)}
    return None


def _constructor(lines: list[ast.AnnAssign], by_name: dict[str, bool]) -> Parameters:
    """The parameters that follow from fields, in order."""
    positional: list[str | None] = []
    keywords: set[str] = set()
    required: set[int | str] = set()
    for line in lines:
        assert isinstance(line.target, ast.Name)
        name, value = line.target.id, line.value
        options: dict[str, ast.expr] = {}
        if isinstance(value, ast.Call) and _last(value) == "field":
            options = {one.arg: one.value for one in value.keywords if one.arg}
        said = {key: one.value for key, one in options.items() if isinstance(one, ast.Constant)}
        if said.get("init") is False:
            continue
        optional = bool({"default", "default_factory"} & options.keys()) if options or _is_field(value) else bool(value)
        keywords.add(name)
        if said.get("kw_only", by_name.get(name, False)):
            required |= set() if optional else {name}
        else:
            required |= set() if optional else {len(positional)}
            positional.append(name)
    return Parameters(tuple(positional), frozenset(keywords), frozenset(required), extra=False, extra_keywords=False)


def _is_field(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and _last(value) == "field"
