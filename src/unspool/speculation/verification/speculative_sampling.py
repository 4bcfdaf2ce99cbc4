"""Speculative sampling: accept a sampled chain by likelihood ratio, else draw from the residual.

A draft token ``x ~ q`` stands with probability ``min(1, p(x) / q(x))``; the first that falls is replaced by a token
from ``norm(max(p - q, 0))`` and ends the step; if all stand, one more token is drawn from the target.

Paper: Leviathan et al., Fast Inference from Transformers via Speculative Decoding, 2023 (section 2.3);
the same rule in Chen et al., Accelerating Large Language Model Decoding with Speculative Sampling, 2023.

Lossless: ``x`` is emitted by acceptance with ``min(p, q)`` and by the residual with ``max(p - q, 0)``, in sum ``p``.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk
from unspool.speculation.verification._rejection import rejection_walk


@register(
    Card(
        slug="speculative-sampling",
        name="Speculative sampling",
        kind=Kind.VERIFIER,
        summary="Accepts a sampled draft token as often as the target allows, and repairs the rest with the residual.",
        paper="Fast Inference from Transformers via Speculative Decoding, 2023",
        lossless=True,
    )
)
class SpeculativeSampling(Verifier):
    """Judges sampled chains; fixed candidates are matched."""

    judges = frozenset({Proposal.SAMPLED, Proposal.POINT})
    default_for = frozenset({Proposal.SAMPLED})

    def verify(self, walk: Walk) -> Verdict:
        # With one candidate a place it makes no difference whether the next would be drawn with replacement.
        return rejection_walk(walk, replacement=True)
