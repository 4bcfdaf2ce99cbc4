"""The arithmetic of accepting and rejecting sampled candidates, and the walk that the rules share.

All random numbers come from ``torch.bernoulli`` and ``Distribution.draw``, so that a test can enumerate every outcome
of a rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.core.sockets import Distribution, Verdict, Walk, match_target
from unspool.core.tree import ROOT


def residual(p: Tensor, q: Tensor) -> Tensor:
    """``norm(max(p - q, 0))``, ``[V]``: what the target still owes after a candidate from ``q`` was rejected."""
    rest = (p - q).clamp_min_(0.0)
    mass = rest.sum()
    # Without mass p equals q; only rounding can have caused the rejection, and p is what is owed.
    return rest / mass if mass > 0 else p


def try_siblings(
    p: Tensor, q: Tensor, candidates: Sequence[int], rng: torch.Generator, *, replacement: bool
) -> tuple[int | None, Tensor]:
    """Try siblings one after another (recursive rejection).

    A candidate ``x`` stands with probability ``min(1, p[x] / q[x])``. After a rejection ``p`` becomes the residual; if
    the siblings were drawn without replacement, ``x`` also leaves ``q``, because the next one was drawn from what
    remained.

    Args:
        p: ``[V]`` float64, the target's distribution.
        q: ``[V]`` float64, what the first candidate was drawn from.
        candidates: tokens in drawing order.
        rng: source of the decisions.
        replacement: whether every candidate was drawn from the same ``q``.

    Returns:
        The place of the accepted candidate or ``None``, and the distribution ``[V]`` to draw from in the latter case.

    Raises:
        ValueError: if a candidate cannot have been drawn from ``q``, which is a fault of the drafter.
    """
    for place, token in enumerate(candidates):
        if place and not replacement:
            q = q.clone()
            q[candidates[place - 1]] = 0.0
            q = q / q.sum()
        if not q[token] > 0:
            raise ValueError(f"draft token {token} has no probability in the distribution that it is said to come from")
        if torch.bernoulli((p[token] / q[token]).clamp_max(1.0), generator=rng):
            return place, p
        p = residual(p, q)
    return None, p


def rejection_walk(walk: Walk, *, replacement: bool) -> Verdict:
    """Walk a draft from the root, siblings by :func:`try_siblings`; drafts without ``q`` are matched.

    Everything is computed in float64, because residuals are differences of nearly equal numbers.
    """
    q = walk.draft.q
    if q is None:
        return match_target(walk)
    tree, node = walk.tree, ROOT
    while True:
        target = walk.distribution(node)
        children = tree.children(node)
        if not children:
            return Verdict(tree.path(node), target.draw(walk.rng))
        proposed = q[walk.draft.q_rows[children[0]]]
        p = target.dense(proposed).double()
        drawn_from = proposed.double()
        place, rest = try_siblings(
            p / p.sum(),
            drawn_from / drawn_from.sum(),
            [tree.token_list[child] for child in children],
            walk.rng,
            replacement=replacement,
        )
        if place is None:
            return Verdict(tree.path(node), Distribution(rest).draw(walk.rng))
        node = children[place]
