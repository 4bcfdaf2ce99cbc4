"""Attention of transformers networks with something asked of it: row by row, or with a look at the queries.

A network attends as it was loaded (fused, ``sdpa``) until a pass asks for more; only for that pass :func:`attending`
puts :func:`asked` in its place, which calls the same fused function underneath.

Ragged batches, two ways with the same result (Qian et al., BASS, 2024, section 3.2): *pad* is one call for all rows,
keys padded to the longest, the padding masked; *split* is one call a row with its true number of queries and keys, no
product wasted, but as many calls as rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_NAME = "unspool"


@dataclass(frozen=True)
class _Asked:
    """What one pass asks of every attention layer in it."""

    inner: str
    rows: Sequence[tuple[int, int]] | None
    queries: dict[int, Tensor] | None


# The interface of transformers hands a function nothing of the pass; a context variable keeps threads apart.
_PASS: ContextVar[_Asked] = ContextVar("pass")


def can_be_asked(model: PreTrainedModel) -> bool:
    """Whether the network's attention goes through transformers' interface with a function that can be called from
    here (``eager`` attention is written into each network, and is not)."""
    return model.config._attn_implementation in ALL_ATTENTION_FUNCTIONS and model._can_set_attn_implementation()


@contextmanager
def attending(
    model: PreTrainedModel,
    rows: Sequence[tuple[int, int]] | None = None,
    queries: dict[int, Tensor] | None = None,
) -> Iterator[None]:
    """Ask something of the attention of ``model`` until the context ends; needs :func:`can_be_asked`.

    Args:
        model: the network.
        rows: for each row of the batch its true numbers of queries and of keys, counted from the first; one call a row
            then. ``None`` for one call with padding.
        queries: is filled with the queries of every layer that runs, by its index: ``[B, Hq, N, D]``, rotated where the
            network rotates, padding included.
    """
    before = model.config._attn_implementation
    token = _PASS.set(_Asked(before, rows, queries))
    try:
        model.set_attn_implementation(_NAME)
        yield
    finally:
        model.set_attn_implementation(before)
        _PASS.reset(token)


def asked(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention of one layer, as the running :func:`attending` wants it.

    Args:
        query: ``[B, Hq, N, D]``.
        key, value: ``[B, H, K, D]``.
        attention_mask: ``[B, 1, N, K]``, additive.

    Returns:
        ``[B, N, Hq, D]``, padding rows zero where it went row by row; and the probabilities, or ``None``.
    """
    way = _PASS.get()
    if way.queries is not None:
        way.queries[int(module.layer_idx)] = query  # type: ignore[arg-type]
    inner = ALL_ATTENTION_FUNCTIONS[way.inner]
    if way.rows is None:
        whole: tuple[Tensor, Tensor | None] = inner(module, query, key, value, attention_mask, **kwargs)
        return whole
    out = query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])
    for row, (new, seen) in enumerate(way.rows):
        this = slice(row, row + 1)
        mask = None if attention_mask is None else attention_mask[this, :, :new, :seen]
        part, _ = inner(module, query[this, :, :new], key[this, :, :seen], value[this, :, :seen], mask, **kwargs)
        out[row, :new] = part[0]
    return out, None


AttentionInterface.register(_NAME, asked)
