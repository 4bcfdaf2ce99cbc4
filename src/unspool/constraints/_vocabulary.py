"""A vocabulary as bytes: what every token writes, in the one form that grammars can be walked with.

Grammars speak of text, models of tokens. Between them stands the string of bytes that each token adds to a text;
decoded strings will not do, because a token may hold half a character. Three families of tokenizers are read:
byte-level BPE (the printable stand-ins of GPT-2 are turned back into bytes), SentencePiece with byte fallback
(``<0xNN>`` is a byte, the word mark a space) and WordPiece (a piece without ``##`` brings the space before it).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from unspool.core.errors import Incompatible
from unspool.core.model import LanguageModel

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_MARK = "\u2581"
_SPELLINGS = 4096
"""Spelled texts that are remembered; grammars force the same few over and over."""


@dataclass(frozen=True)
class Trie:
    """The byte strings of a vocabulary as a prefix tree, flattened in preorder.

    A node is the string of the bytes on its path; ``i + size[i]`` is the first node behind the subtree of node ``i``.

    Args:
        byte: ``[N]`` uint8, the last byte of each node's string.
        depth: ``[N]`` int32, the length of that string; 1 for the nodes at the top.
        size: ``[N]`` int32, nodes of the subtree, the node itself included.
        first: ``[N + 1]`` int32; the tokens with exactly that string are ``ids[first[i]:first[i + 1]]``.
        ids: ``[T]`` int32 token ids; several may share one string, nodes between tokens have none.
    """

    byte: NDArray[np.uint8]
    depth: NDArray[np.int32]
    size: NDArray[np.int32]
    first: NDArray[np.int32]
    ids: NDArray[np.int32]

    @classmethod
    def of(cls, tokens: Sequence[bytes | None]) -> Trie:
        """The tree of those tokens that have bytes. Takes about a second for 250,000 of them."""
        strings = sorted((string, token) for token, string in enumerate(tokens) if string)
        byte = bytearray()
        depth: list[int] = []
        counts: list[int] = []
        open_nodes: list[int] = []
        size: list[int] = []
        before = b""
        for string, _ in strings:
            if string == before:
                counts[-1] += 1
                continue
            shared = 0
            for ours, theirs in zip(string, before, strict=False):
                if ours != theirs:
                    break
                shared += 1
            for node in open_nodes[shared:]:
                size[node] = len(depth) - node
            del open_nodes[shared:]
            for place in range(shared, len(string)):
                open_nodes.append(len(depth))
                byte.append(string[place])
                depth.append(place + 1)
                size.append(1)
                counts.append(0)
            counts[-1] = 1
            before = string
        for node in open_nodes:
            size[node] = len(depth) - node
        return cls(
            np.frombuffer(bytes(byte), dtype=np.uint8),
            np.array(depth, dtype=np.int32),
            np.array(size, dtype=np.int32),
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int32),
            np.array([token for _, token in strings], dtype=np.int32),
        )

    def __len__(self) -> int:
        return len(self.byte)


class Vocabulary:
    """What every token writes.

    Args:
        tokens: bytes by token id, as wide as the logits; ``None`` for special tokens and padding, which no grammar
            allows.
        stop: the tokens that end a text; they have no bytes.
        heads: where the first token of a text writes something else than later ones (WordPiece brings no space there):
            bytes by token id; ``None`` if there is no difference.
        encode: the tokenizer's own tokenisation of whole characters, without special tokens around it; ``None``
            leaves it to the fewest tokens.

    Attributes:
        size: width of the logits.
        forms: what engines have made of this vocabulary, by their own keys.
    """

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        stop: frozenset[int] = frozenset(),
        heads: Sequence[bytes | None] | None = None,
        encode: Callable[[str], list[int]] | None = None,
    ) -> None:
        # A token that writes nothing could be repeated for ever.
        self.tokens: tuple[bytes | None, ...] = tuple(
            None if token in stop or not string else string for token, string in enumerate(tokens)
        )
        self.heads = (
            None
            if heads is None
            else tuple(None if token in stop else heads[token] or None for token in range(len(tokens)))
        )
        self.stop = frozenset(token for token in stop if token < len(self.tokens))
        self.size = len(self.tokens)
        self._encode = encode
        self._spelled: dict[bytes, list[int]] = {}
        self.forms: dict[Any, Any] = {}

    @classmethod
    def of(cls, model: LanguageModel) -> Vocabulary:
        """The vocabulary of a model; the same object when asked again.

        A tokenizer that is none of Hugging Face's may say itself what its tokens write: ``token_bytes``, bytes or
        ``None`` by token id.

        Raises:
            Incompatible: if the model has no tokenizer, or one whose tokens cannot be read as bytes.
        """
        known = _KNOWN.get(model)
        if known is None or known.stop != model.stop_tokens or known.size != model.vocab_size:
            known = _KNOWN[model] = _read(model)
        return known

    @cached_property
    def trie(self) -> Trie:
        """All byte strings as a prefix tree."""
        return Trie.of(self.tokens)

    @cached_property
    def with_heads(self) -> Vocabulary:
        """A vocabulary twice as wide: token ``size + i`` writes what token ``i`` writes at the start of a text."""
        assert self.heads is not None
        return Vocabulary([*self.tokens, *self.heads], self.stop)

    @cached_property
    def by_bytes(self) -> dict[bytes, int]:
        """The first token of every byte string."""
        found: dict[bytes, int] = {}
        for token, string in enumerate(self.tokens):
            if string is not None:
                found.setdefault(string, token)
        return found

    @cached_property
    def by_byte(self) -> dict[int, int]:
        """The token that writes a byte alone, by byte; bytes without one are left out."""
        return {string[0]: token for string, token in self.by_bytes.items() if len(string) == 1}

    @cached_property
    def longest(self) -> int:
        """Bytes of the longest token."""
        return max(map(len, self.by_bytes), default=0)

    def bytes_of(self, tokens: Sequence[int]) -> bytes:
        """What these tokens write in the middle of a text; special tokens write nothing."""
        return b"".join(self.tokens[token] or b"" for token in tokens)

    def spell(self, data: bytes) -> list[int]:
        """The tokens that the tokenizer writes a text with.

        The text may begin and end within a character; what belongs to no whole character is written with the fewest
        tokens. If the vocabulary cannot write all of it, the tokens of its longest beginning that can be written.
        """
        known = self._spelled.get(data)
        if known is None:
            if len(self._spelled) >= _SPELLINGS:
                self._spelled.clear()
            known = self._spelled[data] = self._spell(data)
        return list(known)

    def _spell(self, data: bytes) -> list[int]:
        begin = 0
        while begin < min(3, len(data)) and data[begin] & 0xC0 == 0x80:
            begin += 1
        end = len(data)
        for back in range(1, min(3, end - begin) + 1):
            lead = data[end - back]
            if lead & 0xC0 != 0x80:
                needed = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
                end = end - back if needed > back else end
                break
        whole = self._encoded(data[begin:end])
        if whole is None:
            return self._fewest(data)
        head = self._fewest(data[:begin])
        if self.bytes_of(head) != data[:begin]:
            return head
        return head + whole + self._fewest(data[end:])

    def _encoded(self, data: bytes) -> list[int] | None:
        """The tokenizer's own tokens, if they write exactly this."""
        if not data:
            return []
        if self._encode is None:
            return None
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return None
        # Some tokenizers put a space before a text: behind other text they do not.
        for before in ("", "\n", "a\n"):
            skipped = self._encode(before) if before else []
            found = self._encode(before + text)
            if found[: len(skipped)] == skipped and self.bytes_of(found[len(skipped) :]) == data:
                return found[len(skipped) :]
        return None

    def _fewest(self, data: bytes) -> list[int]:
        """The fewest tokens that write ``data``, or its longest beginning that can be written."""
        ways: list[tuple[int, int, int] | None] = [(0, -1, -1)] + [None] * len(data)
        for place in range(len(data)):
            way = ways[place]
            if way is None:
                continue
            for after in range(place + 1, min(len(data), place + self.longest) + 1):
                token = self.by_bytes.get(data[place:after])
                known = ways[after]
                if token is not None and (known is None or known[0] > way[0] + 1):
                    ways[after] = (way[0] + 1, place, token)
        place = max(place for place, way in enumerate(ways) if way is not None)
        tokens: list[int] = []
        while place > 0:
            way = ways[place]
            assert way is not None
            tokens.append(way[2])
            place = way[1]
        return tokens[::-1]


