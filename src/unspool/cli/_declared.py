"""What the sources declare, read without importing them: importing a method imports torch, which takes seconds.

The command line's flags and completions come from here; what a value may be is judged later, by the declarations
themselves.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import unspool

_PACKAGE = Path(unspool.__file__).parent
_NOT_ROOMS = {"core", "cli", "serving", "evaluation", "training", "models"}
_CARD = re.compile(r'\bCard\(\s*slug="([^"]+)",\s*name="([^"]+)"')
_PLAIN: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}


@dataclass(frozen=True)
class Declared:
    """One setting, as it is written down; ``type`` is ``str`` where the command line takes text."""

    name: str
    type: type
    default: Any
    help: str


@cache
def settings(module: str, name: str) -> tuple[Declared, ...]:
    """The fields of the settings class ``name`` in ``module`` (a path below the package)."""
    found = next(node for node in _parsed(module).body if isinstance(node, ast.ClassDef) and node.name == name)
    fields = []
    for line in found.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            hint, help_text = line.annotation, ""
            if isinstance(hint, ast.Subscript) and ast.unparse(hint.value).endswith("Annotated"):
                assert isinstance(hint.slice, ast.Tuple)
                hint, *notes = hint.slice.elts
                help_text = next((text for note in notes if (text := _description(note))), "")
            fields.append(Declared(line.target.id, _PLAIN.get(ast.unparse(hint), str), _value(line.value), help_text))
    return tuple(fields)


def constant(module: str, name: str) -> Any:
    """The value of a constant of a module; of a ``Literal`` a tuple of what it allows."""
    for line in _parsed(module).body:
        targets = (
            line.targets if isinstance(line, ast.Assign) else [line.target] if isinstance(line, ast.AnnAssign) else []
        )
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        assert isinstance(line, ast.Assign | ast.AnnAssign)
        assert line.value is not None
        if isinstance(line.value, ast.Subscript) and ast.unparse(line.value.value) == "Literal":
            return ast.literal_eval(line.value.slice)
        return ast.literal_eval(line.value)
    raise LookupError(f"{module} has no constant {name}")


@cache
def methods() -> tuple[tuple[str, str], ...]:
    """Slug and name of every registered method."""
    paths = sorted(
        path
        for path in _PACKAGE.rglob("*.py")
        if path.relative_to(_PACKAGE).parts[0].removesuffix(".py") not in _NOT_ROOMS
    )
    return tuple(match for path in paths for match in _CARD.findall(path.read_text(encoding="utf-8")))


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse((_PACKAGE / module).read_text(encoding="utf-8"))


def _description(note: ast.expr) -> str:
    if isinstance(note, ast.Call):
        for keyword in note.keywords:
            if keyword.arg == "description":
                return str(ast.literal_eval(keyword.value))
    return ""


def _value(node: ast.expr | None) -> Any:
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:  # made by a factory: empty
        return None
