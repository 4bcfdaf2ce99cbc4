"""Protocols of objects: automata that tell which calls are valid in which state."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from unspool.core.errors import InvalidInput

PACKAGED = ("file", "socket", "sqlite-connection", "sqlite-cursor", "lock", "thread")
"""The protocols that come along."""


@dataclass(frozen=True)
class Protocol:
    """An automaton over calls of methods.

    Args:
        name: of the protocol.
        types: full names of the classes whose objects keep to it.
        start: the state of a new object.
        states: by state, the methods that may be called there, each with the state that it leads to.
        enter, exit: the states within and behind ``with``; ``None`` if it changes nothing.
    """

    name: str
    types: frozenset[str]
    start: str
    states: Mapping[str, Mapping[str, str]]
    enter: str | None = None
    exit: str | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.types))

    @property
    def watched(self) -> frozenset[str]:
        """The methods that the protocol speaks of; all others may be called at any time."""
        return frozenset(name for moves in self.states.values() for name in moves)

    def valid(self, states: Iterable[str]) -> frozenset[str]:
        """The methods that may be called in one of some states at least."""
        return frozenset(name for state in states for name in self.states[state])

    def after(self, states: Iterable[str], method: str) -> frozenset[str]:
        """The states behind a call."""
        if method not in self.watched:
            return frozenset(states)
        return frozenset(self.states[state][method] for state in states if method in self.states[state])

    def reachable(self, states: Iterable[str]) -> frozenset[str]:
        """The states in which an object can be that others may have used."""
        found = set(states)
        queue = list(found)
        while queue:
            state = queue.pop()
            more = {*self.states[state].values(), *(one for one in (self.enter, self.exit) if one)} - found
            found |= more
            queue += more
        return frozenset(found)


def read(text: str, where: str) -> dict[str, Protocol]:
    """Protocols that are written as TOML, by name.

    One table each, with ``types``, ``start``, if need be ``enter`` and ``exit``, and a table ``states`` that holds for
    every state the methods with the states that they lead to.

    Raises:
        InvalidInput: if they cannot be read, or name a state that is not declared; with the place.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{where} is no TOML: {error}") from error
    return {name: _protocol(name, table, f"{where}, protocol {name!r}") for name, table in tables.items()}


def _protocol(name: str, table: Any, where: str) -> Protocol:
    known = {"types", "start", "enter", "exit", "states"}
    if not isinstance(table, dict) or not {"types", "start", "states"} <= table.keys() <= known:
        raise InvalidInput(f"{where}: it needs types, start and states, and may have enter and exit")
    types, states = table["types"], table["states"]
    if not isinstance(types, list) or not types or not all(isinstance(one, str) for one in types):
        raise InvalidInput(f"{where}: types is a list of full names of classes, as in ['shop.Order']")
    if not isinstance(states, dict) or not all(isinstance(moves, dict) for moves in states.values()):
        raise InvalidInput(f"{where}: states has a table of methods for every state, as in open = {{close = 'closed'}}")
    named = {"start": table["start"], **{key: table[key] for key in ("enter", "exit") if key in table}}
    named |= {f"{state}.{method}": to for state, moves in states.items() for method, to in moves.items()}
    for key, state in named.items():
        if state not in states:
            raise InvalidInput(
                f"{where}: {key} leads to the state {state!r}, which it does not have: {', '.join(states)}"
            )
    return Protocol(name, frozenset(types), table["start"], states, table.get("enter"), table.get("exit"))


@cache
def packaged() -> dict[str, Protocol]:
    """The protocols that come along."""
    folder = files("unspool.constraints") / "_monitors"
    return read((folder / "protocols.toml").read_text(encoding="utf-8"), "protocols.toml")


def chosen(names: Iterable[str]) -> list[Protocol]:
    """Protocols by name, and those of files that end in ``.toml``.

    Raises:
        InvalidInput: if there is no such protocol or file.
    """
    found: dict[str, Protocol] = {}
    for name in names:
        if name.endswith(".toml"):
            try:
                text = Path(name).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInput(f"the protocols of {name} cannot be read: {error}") from error
            found |= read(text, name)
        elif name in packaged():
            found[name] = packaged()[name]
        else:
            raise InvalidInput(
                f"there is no protocol {name!r}; there are {', '.join(packaged())}, and files that end in .toml"
            )
    return list(found.values())
