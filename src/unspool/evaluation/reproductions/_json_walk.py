"""JSON as a byte-level pushdown automaton, walked over a vocabulary's tree: the mask engine without any precomputation.

It is the baseline that mask engines are measured against, and an independent answer to which tokens are allowed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._vocabulary import Vocabulary

GRAMMAR = r"""
root ::= object
value ::= object | array | string | number | "true" ws | "false" ws | "null" ws
object ::= "{" ws (string ":" ws value ("," ws string ":" ws value)*)? "}" ws
array ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" char* "\"" ws
char ::= [^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)
hex ::= [0-9a-fA-F]
number ::= "-"? ("0" | [1-9] [0-9]*) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= [ \t\n]*
"""
"""The same language in GBNF."""

_SPACE = frozenset(b" \t\n")
_DIGITS = frozenset(b"0123456789")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_WORDS = {ord("t"): b"rue", ord("f"): b"alse", ord("n"): b"ull"}
# Lead bytes of UTF-8, with the range of the next byte and how many follow it (RFC 3629).
_LEADS = (
    dict.fromkeys(range(0xC2, 0xE0), (0x80, 0xBF, 0))
    | dict.fromkeys(range(0xE1, 0xF0), (0x80, 0xBF, 1))
    | dict.fromkeys(range(0xF1, 0xF4), (0x80, 0xBF, 2))
    | {0xE0: (0xA0, 0xBF, 1), 0xED: (0x80, 0x9F, 1), 0xF0: (0x90, 0xBF, 2), 0xF4: (0x80, 0x8F, 2)}
)

State = tuple[str, object, tuple[str, ...]]
"""Where in the innermost part, a note about it, and what surrounds it, the outermost first."""

START: State = ("open", None, ())


def push(state: State, byte: int) -> State | None:
    """One more byte; ``None`` if no text of JSON begins so. Numbers end with the byte behind them."""
    where, note, around = state
    match where:
        case "open":
            return ("key or end", None, ("object",)) if byte == ord("{") else None
        case "string" | "key":
            return _string(where, note, around, byte)
        case "word":
            assert isinstance(note, bytes)
            if byte != note[0]:
                return None
            return ("word", note[1:], around) if len(note) > 1 else ("after", None, around)
        case "number":
            return _number(str(note), around, byte)
    if byte in _SPACE:
        return state
    match where:
        case "key or end" | "key next":
            if byte == ord('"'):
                return "key", None, around
            return ("after", None, around[:-1]) if byte == ord("}") and where == "key or end" else None
        case "colon":
            return ("value", None, around) if byte == ord(":") else None
        case "value" | "value or end":
            if where == "value or end" and byte == ord("]"):
                return "after", None, around[:-1]
            return _value(around, byte)
        case _:
            return _after(around, byte)


def _value(around: tuple[str, ...], byte: int) -> State | None:
    if byte == ord("{"):
        return "key or end", None, (*around, "object")
    if byte == ord("["):
        return "value or end", None, (*around, "array")
    if byte == ord('"'):
        return "string", None, around
    if byte in _WORDS:
        return "word", _WORDS[byte], around
    if byte == ord("-"):
        return "number", "sign", around
    if byte in _DIGITS:
        return "number", "zero" if byte == ord("0") else "digits", around
    return None


def _after(around: tuple[str, ...], byte: int) -> State | None:
    if not around:
        return None
    inside = around[-1]
    if byte == ord(","):
        return ("key next" if inside == "object" else "value", None, around)
    return ("after", None, around[:-1]) if byte == ord("}" if inside == "object" else "]") else None


def _string(where: str, note: object, around: tuple[str, ...], byte: int) -> State | None:
    if isinstance(note, tuple):
        low, high, more = note
        if not low <= byte <= high:
            return None
        return where, (0x80, 0xBF, more - 1) if more else None, around
    if isinstance(note, int):
        return (where, note - 1 or None, around) if byte in _HEX else None
    if note == "escape":
        if byte == ord("u"):
            return where, 4, around
        return (where, None, around) if byte in b'"\\/bfnrt' else None
    if byte == ord('"'):
        return ("after" if where == "string" else "colon"), None, around
    if byte == ord("\\"):
        return where, "escape", around
    if byte >= 0x80:
        return (where, _LEADS[byte], around) if byte in _LEADS else None
    return (where, None, around) if byte >= 0x20 else None


def _number(part: str, around: tuple[str, ...], byte: int) -> State | None:
    if byte in _DIGITS:
        following = {
            "sign": "zero" if byte == ord("0") else "digits", "digits": "digits", "point": "fraction",
            "fraction": "fraction", "e": "power", "e sign": "power", "power": "power",
        }.get(part)  # fmt: skip
        return ("number", following, around) if following else None
    if part in ("zero", "digits") and byte == ord("."):
        return "number", "point", around
    if part in ("zero", "digits", "fraction") and byte in b"eE":
        return "number", "e", around
    if part == "e" and byte in b"+-":
        return "number", "e sign", around
    if part in ("sign", "point", "e", "e sign"):
        return None
    return ("after", None, around) if byte in _SPACE else _after(around, byte)


def read(state: State | None, data: bytes) -> State | None:
    for byte in data:
        if state is None:
            return None
        state = push(state, byte)
    return state


def complete(state: State) -> bool:
    return state == ("after", None, ())


class Walker:
    """Masks by one walk over the whole tree for each, in plain Python.

    Args:
        vocabulary: whose tokens are asked about.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        trie = vocabulary.trie
        self.vocabulary = vocabulary
        self._byte, self._depth, self._size = trie.byte.tolist(), trie.depth.tolist(), trie.size.tolist()
        self._first, self._ids = trie.first.tolist(), trie.ids.tolist()

    def mask(self, state: State) -> NDArray[np.bool_]:
        """``[V]`` the tokens that may follow; a refused node takes its subtree with it."""
        byte, depth, size, first, ids = self._byte, self._depth, self._size, self._first, self._ids
        states: list[State] = [state]
        found: list[int] = []
        node = 0
        while node < len(byte):
            del states[depth[node] :]
            after = push(states[-1], byte[node])
            if after is None:
                node += size[node]
            else:
                states.append(after)
                found.extend(ids[first[node] : first[node + 1]])
                node += 1
        allowed = np.zeros(self.vocabulary.size, dtype=np.bool_)
        allowed[found] = True
        allowed[list(self.vocabulary.stop)] = complete(state)
        return allowed
