"""SpecExec: a tree of the ``K`` most probable continuations, as a cache of the target's next answers.

A search for shortest paths: an edge costs ``-log q``, and a little more (``decay``), because draft models are too sure
of themselves far from what they know. The best leaves that may still have children among the ``K`` best are expanded,
up to ``beams`` of them in one pass of the draft model, until no leaf is left that could improve the tree, whatever its
depth. Then the target reads the whole tree once; its own draws are looked up in it, one after another.

``K`` is as large as the target verifies for the price of one token. Where weights are read from memory or disk for
every pass, that is hundreds.

Paper: Svirschevski et al., SpecExec: Massively Parallel Speculative Decoding for Interactive LLM Inference on Consumer
Devices, 2024 (section 4; limits as in its code).

Lossless: the tree is fixed before the target is asked, and is matched with its draws.

Where this differs: leaves that are not expanded are not read by the draft model, and a full tree's leaf is expanded
only if a child of it could still enter, so that the last, fruitless pass is saved. ``min_log_prob`` is held against
the decayed value of a path.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple

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
class SpecExecSettings:
    """The paper's; a CPU that holds the weights in memory wants 8 to 24 nodes."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    nodes: Annotated[int, Field(ge=1, description="nodes of the draft tree (K); the paper: 64 to 2048")] = 64
    beams: Annotated[int, Field(ge=1, description="leaves expanded in one draft pass")] = 32
    branch_width: Annotated[int, Field(ge=1, description="children of a node at most")] = 16
    min_log_prob: Annotated[float, Field(lt=0, description="paths below this log probability are left out")] = -10.0
    decay: Annotated[float, Field(gt=0, le=1, description="factor on a path's probability for each of its tokens")] = (
        0.95
    )
    passes: Annotated[int, Field(ge=1, description="passes of the draft model at most, and so the deepest path")] = 256


class _Leaf(NamedTuple):
    """A node that was found and not expanded: its value, how deep it stands (1 at the top), and what it is."""

    score: float
    depth: int
    token: int
    parent: int
    chance: float


class _Frontier:
    """One branch's search.

    Attributes:
        front: nodes whose children are to be found in the next pass.
        scores: values of the nodes that were expanded.
        leaves: the others, best first.
    """

    def __init__(self, growth: Growth, made: SpecExecSettings) -> None:
        self.growth = growth
        self.made = made
        self.nodes = made.nodes if growth.nodes is None else growth.nodes
        self.front = [ROOT]
        self.scores: list[float] = []
        self.leaves: list[_Leaf] = []
        self._decay = math.log(made.decay)
        self._depths: list[int] = []

    def add(self, log_probs: Tensor, tokens: Tensor) -> None:
        """Take in the children ``[R, K]`` of the front, and choose the next one."""
        above = [(0.0, 0) if node == ROOT else (self.scores[node], self._depths[node]) for node in self.front]
        values = torch.tensor([score for score, _ in above], dtype=torch.float64)[:, None] + self._decay + log_probs
        best, places = values.flatten().topk(min(self.nodes, values.numel()))
        places = places[best >= self.made.min_log_prob]
        chances = log_probs.flatten()[places].exp().tolist()
        found = [
            _Leaf(score, above[row][1] + 1, token, self.front[row], chance)
            for score, row, token, chance in zip(
                best.tolist(),
                (places // tokens.shape[1]).tolist(),
                tokens.flatten()[places].tolist(),
                chances,
                strict=False,
            )
        ]
        # A stable sort: of equal values the shallower, found earlier, comes first.
        leaves = sorted(self.leaves + found, key=lambda leaf: -leaf.score)
        ranked = sorted([*self.scores, *(leaf.score for leaf in leaves)], reverse=True)
        cut = ranked[self.nodes - 1] if len(ranked) >= self.nodes else -math.inf
        self.front, self.leaves = [], []
        for leaf in leaves:
            if leaf.score < cut:
                break
            hopeful = leaf.score + self._decay > cut and leaf.depth < self.growth.depth
            if hopeful and len(self.front) < self.made.beams:
                self.front.append(self._expand(leaf))
            else:
                self.leaves.append(leaf)

    def _expand(self, leaf: _Leaf) -> int:
        self.scores.append(leaf.score)
        self._depths.append(leaf.depth)
        return self.growth.add(leaf.token, leaf.parent, leaf.chance)

    def draft(self) -> Draft:
        for leaf in self.leaves:
            self._expand(leaf)
        return keep_best(self.growth, self.scores, self.nodes)


@register(
    Card(
        slug="specexec",
        name="SpecExec",
        kind=Kind.DRAFTER,
        summary="Looks the target's own draws up in a tree of a draft model's most probable continuations, however "
        "large.",
        paper="SpecExec: Massively Parallel Speculative Decoding for Interactive LLM Inference on Consumer Devices, "
        "2024",
        claim="up to 20 tokens a target pass; models whose weights are offloaded answer at interactive speed",
        lossless=True,
        needs=frozenset({Capability.TREE}),
        models=("draft",),
    ),
    SpecExecSettings,
)
class SpecExec(DraftModelDrafter):
    """The ``K`` best nodes of the draft model, found in parallel batches."""

    settings: SpecExecSettings

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.require_trees(setup.target, self.card.slug)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        made = self.settings
        growths = self.grow(branches, budgets, made.nodes, made.passes)
        searches = [None if growth is None else _Frontier(growth, made) for growth in growths]
        for _ in range(made.passes):
            growing = [search for search in searches if search is not None and search.front]
            if not growing:
                break
            scored = self.score([search.growth for search in growing], [search.front for search in growing])
            sizes = [len(search.front) for search in growing]
            log_probs, tokens = (
                t.cpu() for t in most_probable(torch.cat([scores.logits for scores in scored]), made.branch_width)
            )
            for search, chances, below in zip(growing, log_probs.split(sizes), tokens.split(sizes), strict=True):
                search.add(chances, below)
        return [Draft.empty() if search is None else search.draft() for search in searches]
