"""Programs as trees: every character has one owner, and what a node says is what stands there."""

from __future__ import annotations

import ast
import random
import textwrap
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.constraints._code_tree import CodeTree, find_program, parse

EVERYTHING = '''
@decorator(1)  # why
@ other
async def naïve(a: int, /, b=2, *args, c: "é" = 3, **more) -> str | None:  # ümlaut
    """A docstring with a # sign."""
    try:
        async with (x as y, z):
            pass
    except* (A, B) as error:
        raise error from None
    else:
        del a[1:2, ::3], b.c
    global q
    while (n := next(it)) is not None and not n >= 3:
        yield f"{n!r:>{w}} é {'x'}" "more" f'{n}'
    match c:
        case {"é": [1, *_], **rest} if rest:
            return lambda *x, y=1: (x, y)
        case P(a=1) | None:
            import a.b as c, d; from . import (e)
    value = [*(é for é in "éé" if é for o in é), {**a, 1: 2}, {1, -2, +3 ** 4}]
    assert (a
            + b  # a comment between
            ) , "message"
    return await f(x for x in y)(key=value)
'''


def covered(tree: CodeTree) -> None:
    """Every character lies in exactly one own interval, children lie in their parents, in order."""
    times = [0] * len(tree.text)
    for number, node in enumerate(tree.nodes):
        for start, end in tree.own(number):
            assert node.start <= start <= end <= node.end
            for place in range(start, end):
                times[place] += 1
        for child in node.children:
            assert tree.nodes[child].parent == number
            assert number < child
    assert times == [1] * len(tree.text)
    assert (tree.nodes[0].start, tree.nodes[0].end, tree.nodes[0].parent) == (0, len(tree.text), -1)
    owner = tree.owner
    for place, char in enumerate(tree.text):
        if owner[place] >= 0:
            node = tree.nodes[owner[place]]
            assert any(start <= place < end for start, end in tree.own(int(owner[place])))
            assert not char.isspace() or node.literal
    written = sum(len(label.replace(" ", "")) for labels in tree.labels for label in labels[1:])
    assert written >= int((owner >= 0).sum()) - tree.text.count(" ")


@cache
def functions() -> tuple[str, ...]:
    """Definitions of the standard library, as they stand there."""
    found = []
    root = Path(ast.__file__).parent
    for path in sorted(root.glob("*.py")) + sorted((root / "email").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.end_lineno - node.lineno < 60:
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found.append("".join(lines[first - 1 : node.end_lineno]))
    random.Random(0).shuffle(found)
    return tuple(found)


@given(st.integers(0, 3000))
def test_every_character_of_the_standard_library_has_one_owner(number: int) -> None:
    text = functions()[number % len(functions())]
    tree = parse("python", text)
    assert tree is not None
    covered(tree)
    plain = parse("python", textwrap.dedent(text))
    assert plain is not None
    assert len(plain.nodes) == len(tree.nodes), "indented lines are read as others are"


def test_every_kind_of_node() -> None:
    tree = parse("python", EVERYTHING)
    assert tree is not None
    covered(tree)
    kinds = {node.kind for node in tree.nodes}
    assert {"AsyncFunctionDef", "JoinedStr", "MatchMapping", "GeneratorExp", "alias", "keyword", "arg"} <= kinds
    assert not {"arguments", "comprehension", "withitem", "match_case", "Add", "FormattedValue"} & kinds
    said = dict.fromkeys(label for labels in tree.labels for label in labels[1:])
    assert not any("comment between" in label or "why" in label or "ümlaut" in label for label in said)
    assert any("# sign" in label for label in said), "in a string it is no comment"


def spans(text: str, kind: str, language: str = "python") -> list[str]:
    tree = parse(language, text)  # type: ignore[arg-type]
    assert tree is not None
    covered(tree)
    return [tree.text[node.start : node.end] for node in tree.nodes if node.kind == kind]


def test_places() -> None:
    assert spans("x = 'éé' + naïve(é)", "Call") == ["naïve(é)"]
    assert spans("x = 'éé' + naïve(é)", "Name") == ["x", "naïve", "é"]
    assert spans("a\r\nb = é\rc.d", "Name") == ["a", "b", "é", "c"]
    assert spans("@(one)\n@two\nclass A(B): pass", "ClassDef") == ["@(one)\n@two\nclass A(B): pass"]
    assert spans("f'{a}b' + c", "JoinedStr") == ["f'{a}b'"]
    assert spans("x\x0c = 1  # \x85 \u2028 é\ny = é", "Name") == ["x", "y", "é"]


def test_labels_say_what_a_node_says_by_itself() -> None:
    tree = parse("python", "a  +  b # c\nreturn (x\n, 'y  z')")
    assert tree is not None
    said = {tree.text[node.start : node.end]: label for node, label in zip(tree.nodes, tree.labels, strict=True)}
    assert said["a  +  b"][-3:] == ("", "+", "")
    assert said["'y  z'"] == ("Constant", "'y  z'")
    assert said["(x\n, 'y  z')"] == ("Tuple", "(", ",", ")")


@pytest.mark.parametrize("text", ["def f(:", "return (", "a b", "\0", "if 1:\n  a\n b", "  a\nb", "("])
def test_what_is_no_python(text: str) -> None:
    assert parse("python", text) is None


def test_deep_nesting_is_no_crash() -> None:
    assert parse("python", "(" * 5000 + ")" * 5000) is None
    deep = parse("python", "+".join("x" * 900))
    assert deep is None or len(deep.nodes) > 900


SQL = "SELECT naïve, COUNT(*) FROM t -- why\nWHERE a > 30 AND b = 'é  é' GROUP BY c ORDER BY d DESC LIMIT 3"


def test_sql() -> None:
    tree = parse("sql", SQL)
    assert tree is not None
    covered(tree)
    assert spans(SQL, "literal", "sql") == ["30", "'é  é'", "3"]
    assert "naïve" in spans(SQL, "identifier", "sql")
    assert not any(node.kind.startswith("keyword") for node in tree.nodes)
    assert not any("why" in piece for label in tree.labels for piece in label)
    assert any(label[-1] == "DESC" or "DESC" in label for label in tree.labels)


@pytest.mark.parametrize("text", ["SELECT a b c FROM", "hello there", "SELECT a FROM t WHERE (", "", "\ud800"])
def test_what_is_no_sql(text: str) -> None:
    assert parse("sql", text) is None


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1\n", "x = 1"),
        ("\n\n    return x\n    y\n\n", "    return x\n    y"),
        (" x + 1\n", "x + 1"),
        ("Sure:\n```python\nx = 1\n```\nThat is all.", "x = 1"),
        ("Sure:\n```\n  x = 1\n", "x = 1"),
    ],
)
def test_the_program_in_an_output(text: str, program: str) -> None:
    found = find_program("python", text)
    assert found is not None
    begin, tree = found
    assert tree.text == program == text[begin : begin + len(program)]


@pytest.mark.parametrize("text", ["", "  \n", "no program here", "```\n```"])
def test_no_program_in_an_output(text: str) -> None:
    assert find_program("python", text) is None
