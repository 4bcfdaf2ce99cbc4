"""Small random grammars, and what their texts are by a reference that shares nothing with the engines.

Terminals are a few fixed texts each, so that the lexer's rule (the longest match, one byte of lookahead) can be
followed with sets of strings; sequences of terminals are judged by the Earley parser of ``oracle``.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from tests.constraints.oracle import Oracle

from unspool.constraints._regex import literal_expression
from unspool.constraints._rules import Rules, Terminal
from unspool.constraints._schema.expressions import either
from unspool.constraints._vocabulary import Vocabulary

LETTERS = b"abc"
STOP = 0


@dataclass(frozen=True)
class Language:
    """A grammar, and its reference.

    Args:
        words: of every terminal its texts; earlier ones go first where they share one.
        ignored: of every terminal whether it is ignored.
        productions: left sides and right sides (``t >= 0`` a terminal, ``~n`` a nonterminal); 0 is the start.
    """

    words: tuple[tuple[bytes, ...], ...]
    ignored: tuple[bool, ...]
    productions: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def rules(self) -> Rules:
        terminals = tuple(
            Terminal(f"T{number}", either(literal_expression(word.decode()) for word in words))
            for number, words in enumerate(self.words)
        )
        names = tuple(f"n{number}" for number in range(max(left for left, _ in self.productions) + 1))
        ignored = frozenset(number for number, is_ignored in enumerate(self.ignored) if is_ignored)
        return Rules(terminals, ignored, names, self.productions, 0, by_priority=True)

    def lexed(self, text: bytes) -> list[int] | None:
        """The terminals of a text."""
        found = []
        lexeme = b""
        for place in range(len(text)):
            longer = lexeme + text[place : place + 1]
            if any(word.startswith(longer) for words in self.words for word in words):
                lexeme = longer
                continue
            terminal = self._terminal(lexeme)
            if terminal is None:
                return None
            found.append(terminal)
            lexeme = text[place : place + 1]
            if not any(word.startswith(lexeme) for words in self.words for word in words):
                return None
        if lexeme:
            terminal = self._terminal(lexeme)
            if terminal is None:
                return None
            found.append(terminal)
        return found

    def _terminal(self, lexeme: bytes) -> int | None:
        return next((number for number, words in enumerate(self.words) if lexeme in words), None)

    @property
    def oracle(self) -> Oracle:
        """Over terminals, each as one byte."""
        rules: dict[str, list[list[str | frozenset[int]]]] = {}
        for left, right in self.productions:
            name = "start" if left == 0 else f"n{left}"
            rules.setdefault(name, []).append(
                [frozenset({s}) if s >= 0 else "start" if s == ~0 else f"n{~s}" for s in right]
            )
        return Oracle(rules)

    def holds(self, oracle: Oracle, text: bytes) -> bool:
        """Whether a text belongs to the language."""
        terminals = self.lexed(text)
        if terminals is None:
            return False
        state = oracle.start
        for place, terminal in enumerate(terminals):
            if self.ignored[terminal]:
                if place == 0 or not oracle.next_bytes(state):
                    return False
                continue
            after = oracle.push(state, terminal)
            if after is None:
                return False
            state = after
        return oracle.complete(state)


def finite(productions: tuple[tuple[int, tuple[int, ...]], ...]) -> bool:
    """Whether every nonterminal that is used has an alternative that comes to an end."""
    used = {left for left, _ in productions} | {~s for _, right in productions for s in right if s < 0} | {0}
    done: set[int] = set()
    while True:
        more = {left for left, right in productions if all(s >= 0 or ~s in done for s in right)}
        if more <= done:
            return used <= done
        done |= more


def random_language(seed: int, ignoring: bool | None = None) -> Language:
    """A grammar with up to three nonterminals over up to four terminals, some of which begin or extend one another."""
    rng = random.Random(seed)
    pool = [b"a", b"b", b"c", b"ab", b"aa", b"ba", b"bc", b"abc", b"cc"]
    while True:
        words = tuple(
            tuple(dict.fromkeys(rng.choices(pool, k=rng.choice((1, 1, 2))))) for _ in range(rng.randint(2, 4))
        )
        has_gap = len(words) > 2 and (rng.random() < 0.4 if ignoring is None else ignoring)
        if any(set(each) <= {word for other in words[:place] for word in other} for place, each in enumerate(words)):
            continue  # a terminal that is never emitted
        if has_gap and {word for each in words[:-1] for word in each}.intersection(words[-1]):
            continue
        usable = len(words) - has_gap
        productions = []
        for left in range(rng.randint(1, 3)):
            for _ in range(rng.randint(1, 3)):
                right = [
                    rng.randrange(usable) if rng.random() < 0.6 else ~rng.randrange(3) for _ in range(rng.randint(0, 3))
                ]
                productions.append((left, tuple(right)))
        chosen = tuple(dict.fromkeys(productions))
        if finite(chosen):
            return Language(words, (*[False] * usable, *[True] * has_gap), chosen)


def texts(length: int) -> list[bytes]:
    """All texts of at most so many letters."""
    return [bytes(each) for size in range(length + 1) for each in itertools.product(LETTERS, repeat=size)]


def letters(seed: int) -> Vocabulary:
    """A stop token, the letters, and some longer strings."""
    rng = random.Random(seed)
    longer = [bytes(rng.choices(LETTERS, k=rng.randint(2, 3))) for _ in range(12)]
    return Vocabulary([None, *(bytes([byte]) for byte in LETTERS), *longer], frozenset({STOP}))
