"""Target match: draw from the target, and go on where the tree holds what was drawn.

The tokens are the target's own draws, one after another; the tree only decides how many of them one forward pass pays
for. With a fixed seed the output is that of plain decoding, draw for draw.

Paper: Miao et al., SpecInfer, 2023 (section 4.3, "naive sampling"); the validation step of Svirschevski et al.,
SpecExec, 2024. It accepts a fixed candidate ``x`` with probability ``p(x)``, which is as often as any exact rule can.

Lossless for every tree that was made before the draw, sampled ones included; of those, the likelihood-ratio rules
accept more.
"""

from __future__ import annotations

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import Proposal, Verdict, Verifier, Walk, match_target


@register(
    Card(
        slug="target-match",
        name="Target match",
        kind=Kind.VERIFIER,
        summary="Draws each token from the target and keeps what the draft tree happens to hold.",
        paper="SpecInfer: Accelerating Large Language Model Serving with Tree-based Speculative Inference and "
        "Verification, 2023",
        lossless=True,
    )
)
class TargetMatch(Verifier):
    """Judges every draft, under every sampler."""

    judges = frozenset(Proposal)
    default_for = frozenset({Proposal.POINT})

    def verify(self, walk: Walk) -> Verdict:
        return match_target(walk)
