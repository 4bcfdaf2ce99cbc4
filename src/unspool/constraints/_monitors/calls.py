"""Valid calls: as many arguments as the function takes, and keyword arguments that it knows by name.

Inside the brackets of a call an automaton keeps account of the arguments. A token is forbidden if, byte by byte, it
would close the call while a required argument is missing, begin another argument when no parameter is left, or name a
keyword that the function does not have or has been given. Where nothing but a keyword argument can come, one of their
names has to. Functions with several signatures forbid what all of them forbid. A call with ``*`` or ``**`` arguments is
left alone, because what they bring is not known.

Python only; the signatures come from jedi, those of named tuples and dataclasses from their fields.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._monitors.base import Answer, Cursor, Names, Question, Trigger
from unspool.constraints._monitors.lexical import LEXICONS, Lexicon, Scan
from unspool.constraints._monitors.names import NameTable
from unspool.constraints._monitors.parameters import Parameters
from unspool.constraints._monitors.python import PythonMonitor
from unspool.constraints._vocabulary import Vocabulary

_KEYWORDS = frozenset(keyword.kwlist) - {"None", "True", "False"} | {"match", "case"}


@dataclass(frozen=True, slots=True)
class Call:
    """The automaton: what was written behind an opening bracket.

    Args:
        scan: the lexical state, brackets counted from the call's own.
        head: the identifier that the current argument consists of so far; empty at its start; ``None`` if the argument
            is no plain identifier.
        spaced: whether white space follows the head.
        word: the word that is being written, to find ``lambda``.
        lambdas: parameters lists of lambdas that are open.
        equals: whether the last byte was the ``=`` behind a head: a keyword, if no second one follows.
        named: the keyword of the current argument.
        count: positional arguments that are complete.
        given: keywords of complete arguments.
        unknown: whether a ``*`` or ``**`` argument was given.
        closed: whether the call is complete.
        wrong: whether the call broke a rule of ``parameters``.
    """

    scan: Scan
    head: bytes | None = b""
    spaced: bool = False
    word: bytes = b""
    lambdas: int = 0
    equals: bool = False
    named: str | None = None
    count: int = 0
    given: frozenset[str] = frozenset()
    unknown: bool = False
    closed: bool = False
    wrong: bool = False

    @classmethod
    def start(cls) -> Call:
        return cls(Scan(LEXICONS["python"], open=((")", 0),)))

    @property
    def key(self) -> Call:
        """The state without what no rule looks at: equal ones have equal masks."""
        scan = replace(self.scan, open=tuple((bracket, 0) for bracket, _ in self.scan.open), line=0, end=0)
        recent = b"" if scan.mode == "code" else scan.recent
        return replace(self, scan=replace(scan, recent=recent), word=self.word[-6:])

    def feed(self, data: bytes, parameters: Parameters) -> Call:
        """The state after some more bytes; it stays where it is when the call is closed or wrong."""
        call = self
        for byte in data:
            if call.closed or call.wrong:
                break
            call = call._step(byte, parameters)
        return call

    def _step(self, byte: int, parameters: Parameters) -> Call:
        before, scan = self.scan, self.scan.feed(bytes([byte]))
        shallow = len(before.open) == 1 and before.in_code
        if self.equals:
            # Only the byte behind an equals sign tells a keyword from a comparison.
            decided = replace(self, equals=False)
            if byte == 0x3D:
                return replace(decided, scan=scan, head=None)
            assert self.head is not None
            decided = decided._named(self.head.decode(errors="replace"), parameters)
            return decided if decided.wrong else decided._step(byte, parameters)
        if before.mode == "line":
            return replace(self, scan=scan)
        if not shallow:
            return replace(self, scan=scan, head=None, word=b"")
        if not scan.open:
            return self._finish(parameters, closing=True)
        if not (scan.in_code and len(scan.open) == 1):
            return replace(self, scan=scan, head=self.head if scan.mode == "line" else None, word=b"")
        if byte == 0x2C and not self.lambdas:
            return replace(self._finish(parameters, closing=False), scan=scan)
        if byte in b" \t\r\n\\":
            return replace(self, scan=scan, spaced=self.spaced or bool(self.head), word=b"", lambdas=self._lambdas())
        if scan.lexicon.is_word(byte):
            head = self.head
            if head is not None:
                head = None if self.spaced else head + bytes([byte])
            return replace(self, scan=scan, head=head, word=self.word + bytes([byte]))
        lambdas = self._lambdas()
        if byte == 0x3A and lambdas:
            lambdas -= 1
        if byte == 0x3D and self.head and not lambdas:
            return replace(self, scan=scan, equals=True, word=b"")
        starred = byte == 0x2A and self.head == b""
        return replace(self, scan=scan, head=None, word=b"", lambdas=lambdas, unknown=self.unknown or starred)

    def _lambdas(self) -> int:
        return self.lambdas + (self.word == b"lambda")

    def _named(self, name: str, parameters: Parameters) -> Call:
        """A keyword argument begins."""
        filled = {parameters.positional[place] for place in range(min(self.count, len(parameters.positional)))}
        known = name in parameters.keywords or parameters.extra_keywords
        wrong = not self.unknown and (not known or name in self.given or name in filled)
        return replace(self, named=name, head=None, wrong=wrong)

    def _finish(self, parameters: Parameters, closing: bool) -> Call:
        """An argument ends, with a comma or with the call."""
        empty = self.head == b"" and self.named is None
        count, given = self.count, self.given
        if self.named is not None:
            given = given | {self.named}
        elif not empty:
            count += 1
        made = replace(
            self, head=b"", spaced=False, word=b"", named=None, count=count, given=given, closed=closing, lambdas=0
        )
        if self.unknown:
            return made
        missing = parameters.required - set(range(count)) - given
        missing -= {place for place in missing if isinstance(place, int) and parameters.positional[place] in given}
        left = parameters.extra or parameters.extra_keywords or next(made.free(parameters), None) is not None
        too_many = count > len(parameters.positional) and not parameters.extra
        return replace(made, wrong=too_many or (bool(missing) if closing else not left))

    def free(self, parameters: Parameters) -> Iterator[str | None]:
        """Parameters that were given nothing yet; ``None`` for one that has no name."""
        names = set(parameters.positional[: self.count]) | self.given
        yield from (name for name in parameters.positional[self.count :] if name is None or name not in names)
        yield from sorted(parameters.keywords - set(parameters.positional) - names)

    def stuck(self, parameters: Parameters) -> bool:
        """Whether the current argument is one too many: whatever comes, the call is wrong."""
        if self.unknown or self.named is not None or self.equals or self.head == b"":
            return False
        if self.count < len(parameters.positional) or parameters.extra:
            return False
        head = (self.head or b"").decode(errors="replace")
        named = parameters.extra_keywords or any(name and name.startswith(head) for name in self.free(parameters))
        return self.head is None or not named

    def by_name_only(self, parameters: Parameters) -> bool:
        """Whether, at the start of an argument, nothing but a keyword argument can come."""
        full = self.count >= len(parameters.positional) and not parameters.extra
        return bool(self.head is not None and not self.equals) and not self.unknown and (full or bool(self.given))


@dataclass(frozen=True)
class CallAnswer(Answer):
    """The signatures of the function that is called."""

    signatures: tuple[Parameters, ...]

    def mask(self, table: NameTable, lexicon: Lexicon, lead: bytes, since: bytes) -> NDArray[np.bool_] | None:
        masks = []
        for parameters in self.signatures:
            call = Call.start().feed(since, parameters)
            if call.closed or call.unknown:
                return None
            if not call.wrong and not call.stuck(parameters):
                masks.append(_call_mask(table, parameters, call.key))
        # A call that no signature takes was written before the monitor was asked.
        return np.logical_or.reduce(masks) if masks else None


def _call_mask(table: NameTable, parameters: Parameters, call: Call) -> NDArray[np.bool_]:
    """``[V]`` tokens that keep a call right; remembered, because most places of an argument are alike."""
    return table.remembered((parameters, call), lambda: _made_mask(table, parameters, call))


def _made_mask(table: NameTable, parameters: Parameters, call: Call) -> NDArray[np.bool_]:
    mask = np.ones(table.vocabulary.size, dtype=bool)
    shallow = len(call.scan.open) == 1 and call.scan.in_code
    if shallow and call.by_name_only(parameters) and not call.spaced and not parameters.extra_keywords:
        head = call.head or b""
        names = [f"{name}=".encode() for name in call.free(parameters) if name is not None]
        anything = bytes(byte for byte in range(256) if byte != 0x3D)
        named = Names(tuple(names), b")*" if not head else b"", blanks=True, breaks=anything)
        found = named.mask(table, call.scan.lexicon, b"", head)
        if found is not None:
            mask = found.copy()
    for token, string in table.remembered("marked", lambda: _marked(table.vocabulary)):
        # An equals sign at the end of a token may be the first of two; but vocabularies write two with one token.
        if mask[token] and call.feed(string + b" " if string.endswith(b"=") else string, parameters).wrong:
            mask[token] = False
    return mask


def _marked(vocabulary: Vocabulary) -> list[tuple[int, bytes]]:
    """The tokens that can end an argument, name it or close the call."""
    return [
        (token, string)
        for token, string in enumerate(vocabulary.tokens)
        if string is not None and not {0x2C, 0x29, 0x3D}.isdisjoint(string)
    ]


class PythonCalls(PythonMonitor):
    """Calls have the arguments that the function takes."""

    slug = "calls"

    def pre(self, cursor: Cursor) -> Trigger | None:
        opened = cursor.scan.open
        if not opened or opened[-1][0] != ")" or cursor.scan.mode == "line":
            return None
        at = opened[-1][1]
        callee = re.search(r"(?:\b([^\W\d]\w*)|[)\]])$", cursor.tail(at - 1))
        if callee is None or callee[1] in _KEYWORDS:
            return None
        if re.fullmatch(
            r"\s*(?:async\s+)?(?:def|class)\s+\w+\(", cursor.data[cursor.scan.line : at].decode(errors="replace")
        ):
            return None
        return Trigger(at)

    def analyse(self, question: Question) -> Answer | None:
        found = self._python.constructor(question) or self._python.signatures(question, Parameters.of)
        return CallAnswer(tuple(dict.fromkeys(found))) if found else None