_KNOWN: WeakKeyDictionary[LanguageModel, Vocabulary] = WeakKeyDictionary()


def _read(model: LanguageModel) -> Vocabulary:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Incompatible(f"a constraint needs a tokenizer, and {model.name} has none")
    own = getattr(tokenizer, "token_bytes", None)
    if own is not None:
        return Vocabulary(_wide(own, model.vocab_size), model.stop_tokens, None, getattr(tokenizer, "spell", None))
    backend = getattr(tokenizer, "backend", None)
    if backend is None:
        raise Incompatible(
            f"a constraint has to know what every token writes; the tokenizer of {model.name} "
            f"({type(getattr(tokenizer, 'hf', tokenizer)).__name__}) does not tell: use a fast tokenizer"
        )
    described: dict[str, Any] = json.loads(backend.to_str())
    special = {token["id"] for token in described.get("added_tokens", []) if token["special"]}
    special |= tokenizer.special_ids
    pieces = {
        token: piece for piece, token in backend.get_vocab(with_added_tokens=True).items() if token not in special
    }

    def encode(text: str) -> list[int]:
        return list(backend.encode(text, add_special_tokens=False).ids)

    heads = None
    decoders = _types(described.get("decoder"))
    if "ByteLevel" in decoders:
        table = byte_level_table()
        strings = {token: _from_byte_level(piece, table) for token, piece in pieces.items()}
    elif "WordPiece" in decoders:
        decode = backend.decoder.decode
        # The decoder is asked, because it also takes the space before some punctuation away again.
        strings = {token: decode(["a", piece])[1:].encode() for token, piece in pieces.items()}
        heads = _wide({token: decode([piece]).encode() for token, piece in pieces.items()}, model.vocab_size)
    elif "ByteFallback" in decoders or "Metaspace" in decoders or described["model"].get("byte_fallback"):
        strings = {token: _from_sentencepiece(piece) for token, piece in pieces.items()}
    else:
        raise Incompatible(
            f"a constraint has to know what every token writes; the tokenizer of {model.name} is neither byte-level "
            f"BPE, SentencePiece nor WordPiece (its decoder: {', '.join(decoders) or 'none'})"
        )
    return Vocabulary(_wide(strings, model.vocab_size), model.stop_tokens, heads, encode)


def _types(decoder: dict[str, Any] | None) -> list[str]:
    if decoder is None:
        return []
    return [decoder["type"], *(name for inner in decoder.get("decoders", []) for name in _types(inner))]


def _wide(strings: Any, size: int) -> list[bytes | None]:
    """By token id, as wide as the logits: a model may have more rows than its tokenizer has tokens, or fewer."""
    row: list[bytes | None] = [None] * size
    for token, string in strings.items() if isinstance(strings, dict) else enumerate(strings):
        if token < size:
            row[token] = string
    return row


def byte_level_table() -> dict[str, int]:
    """The byte that each character of a byte-level piece stands for (Radford et al., GPT-2, 2019).

    Printable bytes of Latin-1 stand for themselves, the others for the characters from 256 on, in order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {chr(256 + place): byte for place, byte in enumerate(others)}


def _from_byte_level(piece: str, table: dict[str, int]) -> bytes:
    try:
        return bytes([table[character] for character in piece])
    except KeyError:
        # An added token holds its text as it is.
        return piece.encode()


def _from_sentencepiece(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_WORD_MARK, " ").encode()
