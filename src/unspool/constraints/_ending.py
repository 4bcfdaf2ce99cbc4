"""A short completion of a text, found by walking a matcher: for engines whose library has none.

At every place the byte is taken that most often leads out (a closing bracket or quote, a digit, a letter, and opening
brackets last); where bytes are forced they are taken at once. The completion is short, not always the shortest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unspool.constraints._matcher import Matcher
from unspool.constraints._vocabulary import Vocabulary

_ORDER = b"\"'}])>;,0123456789.eE-+/\n abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_=:|&*^%$#@!?~`<({[\\\t\r"
_RANK = np.full(256, 200, dtype=np.int64)
_RANK[np.frombuffer(_ORDER, dtype=np.uint8)] = np.arange(len(_ORDER))


def _single_bytes(vocabulary: Vocabulary) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Tokens of one byte, the ranks of these bytes, and the length of every token (a large number if it has none)."""
    made = vocabulary.forms.get("ending")
    if made is None:
        tokens = np.array([t for string, t in vocabulary.by_bytes.items() if len(string) == 1], dtype=np.int64)
        rank = np.array([_RANK[vocabulary.tokens[t][0]] for t in tokens], dtype=np.int64)
        length = np.array([len(string) if string else 1 << 30 for string in vocabulary.tokens], dtype=np.int64)
        made = vocabulary.forms["ending"] = (tokens, rank, length)
    return made


def short_end(matcher: Matcher, longest: int = 512) -> bytes | None:
    """A text of at most ``longest`` bytes that completes the text of ``matcher``; ``None`` if none was found.

    The matcher is moved on the way, and moved back.
    """
    for fresh in (False, True):
        found = _walk(matcher, longest, fresh)
        if found is not None:
            return found
    return None


def _walk(matcher: Matcher, longest: int, fresh: bool) -> bytes | None:
    """One way out; with ``fresh`` bytes that were taken before come later, so that it cannot go round in a circle."""
    vocabulary = matcher.vocabulary
    singles, ranks, lengths = _single_bytes(vocabulary)
    taken = np.zeros(len(singles), dtype=np.int64)
    text = b""
    moved = 0
    try:
        while len(text) < longest:
            begun: bool = matcher.accepting
            if begun:
                return text
            for token in vocabulary.spell(matcher.forced()[:longest]):
                if not matcher.consume(token):
                    break
                moved += 1
                text += vocabulary.tokens[token] or b""
            ended: bool = matcher.accepting  # the tokens above may have changed it
            if ended:
                return text
            mask = matcher.mask().numpy()
            open_bytes = mask[singles]
            if open_bytes.any():
                cost = np.where(open_bytes, ranks + (256 * taken if fresh else 0), 1 << 30)
                place = int(cost.argmin())
                taken[place] += 1
                token = int(singles[place])
            elif mask.any():
                token = int(np.where(mask, lengths, 1 << 31).argmin())
                if vocabulary.tokens[token] is None:
                    return None
            else:
                return None
            if not matcher.consume(token):
                return None
            moved += 1
            text += vocabulary.tokens[token] or b""
        return None
    finally:
        matcher.rollback(moved)
