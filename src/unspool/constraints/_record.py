"""A text that goes forward and backward: its tokens, its symbols, and a trace of what was chosen at every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unspool.constraints._symbols import Span, SymbolReader
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.branch import Portable


class _Visit:
    """A node of the trace: the tokens that were chosen at a place, and how often."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.children: dict[int, _Visit] = {}
        self.count = 0


@dataclass
class Record(Portable):
    """One text as IterGen sees it: its tokens, its symbols, and the trace of what was ever chosen.

    Attributes:
        tokens: generated, as they should be; the loop follows.
        ended: whether the last of them ends the text.
        backtracks: how often the text went back.
        drawn: tokens that were chosen in all, those that were taken back included.
        unchecked: occurrences that broke a condition when no backtrack was left.
    """

    vocabulary: Vocabulary
    stops: frozenset[int]
    reader: SymbolReader
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    backtracks: int = 0
    drawn: int = 0
    unchecked: list[Span] = field(default_factory=list)
    _root: _Visit = field(default_factory=_Visit)
    _path: list[_Visit] = field(default_factory=list)
    _ends: list[int] = field(default_factory=list)

    def fork(self) -> Record:
        """A search of one branch never forks it; the record goes where the text goes."""
        return self

    def push(self, token: int) -> list[Span]:
        """Take a chosen token in; the occurrences that it completes.

        Raises:
            GrammarError: if the text leaves the grammar.
        """
        known = len(self.reader.spans)
        if token in self.stops:
            self.reader.finish()
            self.ended = True
        else:
            self.reader.push(self._written(token))
        self._chosen(token)
        return self.reader.spans[known:]

    def _written(self, token: int) -> bytes:
        strings = self.vocabulary.tokens
        if self.vocabulary.heads is not None and not self.tokens:
            strings = self.vocabulary.heads
        return strings[token] or b""

    def _chosen(self, token: int) -> None:
        visit = (self._path[-1] if self._path else self._root).children.setdefault(token, _Visit())
        visit.count += 1
        self.drawn += 1
        self._path.append(visit)
        self.tokens.append(token)
        self._ends.append(len(self.reader.data))

    def backward(self, span: Span) -> None:
        """Take the text back to where an occurrence begins."""
        begins = [0, *self._ends[:-1]]
        keep = next((place for place, end in enumerate(self._ends) if end > span.start), len(self.tokens))
        before = bytes(self.reader.data[begins[keep] : span.start]) if keep < len(self.tokens) else b""
        self.reader.back(len(self.tokens) - keep)
        del self.tokens[keep:], self._path[keep:], self._ends[keep:]
        self.ended = False
        self.backtracks += 1
        if before.strip():
            for token in self.vocabulary.spell(before):
                self.reader.push(self._written(token))
                self._chosen(token)
                # Nobody chose it: it was kept.
                self._path[-1].count -= 1
                self.drawn -= 1

    def visits(self, tokens: Sequence[int]) -> Mapping[int, int]:
        """How often each token was chosen after ``tokens``."""
        at = self._root
        if tokens[: len(self.tokens)] == self.tokens:
            at, tokens = self._path[-1] if self._path else self._root, tokens[len(self.tokens) :]
        for token in tokens:
            following = at.children.get(token)
            if following is None:
                return {}
            at = following
        return {token: visit.count for token, visit in at.children.items() if visit.count}
