"""Recursive speculative decoding (RSD): trees of a draft model whose siblings are drawn without replacement.

Two shapes. RSD-C gives every node of a level the same number of children: Gumbel noise on ``log q``, the largest keys
win, in the order in which drawing one after another would have found them. RSD-S is stochastic beam search: the ``W``
nodes of a level are drawn without replacement from all continuations of the level above, so that likely prefixes get
more children and unlikely ones none. With ``phi`` the log probability of a path and ``G`` its perturbed value, a child
gets ``phi + Gumbel`` noise, conditioned on the largest of its siblings being ``G`` of their parent; the ``W`` largest
stay. Beams that get no children remain in the tree as leaves. One pass of the draft model a level, for all branches.

Paper: Jeon et al., Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement, 2024
(section 3); the beam search is that of Kool et al., Stochastic Beams and Where to
Find Them, 2019 (section 4, with the stable formula of its appendix B.3).

Lossless with recursive rejection: siblings stand in drawing order, and whether there is a k-th one depends on its key,
which says nothing about which token it is. A budget cuts the width of the last levels before anything is drawn.

Where the paper is silent: under a sampler that does not draw, the candidates are the most probable tokens (RSD-C) or
paths (RSD-S: beam search), and are matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import InvalidInput
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.sockets import Budget, Draft, Proposal, Setup
from unspool.core.tree import ROOT
from unspool.speculation.drafting._draft_caches import DraftModelDrafter, Growth


@settings
class RecursiveSpeculativeDecodingSettings:
    """RSD-S with 12 nodes."""

    model: Annotated[str | None, Field(description="name of the draft model, if none was handed over")] = None
    variant: Annotated[
        Literal["stochastic", "constant"],
        Field(description="stochastic beam search (RSD-S), or the same number of children for every node (RSD-C)"),
    ] = "stochastic"
    width: Annotated[int, Field(ge=1, description="nodes of every level; stochastic")] = 3
    depth: Annotated[int, Field(ge=1, description="levels; stochastic")] = 4
    branching: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="children of every node, level by level from the top; constant"),
    ] = (2, 2, 2)


class _Level:
    """The last level of a draft.

    Attributes:
        nodes: numbers of the ``R`` nodes.
        phi: ``[R]`` log probabilities of their paths.
        perturbed: ``[R]`` the values ``G`` that they won with; of fixed candidates the same as ``phi``.
    """

    def __init__(self, growth: Growth, nodes: list[int], phi: Tensor, perturbed: Tensor) -> None:
        self.growth = growth
        self.nodes = nodes
        self.phi = phi
        self.perturbed = perturbed


@register(
    Card(
        slug="recursive-speculative-decoding",
        name="Recursive speculative decoding",
        kind=Kind.DRAFTER,
        summary="Draws draft trees without replacement: siblings never repeat, and stochastic beams follow what is "
        "likely.",
        paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement, 2024",
        claim="more tokens a step than independent draft chains of the same depth, and mostly of the same size",
        lossless=True,
        needs=frozenset({Capability.TREE}),
        models=("draft",),
    ),
    RecursiveSpeculativeDecodingSettings,
)
class RecursiveSpeculativeDecoding(DraftModelDrafter):
    """RSD-C and RSD-S."""

    settings: RecursiveSpeculativeDecodingSettings
    # Under a deterministic sampler the drafts carry no q, and every rule matches those.
    proposal = Proposal.WITHOUT_REPLACEMENT

    def __init__(self, settings: RecursiveSpeculativeDecodingSettings | None = None) -> None:
        super().__init__(settings)
        self._stochastic = self.settings.variant == "stochastic"
        if not self._stochastic and not self.settings.branching:
            raise InvalidInput("recursive-speculative-decoding: branching is empty; give at least one level, as (2, 2)")

    def bind(self, setup: Setup) -> None:
        super().bind(setup)
        self.require_trees(setup.target, self.card.slug)

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        depth = self.settings.depth if self._stochastic else len(self.settings.branching)
        growths = self.grow(branches, budgets, None, depth)
        top = torch.zeros(1, dtype=torch.float64, device=self.model.device)
        levels = [_Level(growth, [ROOT], top, top) for growth in growths if growth is not None]
        for place in range(depth):
            levels = [
                level for level in levels if level.nodes and place < level.growth.depth and level.growth.room != 0
            ]
            if not levels:
                break
            scored = self.score([level.growth for level in levels], [level.nodes for level in levels])
            levels = [self._below(level, scores.logits, place) for level, scores in zip(levels, scored, strict=True)]
        return [Draft.empty() if growth is None else growth.draft() for growth in growths]

    def _below(self, level: _Level, logits: Tensor, place: int) -> _Level:
        """Add the next level of one draft; ``logits`` ``[R, V]`` follow the nodes of the last."""
        growth = level.growth
        q = self._distributions(level, logits)
        keys = log_q = q.double().log()
        if not self.sampler.deterministic:
            # The negative logarithm of exponential noise is Gumbel noise.
            keys = log_q - torch.empty_like(log_q).exponential_(generator=growth.branch.rng).log_()
        if self._stochastic:
            width = self.settings.width if growth.room is None else min(self.settings.width, growth.room)
            perturbed, tokens = (keys + level.phi[:, None]).topk(min(width, keys.shape[1]), dim=1)
            if not self.sampler.deterministic:
                perturbed = _conditioned(perturbed, level.perturbed[:, None])
            values, chosen = perturbed.flatten().topk(min(width, perturbed.numel()))
        else:
            perturbed, tokens = keys.topk(min(self.settings.branching[place], keys.shape[1]), dim=1)
            values, chosen = perturbed.flatten(), torch.arange(perturbed.numel(), device=perturbed.device)
        # A token without probability is no candidate.
        possible = values > -torch.inf
        values, chosen = values[possible][: growth.room], chosen[possible][: growth.room]
        above, columns = chosen // tokens.shape[1], chosen % tokens.shape[1]
        drawn = tokens[above, columns]
        gained = log_q[above, drawn]
        rows: dict[int, int] = {}
        nodes = []
        for row, token, chance in zip(above.tolist(), drawn.tolist(), gained.exp().tolist(), strict=True):
            if row not in rows and not self.sampler.deterministic:
                rows[row] = len(growth.q)
                growth.q.append(q[row])
            nodes.append(growth.add(token, level.nodes[row], chance, rows.get(row)))
        return _Level(growth, nodes, level.phi[above] + gained, values)

    def _distributions(self, level: _Level, logits: Tensor) -> Tensor:
        """``[R, V]`` what the children of a level are drawn from."""
        if self.sampler.deterministic:
            return torch.softmax(logits.float(), dim=-1)
        growth = level.growth
        text = growth.branch.tokens
        return torch.stack(
            [
                self.sampler.draft_probs(row, text + growth.path_tokens(node), growth.branch)
                for node, row in zip(level.nodes, logits, strict=True)
            ]
        )


def _conditioned(values: Tensor, maximum: Tensor) -> Tensor:
    """Gumbel values given that the largest of each row is ``maximum``.

    Args:
        values: ``[R, K]`` the ``K`` largest of each row, descending.
        maximum: ``[R, 1]``.

    Returns:
        ``-log(exp(-maximum) - exp(-values[:, :1]) + exp(-values))``, computed without loss (Kool et al., B.3).
    """
    below = values - values[:, :1]
    # log(1 - exp(below)), by the formula that is exact on either side of log 2 (Maechler, 2012).
    log1mexp = torch.where(below > -0.6931, (-torch.expm1(below)).log(), torch.log1p(-below.exp()))
    u = maximum - values + log1mexp
    return maximum - u.clamp_min(0) - torch.log1p(torch.exp(-u.abs()))
