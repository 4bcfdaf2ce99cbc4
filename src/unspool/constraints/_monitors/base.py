"""The interface of monitors: where one has something to say, what it asks, and what follows from the answer.

A monitor has two states. In the first, ``S0``, it allows everything; :meth:`Monitor.pre` looks at the text and tells
whether a place is reached where the analysis is to be asked (a trigger). A non-empty :class:`Answer` leads to the
second, in which the answer masks tokens until the text has moved past it. Both the place of the trigger and what was
written since are read off the text itself, so the state after a text is a function of the text: it can be asked for at
any place of a draft tree, after a step back, or in a batch."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._monitors.lexical import Lexicon, Scan
from unspool.constraints._monitors.names import NameTable

_NEAR = 400
"""Bytes before the cursor that are read to see what the cursor stands behind."""


@dataclass(frozen=True)
class Cursor:
    """A text up to the place where the next token is chosen.

    Args:
        data: the text as UTF-8; its end may lie within a character.
        scan: the lexical state there.
    """

    data: bytes
    scan: Scan

    def tail(self, end: int | None = None) -> str:
        """The last few hundred bytes before ``end`` as text."""
        end = len(self.data) if end is None else end
        return self.data[max(end - _NEAR, 0) : end].decode(errors="replace")

    @property
    def word(self) -> int:
        """Where the identifier begins that the text ends in; the end of the text if it ends in none."""
        place = len(self.data)
        while place > 0 and self.scan.lexicon.is_word(self.data[place - 1]):
            place -= 1
        return place

    @property
    def statement(self) -> str:
        """The current statement so far."""
        return self.data[self.scan.line :].decode(errors="replace")


@dataclass(frozen=True)
class Trigger:
    """A place at which the analysis is asked.

    Args:
        at: the offset up to which the text is given to the analysis; the answer begins there.
        lead: what stands before the answer and is not written yet: only tokens that begin with it are constrained.
            Tokens may run over a trigger; ``import`` is followed by a token that begins with a space.
        what: what is asked, where a monitor asks several kinds of questions.
    """

    at: int
    lead: bytes = b""
    what: str = ""


@dataclass(frozen=True)
class Question:
    """A trigger with the text that the analysis sees.

    Args:
        before: up to the trigger, what leads to it included.
        after: behind the cursor.
        closers: the brackets that are open at the trigger, closed, innermost first.
        what: see :class:`Trigger`.
    """

    before: str
    after: str
    closers: str
    what: str

    @property
    def position(self) -> tuple[int, int]:
        """Line (from 0) and column (in characters) of the trigger."""
        return self.before.count("\n"), len(self.before) - self.before.rfind("\n") - 1

    def variants(self) -> list[str]:
        """The text behind the trigger as it is, and with the brackets closed that it leaves open."""
        missing = self.closers
        for bracket in re.findall(r"[)\]}]", self.after):
            if not missing.startswith(bracket):
                break
            missing = missing[1:]
        return [self.after, missing + self.after] if missing else [self.after]


class Answer(ABC):
    """What an analysis knows of a place."""

    @abstractmethod
    def mask(self, table: NameTable, lexicon: Lexicon, lead: bytes, since: bytes) -> NDArray[np.bool_] | None:
        """``[V]`` tokens that may follow; ``None`` if there is nothing to say any more.

        Args:
            table: the vocabulary.
            lexicon: the language.
            lead: as in the trigger.
            since: what was written behind the trigger.
        """


@dataclass(frozen=True)
class Names(Answer):
    """One of some names has to come.

    Args:
        names: the names; empty for "nothing that begins like a name may come" (of use with a lead alone).
        instead: tokens that begin with one of these bytes may come instead of a name.
        blanks: whether white space may stand before the name.
        breaks: bytes that end a name; those of the language if empty.
    """

    names: tuple[bytes, ...]
    instead: bytes = b""
    blanks: bool = False
    breaks: bytes = b""

    def mask(self, table: NameTable, lexicon: Lexicon, lead: bytes, since: bytes) -> NDArray[np.bool_] | None:
        left = [lead + name[len(since) :] for name in self.names if name.startswith(since)]
        if self.blanks and not since:
            left += [b" " + name for name in left]
        if self.names and not left and not lead:
            # The text has left the names before the monitor was asked: it knows less than the writer.
            return None
        mask = table.mask(left, self.breaks or lexicon.breaks)
        if not since:
            for byte in self.instead:
                mask = mask | table.starting_with(lead + bytes([byte]))
            if self.blanks:
                mask = mask | table.blank
        if lead:
            mask = mask | ~table.starting(lead)
        return mask


@dataclass(frozen=True)
class Without(Answer):
    """Some names may not come; any other may, known or not, unless it begins as only those do.

    Args:
        wrong: those that may not come.
        known: some that may: what is the beginning of one of these stays open.
    """

    wrong: tuple[bytes, ...]
    known: tuple[bytes, ...]

    def mask(self, table: NameTable, lexicon: Lexicon, lead: bytes, since: bytes) -> NDArray[np.bool_] | None:
        wrong, known = (
            [lead + name[len(since) :] for name in names if name.startswith(since)]
            for names in (self.wrong, self.known)
        )
        if not wrong:
            return None
        return ~(table.mask(wrong, lexicon.breaks) & ~table.mask(known, lexicon.breaks))


@dataclass(frozen=True)
class NotCalled(Answer):
    """What stands before the trigger is no function: no bracket may open behind it."""

    def mask(self, table: NameTable, lexicon: Lexicon, lead: bytes, since: bytes) -> NDArray[np.bool_] | None:
        return None if since.strip(b" ") else ~table.calling


class Monitor(ABC):
    """Watches a text for places where an analysis of the code knows what may come.

    Class attributes:
        slug: its name in the settings.
        languages: whose code it reads.
    """

    slug: ClassVar[str]
    languages: ClassVar[frozenset[str]]

    @abstractmethod
    def pre(self, cursor: Cursor) -> Trigger | None:
        """The trigger that ``cursor`` stands at or behind, if the answer is still of use there."""

    @abstractmethod
    def analyse(self, question: Question) -> Answer | None:
        """Ask the analysis; called in the background. ``None`` if it knows nothing."""


RECEIVER = re.compile(r"(?:\b[^\W\d]\w*|[)\]}\"'])\s*$")
"""What may stand before the dot of an attribute; a number may not."""


class Attributes(Monitor):
    """Base of what knows the names behind a dot.

    Args:
        leads: the marks behind which names come.
        merged: whether the vocabulary has tokens that begin with such a mark and go on with a name.
    """

    def __init__(self, leads: tuple[bytes, ...] = (b".",), merged: bool = False) -> None:
        self._leads = leads
        self._merged = merged

    def pre(self, cursor: Cursor) -> Trigger | None:
        if not cursor.scan.in_code:
            return None
        word = cursor.word
        for lead in self._leads:
            if cursor.data[:word].endswith(lead) and RECEIVER.search(cursor.tail(word - len(lead))):
                return Trigger(word)
        # At the end of an expression a token may bring the dot and a name at once.
        if self._merged and RECEIVER.search(cursor.tail()):
            return Trigger(len(cursor.data), lead=self._leads[0])
        return None
