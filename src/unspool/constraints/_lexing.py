"""Lexing by one automaton over bytes, with one byte of lookahead and the longest match.

All terminals of a grammar make one automaton. In state ``q`` on byte ``c``: if the automaton moves, it moves; else, if
a terminal ends in ``q`` and the automaton moves from its start on ``c``, that terminal is emitted and the lexeme of
``c`` begins; else the text is refused. At the end of a text the last lexeme has to be whole.

Which lexeme may stand behind which follows from that: behind a state in which ``SELECT`` ends no identifier can
begin, since its first letter would be read as one more letter. Final states behind which the same bytes can begin a
lexeme make one *class*; what a parser can still complete depends on the class of the last lexeme.

Ignored lexemes stand between others: not at the start of a text, and behind the last lexeme only if the text could go
on (llguidance has the same rule).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._automaton import DEAD, automaton
from unspool.constraints._grammar import GrammarError
from unspool.constraints._rules import MOST_PRODUCTIONS, Production, Rules, Terminal, spread, trimmed
from unspool.constraints._schema.expressions import NOTHING
from unspool.constraints._vocabulary import Vocabulary

NONE = -1
"""No terminal ends here, or none is emitted."""


@dataclass(frozen=True, eq=False)
class Scanner:
    """The lexer.

    Args:
        delta: ``[Q, 256]`` int32: the automaton; ``DEAD`` where it does not move. State 0 is the start, in which
            nothing ends and to which nothing leads.
        label: ``[Q]`` int32: the terminal that ends in each state, ``NONE`` if there is none.
        ignored: ``[T]`` bool by terminal.
    """

    delta: NDArray[np.int32]
    label: NDArray[np.int32]
    ignored: NDArray[np.bool_]

    @cached_property
    def step(self) -> NDArray[np.int32]:
        """``[Q, 256]`` the next state, whether or not a terminal is emitted on the way; ``DEAD``."""
        fresh = np.where((self.label >= 0)[:, None], self.delta[0][None, :], DEAD)
        return np.where(self.delta >= 0, self.delta, fresh).astype(np.int32)

    @cached_property
    def emits(self) -> NDArray[np.int32]:
        """``[Q, 256]`` the terminal that is emitted by a step, ``NONE`` for none."""
        emitted = (self.delta < 0) & (self.step >= 0)
        return np.where(emitted, self.label[:, None], NONE).astype(np.int32)

    @cached_property
    def rows(self) -> list[tuple[list[int], list[int]]]:
        """Of every state what ``step`` and ``emits`` say, as lists: one text is followed faster through these."""
        return list(zip(self.step.tolist(), self.emits.tolist(), strict=True))

    @cached_property
    def labels(self) -> list[int]:
        return self.label.tolist()

    @cached_property
    def skipped(self) -> list[bool]:
        """By terminal, whether it is ignored."""
        return self.ignored.tolist()

    # -- what may stand behind what ---------------------------------------------------------------------------------

    @cached_property
    def classes(self) -> tuple[list[int], list[frozenset[int]]]:
        """Of every state its class (``NONE`` where nothing ends); of every class the bytes that may begin a lexeme.

        Class 0 is the start of a text.
        """
        begins = self.delta[0] >= 0
        follow = begins[None, :] & (self.delta < 0)
        known: dict[bytes, int] = {}
        members = [frozenset(np.flatnonzero(begins).tolist())]
        of_state = []
        for state, label in enumerate(self.labels):
            if state == 0 or label < 0:
                of_state.append(0 if state == 0 else NONE)
                continue
            key = follow[state].tobytes()
            if key not in known:
                known[key] = len(members)
                members.append(frozenset(np.flatnonzero(follow[state]).tolist()))
            of_state.append(known[key])
        return of_state, members

    @cached_property
    def reach(self) -> list[frozenset[tuple[int, int]]]:
        """Of every state the lexemes that it can still become: terminal and class of the state where it ends."""
        of_state, _ = self.classes
        own: list[frozenset[tuple[int, int]]] = [
            frozenset({(label, of_state[state])}) if label >= 0 else frozenset()
            for state, label in enumerate(self.labels)
        ]
        following = [np.unique(row[row >= 0]).tolist() for row in self.delta]
        return spread(own, following)

    def shortest(self, state: int, first: frozenset[int] | None = None) -> dict[int, bytes]:
        """A shortest text from a state to every state that it leads to within one lexeme.

        Args:
            first: the bytes that it may begin with; ``None`` for all, and then the empty text leads to the state
                itself.
        """
        found: dict[int, bytes] = {state: b""} if first is None else {}
        layer = [(state, b"")]
        while layer:
            following = []
            for at, text in layer:
                row = self.delta[at]
                for after in np.unique(row[row >= 0]).tolist():
                    if after in found:
                        continue
                    choice = [c for c in np.flatnonzero(row == after).tolist() if first is None or text or c in first]
                    if choice:
                        found[after] = text + bytes([min(choice, key=_plainness)])
                        following.append((after, found[after]))
            layer = following
        return found


def _plainness(byte: int) -> int:
    """Letters and digits first, so that shortest texts look ordinary."""
    return byte if chr(byte).isalnum() and byte < 128 else 256 + byte


def spelled_bytes(vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """``[256]`` the bytes that some token writes."""
    found = np.zeros(256, dtype=bool)
    found[np.unique(vocabulary.trie.byte)] = True
    return found


@dataclass(frozen=True, eq=False)
class Language:
    """A grammar whose terminals are what its lexer emits.

    Args:
        rules: the grammar; terminals are numbered as the scanner labels them.
        scanner: the lexer.
    """

    rules: Rules
    scanner: Scanner

    @property
    def end(self) -> int:
        """The terminal that stands for the end of a text."""
        return len(self.rules.terminals)

    @property
    def gap(self) -> int:
        """Stands, in sequences of terminals, for something ignored before the first of them."""
        return len(self.rules.terminals) + 1


def scan(rules: Rules, spelled: NDArray[np.bool_] | None = None) -> Language:
    """Bring a grammar and the automaton of its terminals together.

    Where terminals share lexemes, either the first by priority keeps them, or new terminals are made: one for every set
    of terminals that end in one state, so that each old terminal is a choice among new ones.

    Args:
        spelled: ``[256]`` the bytes that can be written.

    Raises:
        GrammarError: if the language is empty or too large.
    """
    made = automaton([NOTHING if t.among else t.pattern for t in rules.terminals], spelled)
    empty = made.finals[0]
    order = sorted(
        range(len(rules.terminals)),
        key=lambda t: (-rules.terminals[t].priority, not rules.terminals[t].literal, t),
    )
    rank = {terminal: place for place, terminal in enumerate(order)}
    chosen: list[frozenset[int]] = []
    for state, final in enumerate(made.finals):
        kept = final if state else frozenset()
        if rules.by_priority and len(kept) > 1:
            kept = frozenset({min(kept, key=rank.__getitem__)})
        if kept & rules.ignored:
            # What may be ignored anywhere must not be anything else: a parser could not tell which.
            kept = kept & rules.ignored if rules.by_priority else _apart(rules, kept)
        chosen.append(kept)
    atoms = {kept: place for place, kept in enumerate(dict.fromkeys(kept for kept in chosen if kept))}
    label = np.array([atoms[kept] if kept else NONE for kept in chosen], dtype=np.int32)
    ignored = np.array([bool(kept & rules.ignored) for kept in atoms], dtype=bool)
    scanner = Scanner(made.delta, label, ignored)
    return Language(_relabelled(rules, list(atoms), empty), scanner)


def _apart(rules: Rules, kept: frozenset[int]) -> frozenset[int]:
    if kept <= rules.ignored:
        return kept
    names = ", ".join(sorted(rules.terminals[t].name for t in kept))
    raise GrammarError(f"the terminals {names} match the same text, and one of them is ignored: make them disjoint")


def _relabelled(rules: Rules, atoms: list[frozenset[int]], empty: frozenset[int]) -> Rules:
    """The grammar over new terminals; those that match the empty text become optional."""
    terminals = tuple(
        Terminal(
            "|".join(dict.fromkeys(rules.terminals[t].name for t in sorted(kept))), rules.terminals[min(kept)].pattern
        )
        for kept in atoms
    )
    places: dict[int, list[int]] = {}
    for place, kept in enumerate(atoms):
        for old in kept:
            places.setdefault(old, []).append(place)
    for old, terminal in enumerate(rules.terminals):
        if terminal.among:
            left = [place for place, kept in enumerate(atoms) if kept & terminal.among and not kept & terminal.without]
            places |= {old: left} if left else {}
    rules = trimmed(rules, frozenset(t for t in range(len(rules.terminals)) if t not in places and t not in empty))
    names = list(rules.names)
    choices: list[Production] = []
    symbol: dict[int, int] = {}
    for old in sorted({s for _, right in rules.productions for s in right if s >= 0}):
        if len(places.get(old, [])) == 1 and old not in empty:
            symbol[old] = places[old][0]
            continue
        fresh = len(names)
        symbol[old] = ~fresh
        names.append(rules.terminals[old].name)
        choices += [(fresh, (place,)) for place in places.get(old, [])]
        if old in empty:
            choices.append((fresh, ()))
    productions = [(left, tuple(symbol.get(s, s) if s >= 0 else s for s in right)) for left, right in rules.productions]
    if len(productions) + len(choices) > MOST_PRODUCTIONS:
        raise GrammarError(f"the grammar has {len(productions)} rules; up to {MOST_PRODUCTIONS} are taken")
    return trimmed(
        replace(
            rules, terminals=terminals, names=tuple(names), productions=(*productions, *choices), ignored=frozenset()
        )
    )
