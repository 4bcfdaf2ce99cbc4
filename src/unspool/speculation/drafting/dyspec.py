"""DySpec: a draft tree that grows where the draft model says that verification will come by.

A *slot* is a place where one more candidate can be drawn: the next sibling under a node, or the first child of one.
Its value is the estimated probability that verification ever tries it, if candidates are accepted as often as the
draft model draws them. The first child of the root has value 1; a candidate ``y`` drawn with probability ``R[y]`` in a
slot of value ``v`` opens a child slot of value ``v R[y]`` (reached if ``y`` stands) and a sibling slot of value
``v (1 - R[y])`` (reached if it falls), where ``R`` loses ``y``. The heap takes the most valuable slot until the tree
has ``nodes``.

The heap needs the draft model once for nearly every node that gets children. The layered variant needs it once a level:
all slots of a level worth at least ``threshold`` are filled, then the level below; of what was drawn the ``nodes`` most
valuable stay. That is the heap's own tree, but for slots below the threshold.

Paper: Xiong et al., DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure, 2024 (section 4).

Lossless with recursive rejection: siblings are drawn without replacement and stand in drawing order, and whether a
candidate is drawn, or kept, depends on its slot's value, which was fixed before the draw. All possible siblings of a
node are drawn at once (Gumbel keys) and taken one by one, which is the same.

Where the paper is silent: a pass of the draft model takes along every node that it has not read yet, so that later
slots find their distributions; what is above the threshold in a level and beyond ``nodes`` competes by value. Under a
sampler that does not draw, the draft model's distribution at ``temperature`` gives the values, and its most probable
tokens are the candidates, which are matched.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Proposal, Setup
from unspool.core.tree import ROOT
from unspool.speculation.drafting._best_first import keep_best
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth
from unspool.speculation.drafting._draws import draw_siblings


@settings
class DySpecSettings:
    """The paper's 64 nodes; 8 to 24 are cheaper to verify on a CPU."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    nodes: Annotated[int, Field(ge=1, description="nodes of the draft tree; the paper: 64, offloaded 768")] = 64
    variant: Annotated[
        Literal["heap", "layers"],
        Field(description="the most valuable slot first, or level by level with one draft pass each"),
    ] = "heap"
    threshold: Annotated[
        float | None, Field(gt=0, lt=1, description="value below which a slot stays empty; layers; None: 1 / nodes")
    ] = None
    temperature: Annotated[
        float, Field(gt=0, description="of the draft model's estimates, under a sampler that does not draw")
    ] = 0.6
    exponent: Annotated[
        float,
        Field(gt=0, le=1, description="power of a candidate's probability that estimates its acceptance; the paper: 1"),
    ] = 1.0


_Slot = tuple[float, int, int, int]
"""Its value, negative for the heap; the how-many-th to be opened, which decides between equals; the parent; the
how-many-th child."""


@dataclass
class _Siblings:
    """The candidates under one node.

    Attributes:
        tokens: in drawing order.
        chances: of each in the draft distribution.
        shares: of each in what its elder siblings left of it.
        row: of that distribution among the draft's; ``None`` for fixed candidates.
    """

    tokens: list[int]
    chances: list[float]
    shares: list[float]
    row: int | None


