"""The rules of the house that a machine can check: which way imports point, and that what is imported is declared."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "unspool"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Rooms by floor: a room may import floors below its own. On the ground floors and among the methods no room imports a
# neighbour; the top floor is where everything comes together. A module that lies in no room (`unspool.api`) is a roof
# over the methods that the top floor stands on; so is training, which uses methods and is used by experiments.
TOP, ROOF, METHODS, NETWORKS, MODELS, CORE = 5, 4, 3, 2, 1, 0
FLOORS = {
    "core": CORE,
    "models": MODELS,
    "circuits": MODELS,
    "architectures": NETWORKS,
    "training": ROOF,
    "cli": TOP,
    "serving": TOP,
    "evaluation": TOP,
}
ROOMS = sorted(path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py")))


def floor(room: str) -> int:
    return FLOORS.get(room, METHODS if room in ROOMS else ROOF)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a file imports, wherever in the file it does so."""
    package = ["unspool", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *(node.module.split(".") if node.module else [])])
            # `from unspool import core` names a room in what is imported, not in where from
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def forbidden(path: Path) -> list[str]:
    """The imports of a file that point up or sideways, one line of text for each."""
    parts = path.relative_to(SOURCE).parts
    room = parts[0] if len(parts) > 1 else ""
    found = []
    for line, name in imports(path):
        head, *rest = name.split(".")
        if head != "unspool" or not rest or rest[0] == room:
            continue
        above = floor(rest[0]) > floor(room)
        beside = floor(rest[0]) == floor(room) and floor(room) < ROOF
        if above or beside:
            found.append(f"{path.relative_to(ROOT)}:{line}: {room} must not import {rest[0]}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    broken = [line for path in sorted((SOURCE / room).rglob("*.py")) for line in forbidden(path)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("room", "statement", "allowed"),
    [
        ("core", "import unspool.models", False),
        ("core", "from ..models import hub", False),
        ("core", "def f():\n    from unspool import sampling", False),
        ("sampling", "from unspool.speculation.drafting import x", False),
        ("sampling", "from ..core import tree", True),
        ("sampling", "from . import momentum", True),
        ("cli", "from unspool.models.hub import fetch", True),
        ("models", "from unspool.cli import main", False),
    ],
)
def test_the_check_of_imports(
    room: str, statement: str, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "ROOMS", ["cli", "core", "models", "sampling", "speculation"])
    path = tmp_path / room / "file.py"
    path.parent.mkdir()
    path.write_text(statement)
    assert (not forbidden(path)) == allowed


def distribution_names(requirements: list[str]) -> set[str]:
    names = (re.match(r"[A-Za-z0-9._-]+", requirement) for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name.group()).lower() for name in names if name}


def imported_distributions() -> dict[str, list[str]]:
    """Distributions that the package imports, each with the places that do."""
    owners = packages_distributions()
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for line, name in imports(path):
            module = name.split(".")[0]
            if module == "unspool" or module in sys.stdlib_module_names:
                continue
            owner = re.sub(r"[-_.]+", "-", owners.get(module, [module])[0]).lower()
            found.setdefault(owner, []).append(f"{path.relative_to(ROOT)}:{line}")
    return found


def test_what_is_imported_is_declared() -> None:
    extras = PROJECT.get("optional-dependencies", {})
    declared = distribution_names([*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)])
    missing = {name: places for name, places in imported_distributions().items() if name not in declared}
    assert not missing, f"imported but not declared in pyproject.toml: {missing}"


def test_what_is_declared_is_imported() -> None:
    # transformers renders chat templates with jinja2 and does not bring it along; pip is run as a program.
    through_others = {"jinja2", "pip"}
    unused = distribution_names(PROJECT["dependencies"]) - imported_distributions().keys() - through_others
    assert not unused, f"declared in pyproject.toml but imported nowhere in src/: {sorted(unused)}"


def test_every_declared_package_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = distribution_names([line for line in pins if "==" in line and not line.startswith("#")])
    extras = PROJECT.get("optional-dependencies", {})
    declared = distribution_names([*PROJECT["dependencies"], *(r for extra in extras.values() for r in extra)])
    assert declared <= pinned, f"not pinned in constraints.txt: {sorted(declared - pinned)}"


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").is_file()
