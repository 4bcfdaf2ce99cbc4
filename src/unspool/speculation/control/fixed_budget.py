"""Fixed budget: at most so many draft nodes, at most so many tokens deep, at every step.

The yardstick for controllers that adapt; and the way to cut any drafter down to what one machine verifies at little
cost. Lossless: it looks at nothing, so nothing can be biased.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.registry import register
from unspool.core.sockets import Budget, Controller


@settings
class FixedBudgetSettings:
    """``None`` leaves it to the drafter."""

    nodes: Annotated[int | None, Field(ge=0, description="draft tokens in all, per step")] = None
    depth: Annotated[int | None, Field(ge=0, description="draft tokens on the longest path, per step")] = None


@register(
    Card(
        slug="fixed-budget",
        name="Fixed budget",
        kind=Kind.CONTROLLER,
        summary="Limits every draft to a fixed number of tokens and a fixed depth.",
        lossless=True,
    ),
    FixedBudgetSettings,
)
class FixedBudget(Controller):
    """The same budget for every branch and every step."""

    settings: FixedBudgetSettings

    def budget(self, branch: Branch) -> Budget:
        return Budget(self.settings.nodes, self.settings.depth)
