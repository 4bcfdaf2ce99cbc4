"""Monte Carlo tree search over tokens: texts are written from where they promise most, and the best is the answer.

A node's children are the tokens that may follow, with the model's probabilities, those that a constraint forbids taken
out (PUCT; Silver et al., Mastering the game of Go without human knowledge, 2017, as the Circuit Transformer uses it,
section 3.4). Picked is the child with the highest ``Q + c P sqrt(N) / (1 + n)``: ``Q`` is what its texts were worth,
``P`` its probability, ``N`` and ``n`` the visits of node and child. A child without a visit is worth what its parent's
own text was.

How good a text is the constraint tells (:meth:`~unspool.core.sockets.Constraint.reward`). The first text is the plain
one, so the answer is never worse than that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.registry import register
from unspool.core.sockets import Constraint, Setup
from unspool.search._playouts import Node, PlayoutSearch, PlayoutSettings


@settings
class MCTSSettings(PlayoutSettings):
    """``exploration`` is the Circuit Transformer's."""

    exploration: Annotated[float, Field(ge=0, description="c, the weight of what was tried little")] = 1.0
    backup: Annotated[
        Literal["mean", "best"], Field(description="what a child is worth: its texts on average, or the best of them")
    ] = "mean"


@register(
    Card(
        slug="mcts",
        name="Monte Carlo tree search",
        kind=Kind.SEARCH,
        summary="Writes many texts, each from where the last ones promise most, and keeps the best that its constraint "
        "knows.",
    ),
    MCTSSettings,
)
class MCTS(PlayoutSearch):
    """See the module."""

    settings: MCTSSettings

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        if self.constraint is None or type(self.constraint).reward is Constraint.reward:
            raise Incompatible(
                "mcts looks for the best text, so a constraint has to say how good one is: circuit-transformer does "
                "(--method circuit-transformer+mcts)"
            )

    def rate(self, branch: Branch) -> float:
        assert self.constraint is not None
        value = self.constraint.reward(branch, branch.tokens)
        return -math.inf if value is None else value

    def pick(self, node: Node, children: Sequence[Node]) -> Node:
        unknown = node.playout[1] if node.playout is not None else node.mean
        around = self.settings.exploration * math.sqrt(node.visits + node.waiting)

        def promise(child: Node) -> float:
            value = unknown
            if child.visits:
                value = child.mean if self.settings.backup == "mean" else child.best
            return value + around * child.prior / (1 + child.visits + child.waiting)

        return max(children, key=promise)
