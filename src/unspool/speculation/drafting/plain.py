"""Plain decoding: guess nothing, one token a forward pass. The yardstick of every other drafter."""

from __future__ import annotations

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Drafter


@register(
    Card(
        slug="plain",
        name="Plain decoding",
        kind=Kind.DRAFTER,
        summary="Proposes nothing: one forward pass for every token.",
        lossless=True,
    )
)
class Plain(Drafter):
    """Every draft is empty."""

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        return Draft.empty()
