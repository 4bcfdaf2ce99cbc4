"""Early answer: what a drafter decrees stands, everything else is matched with the target.

A decreed draft is a chain that ends a rationale before it is finished: approximate tokens, then the words that ask for
the answer. All of it stands, and the target goes on behind it. Ordinary drafts of the same run are judged by target
match. A constraint stays in force: a decree ends before the first token that it forbids.

Paper: Zhang et al., Fast Chain-of-Thought: A Glance of Future from Parallel Decoding Leads to Answers Faster, 2023.

Lossy on purpose: the decreed tokens are not the target's, and the answer follows from them.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk, match_target
from unspool.core.tree import ROOT


@register(
    Card(
        slug="early-answer",
        name="Early answer",
        kind=Kind.VERIFIER,
        summary="Lets stand what a drafter decrees (a cut rationale and the words that ask for the answer).",
        paper="Fast Chain-of-Thought: A Glance of Future from Parallel Decoding Leads to Answers Faster, 2023",
        lossless=False,
    )
)
class EarlyAnswer(Verifier):
    """Judges decreed chains, and fixed candidates beside them, under every sampler."""

    judges = frozenset({Proposal.DECREED, Proposal.POINT})
    default_for = frozenset({Proposal.DECREED})

    def verify(self, walk: Walk) -> Verdict:
        if not walk.draft.decreed:
            return match_target(walk)
        last = ROOT
        for node, token in enumerate(walk.tree.token_list):
            if walk.constrained_logits(last)[token] == -float("inf"):
                break
            last = node
        return Verdict(walk.tree.path(last), walk.distribution(last).draw(walk.rng))
