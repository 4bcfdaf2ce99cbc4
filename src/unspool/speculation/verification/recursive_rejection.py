"""Recursive rejection sampling: siblings drawn without replacement are tried in drawing order.

Candidate ``x_k`` stands with probability ``min(1, p_k(x_k) / q_k(x_k))``; after a rejection
``p_{k+1} = norm(max(p_k - q_k, 0))`` and ``q_{k+1}`` is ``q_k`` without ``x_k``, renormalised. If all fall, a token of
the last residual is drawn. No candidate is wasted on a token that was refused already.

Paper: Jeon et al., Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement, 2024;
the same rule in Yang et al., Multi-Candidate Speculative Decoding, 2024.

Lossless: given the earlier candidates, ``x_k`` is a draw from ``q_k``, so each trial preserves its current ``p_k``.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk
from unspool.speculation.verification._rejection import rejection_walk


@register(
    Card(
        slug="recursive-rejection",
        name="Recursive rejection sampling",
        kind=Kind.VERIFIER,
        summary="Tries distinct draft tokens at one place in drawing order, taking each refused one out of the draft's "
        "distribution.",
        paper="Recursive Speculative Decoding: Accelerating LLM Inference via Sampling Without Replacement, 2024",
        lossless=True,
    )
)
class RecursiveRejection(Verifier):
    """Judges trees whose siblings were drawn without replacement, and sampled chains; fixed candidates are matched."""

    judges = frozenset({Proposal.WITHOUT_REPLACEMENT, Proposal.SAMPLED, Proposal.POINT})
    default_for = frozenset({Proposal.WITHOUT_REPLACEMENT})

    def verify(self, walk: Walk) -> Verdict:
        return rejection_walk(walk, replacement=False)
