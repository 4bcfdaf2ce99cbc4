"""Where a cursor stands in source text: in code or not, in which brackets, on which line. A fold over bytes.

It knows as much of a language as is needed to tell code from strings and comments, and nothing that unfinished code
could break. A string of one line that is left open ends with the line."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

_OPENERS = {ord("("): ")", ord("["): "]", ord("{"): "}"}
_CLOSERS = frozenset(b")]}")
_NEWLINE = 0x0A
_BACKSLASH = 0x5C


@dataclass(frozen=True)
class Lexicon:
    """The lexical rules of a language.

    Args:
        name: of the language.
        comment: what begins a comment up to the end of the line.
        block: whether ``/* */`` is a comment.
        quotes: the bytes that open a string and close it.
        triple: whether three quotes open a string of several lines.
        identifiers: bytes of identifiers beside ASCII letters, digits, the underscore and everything above ASCII.
        lines: whether a line end outside of brackets ends a statement.
        hashes: whether ``r#"..."#`` is a string, and ``'`` may be no quote (lifetimes of Rust).
        verbatim: whether ``@"..."`` is a string without escapes (C#).
    """

    name: str
    comment: bytes
    block: bool = True
    quotes: bytes = b"\"'"
    triple: bool = False
    identifiers: bytes = b""
    lines: bool = False
    hashes: bool = False
    verbatim: bool = False

    def is_word(self, byte: int) -> bool:
        """Whether a byte may stand in an identifier."""
        return byte in _WORD or byte >= 0x80 or byte in self.identifiers

    @property
    def breaks(self) -> bytes:
        """The break characters: bytes that end an identifier when they follow it."""
        return bytes(byte for byte in range(256) if not self.is_word(byte))


_WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")

LEXICONS = {
    lexicon.name: lexicon
    for lexicon in (
        Lexicon("python", b"#", block=False, triple=True, lines=True),
        Lexicon("java", b"//", triple=True, identifiers=b"$"),
        Lexicon("rust", b"//", hashes=True),
        Lexicon("csharp", b"//", triple=True, verbatim=True),
    )
}


@dataclass(frozen=True, slots=True)
class Scan:
    """The state of the fold after a text.

    Args:
        lexicon: the language.
        mode: ``code``, ``line`` (a comment), ``block``, ``string``; ``quote`` and ``empty`` after the first and second
            quote of what may become a string of three; ``tick`` after a ``'`` that may be a lifetime; ``brace`` after a
            ``{`` in a formatted string.
        close: what ends a string.
        recent: the last bytes that may belong to a longer mark.
        escape: whether a backslash in a string has just been read.
        raw: whether backslashes mean nothing in this string.
        formatted: whether ``{`` in this string begins code.
        held: formatted strings whose code is being read: how many brackets were open, what closes them, and whether
            they are raw.
        open: the brackets that are open, outermost first: the closing bracket and the offset behind the opening one.
        line: the offset where the current statement begins.
        end: bytes read.
    """

    lexicon: Lexicon
    mode: str = "code"
    close: bytes = b""
    recent: bytes = b""
    escape: bool = False
    raw: bool = False
    formatted: bool = False
    held: tuple[tuple[int, bytes, bool], ...] = ()
    open: tuple[tuple[str, int], ...] = ()
    line: int = 0
    end: int = 0

    @property
    def in_code(self) -> bool:
        return self.mode == "code" or self.mode == "empty"

    @property
    def closers(self) -> str:
        """What would close what is open, innermost first: brackets, and formatted strings around code."""
        strings = {depth: close.decode() for depth, close, _ in self.held}
        return "".join(self.open[place][0] + strings.get(place, "") for place in reversed(range(len(self.open))))

    def feed(self, data: bytes) -> Scan:
        """The state after some more bytes."""
        scan = self
        for byte in data:
            scan = scan._step(byte)
        return scan

    def _step(self, byte: int) -> Scan:
        end = self.end + 1
        mode = self.mode
        if mode == "code":
            return self._code(byte, end)
        if mode == "line":
            if byte != _NEWLINE:
                return replace(self, end=end)
            return replace(self, mode="code", recent=b"")._code(byte, end)
        if mode == "block":
            recent = (self.recent + bytes([byte]))[-2:]
            return replace(self, mode="code" if recent == b"*/" else mode, recent=recent, end=end)
        if mode == "string":
            return self._string(byte, end)
        if mode == "quote":
            if bytes([byte]) == self.close:
                return replace(self, mode="empty", end=end)
            return replace(self, mode="string", recent=b"")._string(byte, end)
        if mode == "empty":
            if bytes([byte]) == self.close:
                return replace(self, mode="string", close=self.close * 3, recent=b"", end=end)
            return replace(self, mode="code", close=b"", recent=b"", formatted=False)._code(byte, end)
        if mode == "brace":
            if byte == 0x7B:
                return replace(self, mode="string", recent=b"", end=end)
            held = (*self.held, (len(self.open), self.close, self.raw))
            opened = (*self.open, ("}", self.end))
            code = replace(self, mode="code", close=b"", recent=b"", raw=False, formatted=False, held=held, open=opened)
            return code._step(byte)
        # mode == "tick": a character ('x', '\n') or a lifetime ('a)
        if byte == _BACKSLASH:
            return replace(self, mode="string", close=b"'", escape=True, recent=b"", end=end)
        if self.recent and byte == 0x27:
            return replace(self, mode="code", recent=b"", end=end)
        if not self.recent or byte >= 0x80:
            return replace(self, recent=b"x", end=end)
        return replace(self, mode="code", recent=b"")._code(byte, end)

    def _string(self, byte: int, end: int) -> Scan:
        if self.escape:
            return replace(self, escape=False, recent=b"", end=end)
        if byte == _BACKSLASH and not self.raw:
            return replace(self, escape=True, recent=b"", end=end)
        recent = (self.recent + bytes([byte]))[-len(self.close) :]
        if recent == self.close:
            return replace(self, mode="code", close=b"", recent=b"", raw=False, formatted=False, end=end)
        if byte == 0x7B and self.formatted:
            return replace(self, mode="brace", recent=b"", end=end)
        if byte == _NEWLINE and len(self.close) == 1 and not self.raw and not self.lexicon.hashes:
            return replace(self, mode="code", close=b"", recent=b"", formatted=False)._code(byte, end)
        return replace(self, recent=recent, end=end)

    def _code(self, byte: int, end: int) -> Scan:
        lexicon = self.lexicon
        recent = (self.recent + bytes([byte]))[-8:]
        if byte in lexicon.quotes:
            before = recent[:-1]
            if lexicon.hashes and byte == 0x27:
                return replace(self, mode="tick", recent=b"", end=end)
            if lexicon.hashes and before.rstrip(b"#").endswith(b"r"):
                hashes = len(before) - len(before.rstrip(b"#"))
                return replace(self, mode="string", close=b'"' + b"#" * hashes, recent=b"", raw=True, end=end)
            quote = bytes([byte])
            if lexicon.verbatim and byte == 0x22 and before.endswith((b"@", b"@$")):
                return replace(self, mode="string", close=quote, recent=b"", raw=True, end=end)
            prefix = re.search(rb"(?<![A-Za-z0-9_])[A-Za-z]{1,2}$", before) if lexicon.name == "python" else None
            if prefix is not None and b"f" in prefix[0].lower():
                return replace(self, mode="quote", close=quote, recent=b"", formatted=True, end=end)
            triple = lexicon.triple and (lexicon.name == "python" or byte == 0x22)
            return replace(self, mode="quote" if triple else "string", close=quote, recent=b"", end=end)
        if recent.endswith(lexicon.comment):
            return replace(self, mode="line", recent=b"", end=end)
        if lexicon.block and recent.endswith(b"/*"):
            return replace(self, mode="block", recent=b"", end=end)
        opened, line, held = self.open, self.line, self.held
        if held and (byte == 0x7D or (byte == _NEWLINE and len(held[-1][1]) == 1)) and len(opened) > held[-1][0]:
            depth, close, raw = held[-1]
            if byte == _NEWLINE or len(opened) == depth + 1:
                # Its code has ended, and the string goes on; at a line end the string was never closed.
                mode = "string" if byte == 0x7D else "code"
                rest = Scan(lexicon, mode, close if byte == 0x7D else b"", b"", False, raw and byte == 0x7D)
                return replace(rest, formatted=byte == 0x7D, held=held[:-1], open=opened[:depth], line=line, end=end)
        if byte in _OPENERS:
            opened = (*opened, (_OPENERS[byte], end))
        elif byte in _CLOSERS and opened:
            # A wrong closing bracket is taken for the right one: unfinished code has some of each.
            opened = opened[:-1]
        if lexicon.lines:
            if (byte == _NEWLINE and not opened and not recent.endswith(b"\\\n")) or (byte == 0x3B and not opened):
                line = end
        elif byte in b";{}":
            line = end
        return Scan(lexicon, "code", b"", recent, False, False, False, held, opened, line, end)
