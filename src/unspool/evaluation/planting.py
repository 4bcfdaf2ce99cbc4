"""A bug planted into a program that is right: to check that a judge tells the two apart.

The syntax tree is changed so that every function and method that the module defines gives a wrong result of the same
type to its caller: numbers one too large, truth values turned round, an element or a character too many, nothing in
place of other objects. Calls between the module's own functions stay right, so that two wrong results cannot cancel
each other; of a script, which nobody calls from outside, they are made wrong as well. What is printed is lost.
"""

from __future__ import annotations

import ast

_HELPERS = """
def _wrong(value):
    if value is None:
        return 0
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value + 1.0 if abs(value) < 1e15 else 0.0
    if isinstance(value, (str, bytes)):
        return value + ("?" if isinstance(value, str) else b"?")
    if isinstance(value, list):
        return [*value, None]
    if isinstance(value, tuple):
        return (*value, None)
    if isinstance(value, (set, frozenset)):
        return value ^ {None}
    if isinstance(value, dict):
        return {**value, "?": None} if "?" not in value else {}
    if hasattr(value, "__next__"):
        return iter([*value, None])
    return None

_calls = [0]

def _planted(function):
    import functools
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        _calls[0] += 1
        try:
            result = function(*args, **kwargs)
        finally:
            _calls[0] -= 1
        return _wrong(result) if _calls[0] == 0 or _EVERYWHERE else result
    return wrapper

def print(*args, **kwargs):
    pass
"""
# Python insists on what these return, or calls them for what they do.
_LEFT_ALONE = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__set_name__", "__del__"}


def plant(source: str, *, script: bool = False, variable: str | None = None) -> str:
    """The program with a bug.

    Args:
        source: of a module in Python.
        script: it is run, not called: results between its own functions are made wrong, too.
        variable: of the module, whose value is what counts; it is made wrong where it is set.

    Raises:
        SyntaxError: if the source is no Python.
    """
    module = ast.parse(source)
    for node in module.body:
        _mark(node)
        for method in node.body if isinstance(node, ast.ClassDef) else ():
            _mark(method)
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == variable for t in node.targets):
            node.value = ast.Call(ast.Name("_wrong", ast.Load()), [node.value], [])
    helpers = ast.parse(f"_EVERYWHERE = {script}\n{_HELPERS}").body
    start = next((place for place, node in enumerate(module.body) if not _stays_first(node)), len(module.body))
    module.body[start:start] = helpers
    return ast.unparse(ast.fix_missing_locations(module)) + "\n"


def _mark(node: ast.stmt) -> None:
    if isinstance(node, ast.FunctionDef) and node.name not in _LEFT_ALONE:
        # innermost, so that properties and static methods stay what they are
        node.decorator_list.append(ast.Name("_planted", ast.Load()))


def _stays_first(node: ast.stmt) -> bool:
    """A docstring, or an import from the future."""
    if isinstance(node, ast.ImportFrom):
        return node.module == "__future__"
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
