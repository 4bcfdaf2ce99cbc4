"""Multi-step speculative sampling: siblings drawn with replacement are tried one after another.

Candidates ``x_1..x_k`` are independent draws from the same ``q``. Each stands with probability ``min(1, p(x) / q(x))``;
after a rejection ``p`` becomes ``norm(max(p - q, 0))`` while ``q`` stays. If all fall, a token of the last residual is
drawn. A token that was drawn twice is tried twice; the second trial is refused with certainty but still moves ``p``,
which is why drafters keep duplicates.

Paper: Miao et al., SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and
Verification, 2023 (section 4.3).

Lossless: each trial alone preserves its current ``p`` (the rule of speculative sampling), and the next trial takes the
place of the draw from the residual.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk
from unspool.speculation.verification._rejection import rejection_walk


@register(
    Card(
        slug="multi-step-sampling",
        name="Multi-step speculative sampling",
        kind=Kind.VERIFIER,
        summary="Tries independent draft tokens at one place in turn, each against what the earlier ones left over.",
        paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and "
        "Verification, 2023",
        lossless=True,
    )
)
class MultiStepSampling(Verifier):
    """Judges trees whose siblings were drawn with replacement, and sampled chains; fixed candidates are matched."""

    judges = frozenset({Proposal.WITH_REPLACEMENT, Proposal.SAMPLED, Proposal.POINT})
    default_for = frozenset({Proposal.WITH_REPLACEMENT})

    def verify(self, walk: Walk) -> Verdict:
        return rejection_walk(walk, replacement=True)
