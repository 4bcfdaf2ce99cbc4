"""TETRIS: of a batch's drafts, verify the tokens that most probably stand.

Every request drafts a few tokens more than its share. The batch may verify ``C = tokens * requests`` of them: a draft
token stands only if all tokens above it do, so its value is the product of the draft model's probabilities along its
path, and the ``C`` most valuable ones of the whole batch are kept. A value never exceeds that of the parent, so what
is kept of a chain is a beginning of it, and of a tree a tree with the same root. Unused drafts are thrown away.

Paper: Wu et al., TETRIS: Optimal Draft Token Selection for Batch Speculative Decoding, 2025 (section 4, algorithm 1).

Lossless for fixed candidates with the published ranking. A *sampled* token must not be dropped for what it is, and the
published value holds the token's own probability: dropping it where that is low makes the output follow the draft model
too closely. So a sampled token is ranked by the largest probability that any token has at its place, which is known
before it is drawn; the tokens above it count as in the paper (``ranking=exact``). ``ranking=published`` ranks drawn
tokens as the paper does, is not lossless under samplers that draw, and says so.

Where the paper is silent: values that are equal go to the node that was drafted first (a probability of exactly 1
would else keep a child without its parent); a token without a probability counts one half, so that drafts of lookups
are ranked by their depth; requests without room for a draft neither get nor lend capacity.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.registry import register
from unspool.core.sockets import Budget, Controller, Draft, Setup
from unspool.core.tree import ROOT

_UNKNOWN = 0.5


@settings
class TetrisSettings:
    """The paper's serving runs: 1 to 5 tokens a request, 1 to 3 more drafted."""

    tokens: Annotated[int, Field(ge=1, description="draft tokens verified per step, on average over the batch")] = 3
    extra: Annotated[int, Field(ge=0, description="tokens that every request drafts beyond that")] = 2
    floor: Annotated[int, Field(ge=0, description="tokens that every request verifies at least (at most `tokens`)")] = 0
    ranking: Annotated[
        Literal["exact", "published"],
        Field(description="`published` ranks drawn tokens by their own probability, which biases the output"),
    ] = "exact"


@register(
    Card(
        slug="tetris",
        name="TETRIS",
        kind=Kind.CONTROLLER,
        summary="Verifies those draft tokens of a whole batch that most probably stand, within a fixed capacity.",
        paper="TETRIS: Optimal Draft Token Selection for Batch Speculative Decoding, 2025",
        claim="higher acceptance and throughput than drafts of fixed length at the same verification capacity",
        lossless=True,
    ),
    TetrisSettings,
)
class Tetris(Controller):
    """One capacity for the whole batch, given to the most valuable draft tokens."""

    settings: TetrisSettings

    def bind(self, setup: Setup) -> None:
        # A draft that was not drawn carries no distributions; under a sampler that draws, one may.
        honest = self.settings.ranking == "exact" or setup.sampler.deterministic
        self.card = dataclasses.replace(type(self).card, lossless=honest)  # type: ignore[misc]

    def budget(self, branch: Branch) -> Budget:
        return Budget(nodes=self.settings.tokens + self.settings.extra)

    def allocate(self, branches: Sequence[Branch], drafts: Sequence[Draft]) -> list[Draft]:
        values = [self._values(draft) for draft in drafts]
        kept = select(values, self.settings.tokens * len(drafts), min(self.settings.floor, self.settings.tokens))
        return [
            draft if len(nodes) == len(draft.tree) else draft.select(nodes)
            for draft, nodes in zip(drafts, kept, strict=True)
        ]

    def _values(self, draft: Draft) -> list[float]:
        """``[N]`` chance of every node to stand, never above its parent's; of what was drawn see the module."""
        own = node_chances(draft)
        bound = own if draft.q is None or self.settings.ranking == "published" else _largest(draft)
        paths: list[float] = []
        values: list[float] = []
        for node, parent in enumerate(draft.tree.parent_list):
            above = 1.0 if parent == ROOT else paths[parent]
            paths.append(above * own[node])
            value = above * bound[node]
            if parent != ROOT:
                value = min(value, values[parent])
            if draft.entered is not None and node:
                # Only leading nodes of such a draft can be kept.
                value = min(value, values[node - 1])
            values.append(value)
        return values


def node_chances(draft: Draft) -> list[float]:
    """``[N]`` the drafter's probability of every node's token after its parent."""
    if draft.q is not None:
        return draft.q[draft.q_rows, draft.tree.token_list].tolist() if draft.q_rows else []
    return draft.confidence or [_UNKNOWN] * len(draft.tree)


def _largest(draft: Draft) -> list[float]:
    """``[N]`` the largest probability of any token at each node's place."""
    assert draft.q is not None
    return torch.amax(draft.q, dim=-1)[draft.q_rows].tolist()


def select(values: Sequence[Sequence[float]], capacity: int, floor: int = 0) -> list[list[int]]:
    """The ``capacity`` largest of all values; equal ones go to the lower index, then to the lower row.

    Args:
        values: of every draft's nodes, never above the parent's, parents first.
        floor: how many nodes of every draft are taken before the others.

    Returns:
        The nodes of every draft, ascending; closed under parents.
    """
    order = sorted((-value, node, row) for row, nodes in enumerate(values) for node, value in enumerate(nodes))
    if floor:
        ranks, places = [0] * len(values), []
        for _, _, row in order:
            places.append(ranks[row] >= floor)
            ranks[row] += 1
        order = [entry for _, entry in sorted(zip(places, order, strict=True), key=lambda pair: pair[0])]
    kept: list[list[int]] = [[] for _ in values]
    for _, node, row in order[:capacity]:
        kept[row].append(node)
    return [sorted(nodes) for nodes in kept]
