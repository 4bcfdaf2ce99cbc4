"""A branch's matcher on its way through the text, and what is known about the places that it has come by."""

from __future__ import annotations

from concurrent.futures import Future

from torch import Tensor

from unspool.constraints._matcher import Matcher
from unspool.core.branch import Portable

HORIZON = 128
"""Tokens before the maximum from which on a text that is to be closed is watched."""


class Place:
    """What is known about one place of a text."""

    __slots__ = ("children", "due", "forced", "known", "mask", "plan")

    def __init__(self) -> None:
        self.children: dict[int, Place] = {}
        self.mask: Tensor | None = None
        self.known = False
        self.forced: int | None = None
        self.plan: list[int] | None = None
        # Of the tokens that are left, as many as are to be left when a completion is looked for again.
        self.due = HORIZON


class Track(Portable):
    """A branch's matcher, the tokens that it has taken in, and the places on its way.

    ``places[i]`` is after ``i`` tokens. Of places in the committed text only what concerns its end is kept.
    """

    def __init__(self, matcher: Matcher, fed: list[int]) -> None:
        self.matcher = matcher
        self.fed = fed
        self.places = [Place() for _ in range(len(fed) + 1)]
        self.committed = 0
        self.filling: Future[None] | None = None

    def fork(self) -> Track:
        self.join()
        twin = Track(self.matcher.fork(), list(self.fed))
        for mine, theirs in zip(twin.places, self.places, strict=True):
            mine.plan, mine.due = theirs.plan, theirs.due
        return twin

    def join(self) -> None:
        """Wait for what another thread computes with the matcher."""
        if self.filling is not None:
            filling, self.filling = self.filling, None
            filling.result()

    def seek(self, text: list[int], stops: frozenset[int]) -> bool | None:
        """Move to the end of ``text``.

        Returns:
            Whether the text can stand; ``None`` if it holds a stop token, behind which nothing is judged.
        """
        fed = self.fed
        common = len(fed)
        if fed != text[:common]:
            common = next(
                (i for i, (a, b) in enumerate(zip(fed, text, strict=False)) if a != b), min(len(fed), len(text))
            )
            self.matcher.rollback(len(fed) - common)
            del fed[common:], self.places[common + 1 :]
        for token in text[common:]:
            if token in stops:
                return None
            if not self.step(token):
                return False
        return True

    def step(self, token: int) -> bool:
        """Move on by a token that is no stop token, if it may follow."""
        if not self.matcher.consume(token):
            return False
        self.fed.append(token)
        self.places.append(self.places[-1].children.setdefault(token, Place()))
        return True

    def settle(self, count: int) -> None:
        """``count`` tokens are committed: forget what is known about places that will not be asked about again."""
        for place in self.places[self.committed : count]:
            place.children, place.mask = {}, None
        self.committed = count
