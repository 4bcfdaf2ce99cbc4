"""From tokens to text as it grows: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
        # Of some tokenizers no token has a text before all are there (see `CircuitTokenizer`).
        self._whole_only = bool(getattr(tokenizer, "whole", False))
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
        if self._whole_only:
            return ""
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


def spelled(
    tokenizer: Tokenizer, tokens: Sequence[int], left_out: Collection[int] = (), stops: Sequence[str] = ()
) -> tuple[str, list[tuple[int, int]]]:
    """The text of some tokens as :class:`TextStream` releases it, and which characters of it each of them writes.

    Args:
        left_out: tokens that are no text (stop tokens).
        stops: strings that end the text and are no part of it.

    Returns:
        The text, and for every token the characters ``[start, end)`` that it writes. Tokens that write a character
        together all have it; what writes none, or only what is cut away, has an empty span.
    """
    stream = TextStream(tokenizer)
    spans: list[tuple[int, int]] = []
    waiting: list[int] = []
    length = 0
    for place, token in enumerate(tokens):
        spans.append((length, length))
        if token in left_out:
            continue
        piece = stream.push(token)
        if not piece:
            waiting.append(place)
            continue
        spans[place] = (length, length + len(piece))
        for other in waiting:
            spans[other] = (length, length + 1)
        waiting.clear()
        length += len(piece)
    rest = stream.flush()
    for other in waiting:
        spans[other] = (length, length + len(rest))
    cut = TextStream(tokenizer, stops)
    text = "".join(cut.push(token) for token in tokens if token not in left_out) + cut.flush()
    return text, [(min(start, len(text)), min(end, len(text))) for start, end in spans]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
