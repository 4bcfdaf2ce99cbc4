"""BASS: one draft length for a whole batch, which follows the row that accepts most.

All rows draft the same number of tokens in the same passes of the draft model, are verified in one ragged pass, and
each keeps what it accepts: no row waits for another. The length is one for all, because a pass costs the same whether
one row needs it or eight: where the best row used its whole draft the length grows by ``increment``; else it shrinks by
one tenth (``modulus``), one more after a second miss in a row, but never below what a row has just accepted.

Attention over rows of different lengths goes in one call with padding (``pad``) or in one call a row (``split``); the
result is the same, see ``unspool.models.attention``.

Paper: Qian et al., BASS: Batched Attention-optimized Speculative Sampling, 2024 (section 3.2 for attention, algorithm 1
for the length; start 7, increment 2, modulus 10, limit 32).

Lossless: the length depends on what earlier steps accepted, never on what is being drafted.

Where the paper is silent: the length of a step is that of its deepest draft, for a drafter may give less than it is
allowed to; rows without a draft (at the end of their text) say nothing about it; a batch starts anew when no row of the
last one is left.
"""

from __future__ import annotations

from math import ceil
from typing import Annotated, Literal

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.scores import Want
from unspool.core.sockets import Budget, Controller, Observation, Setup


@settings
class BassSettings:
    """The paper's constants."""

    start: Annotated[int, Field(ge=1, description="draft tokens in the first step")] = 7
    increment: Annotated[int, Field(ge=1, description="tokens more after a row accepted its whole draft")] = 2
    modulus: Annotated[int, Field(ge=1, description="one token less for every so many after none did")] = 10
    limit: Annotated[int, Field(ge=1, description="draft tokens at most; the drafter's own limit holds too")] = 32
    attention: Annotated[
        Literal["pad", "split"], Field(description="one call for all rows, padded, or one call a row")
    ] = "pad"


@register(
    Card(
        slug="bass",
        name="BASS",
        kind=Kind.CONTROLLER,
        summary="Gives a whole batch one draft length, which grows and shrinks with its best row.",
        paper="BASS: Batched Attention-optimized Speculative Sampling, 2024",
        claim="2.15x faster than batched plain decoding, and more correct answers within a time budget",
        lossless=True,
    ),
    BassSettings,
)
class Bass(Controller):
    """The draft length shared by everything that is decoded side by side.

    Attributes:
        length: draft tokens of the coming step.
    """

    settings: BassSettings

    def __init__(self, settings: BassSettings | None = None) -> None:
        super().__init__(settings)
        if self.settings.attention == "split":
            self.want = Want(split=True)
        self._live: set[int] = set()
        self._begin()

    def bind(self, setup: Setup) -> None:
        if self.settings.attention == "split":
            setup.target.require(frozenset({Capability.SPLIT_ATTENTION}), f"{self.card.slug} with attention=split")

    def _begin(self) -> None:
        self.length = min(self.settings.start, self.settings.limit)
        self._missed = False
        # Of the step that is being judged: (drafted, accepted) of every row with a draft.
        self._rows: list[tuple[int, int]] = []

    def budget(self, branch: Branch) -> Budget:
        # The first row that asks after a step closes it: by now all rows have been judged.
        if self._rows:
            self.length, self._missed = self.following(self._rows)
            self._rows = []
        self._live.add(id(branch))
        return Budget(depth=self.length)

    def observe(self, step: Observation) -> None:
        # What a sampler asked to see is no draft.
        if step.draft.tree and step.branch.ahead is None:
            self._rows.append((step.draft.tree.depth, len(step.path)))

    def following(self, rows: list[tuple[int, int]]) -> tuple[int, bool]:
        """The next step's length, and whether this one was a miss.

        Args:
            rows: drafted and accepted tokens of every row that had a draft; at least one.
        """
        drafted = max(length for length, _ in rows)
        most = max(accepted for _, accepted in rows)
        if most == drafted:
            return min(drafted + self.settings.increment, self.settings.limit), False
        shorter = drafted - ceil(drafted / self.settings.modulus) - self._missed
        return max(1, most, shorter), True

    def release(self, branch: Branch) -> None:
        super().release(branch)
        self._live.discard(id(branch))
        if not self._live:
            self._begin()
