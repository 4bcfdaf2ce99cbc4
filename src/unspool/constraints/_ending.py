"""A short completion of a text, found by walking a matcher: for engines whose library has none.

At every place the byte is taken that most often leads out (a closing bracket or quote, a digit, a letter, and opening
brackets last); where bytes are forced they are taken at once. The completion is short, not always the shortest.

Bytes are tried one after the other: a matcher says in a microsecond or two whether one may follow, and the first few
often may, while a mask judges the whole vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from unspool.constraints._matcher import Matcher
from unspool.constraints._vocabulary import Vocabulary

_ORDER = b"\"'}]):>;,0123456789.eE-+/ \nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_=|&*^%$#@!?~`<({[\\\t\r"
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_GROUPS = b":;", b"}])>", b"0123456789", b"=<!", b"'", b'"', _LETTERS, b" \n", b",."
_ROUND = 32
"""Equal bytes in a row that are taken for going round in a circle."""


class _Way(NamedTuple):
    """In which order bytes are tried.

    Args:
        groups: tokens of one byte, best first.
        turning: whether a group comes last once one of it was taken, and this one last of it, so that it is not gone
            round in a circle for long.
    """

    groups: list[list[int]]
    turning: bool


def _ways(vocabulary: Vocabulary) -> list[_Way]:
    """As most texts end; with single quotes before double ones; one of each kind of bytes after the other."""
    made: list[_Way] | None = vocabulary.forms.get("ending")
    if made is None:
        single = vocabulary.by_byte
        order = [*_ORDER, *sorted(set(single) - set(_ORDER))]
        swapped = [order[1], order[0], *order[2:]]
        grouped = {byte for group in _GROUPS for byte in group}
        kinds = [*map(list, _GROUPS), [byte for byte in order if byte not in grouped]]
        made = vocabulary.forms["ending"] = [
            _Way([[single[byte] for byte in group if byte in single] for group in groups], turning)
            for groups, turning in (([order], False), ([swapped], False), (kinds, True))
        ]
    return made


def short_end(matcher: Matcher, longest: int = 512) -> bytes | None:
    """A text of at most ``longest`` bytes that completes the text of ``matcher``; ``None`` if none was found.

    The matcher is moved on the way, and moved back.
    """
    found = (_walk(matcher, longest, way) for way in _ways(matcher.vocabulary))
    return next((text for text in found if text is not None), None)


def _walk(matcher: Matcher, longest: int, way: _Way) -> bytes | None:
    vocabulary = matcher.vocabulary
    groups = list(way.groups)
    text = b""
    moved = 0
    try:
        while not _ended(matcher) and len(text) < longest:
            taken = _forced(matcher)
            if not taken:
                place, token = next(
                    ((i, token) for i, group in enumerate(groups) for token in group if matcher.consume(token)),
                    (-1, -1),
                )
                if place < 0:
                    # No single byte is a token here; the shortest token that is.
                    mask = matcher.mask().nonzero().flatten().tolist()
                    token = min(mask, key=lambda each: len(vocabulary.tokens[each] or b"") or 1 << 30, default=-1)
                    if token < 0 or vocabulary.tokens[token] is None or not matcher.consume(token):
                        return None
                elif way.turning:
                    group = groups.pop(place)
                    groups.append([each for each in group if each != token] + [token])
                taken = [token]
            moved += len(taken)
            text += vocabulary.bytes_of(taken)
            if len(text) >= _ROUND and text.count(text[-1:], len(text) - _ROUND) == _ROUND:
                return None
        return text if _ended(matcher) else None
    finally:
        matcher.rollback(moved)


def _ended(matcher: Matcher) -> bool:
    return matcher.accepting


def _forced(matcher: Matcher) -> list[int]:
    """Take the text that must follow; the tokens that were taken."""
    taken: list[int] = []
    for token in matcher.vocabulary.spell(matcher.forced()):
        if not matcher.consume(token):
            break
        taken.append(token)
    return taken
