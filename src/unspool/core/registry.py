"""The single list of methods. The command line, the server, the docs' table and the contract tests read it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from unspool.core.cards import Card, Kind, NoSettings
from unspool.core.errors import UnknownMethod

C = TypeVar("C", bound=type)

# Packages and modules that hold no methods.
_OUTSIDE = ("core", "cli", "serving", "evaluation", "training", "models", "circuits", "architectures", "engine")


@dataclass(frozen=True)
class Method:
    """A card, the class it describes, and the class of its settings."""

    card: Card
    cls: type
    settings: type

    @property
    def room(self) -> str:
        """Where the method lives: its package below the project's, with slashes."""
        return "/".join(self.cls.__module__.split(".")[1:-1])

    def as_dict(self) -> dict[str, Any]:
        """The row that ``unspool methods --json`` prints."""
        card = self.card
        return {
            "slug": card.slug,
            "name": card.name,
            "room": self.room,
            "paper": card.paper,
            "lossless": card.lossless,
            "needs": sorted([need.value for need in card.needs] + [f"a {role} model" for role in card.models]),
            "kind": card.kind.value,
            "summary": card.summary,
            "claim": card.claim,
        }


class Registry:
    """Methods by slug, found by importing every module of the rooms once, when first asked."""

    def __init__(self, package: str = "unspool") -> None:
        self._package = package
        self._methods: dict[str, Method] = {}
        self._discovered = False

    def register(self, card: Card, settings: type = NoSettings) -> Callable[[C], C]:
        """Class decorator: ``@register(Card(...), Settings)``."""

        def add(cls: C) -> C:
            known = self._methods.get(card.slug)
            if known is not None and known.cls.__qualname__ != cls.__qualname__:
                raise ValueError(f"two methods are called {card.slug!r}: {known.cls!r} and {cls!r}")
            cls.card, cls.Settings = card, settings  # type: ignore[attr-defined]
            self._methods[card.slug] = Method(card, cls, settings)
            return cls

        return add

    def discover(self) -> None:
        """Import every module of the rooms, so that all methods are registered."""
        if self._discovered:
            return
        # Set first: a room's module may read the registry while it is imported.
        self._discovered = True
        package = importlib.import_module(self._package)
        outside = {f"{self._package}.{name}" for name in _OUTSIDE}

        def visit(path: list[str], prefix: str) -> None:
            for module in pkgutil.iter_modules(path, prefix):
                if module.name in outside or module.name.rsplit(".", 1)[-1].startswith("_"):
                    continue
                loaded = importlib.import_module(module.name)
                if module.ispkg:
                    visit(list(loaded.__path__), module.name + ".")

        try:
            visit(list(package.__path__), self._package + ".")
        except BaseException:
            # Half a list must not pass for the whole one.
            self._discovered = False
            raise

    def _find(self, slug: str) -> None:
        """Import the file of that name, if a room has one: a method's file is named after its slug."""
        name = slug.replace("-", "_")
        if not name.isidentifier():
            return
        package = importlib.import_module(self._package)
        rooms = [(Path(path), self._package) for path in package.__path__]
        while rooms:
            folder, prefix = rooms.pop()
            for entry in sorted(folder.iterdir()):
                if entry.name == f"{name}.py" and prefix != self._package:
                    importlib.import_module(f"{prefix}.{name}")
                elif (entry / "__init__.py").is_file() and not (prefix == self._package and entry.name in _OUTSIDE):
                    rooms.append((entry, f"{prefix}.{entry.name}"))

    def __iter__(self) -> Iterator[Method]:
        self.discover()
        return iter(sorted(self._methods.values(), key=lambda m: (m.room, m.card.slug)))

    def __getitem__(self, slug: str) -> Method:
        """The method of that slug.

        Raises:
            UnknownMethod: with the nearest slugs, and all of them.
        """
        if slug not in self._methods:
            self._find(slug)
        if slug not in self._methods:
            self.discover()
        if slug not in self._methods:
            near = difflib.get_close_matches(slug, self._methods, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UnknownMethod(f"there is no method {slug!r}{hint or '.'} Known: {', '.join(sorted(self._methods))}")
        return self._methods[slug]

    def __contains__(self, slug: object) -> bool:
        self.discover()
        return slug in self._methods

    def of_kind(self, kind: Kind) -> list[Method]:
        return [method for method in self if method.card.kind is kind]


registry = Registry()
register = registry.register
