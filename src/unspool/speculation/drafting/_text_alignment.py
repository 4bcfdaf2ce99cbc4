"""Two tokenizers and one text: what one model wrote, in the tokens of the other.

Tokenising is no homomorphism: the tokens of a text and of its continuation may differ some way back. So only a window
is encoded again; it is laid over what is there, and what differs is replaced. The target's own tokens are never
touched, and a character whose bytes are not all there yet is held back.

Paper: Timor et al., Accelerating LLM Inference with Lossless Speculative Decoding Algorithms for Heterogeneous
Vocabularies, 2025 (section 3.1 and appendix).
"""

from __future__ import annotations

from collections.abc import Sequence

from unspool.core.model import Tokenizer
from unspool.models.tokenizer import TextTokenizer

_REPLACEMENT = "\ufffd"
# A character has at most four bytes, so at most three tokens can wait for its end.
_WAITING = 3


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a piece of running text: without what a model expects at the beginning of one."""
    return tokenizer.encode(text, special=False)


def unfinished(tokenizer: Tokenizer, tokens: Sequence[int]) -> int:
    """How many tokens at the end belong to a character that is not complete."""
    end = len(tokens)
    for count in range(min(_WAITING, end) + 1):
        # A few tokens more than a character can have.
        if not tokenizer.decode(tokens[max(0, end - count - 8) : end - count]).endswith(_REPLACEMENT):
            return count
    return 0  # It is a replacement character in earnest.


def longest_run(old: Sequence[int], new: Sequence[int]) -> tuple[int, int]:
    """Ends ``(i, j)`` of the longest run of equal tokens, ``old[i - r : i] == new[j - r : j]``; the one that begins
    first in ``new`` among equals. ``(0, 0)`` if nothing is equal."""
    best, ends = 0, (0, 0)
    above = [0] * (len(old) + 1)
    for j, token in enumerate(new, 1):
        row = [0] * (len(old) + 1)
        for i, other in enumerate(old, 1):
            if token == other:
                row[i] = above[i - 1] + 1
                if row[i] > best:
                    best, ends = row[i], (i, j)
        above = row
    return ends


class SameTokens:
    """Stands for an :class:`Alignment` where tokens are compared by number."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @staticmethod
    def held(tokens: list[int]) -> list[int]:
        return []

    def follow(self, tokens: list[int]) -> list[int]:
        self.ids = tokens
        return tokens

    @staticmethod
    def candidates(tokens: list[int], drafted: list[int]) -> list[int]:
        return drafted


class Alignment:
    """A growing text in the target's tokens, and the same text in the drafter's.

    Args:
        target, draft: the tokenizers.
        look_behind: how many tokens before the new ones are encoded again with them, in both directions.

    Attributes:
        ids: the drafter's tokens; a new list after every change.
        read: target tokens that ``ids`` spell. What is left holds an unfinished character.
    """

    def __init__(self, target: Tokenizer, draft: Tokenizer, look_behind: int = 10) -> None:
        self.target = target
        self.draft = draft
        self.look_behind = look_behind
        self.ids: list[int] = []
        self.read = 0

    def held(self, tokens: list[int]) -> list[int]:
        """The target's tokens that wait for the rest of a character."""
        return tokens[self.read :]

    def follow(self, tokens: list[int]) -> list[int]:
        """The drafter's tokens for the target's.

        Args:
            tokens: those of the last call, and perhaps more.
        """
        whole = len(tokens) - unfinished(self.target, tokens)
        if whole > self.read:
            ids = self._extended(tokens, whole) if self.read else None
            if ids is None:
                ids = list(self.draft.encode(self.target.decode(tokens[:whole])))
            self.ids, self.read = ids, whole
        return self.ids

    def _extended(self, tokens: list[int], whole: int) -> list[int] | None:
        """The drafter's tokens up to ``whole``; ``None`` if only the whole text tells."""
        window = tokens[max(0, self.read - self.look_behind) : whole]
        new = self._behind(self.target, window, whole - self.read)
        if new is None:
            return None
        first = max(0, len(self.ids) - self.look_behind)
        tail = self.ids[first:]
        text = self.draft.decode(tail) + new
        fresh = plain(self.draft, text)
        i, j = longest_run(tail, fresh)
        # Runs of spaces fit in many places; the text decides whether the place was right.
        spliced = tail[:i] + fresh[j:]
        return self.ids[:first] + spliced if self.draft.decode(spliced) == text else None

    @staticmethod
    def _behind(tokenizer: Tokenizer, window: list[int], count: int) -> str | None:
        """The text of the last ``count`` tokens of a window."""
        before, whole = tokenizer.decode(window[: len(window) - count]), tokenizer.decode(window)
        return whole[len(before) :] if whole.startswith(before) else None

    def candidates(self, tokens: list[int], drafted: list[int]) -> list[int]:
        """The target's tokens for what the drafter wrote after the text.

        Args:
            tokens: the text, as last followed.
            drafted: the drafter's tokens after ``ids``.

        Returns:
            What follows ``tokens``; none if the draft completes no character, or if the text ends within one that the
            draft completes in another way.
        """
        context = self.ids[-self.look_behind :]
        drafted = drafted[: len(drafted) - unfinished(self.draft, context + drafted)]
        new = self._behind(self.draft, context + drafted, len(drafted))
        if not new:
            return []
        held = self.held(tokens)
        window = tokens[max(0, self.read - self.look_behind) : self.read]
        text = self.target.decode(window)
        fresh = plain(self.target, text + new)
        i, j = longest_run(window, fresh)
        if i < len(window) or self.target.decode(fresh[:j]) != text:
            # The draft would change tokens that are committed: encoded alone it cannot.
            return plain(self.target, new) if not held else []
        rest = fresh[j:]
        return rest[len(held) :] if rest[: len(held)] == held else []


# -- the strings of a vocabulary ----------------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes (Radford et al., GPT-2, 2019): printable bytes stand for
    themselves, the others for the letters from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


def spellings(tokenizer: Tokenizer, vocab_size: int) -> dict[bytes, int]:
    """The token of every string of a vocabulary; special tokens have none.

    Of several tokens for one string it is the one that is not written as a number (``<0x0A>``), then the first.
    """
    found: dict[bytes, int] = {}
    if not isinstance(tokenizer, TextTokenizer):
        for token in range(vocab_size):
            text = tokenizer.decode([token])
            if text and _REPLACEMENT not in text:
                found.setdefault(text.encode(), token)
        return found
    special = set(tokenizer.hf.all_special_ids)
    special |= {token for token, added in tokenizer.hf.added_tokens_decoder.items() if added.special}
    added = tokenizer.hf.added_tokens_decoder
    pieces = sorted((t, p) for p, t in tokenizer.vocab().items() if t < vocab_size and t not in special)
    alphabet = _byte_alphabet()
    if all(alphabet.keys() >= set(piece) for token, piece in pieces if token not in added):
        for token, piece in pieces:
            # Added tokens are written as they are.
            data = piece.encode() if token in added else bytes(alphabet[letter] for letter in piece)
            found.setdefault(data, token)
        return found
    # The sign for a space is what stands before the letter of " x".
    sign = str(tokenizer.hf.convert_ids_to_tokens(plain(tokenizer, " x")[:1])[0])[:1]
    numbered: dict[bytes, int] = {}
    for token, piece in pieces:
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            numbered.setdefault(bytes([int(piece[3:5], 16)]), token)
        else:
            found.setdefault((piece if sign == "x" else piece.replace(sign, " ")).encode(), token)
    return numbered | found
