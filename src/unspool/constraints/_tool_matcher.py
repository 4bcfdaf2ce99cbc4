"""Where one text with calls of tools stands: in free text, in a call, or in what is written behind a call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unspool.constraints._automaton import DEAD
from unspool.constraints._matcher import Matcher

if TYPE_CHECKING:
    from unspool.constraints._tool_machine import ToolMachine


@dataclass(frozen=True)
class _Place:
    """Where a text stands.

    Attributes:
        mode: ``text``, ``call``, ``told`` (bytes that are given, ``state`` of them written) or ``over``.
        state: of the trigger in ``text``, of the automaton in ``call``.
        written: of the call so far; in ``told`` what is to be written.
        calls: made so far.
        after: where ``told`` leads to.
    """

    mode: str
    state: int = 0
    written: bytes = b""
    calls: int = 0
    after: str = "text"


class ToolMatcher(Matcher):
    """One text's place; see :class:`~unspool.constraints._matcher.Matcher`."""

    def __init__(
        self,
        machine: ToolMachine,
        places: list[_Place] | None = None,
        answers: dict[tuple[int, bytes], str] | None = None,
    ) -> None:
        self.machine = machine
        self.vocabulary = machine.vocabulary
        first = _Place("told", 0, machine.trigger, 0, "call") if machine.at_once else _Place("text")
        self.places = places or [first]
        # A call is made once for its place in the text, also if the text goes back over it and comes again.
        self._answers: dict[tuple[int, bytes], str] = {} if answers is None else answers

    @property
    def place(self) -> _Place:
        """Where the text stands; at the end of a call what comes of it has been found out."""
        place = self.places[-1]
        if place.mode == "call" and self.machine.finals[place.state]:
            place = self.places[-1] = self._answered(place)
        return place

    @property
    def awaits(self) -> bool:
        """Whether a call has just been completed, and nothing has been done about it."""
        place = self.places[-1]
        return place.mode == "call" and self.machine.finals[place.state]

    def _answered(self, place: _Place) -> _Place:
        calls = place.calls + 1
        over = bool(self.machine.most) and calls >= self.machine.most
        key = (len(self.places), place.written)
        if key not in self._answers:
            self._answers[key] = self.machine.run(self.machine.read(place.written))[1]
        told = self._writable(self._answers[key].encode())
        after = "over" if over else "text"
        return _Place("told", 0, told, calls, after) if told else _Place(after, 0, b"", calls)

    def _writable(self, text: bytes) -> bytes:
        """The text, with question marks for what the vocabulary cannot write."""
        spelled = self.machine.spelled
        return bytes(byte if spelled[byte] else 0x3F for byte in text)

    def mask(self) -> Tensor:
        place = self.place
        if place.mode == "text":
            return self.machine.text_mask(place.state)
        if place.mode == "call":
            return self.machine.call_mask(place.state)
        mask = torch.zeros(self.vocabulary.size, dtype=torch.bool)
        if place.mode == "over":
            mask[list(self.vocabulary.stop)] = True
            return mask
        rest = place.written[place.state :]
        for end in range(1, min(len(rest), self.vocabulary.longest) + 1):
            for token in self._tokens(rest[:end]):
                mask[token] = True
        return mask

    def _tokens(self, string: bytes) -> list[int]:
        made = self.vocabulary.forms.get("all by bytes")
        if made is None:
            made = {}
            for token, known in enumerate(self.vocabulary.tokens):
                if known is not None:
                    made.setdefault(known, []).append(token)
            self.vocabulary.forms["all by bytes"] = made
        return made.get(string, [])

    def consume(self, token: int) -> bool:
        string = self.vocabulary.tokens[token]
        if string is None:
            return False
        place: _Place | None = self.place
        for number, byte in enumerate(string):
            place = self._stepped(place, byte, last=number == len(string) - 1)  # type: ignore[arg-type]
            if place is None:
                return False
        assert place is not None
        self.places.append(place)
        return True

    def _stepped(self, place: _Place, byte: int, last: bool) -> _Place | None:
        machine = self.machine
        if place.mode == "text":
            matched = machine.advanced(place.state, byte)
            if matched < len(machine.trigger):
                return _Place("text", matched, b"", place.calls)
            # Tokens end with the trigger, so that what follows is a choice of its own.
            return _Place("call", 0, b"", place.calls) if last else None
        if place.mode == "call":
            if machine.finals[place.state]:
                return None
            state = machine.step(place.state, byte)
            return None if state == DEAD else _Place("call", state, place.written + bytes([byte]), place.calls)
        if place.mode == "over" or place.written[place.state] != byte:
            return None
        if place.state + 1 < len(place.written):
            return _Place("told", place.state + 1, place.written, place.calls, place.after)
        return (_Place("call" if place.after == "call" else place.after, 0, b"", place.calls)) if last else None

    def rollback(self, count: int) -> None:
        if count:
            del self.places[-count:]

    @property
    def accepting(self) -> bool:
        return self.place.mode in ("text", "over")

    @property
    def exhausted(self) -> bool:
        # Asked about texts that are only tried: a call that has just been completed is not made for that.
        return not self.awaits and self.place.mode == "over"

    def forced(self) -> bytes:
        place = self.place
        if place.mode == "told":
            return place.written[place.state :]
        return self.machine.forced(place.state) if place.mode == "call" else b""

    def shortest_end(self) -> bytes | None:
        place = self.place
        if place.mode == "told":
            return place.written[place.state :] if place.after != "call" else None
        if place.mode == "call":
            return self.machine.shortest(place.state)
        return b""

    def fork(self) -> Matcher:
        return ToolMatcher(self.machine, list(self.places), dict(self._answers))
