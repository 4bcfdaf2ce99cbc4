"""A context-free grammar over lexemes, in the form that parsers are made of.

Symbols are integers: ``t >= 0`` is a terminal, ``~n`` (negative) the nonterminal ``n``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from unspool.constraints._grammar import GrammarError
from unspool.constraints._schema.expressions import Expression

MOST_PRODUCTIONS = 20_000

Production = tuple[int, tuple[int, ...]]


@dataclass(frozen=True)
class Terminal:
    """A kind of lexeme.

    Args:
        name: what messages call it.
        pattern: its texts.
        literal: whether it is a fixed text; such a one goes before patterns.
        priority: a higher one goes first.
        among, without: if given, its texts are those of the terminals ``among`` that belong to none of ``without``, and
            the pattern says nothing.
    """

    name: str
    pattern: Expression
    literal: bool = False
    priority: int = 0
    among: frozenset[int] = frozenset()
    without: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Rules:
    """A grammar.

    Args:
        terminals: kinds of lexemes.
        ignored: numbers of those that may stand anywhere and say nothing.
        names: of the nonterminals.
        productions: left side (a nonterminal ``n``) and right side (symbols).
        start: the nonterminal of whole texts.
        by_priority: of several terminals that match one lexeme only the first stands, as lexers have it; otherwise the
            lexeme is each of them.
    """

    terminals: tuple[Terminal, ...]
    ignored: frozenset[int]
    names: tuple[str, ...]
    productions: tuple[Production, ...]
    start: int
    by_priority: bool

    def symbol(self, symbol: int) -> str:
        """The name of a symbol."""
        return self.terminals[symbol].name if symbol >= 0 else self.names[~symbol]

    def show(self, production: int, dot: int | None = None) -> str:
        """A production as text, with a dot where a parser stands."""
        left, right = self.productions[production]
        parts = [self.symbol(symbol) for symbol in right]
        if dot is not None:
            parts.insert(dot, "•")
        return f"{self.names[left]}: {' '.join(parts) or '(nothing)'}"


def trimmed(rules: Rules, dead: frozenset[int] = frozenset()) -> Rules:
    """Without what derives no text and what the start does not lead to.

    Args:
        dead: terminals that have no text.

    Raises:
        GrammarError: if the language is empty.
    """
    productive: set[int] = set()
    waiting = [p for p in rules.productions if not dead.intersection(p[1])]
    while True:
        done = [p for p in waiting if all(s >= 0 or ~s in productive for s in p[1])]
        if not {left for left, _ in done} - productive:
            break
        productive |= {left for left, _ in done}
    if rules.start not in productive:
        raise GrammarError(f"the grammar holds no text: {_unproductive(rules, productive, dead)}")
    kept = list(dict.fromkeys(p for p in waiting if all(s >= 0 or ~s in productive for s in p[1])))
    by_left: dict[int, list[Production]] = {}
    for production in kept:
        by_left.setdefault(production[0], []).append(production)
    reached, queue = {rules.start}, [rules.start]
    while queue:
        for _, right in by_left.get(queue.pop(), []):
            for symbol in right:
                if symbol < 0 and ~symbol not in reached:
                    reached.add(~symbol)
                    queue.append(~symbol)
    order = sorted(reached)
    number = {n: place for place, n in enumerate(order)}
    productions = tuple(
        (number[left], tuple(s if s >= 0 else ~number[~s] for s in right)) for left, right in kept if left in reached
    )
    return replace(
        rules, names=tuple(rules.names[n] for n in order), productions=productions, start=number[rules.start]
    )


def _unproductive(rules: Rules, productive: set[int], dead: frozenset[int]) -> str:
    if rules.productions and not any(left == rules.start for left, _ in rules.productions):
        return f"{rules.names[rules.start]} has no alternative"
    if dead:
        names = sorted({rules.terminals[t].name for _, right in rules.productions for t in dead.intersection(right)})
        if names:
            return (
                f"{', '.join(names[:5])} match nothing that the vocabulary can write and no other terminal goes before"
            )
    stuck = [name for n, name in enumerate(rules.names) if n not in productive]
    return f"{', '.join(stuck[:5])} never comes to an end; add an alternative without recursion"


def nullable(rules: Rules) -> set[int]:
    """Nonterminals that derive the empty text."""
    found: set[int] = set()
    while True:
        more = {left for left, right in rules.productions if all(s < 0 and ~s in found for s in right)}
        if more <= found:
            return found
        found |= more


def without_empty(rules: Rules) -> tuple[Rules, bool]:
    """The same texts but the empty one, from productions that have something on the right (Hopcroft and Ullman, 1979).

    Returns:
        The rules, and whether the empty text belongs to the language.

    Raises:
        GrammarError: if there are too many productions.
    """
    empty = nullable(rules)
    made: dict[Production, None] = {}
    for left, right in rules.productions:
        ways: list[tuple[int, ...]] = [()]
        for symbol in right:
            optional = symbol < 0 and ~symbol in empty
            ways = [(*way, *tail) for way in ways for tail in (((symbol,), ()) if optional else ((symbol,),))]
            if len(made) + len(ways) > MOST_PRODUCTIONS:
                raise GrammarError(
                    f"without empty rules {rules.names[left]} unfolds into more than {MOST_PRODUCTIONS} alternatives: "
                    "split it into rules with fewer optional parts"
                )
        for way in ways:
            # A rule that only leads to itself says nothing.
            if way and way != (~left,):
                made[(left, way)] = None
    bare = replace(rules, productions=tuple(made))
    if rules.start in empty:
        # Nothing but the empty text may be left.
        try:
            return trimmed(bare), True
        except GrammarError:
            return replace(bare, productions=()), True
    return trimmed(bare), False


S = TypeVar("S", int, frozenset[tuple[int, int]])


def spread(sets: Sequence[S], sources: Sequence[Iterable[int]]) -> list[S]:
    """Let every set (the bits of a number, or a frozenset) take in those of its sources, until nothing changes."""
    found = list(sets)
    readers: list[list[int]] = [[] for _ in sets]
    for index, each in enumerate(sources):
        for source in each:
            readers[source].append(index)
    queue = list(range(len(sets)))
    while queue:
        source = queue.pop()
        for reader in readers[source]:
            joined = found[reader] | found[source]
            if joined != found[reader]:
                found[reader] = joined
                queue.append(reader)
    return found
