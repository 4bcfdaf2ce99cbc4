"""Relaxed top-k with a threshold: a draft token stands if it is nearly the target's best.

A token passes if it is among the target's ``beta`` best at its place, and its log-probability is within ``tau`` of the
best one's. The first place where nothing passes gets the target's own choice. Of several siblings that pass, the
target's own choice goes first, then the most probable.

Paper: Xia et al., Speculative Decoding: Exploiting Speculative Execution for Accelerating Seq2seq Generation, 2023
(section 3.2).

Lossy on purpose: what the drafter prefers may replace the target's choice where the target itself is nearly undecided.
``beta=1`` or ``tau=0`` only leaves the target's choices, which is plain decoding (``tau=0`` up to exact ties).
Logits that a constraint forbids never pass. Under a sampler with penalties its choice counts as the best token.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor

from unspool.core.cards import Card, Kind, settings
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk
from unspool.core.tree import ROOT


@settings
class RelaxedTopKSettings:
    """The paper's (beta, tau): strict (1, 0), normal (3, 1), lenient (5, 3)."""

    beta: Annotated[int, Field(ge=1, description="a draft token must be among so many best of the target")] = 3
    tau: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="how far its log-probability may be below the best (nats)")
    ] = 1.0


@register(
    Card(
        slug="relaxed-top-k",
        name="Relaxed top-k verification",
        kind=Kind.VERIFIER,
        summary="Also keeps draft tokens that are only nearly the target's best; faster, but the output may differ.",
        paper="Speculative Decoding: Exploiting Speculative Execution for Accelerating Seq2seq Generation, 2023",
        lossless=False,
    ),
    RelaxedTopKSettings,
)
class RelaxedTopK(Verifier):
    """Judges every draft, under samplers whose choice is a point."""

    judges = frozenset(Proposal)
    deterministic_only = True
    settings: RelaxedTopKSettings

    def verify(self, walk: Walk) -> Verdict:
        tree, node = walk.tree, ROOT
        while True:
            choice = walk.distribution(node).token
            if choice is None:
                raise ValueError("relaxed-top-k was given a distribution that is not a point")
            child = tree.child(node, choice)
            if child is None and (others := tree.children(node)):
                logits = walk.constrained_logits(node)
                passing = [n for n in others if self._passes(logits, tree.token_list[n], choice)]
                child = max(passing, key=lambda n: float(logits[tree.token_list[n]]), default=None)
            if child is None:
                return Verdict(tree.path(node), choice)
            node = child

    def _passes(self, logits: Tensor, token: int, best: int) -> bool:
        """Whether ``token``, which is not ``best``, stands under ``[V]`` logits."""
        mine = logits[token]
        if not mine > -float("inf") or logits[best] - mine > self.settings.tau:
            return False
        # The best token's rank is 0 whatever its logit (a penalty may have made it the best); equal logits rank by id.
        better = logits > mine
        better[:token] |= logits[:token] == mine
        better[best] = True
        return int(better.sum()) < self.settings.beta
