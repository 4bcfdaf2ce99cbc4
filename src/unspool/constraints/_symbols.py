"""Which stretches of a text are which symbols of its grammar: a parser that goes along with the text, and back.

A terminal's stretch is known when the lexeme has ended, which takes one more byte; a rule's when the parser reduces it,
which takes the next lexeme. White space and what else a grammar ignores belongs to no symbol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NoReturn

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._grammars import rules_of
from unspool.constraints._lexing import NONE, Language, scan
from unspool.constraints._lr import Table, lalr


@dataclass(frozen=True)
class Span:
    """One occurrence of a symbol: bytes ``[start, end)`` of the text."""

    symbol: str
    start: int
    end: int


@dataclass(frozen=True, eq=False, slots=True)
class _Frame:
    """A parser's stack; that of an earlier place of the text stays what it was."""

    state: int
    start: int
    end: int
    below: _Frame | None


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a reader stands: the lexer's state, where the lexeme began, the stack, and how many spans are known."""

    lexer: int
    lexeme: int
    stack: _Frame
    spans: int


@dataclass(frozen=True, eq=False)
class Symbols:
    """The tables of a grammar.

    Args:
        language: its rules and lexer.
        table: its LALR(1) parser.
    """

    language: Language
    table: Table

    @classmethod
    def of(cls, grammar: Grammar) -> Symbols:
        """The tables of a grammar; the same object when asked again.

        Raises:
            GrammarError: for notations without symbols, and for grammars that are not LALR(1).
        """
        if grammar.kind not in ("lark", "gbnf"):
            raise GrammarError(
                f"only grammars in Lark's notation or GBNF have symbols to go back over; this one is {grammar.kind}"
            )
        return _tables(grammar)

    @property
    def names(self) -> frozenset[str]:
        """The symbols that occurrences are kept of: rules by name, terminals by name, literals between quotes."""
        rules = self.language.rules
        return frozenset({*rules.names, *(terminal.name for terminal in rules.terminals)})


@lru_cache(maxsize=32)
def _tables(grammar: Grammar) -> Symbols:
    language = scan(rules_of(grammar))
    return Symbols(language, lalr(language.rules))


class SymbolReader:
    """Reads a text in pieces, and steps back by pieces.

    Attributes:
        data: the text.
        spans: the occurrences in the order in which they were completed.
    """

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols
        self.data = bytearray()
        self.spans: list[Span] = []
        self._table = symbols.table
        rules = symbols.language.rules
        self._terminals = [terminal.name for terminal in rules.terminals]
        self._place = _Place(0, 0, _Frame(0, 0, 0, None), 0)
        # The place before every piece, and how long the text was there.
        self._history: list[tuple[_Place, int]] = []

    def push(self, piece: bytes) -> None:
        """Read on.

        Raises:
            GrammarError: if the text does not belong to the grammar; nothing has changed then.
        """
        self._history.append((self._place, len(self.data)))
        rows = self.symbols.language.scanner.rows
        lexer, lexeme, stack = self._place.lexer, self._place.lexeme, self._place.stack
        for byte in piece:
            step, emits = rows[lexer]
            if step[byte] < 0:
                self._refuse(piece, f"{bytes([byte])!r} cannot stand there")
            if emits[byte] != NONE:
                stack = self._lexeme(stack, emits[byte], lexeme, len(self.data), piece)
                lexeme = len(self.data)
            lexer = step[byte]
            self.data.append(byte)
        self._place = _Place(lexer, lexeme, stack, len(self.spans))

    def finish(self) -> None:
        """The text ends here: the last lexeme and all rules are completed. A piece of its own, for stepping back.

        Raises:
            GrammarError: if the text may not end here; nothing has changed then.
        """
        self._history.append((self._place, len(self.data)))
        place = self._place
        stack, end = place.stack, len(self.data)
        if place.lexer:
            label = self.symbols.language.scanner.labels[place.lexer]
            if label == NONE:
                self._refuse(b"", "the last lexeme is not whole")
            stack = self._lexeme(stack, label, place.lexeme, end, b"")
        stack, accepts = self._reduced(stack, self.symbols.language.end)
        if accepts is None:
            self._refuse(b"", "the text is not complete")
        self._place = _Place(0, end, stack, len(self.spans))

    def back(self, pieces: int) -> None:
        """Take the last pieces back."""
        for _ in range(pieces):
            self._place, length = self._history.pop()
            del self.data[length:]
        del self.spans[self._place.spans :]

    def _lexeme(self, stack: _Frame, terminal: int, start: int, end: int, piece: bytes) -> _Frame:
        span = Span(self._terminals[terminal], start, end)
        if self.symbols.language.scanner.skipped[terminal]:
            self.spans.append(span)
            return stack
        stack, action = self._reduced(stack, terminal)
        if action is None:
            self._refuse(piece, f"{bytes(self.data[start:end])!r} cannot stand there")
        self.spans.append(span)
        return _Frame(action, start, end, stack)

    def _reduced(self, stack: _Frame, terminal: int) -> tuple[_Frame, int | None]:
        """The stack from which a terminal is shifted, with the state to go to; ``None`` if it may not follow."""
        table, names = self._table, self.symbols.language.rules.names
        while True:
            act = table.action[stack.state].get(terminal)
            if act is None or act >= 0:
                return stack, act
            if act == ~0:
                return stack, 0
            count, left = table.reductions[~act]
            base, start = stack, stack.end
            for _ in range(count):
                start, base = base.start, base.below  # type: ignore[assignment]
            end = stack.end
            self.spans.append(Span(names[left], start, end))
            stack = _Frame(table.goto[base.state][left], start, end, base)

    def _refuse(self, piece: bytes, why: str) -> NoReturn:
        self.back(1)
        raise GrammarError(f"behind {bytes(self.data[-40:])!r} the text leaves the grammar with {piece!r}: {why}")

    def occurrences(self, symbol: str) -> list[Span]:
        """The completed occurrences of a symbol, in order."""
        return [span for span in self.spans if span.symbol == symbol]

    def texts(self, spans: Sequence[Span]) -> list[str]:
        """What stands there."""
        return [self.data[span.start : span.end].decode(errors="replace") for span in spans]
