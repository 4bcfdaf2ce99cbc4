"""Longest branch: of several branches that the target itself began, keep the one of which most stands.

The first tokens of the draft are likely next tokens by the target's own account, and stand by definition (those that a
constraint forbids excepted). Below them a token stands if it is the target's choice there or, under random samplers,
with probability ``min(1, p / q)``. The longest run is committed, of equals the first; what follows it is left to the
next draft, which begins with the target's likely tokens at its end. A draft without branches (at the start of a text,
whose continuation the target has not told yet) makes the target's own choice the only branch of the next round.

Paper: Lu et al., Improving Multi-candidate Speculative Decoding, 2024 (section 3.1, and the published implementation).

Lossy: a branch is kept for its length, so that what the draft model writes on easily is preferred to what the target
prefers; even the first token of a greedy text may be the target's second choice.
"""

from __future__ import annotations

import torch

from unspool.core.cards import Card, Kind
from unspool.core.registry import register
from unspool.core.sockets import LookAhead, Node, Proposal, Verdict, Verifier, Walk
from unspool.core.tree import ROOT


@register(
    Card(
        slug="longest-branch",
        name="Longest branch",
        kind=Kind.VERIFIER,
        summary="Keeps the longest of several branches that begin with likely tokens of the target; the output may "
        "differ.",
        paper="Improving Multi-candidate Speculative Decoding, 2024",
        lossless=False,
    )
)
class LongestBranch(Verifier):
    """Judges branches below the target's own tokens, under every sampler."""

    judges = frozenset({Proposal.TARGET_ROOTS})
    default_for = frozenset({Proposal.TARGET_ROOTS})

    def verify(self, walk: Walk) -> Verdict:
        tree = walk.tree
        allowed = walk.constrained_logits(ROOT) if tree else None
        roots = [
            node for node in tree.children() if allowed is not None and allowed[tree.token_list[node]] > -torch.inf
        ]
        if not roots:
            choice = walk.distribution(ROOT).draw(walk.rng)
            # Where the last round told what follows the text, there is no draft because there is no room for one.
            if tree or walk.branch.memo.get(self) == len(walk.branch.tokens):
                return Verdict([], choice)
            raise LookAhead(Node(walk.branch, ROOT, walk.logits(ROOT), walk), [choice])
        # The first of equals stays: later ones must be longer.
        best = max((self._run(walk, root) for root in roots), key=len)
        walk.branch.memo[self] = len(walk.branch.tokens) + len(best)
        # The last token of the run is the one that the next draft hangs off.
        return Verdict(best[:-1], tree.token_list[best[-1]])

    def _run(self, walk: Walk, node: int) -> list[int]:
        """The longest run of standing nodes that begins with ``node``, which stands."""
        below = [self._run(walk, child) for child in walk.tree.children(node) if self._stands(walk, node, child)]
        return [node, *max(below, key=len, default=[])]

    @staticmethod
    def _stands(walk: Walk, parent: int, child: int) -> bool:
        token, target = walk.tree.token_list[child], walk.distribution(parent)
        if walk.draft.q is None or target.token is not None:
            return target.prob(token) == 1.0 if target.token is not None else _happens(target.prob(token), walk)
        q = float(walk.draft.q[walk.draft.q_rows[child]][token])
        return _happens(min(1.0, target.prob(token) / q), walk)


def _happens(probability: float, walk: Walk) -> bool:
    return bool(torch.bernoulli(torch.tensor(probability, device=walk.rng.device), generator=walk.rng))
