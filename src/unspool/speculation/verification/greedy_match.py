"""Greedy match: keep draft tokens for as long as they are what the target would choose.

The walk follows the sampler's one choice at every node and ends with the first that the tree does not hold.

Paper: Stern et al., Blockwise Parallel Decoding for Deep Autoregressive Models, 2018 (section 3).

Lossless under deterministic samplers, for which it is made: the tokens are the sampler's own choices.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk
from unspool.core.tree import ROOT


@register(
    Card(
        slug="greedy-match",
        name="Greedy match",
        kind=Kind.VERIFIER,
        summary="Keeps draft tokens for as long as each is the target's own choice; for decoding without randomness.",
        paper="Blockwise Parallel Decoding for Deep Autoregressive Models, 2018",
        lossless=True,
    )
)
class GreedyMatch(Verifier):
    """Judges every draft, under samplers whose choice is a point."""

    judges = frozenset(Proposal)
    deterministic_only = True

    def verify(self, walk: Walk) -> Verdict:
        node = ROOT
        while True:
            choice = walk.distribution(node).token
            if choice is None:
                raise ValueError("greedy-match was given a distribution that is not a point")
            child = walk.tree.child(node, choice)
            if child is None:
                return Verdict(walk.tree.path(node), choice)
            node = child
