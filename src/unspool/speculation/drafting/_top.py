"""The few largest of many logits."""

from __future__ import annotations

import torch
from torch import Tensor

_PARTS = 64
# Below this, or on an accelerator, one call is as fast.
_LARGE = 8192


def top_tokens(logits: Tensor, count: int) -> Tensor:
    """``[R, count]`` int64 indices of the largest of ``[R, V]`` logits, in falling order of their values.

    A selection over the whole vocabulary costs far more on a CPU than a maximum: so the maxima of strided parts come
    first, and only the parts that hold the largest of them are looked through. Which of equal values comes first is
    open, as it is for ``topk``.
    """
    rows, width = logits.shape
    if width < _LARGE or logits.device.type != "cpu":
        return logits.topk(min(count, width), dim=-1).indices
    stride = width // _PARTS
    whole = stride * _PARTS
    # Part j holds the tokens j, j + stride, j + 2 stride, ...
    best = logits[:, :whole].view(rows, _PARTS, stride).amax(1).topk(count, dim=-1).indices
    tokens = (best[:, :, None] + torch.arange(0, whole, stride)).view(rows, -1)
    if whole < width:
        tokens = torch.cat([tokens, torch.arange(whole, width).expand(rows, -1)], dim=-1)
    order = logits.gather(1, tokens).topk(count, dim=-1).indices
    return tokens.gather(1, order)
