"""What trees share that hold the most promising nodes of a draft model, wherever in the tree those lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.core.sockets import Draft
from unspool.speculation.drafting._draft_caches import Growth


def most_probable(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The draft model's best guesses at temperature 1.

    Args:
        logits: ``[R, V]``.
        count: how many of each row, all of them if there are fewer.

    Returns:
        Log probabilities ``[R, K]`` in float64, best first, and their tokens ``[R, K]``.
    """
    best, tokens = logits.topk(min(count, logits.shape[-1]), dim=-1)
    return (best.float() - logits.float().logsumexp(dim=-1, keepdim=True)).double(), tokens


def keep_best(growth: Growth, values: Sequence[float], count: int) -> Draft:
    """The part of a draft that holds the ``count`` most valuable nodes.

    Args:
        growth: the whole of it.
        values: of every node; no node is worth more than its parent.
        count: of equal values the earlier node stays, so that no node loses its parent.
    """
    draft = growth.draft()
    kept = draft.tree.kept_by(nodes=count, weights=torch.tensor(values, dtype=torch.float64))
    return draft if len(kept) == len(draft.tree) else draft.select(kept)