class _Slots:
    """One branch's tree while it grows.

    Attributes:
        values: of the slots that the nodes were drawn in.
        nodes: how many the tree may have in the end.
    """

    def __init__(self, drafter: DySpec, growth: Growth) -> None:
        self.drafter = drafter
        self.growth = growth
        self.nodes = drafter.settings.nodes if growth.nodes is None else growth.nodes
        self.values: list[float] = []
        self.threshold = drafter.settings.threshold or 1 / self.nodes
        self._open: list[_Slot] = [(-1.0, 0, ROOT, 0)]
        self._opened = 1
        self._depths: list[int] = []
        self._logits: dict[int, Tensor] = {}
        self._siblings: dict[int, _Siblings] = {}
        self._best: list[float] = []
        self._read = 0

    # -- what the draft model has to read ----------------------------------------------------------------------------

    @property
    def unread(self) -> list[int]:
        """Nodes that may get children and whose logits are not there."""
        if not self._logits:
            return [ROOT]
        return [node for node in range(self._read, len(self.growth)) if self._depths[node] < self.growth.depth]

    def read(self, nodes: Sequence[int], logits: Tensor) -> None:
        """Take the logits ``[R, V]`` after ``nodes``, which were all that was unread."""
        self._read = len(self.growth)
        self._logits.update(zip(nodes, logits, strict=True))

    # -- growing -----------------------------------------------------------------------------------------------------

    def fill(self) -> bool:
        """Fill the most valuable slots until the tree is full or a distribution is missing; whether one is."""
        while self._open and len(self.growth) < self.nodes:
            if self._open[0][2] not in self._logits:
                return True
            self._draw(self._open)
        return False

    def fill_level(self) -> bool:
        """Fill every slot of the level that is worth it; whether there is one in the next level."""
        below: list[_Slot] = []
        while self._open and self._worth_it(self._open[0]):
            self._draw(below)
        self._open = below
        return bool(below) and self._worth_it(below[0])

    def _worth_it(self, slot: _Slot) -> bool:
        # All that follows from a slot is worth less, so that what is not among the best now never will be.
        return -slot[0] >= self.threshold and (len(self._best) < self.nodes or -slot[0] > self._best[0])

    def _draw(self, below: list[_Slot]) -> None:
        """Fill the most valuable slot; the one under the new node is put into ``below``."""
        negative, _, parent, place = heapq.heappop(self._open)
        if parent not in self._siblings:
            self._siblings[parent] = self.drafter.siblings(self.growth, parent, self._logits[parent], self.nodes)
        drawn = self._siblings[parent]
        node = self.growth.add(drawn.tokens[place], parent, drawn.chances[place], drawn.row)
        self.values.append(-negative)
        self._depths.append(1 if parent == ROOT else self._depths[parent] + 1)
        heapq.heappush(self._best, -negative)
        if len(self._best) > self.nodes:
            heapq.heappop(self._best)
        share = drawn.shares[place] ** self.drafter.settings.exponent
        if place + 1 < len(drawn.tokens) and share < 1:
            self._put(self._open, negative * (1 - share), parent, place + 1)
        if self._depths[node] < self.growth.depth:
            self._put(below, negative * share, node, 0)

    def _put(self, slots: list[_Slot], negative: float, parent: int, place: int) -> None:
        heapq.heappush(slots, (negative, self._opened, parent, place))
        self._opened += 1


@register(
    Card(
        slug="dyspec",
        name="DySpec",
        kind=Kind.DRAFTER,
        summary="Grows a sampled draft tree greedily where the draft model expects candidates to be accepted.",
        paper="DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure, 2024",
        claim="more accepted tokens a step than fixed and independent trees of the same size, at any temperature; with "
        "offloaded weights up to 9.1x the throughput",
        lossless=True,
        needs=frozenset({Capability.TREE}),
        models=("draft",),
    ),
    DySpecSettings,
)
class DySpec(DraftModelDrafter):
    """Trees grown by the estimated chance that a slot is tried."""

    settings: DySpecSettings
    # Under a deterministic sampler the drafts carry no q, and every rule matches those.
    proposal = Proposal.WITHOUT_REPLACEMENT

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.require_trees(setup.target, self.card.slug)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        growths = self.grow(branches, budgets, self.settings.nodes, self.settings.nodes)
        trees = [None if growth is None else _Slots(self, growth) for growth in growths]
        growing = [tree for tree in trees if tree is not None]
        while growing:
            unread = [tree.unread for tree in growing]
            scored = self.score([tree.growth for tree in growing], unread)
            for tree, nodes, scores in zip(growing, unread, scored, strict=True):
                tree.read(nodes, scores.logits)
            grow = _Slots.fill if self.settings.variant == "heap" else _Slots.fill_level
            growing = [tree for tree in growing if grow(tree)]
        return [Draft.empty() if tree is None else keep_best(tree.growth, tree.values, tree.nodes) for tree in trees]

    def siblings(self, growth: Growth, node: int, logits: Tensor, count: int) -> _Siblings:
        """At most ``count`` candidates under a node, whose logits are ``[V]``."""
        if self.sampler.deterministic:
            q, row = torch.softmax(logits.float() / self.settings.temperature, dim=-1), None
            tokens = q.topk(min(count, len(q))).indices.tolist()
        else:
            q = self.sampler.draft_probs(logits, growth.branch.tokens + growth.path_tokens(node), growth.branch)
            tokens = draw_siblings(q, count, growth.branch.rng, replacement=False)
            row = len(growth.q)
            growth.q.append(q)
        chances = q[tokens].double()
        left = (q.double().sum() - chances.cumsum(0) + chances).clamp_min(1e-300)
        return _Siblings(tokens, chances.tolist(), (chances / left).clamp_max(1).tolist(), row)
