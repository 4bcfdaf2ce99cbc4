"""Regular expressions as JSON Schema uses them, with the operations that its logic needs: and, not, emptiness.

An expression is a set of strings of code points. It is walked by derivatives (Brzozowski, Derivatives of Regular
Expressions, 1964): the derivative by a character is what may follow it. Complements and intersections cost nothing to
write down that way, and only the states that are visited exist.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

LAST = 0x10FFFF
MOST_STATES = 3000


class TooComplex(Exception):
    """An expression has more states than are looked at."""


Ranges = tuple[tuple[int, int], ...]


def ranges(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, merged ranges of code points, both ends included."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pairs):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def outside(given: Ranges) -> Ranges:
    """All other code points."""
    found, after = [], 0
    for low, high in given:
        if low > after:
            found.append((after, low - 1))
        after = high + 1
    if after <= LAST:
        found.append((after, LAST))
    return tuple(found)


def common(a: Ranges, b: Ranges) -> Ranges:
    """Code points that are in both."""
    return ranges((max(x[0], y[0]), min(x[1], y[1])) for x in a for y in b if max(x[0], y[0]) <= min(x[1], y[1]))


@dataclass(frozen=True)
class Expression:
    """A set of strings. Made by the functions below, which keep it small.

    Attributes:
        op: ``chars``, ``seq``, ``alt``, ``and``, ``not``, ``rep``, ``empty`` (no string at all) or ``eps`` (the empty
            one).
        parts: operands; of ``alt`` and ``and`` in a fixed order without doubles.
        chars: of ``chars``.
        low, high: of ``rep``: how often, ``None`` for without end.
    """

    op: str
    parts: tuple[Expression, ...] = ()
    chars: Ranges = ()
    low: int = 0
    high: int | None = None
    _hash: int = field(default=0, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hash", hash((self.op, self.parts, self.chars, self.low, self.high)))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def nullable(self) -> bool:
        """Whether the empty string is in it."""
        if self.op in ("seq", "and"):
            return all(part.nullable for part in self.parts)
        if self.op == "alt":
            return any(part.nullable for part in self.parts)
        if self.op == "not":
            return not self.parts[0].nullable
        return self.op == "eps" or (self.op == "rep" and (self.low == 0 or self.parts[0].nullable))

    @cached_property
    def _order(self) -> tuple[object, ...]:
        return (
            self.op,
            self.chars,
            self.low,
            -1 if self.high is None else self.high,
            tuple(p._order for p in self.parts),
        )

    def __and__(self, other: Expression) -> Expression:
        return both((self, other))

    def __or__(self, other: Expression) -> Expression:
        return either((self, other))

    def __invert__(self) -> Expression:
        if self.op == "not":
            return self.parts[0]
        return ANY if self == NOTHING else NOTHING if self == ANY else Expression("not", (self,))

    def matches(self, text: str) -> bool:
        """Whether a string is in it."""
        at = self
        for character in text:
            at = derivative(at, ord(character))
        return at.nullable

    @cached_property
    def is_empty(self) -> bool:
        """Whether no string is in it.

        Raises:
            TooComplex: if that would take too many states.
        """
        seen, queue = {self}, [self]
        while queue:
            at = queue.pop()
            if at.nullable:
                return False
            for piece in classes(at):
                after = derivative(at, piece[0][0])
                if after not in seen and after != NOTHING:
                    seen.add(after)
                    queue.append(after)
                    if len(seen) > MOST_STATES:
                        raise TooComplex
        return True


NOTHING = Expression("empty")
EMPTY_STRING = Expression("eps")


def chars(given: Ranges) -> Expression:
    return Expression("chars", chars=given) if given else NOTHING


EVERY = chars(((0, LAST),))
SPACES: Ranges = ranges(
    (point, point)
    for point in (
        *range(0x09, 0x0E),
        0x20,
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    )
)
"""What ``\\s`` stands for."""


def sequence(parts: Iterable[Expression]) -> Expression:
    flat: list[Expression] = []
    for part in parts:
        if part == NOTHING:
            return NOTHING
        flat.extend(part.parts if part.op == "seq" else () if part == EMPTY_STRING else (part,))
    return EMPTY_STRING if not flat else flat[0] if len(flat) == 1 else Expression("seq", tuple(flat))


def either(parts: Iterable[Expression]) -> Expression:
    return _joined("alt", parts, NOTHING, ANY)


def both(parts: Iterable[Expression]) -> Expression:
    return _joined("and", parts, ANY, NOTHING)


def _joined(op: str, parts: Iterable[Expression], neutral: Expression, absorbing: Expression) -> Expression:
    flat: set[Expression] = set()
    for part in parts:
        flat.update(part.parts if part.op == op else (part,))
    flat.discard(neutral)
    if absorbing in flat:
        return absorbing
    single = {part for part in flat if part.op == "chars"}
    if len(single) > 1:
        merged = single.pop().chars
        flat = {part for part in flat if part.op != "chars"}
        for part in single:
            merged = ranges((*merged, *part.chars)) if op == "alt" else common(merged, part.chars)
        if merged or op == "alt":
            flat.add(chars(merged))
        else:
            return NOTHING
    if not flat:
        return neutral
    if len(flat) == 1:
        return flat.pop()
    return Expression(op, tuple(sorted(flat, key=lambda part: part._order)))


def repeat(part: Expression, low: int = 0, high: int | None = None) -> Expression:
    if high == 0 or (part in (EMPTY_STRING, NOTHING) and low == 0) or part == EMPTY_STRING:
        return EMPTY_STRING
    if part == NOTHING or (low, high) == (1, 1):
        return part
    return Expression("rep", (part,), low=low, high=high)


ANY = Expression("rep", (EVERY,))


def literal(text: str) -> Expression:
    return sequence(chars(((ord(c), ord(c)),)) for c in text)


@lru_cache(maxsize=200_000)
def derivative(e: Expression, point: int) -> Expression:
    """What may follow the character ``point``."""
    if e.op == "chars":
        return EMPTY_STRING if any(low <= point <= high for low, high in e.chars) else NOTHING
    if e.op == "seq":
        head, rest = e.parts[0], sequence(e.parts[1:])
        after = sequence((derivative(head, point), rest))
        return either((after, derivative(rest, point))) if head.nullable else after
    if e.op == "alt":
        return either(derivative(part, point) for part in e.parts)
    if e.op == "and":
        return both(derivative(part, point) for part in e.parts)
    if e.op == "not":
        return ~derivative(e.parts[0], point)
    if e.op == "rep":
        low = max(e.low - 1, 0)
        again = repeat(e.parts[0], 0 if e.parts[0].nullable else low, None if e.high is None else e.high - 1)
        return sequence((derivative(e.parts[0], point), again))
    return NOTHING


@lru_cache(maxsize=100_000)
def classes(e: Expression) -> tuple[Ranges, ...]:
    """A partition of all characters such that those of one piece lead to the same derivative."""
    if e.op == "chars":
        return tuple(piece for piece in (e.chars, outside(e.chars)) if piece)
    if e.op == "seq" and not e.parts[0].nullable:
        return classes(e.parts[0])
    if e.op in ("not", "rep"):
        return classes(e.parts[0])
    if e.op == "seq":
        return _crossed(classes(e.parts[0]), classes(sequence(e.parts[1:])))
    found: tuple[Ranges, ...] = (((0, LAST),),)
    for part in e.parts:
        found = _crossed(found, classes(part))
    return found


def _crossed(a: tuple[Ranges, ...], b: tuple[Ranges, ...]) -> tuple[Ranges, ...]:
    if len(a) == 1:
        return b
    if len(b) == 1:
        return a
    return tuple(piece for x in a for y in b if (piece := common(x, y)))
