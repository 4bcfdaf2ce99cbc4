"""Whether a grammar in the EBNF that XGrammar prints has any text at all, and how deeply repetitions are nested in it.

XGrammar itself takes grammars whose texts never end, and then looks for the end of a forced text for ever; and a
repetition within a repetition within a repetition keeps it busy for minutes with the first token. Both are told
beforehand here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_PIECES = re.compile(
    r"""\s*(?:(?P<text>"(?:\\.|[^"\\])*")|(?P<class>\[(?:\\.|[^\]\\])*\])|(?P<repeat>\{\s*(\d+)\s*(?:,\s*(-?\d*)\s*)?\})
    |(?P<look>\(=)|(?P<mark>[()|*+?])|(?P<name>[A-Za-z_][\w.-]*))""",
    re.VERBOSE,
)
_RULE = re.compile(r"^([A-Za-z_][\w.-]*)\s*::=\s*(.*)$")


class Unreadable(Exception):
    """A construction that this reader does not know."""


@dataclass
class _Item:
    """One thing and how often it stands: alternatives of sequences, the name of a rule, or a terminal (neither).

    ``most`` is ``None`` without a bound.
    """

    choices: list[list[_Item]] | None = None
    name: str | None = None
    least: int = 1
    most: int | None = 1


@dataclass
class Ebnf:
    """A grammar's rules.

    Raises:
        Unreadable: for what it does not know.
    """

    text: str
    root: str = "root"
    rules: dict[str, list[list[_Item]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.text.splitlines():
            if not line.strip():
                continue
            rule = _RULE.match(line)
            if rule is None:
                raise Unreadable(line)
            pieces = self._pieces(rule[2])
            choices, rest = self._choices(pieces, 0)
            if rest != len(pieces):
                raise Unreadable(line)
            self.rules[rule[1]] = choices
        if self.root not in self.rules:
            raise Unreadable(self.root)

    @staticmethod
    def _pieces(text: str) -> list[tuple[str, str, tuple[str, str | None]]]:
        found, place = [], 0
        text = text.rstrip()
        while place < len(text):
            match = _PIECES.match(text, place)
            if match is None or match.lastgroup is None:
                raise Unreadable(text[place : place + 40])
            kind = next(k for k in ("text", "class", "repeat", "look", "mark", "name") if match[k] is not None)
            found.append((kind, match[kind], (match[4] or "", match[5])))
            place = match.end()
        return found

    def _choices(self, pieces: list[tuple[str, str, tuple[str, str | None]]], at: int) -> tuple[list[list[_Item]], int]:
        choices: list[list[_Item]] = [[]]
        while at < len(pieces):
            kind, text, bounds = pieces[at]
            at += 1
            last = choices[-1][-1] if choices[-1] else None
            if kind == "mark" and text == "|":
                choices.append([])
            elif kind == "mark" and text == ")":
                return choices, at - 1
            elif kind == "mark" and text == "(":
                inner, at = self._choices(pieces, at)
                choices[-1].append(_Item(inner))
                at += 1
            elif kind == "look":
                # What must follow is written after it as well; it adds no text.
                _, at = self._choices(pieces, at)
                at += 1
            elif kind == "mark" or kind == "repeat":
                if last is None:
                    raise Unreadable(text)
                if kind == "repeat":
                    last.least = int(bounds[0])
                    most = bounds[1]
                    last.most = last.least if most is None else None if most in ("", "-1") else int(most)
                else:
                    last.least, last.most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[text]
            elif kind == "name":
                choices[-1].append(_Item(name=text))
            elif text != "[]":
                choices[-1].append(_Item())
        return choices, at

    def unending(self) -> list[str]:
        """Rules that no finite text satisfies."""
        ends: set[str] = set()

        def ending(choices: list[list[_Item]]) -> bool:
            return any(
                all(
                    item.least == 0
                    or (ending(item.choices) if item.choices is not None else item.name is None or item.name in ends)
                    for item in sequence
                )
                for sequence in choices
            )

        while more := [name for name, choices in self.rules.items() if name not in ends and ending(choices)]:
            ends.update(more)
        return [name for name in self.rules if name not in ends]

    def nesting(self) -> int:
        """The largest product of bounds of repetitions that stand within one another."""
        known: dict[str, int] = {}

        def weight(choices: list[list[_Item]]) -> int:
            return max(
                (
                    max(item.most or 1, 1)
                    * (weight(item.choices) if item.choices is not None else rule(item.name) if item.name else 1)
                    for sequence in choices
                    for item in sequence
                ),
                default=1,
            )

        def rule(name: str) -> int:
            if name not in known:
                known[name] = 1  # A rule within itself counts once.
                known[name] = weight(self.rules.get(name, []))
            return known[name]

        return max((rule(name) for name in self.rules), default=1)
