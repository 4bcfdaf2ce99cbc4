"""Reads regular expressions as grammars use them (the common part of Python's and Rust's) as sets of strings.

An expression always has to match a whole lexeme or a whole text, so anchors at its ends say nothing; elsewhere they are
refused, like everything else that is no set of strings (lookarounds, back references, word boundaries).
"""

from __future__ import annotations

import re
import sys
from functools import cache, lru_cache

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.expressions import (
    EMPTY_STRING,
    EVERY,
    Expression,
    Ranges,
    chars,
    either,
    outside,
    ranges,
    repeat,
    sequence,
)
from unspool.constraints._schema.patterns import CONTROLS, MOST_REPEATS
from unspool.constraints._text_reader import TextReader

_DEEPEST = 200
_FOLDED = 0x1E944
"""No character from here on has another case."""


@cache
def unicode_class(letter: str) -> Ranges:
    """The characters of ``\\d``, ``\\w`` or ``\\s``, as Unicode has them."""
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    found = re.finditer(f"\\{letter}+", every)
    spans = [(match.start(), match.end() - 1) for match in found]
    # Python counts the separators of ASCII (1C to 1F) as white space, Unicode does not.
    return ranges(_without(spans, 0x1C, 0x1F) if letter == "s" else spans)


def _without(spans: list[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    kept = []
    for first, last in spans:
        if first < low:
            kept.append((first, min(last, low - 1)))
        if last > high:
            kept.append((max(first, high + 1), last))
    return kept


@cache
def _cases() -> dict[int, tuple[int, ...]]:
    """All characters that are equal to one another without case, for those that are not alone."""
    groups: dict[str, list[int]] = {}
    for point in range(_FOLDED):
        folded = chr(point).casefold()
        if len(folded) == 1:
            groups.setdefault(folded, []).append(point)
    return {point: tuple(group) for group in groups.values() if len(group) > 1 for point in group}


def without_case(given: Ranges) -> Ranges:
    """These characters in all cases."""
    cases = _cases()
    more = [
        (other, other)
        for low, high in given
        for point in range(low, min(high, _FOLDED) + 1)
        for other in cases.get(point, ())
    ]
    return ranges([*given, *more])


@lru_cache(maxsize=4096)
def read_regex(pattern: str, where: str = "the regular expression", lazy: bool = False) -> Expression:
    """The set of strings that a regular expression matches as a whole.

    Args:
        where: what the expression is called in messages.
        lazy: whether lazy quantifiers are read like greedy ones. That is right where the end of the text is known; a
            lexeme that ends at the first possible place is another set.

    Raises:
        GrammarError: with the place in it.
    """
    reader = _Reader(pattern, where, lazy)
    found = reader.alternatives(True, 0)
    if reader.place < len(pattern):
        raise reader.wrong("a closing parenthesis without an opening one")
    return found


class _Reader(TextReader):
    """A recursive descent over one expression."""

    ends_early = "the expression ends too early"

    def __init__(self, text: str, where: str, lazy: bool) -> None:
        super().__init__(text)
        self.where = where
        self.lazy = lazy
        self.flags: frozenset[str] = frozenset()
        self.ended = False

    def wrong(self, what: str) -> GrammarError:
        return GrammarError(what, f"{self.where}, character {self.place + 1} of /{self.text[:80]}/")

    def alternatives(self, first: bool, depth: int) -> Expression:
        if depth > _DEEPEST:
            raise self.wrong(f"more than {_DEEPEST} groups are nested")
        before, ended = self.flags, False
        found = [self.run(first, depth)]
        ended |= self.ended
        while self.take("|"):
            found.append(self.run(first, depth))
            ended |= self.ended
        self.flags, self.ended = before, ended
        return either(found)

    def run(self, first: bool, depth: int) -> Expression:
        parts: list[Expression] = []
        self.ended = False
        while self.place < len(self.text) and not self.peek("|") and not self.peek(")"):
            if "x" in self.flags and self.blank():
                continue
            if self.ended and not self.peek("$"):
                raise self.wrong("there is more behind the anchor $, which only stands at the end")
            if self.take("^") or self.take("\\A"):
                if parts or not first:
                    raise self.wrong("an anchor stands behind other text; it only stands at the start")
                continue
            if self.take("$") or self.take("\\z") or self.take("\\Z"):
                self.ended = True
                continue
            atom = self.atom(first and not parts, depth)
            if atom is not None:
                parts.append(self.repeated(atom))
        return sequence(parts)

    def blank(self) -> bool:
        """Skip white space and comments of the verbose notation."""
        if self.text[self.place].isspace():
            self.place += 1
            return True
        if self.peek("#"):
            end = self.text.find("\n", self.place)
            self.place = len(self.text) if end < 0 else end + 1
            return True
        return False

    def repeated(self, node: Expression) -> Expression:
        while self.place < len(self.text):
            low, high = 0, None
            begin = self.place
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
            if self.ended:
                self.place = begin
                raise self.wrong("an anchor is repeated")
            if self.take("?") and not self.lazy:
                raise self.wrong(
                    "a lazy quantifier: a lexer takes the longest match; exclude the end instead, as in [^x]*x"
                )
            if self.take("+"):
                raise self.wrong("a possessive quantifier, which is not supported; write it without the second +")
            if max(low, high or 0) > MOST_REPEATS:
                raise self.wrong(f"more than {MOST_REPEATS} repeats")
            node = repeat(node, low, high)
        return node

    def counts(self) -> tuple[int, int | None] | None:
        match = re.compile(r"\{\s*(\d{0,9})\s*(,?)\s*(\d{0,9})\s*\}").match(self.text, self.place)
        if match is None or not (match[1] or match[3]):
            return None
        self.place = match.end()
        low = int(match[1] or 0)
        high = low if not match[2] else int(match[3]) if match[3] else None
        if high is not None and high < low:
            raise self.wrong(f"a repeat counts down: at least {low}, at most {high}")
        return low, high

    def atom(self, first: bool, depth: int) -> Expression | None:
        c = self.next()
        if c == "(":
            return self.group(first, depth)
        if c == "[":
            return chars(self.bracket())
        if c == ".":
            return EVERY if "s" in self.flags else chars(outside(((10, 10),)))
        if c == "\\":
            found = self.escape()
            return chars(self.cased(((found, found),) if isinstance(found, int) else found))
        if c in "*+?":
            self.place -= 1
            raise self.wrong("there is nothing to repeat")
        return chars(self.cased(((ord(c), ord(c)),)))

    def cased(self, given: Ranges) -> Ranges:
        return without_case(given) if "i" in self.flags else given

    def group(self, first: bool, depth: int) -> Expression | None:
        outer = self.flags
        if self.take("?"):
            if self.take("P<") or (self.take("<") and not self.peek("=") and not self.peek("!")):
                while self.next() != ">":
                    pass
            elif self.take("#"):
                while self.next() != ")":
                    pass
                return None
            elif not self.take(":"):
                match = re.compile(r"([a-zA-Z]*)(?:-([a-zA-Z]+))?([:)])").match(self.text, self.place)
                if match is None:
                    raise self.wrong("a group of a kind that is no set of strings (a lookaround or a reference)")
                unknown = set(match[1] + (match[2] or "")) - set("ismxu")
                if unknown:
                    raise self.wrong(f"the flag {min(unknown)!r}, which is not supported; i, s, m, x and u are")
                self.place = match.end()
                self.flags = self.flags | set(match[1]) - set(match[2] or "") if match[1] or match[2] else self.flags
                if match[2]:
                    self.flags -= set(match[2])
                if match[3] == ")":
                    # Without a colon they hold to the end of the group around it.
                    return None
        node = self.alternatives(first, depth + 1)
        if not self.take(")"):
            raise self.wrong("a group is not closed")
        self.flags = outer
        return node

    def escape(self) -> int | Ranges:
        c = self.next()
        if c in "dws":
            return unicode_class(c)
        if c in "DWS":
            return outside(unicode_class(c.lower()))
        if c in "bB":
            raise self.wrong("a word boundary, which is no set of strings")
        if c in "123456789k":
            raise self.wrong("a back reference, which no automaton can follow")
        if c in "pPXRN":
            raise self.wrong(f"\\{c}, which is not supported; write the characters as ranges")
        return self.point(c)

    def point(self, c: str) -> int:
        """The character behind a backslash and ``c``."""
        if c in "xuU":
            if self.take("{"):
                end = self.text.find("}", self.place)
                digits = self.text[self.place : max(end, 0)]
                self.place = end + 1
            else:
                width = {"x": 2, "u": 4, "U": 8}[c]
                digits = self.text[self.place : self.place + width]
                if len(digits) < width:
                    raise self.wrong("a character by number has too few digits")
                self.place += width
            if not re.fullmatch("[0-9a-fA-F]{1,8}", digits) or int(digits, 16) > sys.maxunicode:
                raise self.wrong(f"{digits!r} is no number of a character")
            return int(digits, 16)
        if c.isalnum() and c not in CONTROLS:
            raise self.wrong(f"\\{c} has no meaning here")
        return CONTROLS.get(c, ord(c))

    def bracket(self) -> Ranges:
        negative = self.take("^")
        pairs: list[tuple[int, int]] = []
        first = True
        while first or not self.peek("]"):
            first = False
            low = self.member()
            if not isinstance(low, int):
                pairs.extend(low)
                continue
            if self.peek("-") and not self.peek("-]"):
                self.take("-")
                high = self.member()
                if not isinstance(high, int):
                    raise self.wrong("a range of characters ends in a class")
                if high < low:
                    raise self.wrong("a range of characters runs backwards")
                pairs.append((low, high))
            else:
                pairs.append((low, low))
        self.take("]")
        merged = self.cased(ranges(pairs))
        return outside(merged) if negative else merged

    def member(self) -> int | Ranges:
        c = self.next()
        if c == "[" and self.peek(":"):
            raise self.wrong("a POSIX class, which is not supported; write the characters as ranges")
        if c != "\\":
            return ord(c)
        return 8 if self.take("b") else self.escape()


def literal_expression(text: str, ignore_case: bool = False) -> Expression:
    """A text as it stands."""
    points = (((ord(c), ord(c)),) for c in text)
    return sequence(chars(without_case(point) if ignore_case else point) for point in points) if text else EMPTY_STRING
