"""OPT-Tree: of all draft trees with ``n`` nodes, the one that is expected to be accepted deepest.

The draft model's probability of a path stands for the probability that the target goes along it. The expected number
of accepted tokens of a tree is then the sum of its nodes' path probabilities, so the best tree with ``n`` nodes holds
the ``n`` most probable paths; it is connected, because no path is more probable than its beginning.

The tree is found layer by layer: of all children of a layer the ``n`` most probable paths are the next layer. After
each layer the expected value of the best ``n`` nodes so far is known; once a layer has added no more than ``delta``,
another pass of the draft model is not worth its price.

Paper: Wang et al., OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure, 2025 (section 3).

Lossless: the candidates are fixed, and matched with the target's own choices.

Where this differs: nodes of a layer that are not among the best ``n`` so far are dropped at once, since nothing below
them can enter the tree; the tree is the same, and the draft model reads less. The expected value counts all layers, the
newest included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Setup
from unspool.core.tree import ROOT
from unspool.speculation.drafting._best_first import keep_best, most_probable
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth


@settings
class OptTreeSettings:
    """The paper's; 8 to 24 nodes are cheaper to verify on a CPU."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    nodes: Annotated[int, Field(ge=1, description="nodes of the draft tree")] = 50
    delta: Annotated[
        float, Field(ge=0, description="expected tokens that a layer must add for another one to be drafted")
    ] = 0.5
    depth: Annotated[int, Field(ge=1, description="layers at most")] = 10
    temperature: Annotated[
        float,
        Field(gt=0, description="of the draft model's estimates; below 1 if it is too modest"),
    ] = 1.0


class _Layers:
    """One branch's tree while its layers are added.

    Attributes:
        weights: ``[N]`` log probabilities of the paths of all nodes so far.
        front: nodes of the last layer below which the tree may go on; empty when it is done.
        expected: accepted tokens that the best nodes so far promise.
    """

    def __init__(self, growth: Growth, most: int) -> None:
        self.growth = growth
        self.nodes = most if growth.nodes is None else growth.nodes
        self.weights = torch.empty(0, dtype=torch.float64)
        self.front = [ROOT]
        self.expected = 0.0
        self._above = torch.zeros(1, dtype=torch.float64)
        self._layers = 0

    def add(self, log_probs: Tensor, tokens: Tensor, delta: float) -> None:
        """Add the layer below the front, whose best children are ``tokens`` ``[R, K]``, and look whether it paid."""
        paths = (self._above[:, None] + log_probs).flatten()
        best, places = paths.topk(min(self.nodes, len(paths)))
        weights = torch.cat([self.weights, best])
        kept = weights.topk(min(self.nodes, len(weights))).values
        # What is not among the best now never will be, and nothing below it either.
        useful = int((best >= kept[-1]).sum())
        self._above, places = best[:useful], places[:useful]
        self.weights = weights[: len(self.weights) + useful]
        rows, chances = (places // tokens.shape[1]).tolist(), log_probs.flatten()[places].exp().tolist()
        added = [
            self.growth.add(token, self.front[row], chance)
            for row, token, chance in zip(rows, tokens.flatten()[places].tolist(), chances, strict=True)
        ]
        gain = float(kept.exp().sum()) - self.expected
        self.expected += gain
        self._layers += 1
        self.front = added if gain > delta and self._layers < self.growth.depth else []


@register(
    Card(
        slug="opt-tree",
        name="OPT-Tree",
        kind=Kind.DRAFTER,
        summary="Drafts the tree of a given size whose expected accepted length is largest, as deep as that pays.",
        paper="OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure, 2025",
        claim="more accepted tokens than chains and fixed trees of the same size; up to 3.2x faster than without",
        lossless=True,
        needs=frozenset({Capability.TREE}),
        models=("draft",),
    ),
    OptTreeSettings,
)
class OptTree(DraftModelDrafter):
    """The ``n`` most probable paths of the draft model."""

    settings: OptTreeSettings

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.require_trees(setup.target, self.card.slug)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        made = self.settings
        growths = self.grow(branches, budgets, made.nodes, made.depth)
        trees = [None if growth is None else _Layers(growth, made.nodes) for growth in growths]
        growing = [tree for tree in trees if tree is not None]
        while growing:
            scored = self.score([tree.growth for tree in growing], [tree.front for tree in growing])
            logits = torch.cat([scores.logits for scores in scored])
            log_probs, tokens = (
                t.cpu() for t in most_probable(logits / made.temperature, max(tree.nodes for tree in growing))
            )
            sizes = [len(tree.front) for tree in growing]
            for tree, chances, below in zip(growing, log_probs.split(sizes), tokens.split(sizes), strict=True):
                tree.add(chances, below, made.delta)
            growing = [tree for tree in growing if tree.front]
        return [
            Draft.empty() if tree is None else keep_best(tree.growth, tree.weights.tolist(), tree.nodes)
            for tree in trees
        ]
