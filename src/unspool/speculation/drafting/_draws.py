"""Drawing siblings from a draft distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from unspool.core.sockets import draw


def draw_siblings(q: Tensor, count: int, rng: torch.Generator, *, replacement: bool) -> list[int]:
    """Tokens in drawing order.

    Args:
        q: ``[V]`` probabilities.
        count: how many; without replacement fewer come back if ``q`` holds fewer tokens.
        rng: source of randomness.
        replacement: whether a token may come twice.
    """
    if count == 1:
        return [draw(q, rng)]
    if replacement:
        drawn: list[int] = torch.multinomial(q, count, replacement=True, generator=rng).tolist()
        return drawn
    # Gumbel-top-k: log q + Gumbel noise orders as q over exponential noise does; the order of the keys is the order of
    # drawing (Kool et al., Stochastic Beams and Where to Find Them, 2019).
    wide = q.double()
    keys = wide / torch.empty_like(wide).exponential_(generator=rng)
    count = min(count, int((wide > 0).sum()))
    siblings: list[int] = keys.topk(count).indices.tolist()
    return siblings
