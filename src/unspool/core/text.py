"""From tokens to text as it grows: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.core.model import Tokenizer

_REPLACEMENT = "\ufffd"
# The longest UTF-8 character has four bytes: if as many tokens complete none, only the last of the replacement
# characters at the end may still become one.
_LONGEST_CHARACTER = 4


class TextStream:
    """Turns a growing list of tokens into pieces of text.

    A piece is released when it can no longer change: an unfinished UTF-8 character is held back, and so is the
    beginning of a stop string. Text from a stop string onwards is never released.

    Args:
        tokenizer: anything with ``decode(ids) -> str``.
        stops: the stop strings, none of them empty.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Decoding starts a little before the new tokens, because tokenizers treat the first token of a text specially:
        # at ``_context``, of whose text ``_sent`` characters were taken. Up to ``_whole`` it ends with a whole
        # character.
        self._context = 0
        self._whole = 0
        self._sent = 0
        self._waiting = 0
        self._held = ""
        self._text: list[str] = []
        self.stopped: str | None = None

    @property
    def text(self) -> str:
        """Everything released so far."""
        return "".join(self._text)

    def push(self, token: int) -> str:
        """Take one token; return the text that it releases. After a stop string was completed nothing is released."""
        if self.stopped is not None:
            return ""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids[self._context :])
        whole = len(text.rstrip(_REPLACEMENT))
        self._waiting = self._waiting + 1 if whole < len(text) else 0
        if whole < len(text) and whole <= self._sent and self._waiting >= _LONGEST_CHARACTER:
            piece = text[self._sent : -1]
        else:
            piece = text[self._sent : whole]
        if not piece:
            return ""
        self._waiting = 0
        if whole == len(text):
            self._context, self._whole = self._whole, len(self._ids)
            self._sent = len(self._tokenizer.decode(self._ids[self._context :]))
        else:
            self._sent += len(piece)
        return self._release(piece)

    def flush(self) -> str:
        """Release what was held back: the text ends here."""
        rest = ""
        if self.stopped is None:
            rest = self._tokenizer.decode(self._ids[self._context :])[self._sent :]
            self._sent += len(rest)
        released = self._release(rest)
        if self.stopped is None and self._held:
            released += self._held
            self._text.append(self._held)
            self._held = ""
        return released

    def _release(self, piece: str) -> str:
        text = self._held + piece
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            self._held = ""
            out = text[:at]
        else:
            keep = max((_overlap(text, stop) for stop in self._stops), default=0)
            out, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if out:
            self._text.append(out)
        return out


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
