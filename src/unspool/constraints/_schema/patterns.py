"""Reads the patterns of JSON Schema (ECMA 262 regular expressions) as sets of whole strings.

A pattern holds of a string if it is found anywhere in it. Anchors and lookaheads are therefore read with what follows
them: ``compile(node, rest)`` is the set of strings that begin with the node and go on with ``rest``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from unspool.constraints._schema.expressions import (
    ANY,
    EMPTY_STRING,
    EVERY,
    NOTHING,
    SPACES,
    Expression,
    Ranges,
    both,
    chars,
    either,
    outside,
    ranges,
    repeat,
    sequence,
)
from unspool.constraints._text_reader import TextReader

DIGITS: Ranges = ((0x30, 0x39),)
WORDS: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_CLASSES = {"d": DIGITS, "w": WORDS, "s": SPACES}
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0, "a": 7}
MOST_REPEATS = 20_000


class Unreadable(ValueError):
    """A pattern that is no regular expression, or uses what has no set of strings (a back reference)."""


@dataclass(frozen=True)
class _Node:
    """``op``: chars, seq, alt, rep, start, end, ahead, not-ahead."""

    op: str
    parts: tuple[_Node, ...] = ()
    chars: Ranges = ()
    low: int = 0
    high: int | None = None

    @property
    def asserts(self) -> bool:
        return self.op in ("start", "end", "ahead", "not-ahead") or any(part.asserts for part in self.parts)


@lru_cache(maxsize=4096)
def found_in(pattern: str) -> Expression:
    """All strings in which a pattern is found.

    Raises:
        Unreadable: with the reason.
    """
    node = _Reader(pattern).read()
    if not node.asserts:
        return sequence((ANY, _plain(node), ANY))
    behind = _compiled(node, ANY, False)
    return either((_compiled(node, ANY, True), sequence((EVERY, ANY, behind))))


def _plain(node: _Node) -> Expression:
    if node.op == "chars":
        return chars(node.chars)
    parts = [_plain(part) for part in node.parts]
    if node.op == "rep":
        return repeat(parts[0], node.low, node.high)
    return sequence(parts) if node.op == "seq" else either(parts)


def _compiled(node: _Node, rest: Expression, first: bool) -> Expression:
    """What begins with ``node`` and goes on with ``rest``; ``first`` says whether it stands at the start of the
    string."""
    if not node.asserts:
        return sequence((_plain(node), rest))
    if node.op == "start":
        return rest if first else NOTHING
    if node.op == "end":
        return EMPTY_STRING if rest.nullable else NOTHING
    if node.op == "ahead":
        return both((_compiled(node.parts[0], ANY, first), rest))
    if node.op == "not-ahead":
        return both((~_compiled(node.parts[0], ANY, first), rest))
    if node.op == "alt":
        return either(_compiled(part, rest, first) for part in node.parts)
    if node.op == "rep":
        if node.high is None or node.high > 8:
            raise Unreadable("an anchor or a lookahead is repeated")
        spread = [_Node("seq", (node.parts[0],) * times) for times in range(node.low, node.high + 1)]
        return either(_compiled(part, rest, first) for part in spread)
    for place in range(len(node.parts) - 1, -1, -1):
        part = node.parts[place]
        here = first
        for before in node.parts[:place]:
            width = _consumes(before)
            if width is None and _starts(part):
                raise Unreadable("an anchor ^ stands behind what may be empty")
            here = here and not width if width is not None else False
        rest = _compiled(part, rest, here)
    return rest


def _starts(node: _Node) -> bool:
    return node.op == "start" or any(_starts(part) for part in node.parts)


def _consumes(node: _Node) -> bool | None:
    """Whether a node takes at least one character (``None``: it may)."""
    if node.op in ("start", "end", "ahead", "not-ahead"):
        return False
    if node.op == "chars":
        return True
    found = [_consumes(part) for part in node.parts]
    if node.op == "rep":
        return False if node.high == 0 else found[0] if node.low else (False if found[0] is False else None)
    if node.op == "seq":
        return True if True in found else None if None in found else False
    return found[0] if len(set(found)) == 1 else None


class _Reader(TextReader):
    """A recursive descent over one pattern."""

    ends_early = "it ends too early"

    def read(self) -> _Node:
        try:
            node = self.alternatives()
        except RecursionError as error:
            raise Unreadable("its groups are nested too deeply") from error
        if self.place < len(self.text):
            raise self.wrong("a closing parenthesis without an opening one")
        return node

    def wrong(self, what: str) -> Unreadable:
        return Unreadable(f"{what} at character {self.place + 1} of {self.text!r}")

    def alternatives(self) -> _Node:
        found = [self.run()]
        while self.take("|"):
            found.append(self.run())
        return found[0] if len(found) == 1 else _Node("alt", tuple(found))

    def run(self) -> _Node:
        parts = []
        while self.place < len(self.text) and not self.peek("|") and not self.peek(")"):
            parts.append(self.repeated(self.atom()))
        return parts[0] if len(parts) == 1 else _Node("seq", tuple(parts))

    def repeated(self, node: _Node) -> _Node:
        while self.place < len(self.text):
            low, high = 0, None
            if self.take("*"):
                pass
            elif self.take("+"):
                low = 1
            elif self.take("?"):
                high = 1
            elif self.peek("{") and (counts := self.counts()) is not None:
                low, high = counts
            else:
                break
            self.take("?") or self.take("+")  # lazy and possessive find the same strings as far as sets go
            if max(low, high or 0) > MOST_REPEATS:
                raise self.wrong(f"more than {MOST_REPEATS} repeats")
            node = _Node("rep", (node,), low=low, high=high)
        return node

    def counts(self) -> tuple[int, int | None] | None:
        end = self.text.find("}", self.place)
        low, comma, high = self.text[self.place + 1 : max(end, 0)].partition(",")
        if end < 0 or not low.strip().isdigit() or (high.strip() and not high.strip().isdigit()):
            return None
        self.place = end + 1
        most = int(low) if not comma else int(high) if high.strip() else None
        if most is not None and most < int(low):
            raise self.wrong("a repeat counts down")
        return int(low), most

    def atom(self) -> _Node:
        c = self.next()
        if c == "(":
            return self.group()
        if c == "[":
            return _Node("chars", chars=self.bracket())
        if c == ".":
            return _Node("chars", chars=outside(((10, 10),)))
        if c == "^":
            return _Node("start")
        if c == "$":
            return _Node("end")
        if c == "\\":
            return self.escape()
        if c in "*+?":
            self.place -= 1
            raise self.wrong("there is nothing to repeat")
        return _Node("chars", chars=((ord(c), ord(c)),))

    def group(self) -> _Node:
        op = ""
        if self.take("?="):
            op = "ahead"
        elif self.take("?!"):
            op = "not-ahead"
        elif self.peek("?<=") or self.peek("?<!"):
            raise self.wrong("a lookbehind, which is not supported,")
        elif self.take("?:"):
            pass
        elif self.take("?P<") or self.take("?<"):
            while self.next() != ">":
                pass
        elif self.peek("?"):
            raise self.wrong("a group of a kind that is not supported")
        node = self.alternatives()
        if not self.take(")"):
            raise self.wrong("a group is not closed")
        return _Node(op, (node,)) if op else node

    def escape(self) -> _Node:
        c = self.next()
        if c.lower() in _CLASSES:
            found = _CLASSES[c.lower()]
            return _Node("chars", chars=found if c.islower() else outside(found))
        if c in "bB":
            raise self.wrong("a word boundary, which is not supported,")
        if c in "123456789k":
            raise self.wrong("a back reference, which no automaton can follow,")
        if c in "pP":
            raise self.wrong("a Unicode property, which is not supported,")
        if c in "AZz":
            return _Node("start" if c == "A" else "end")
        point = self.point(c)
        return _Node("chars", chars=((point, point),))

    def point(self, c: str) -> int:
        """The character behind a backslash and ``c``."""
        if c == "x" or c == "u":
            if self.take("{"):
                end = self.text.find("}", self.place)
                digits = self.text[self.place : max(end, 0)]
                self.place = end + 1
            else:
                width = 2 if c == "x" else 4
                digits = self.text[self.place : self.place + width]
                self.place += width
                if len(digits) < width:
                    raise self.wrong("too few digits of a character")
            try:
                value = int(digits, 16)
            except ValueError as error:
                raise self.wrong(f"{digits!r} is no number of a character,") from error
            return value
        if c == "c":
            return ord(self.next()) % 32
        return CONTROLS.get(c, ord(c))

    def bracket(self) -> Ranges:
        negative = self.take("^")
        pairs: list[tuple[int, int]] = []
        while not self.peek("]"):
            low = self.member()
            if isinstance(low, tuple):
                pairs.extend(low)
                continue
            if self.peek("-") and not self.text.startswith("-]", self.place):
                self.take("-")
                high = self.member()
                if isinstance(high, tuple):
                    pairs.extend([(low, low), (45, 45), *high])
                    continue
                if high < low:
                    raise self.wrong("a range of characters runs backwards")
                pairs.append((low, high))
            else:
                pairs.append((low, low))
        self.take("]")
        merged = ranges(pairs)
        return outside(merged) if negative else merged

    def member(self) -> int | Ranges:
        c = self.next()
        if c != "\\":
            return ord(c)
        c = self.next()
        if c.lower() in _CLASSES:
            found = _CLASSES[c.lower()]
            return found if c.islower() else outside(found)
        if c in "pP":
            raise self.wrong("a Unicode property, which is not supported,")
        return 8 if c == "b" else self.point(c)


@lru_cache(maxsize=4096)
def is_simple(pattern: str) -> bool:
    """Whether a pattern has no assertion but anchors at its very ends, which every engine reads."""
    body = pattern.removeprefix("^")
    body = body[:-1] if body.endswith("$") and not body.endswith("\\$") else body
    anchored = body != pattern
    try:
        node = _Reader(body).read()
    except Unreadable:
        return False
    return not node.asserts and not (anchored and node.op == "alt")
