"""Programs as trees in which every character belongs to one node: to the innermost that covers it.

Python is read with ``ast`` and SQL with tree-sitter. A node is what has a place in the text: what ``ast`` keeps without
one (the arguments of a function, a comprehension, an operator) is part of the node around it, and so are the keywords
and signs that tree-sitter keeps as nodes.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from unspool.core.errors import Incompatible

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

Language = Literal["python", "sql"]

_FENCE = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_LINE_END = re.compile(r"\r\n|\r|\n")
_STRINGS = ("Constant", "JoinedStr", "TemplateStr")
_WHOLE_IN_SQL = ("literal", "identifier")
_COMMENTS_IN_SQL = ("comment", "marginalia")


@dataclass(frozen=True)
class CodeNode:
    """A node of a program.

    Args:
        kind: what the parser calls it.
        start, end: its characters ``[start, end)``, those of its children included.
        parent: its number; ``-1`` for the root.
        children: their numbers, from left to right.
        literal: whether white space in it is part of what it says.
    """

    kind: str
    start: int
    end: int
    parent: int
    children: tuple[int, ...]
    literal: bool = False


@dataclass(frozen=True)
class CodeTree:
    """A program.

    Args:
        text: of it.
        nodes: in preorder; the first is the root and covers the whole text.
        comments: characters ``[start, end)`` that say nothing to the computer.
    """

    text: str
    nodes: tuple[CodeNode, ...]
    comments: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def own(self, number: int) -> list[tuple[int, int]]:
        """The characters of a node that no child covers: before, between and behind the children, empty ones too."""
        node = self.nodes[number]
        edges = [node.start]
        for child in node.children:
            edges += [self.nodes[child].start, self.nodes[child].end]
        edges.append(node.end)
        return list(zip(edges[::2], edges[1::2], strict=True))

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """``[characters]`` the node that each belongs to; ``-1`` for white space and comments."""
        owner = np.zeros(len(self.text), dtype=np.int64)
        for number, node in enumerate(self.nodes):  # a node comes behind those around it
            owner[node.start : node.end] = number
        literal = np.array([node.literal for node in self.nodes])
        space = np.fromiter((char.isspace() for char in self.text), dtype=bool, count=len(self.text))
        owner[space & ~literal[owner]] = -1
        for start, end in self.comments:
            owner[start:end] = -1
        return owner

    @cached_property
    def labels(self) -> list[tuple[str, ...]]:
        """What each node says by itself: its kind and the text before, between and behind its children, without
        comments, white space being one space."""
        found = []
        for number, node in enumerate(self.nodes):
            pieces = [self._said(start, end, node.literal) for start, end in self.own(number)]
            found.append((node.kind, *pieces))
        return found

    def _said(self, start: int, end: int, literal: bool) -> str:
        if literal:
            return self.text[start:end]
        kept = ("".join(self.text[start:end]) if not self.comments else self._uncommented(start, end)).split()
        return " ".join(kept)

    def _uncommented(self, start: int, end: int) -> str:
        text = self.text[start:end]
        for first, last in reversed(self.comments):
            if start <= first and last <= end:
                text = text[: first - start] + " " + text[last - start :]
        return text


@dataclass(frozen=True)
class Place:
    """A node as a parser gives it: kind, characters, the place in the list of the one around it, and whether it is a
    literal."""

    kind: str
    start: int
    end: int
    around: int
    literal: bool = False


def tree_of(text: str, places: Sequence[Place], comments: Sequence[tuple[int, int]] = ()) -> CodeTree:
    """A tree out of nodes in any order, the first of them the root.

    A node that reaches out of the one around it, or into a sibling before it, is no node: its characters, and what lies
    in it, are those of the one around it.
    """
    inside: list[list[int]] = [[] for _ in places]
    for number, place in enumerate(places):
        if place.around >= 0:
            inside[place.around].append(number)
    nodes: list[tuple[Place, int, list[int]]] = []
    stack = [(0, -1)]
    while stack:
        number, parent = stack.pop()
        here = len(nodes)
        nodes.append((places[number], parent, []))
        if parent >= 0:
            nodes[parent][2].append(here)
        reached = places[number].start
        kept = []
        for child in sorted(inside[number], key=lambda at: (places[at].start, -places[at].end)):
            if reached <= places[child].start < places[child].end <= places[number].end:
                kept.append((child, here))
                reached = places[child].end
        stack.extend(reversed(kept))
    made = (CodeNode(p.kind, p.start, p.end, parent, tuple(below), p.literal) for p, parent, below in nodes)
    return CodeTree(text, tuple(made), tuple(sorted(comments)))


def parse(language: Language, text: str) -> CodeTree | None:
    """The tree of a program; ``None`` if it is none.

    Raises:
        Incompatible: if the parser of the language is not installed.
    """
    return _python(text) if language == "python" else _sql(text)


def find_program(language: Language, text: str) -> tuple[int, CodeTree] | None:
    """The program in an output: its first fenced block if there is one, else all of it, without white space around.

    Returns:
        The place in ``text`` where it begins, and its tree; ``None`` if it does not parse.
    """
    fence = _FENCE.search(text)
    start, end = fence.span(1) if fence else (0, len(text))
    program = text[start:end]
    body = program.strip()
    if not body:
        return None
    begin = start + program.index(body)
    tree = parse(language, body)
    if tree is not None:
        return begin, tree
    # Lines that are indented alike: the body of a function.
    begin = text.rfind("\n", start, begin) + 1 if "\n" in text[start:begin] else start
    whole = text[begin:end].rstrip()
    tree = parse(language, whole) if whole != body else None
    return None if tree is None else (begin, tree)


# -- Python -------------------------------------------------------------------------------------------------------


def _python(text: str) -> CodeTree | None:
    above = "if 1:\n" if text[:1] in (" ", "\t") else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that a later Python will refuse
            module = ast.parse(above + text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # MemoryError: nested too deeply
        return None
    lines = _Lines(text, 1 if above else 0)
    if above:
        first = module.body[0]
        assert isinstance(first, ast.If)
        if len(module.body) > 1 or first.orelse:
            return None  # the indented lines are not all of it
        body: Sequence[ast.AST] = first.body
    else:
        body = module.body
    places = [Place("Module", 0, len(text), -1)]
    stack: list[tuple[ast.AST, int]] = [(node, 0) for node in reversed(body)]
    while stack:
        node, around = stack.pop()
        end_line = getattr(node, "end_lineno", None)
        if end_line is not None:
            kind = type(node).__name__
            start = lines.at(node.lineno, node.col_offset)  # type: ignore[attr-defined]
            end = lines.at(end_line, node.end_col_offset)  # type: ignore[attr-defined]
            decorators = getattr(node, "decorator_list", None)
            if decorators:
                # A decorated definition begins at its keyword; the mark of its first decorator lies before that.
                start = text.rindex("@", 0, lines.at(decorators[0].lineno, decorators[0].col_offset))
            places.append(Place(kind, start, end, around, kind in _STRINGS))
            around = len(places) - 1
            if kind in ("JoinedStr", "TemplateStr"):
                continue  # Where the parts of an f-string lie is known from Python 3.12 on only.
        stack.extend((child, around) for child in ast.iter_child_nodes(node))
    tree = tree_of(text, places)
    return CodeTree(text, tree.nodes, tuple(_comments(tree)))


def _comments(tree: CodeTree) -> list[tuple[int, int]]:
    """A number sign outside of strings begins a comment."""
    found = []
    for number, node in enumerate(tree.nodes):
        if not node.literal:
            for start, end in tree.own(number):
                found += [match.span() for match in re.compile(r"#[^\r\n]*").finditer(tree.text, start, end)]
    return sorted(found)


class _Lines:
    """Places in a text from the lines and columns of ``ast``, which counts bytes of UTF-8.

    Args:
        text: without what was put above it.
        above: lines that were.
    """

    def __init__(self, text: str, above: int) -> None:
        self._text = text
        self._above = above
        self._starts = [0, *(match.end() for match in _LINE_END.finditer(text))]
        self._ascii = text.isascii()

    def at(self, line: int, column: int) -> int:
        start = self._starts[line - 1 - self._above]
        if self._ascii:
            return start + column
        # A character has at most four bytes, so this much of the line holds the column.
        head = self._text[start : start + column].encode("utf-8", "surrogatepass")[:column]
        return start + len(head.decode("utf-8", "surrogatepass"))


# -- SQL ----------------------------------------------------------------------------------------------------------


@cache
def _sql_parser() -> Parser:
    try:
        import tree_sitter
        import tree_sitter_sql
    except ImportError as error:
        raise Incompatible(
            f"programs in SQL are read with tree-sitter, which is not installed ({error}): pip install "
            "'unspool[tree-sitter]'"
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_sql.language()))


def _sql(text: str) -> CodeTree | None:
    try:
        data = text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    root = _sql_parser().parse(data).root_node
    if root.has_error or not root.named_child_count:
        return None
    if text.isascii():
        place = list(range(len(data) + 1))
    else:
        sizes = [len(char.encode()) for char in text]
        place = [at for at, size in enumerate(sizes) for _ in range(size)] + [len(text)]
    places = [Place(root.type, 0, len(text), -1)]
    comments = []
    stack: list[tuple[Node, int]] = [(child, 0) for child in reversed(root.children)]
    while stack:
        node, around = stack.pop()
        span = place[node.start_byte], place[node.end_byte]
        if node.type in _COMMENTS_IN_SQL:
            comments.append(span)
            continue
        if node.is_named and not node.type.startswith("keyword_"):
            whole = node.type in _WHOLE_IN_SQL
            places.append(Place(node.type, *span, around, whole))
            around = len(places) - 1
            if whole:
                continue
        stack.extend((child, around) for child in node.children)
    return tree_of(text, places, comments)
