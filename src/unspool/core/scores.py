"""What is asked of a model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from unspool.core.tree import TokenTree

if TYPE_CHECKING:
    from unspool.core.model import Cache


@dataclass(frozen=True)
class Want:
    """What a forward pass should return besides the logits of the requested rows.

    Args:
        hidden: layers whose output is wanted: ``0`` is the embedding, ``k`` the output of the k-th layer, ``-1`` the
            final hidden state that the head reads (after the last norm).
        attentions: whether the attention probabilities of every layer are wanted.
        split: attend row by row, each with its true length, instead of in one call with padding; the result is the
            same. Needs :attr:`~unspool.core.model.Capability.SPLIT_ATTENTION`, and goes without ``attentions``.
        queries: whether the queries of every layer that runs are wanted. Needs
            :attr:`~unspool.core.model.Capability.QUERIES`, and goes without ``attentions``.
    """

    hidden: frozenset[int] = frozenset()
    attentions: bool = False
    split: bool = False
    queries: bool = False

    def __or__(self, other: Want) -> Want:
        return Want(
            self.hidden | other.hidden,
            self.attentions or other.attentions,
            self.split or other.split,
            self.queries or other.queries,
        )


LOGITS = Want()


@dataclass
class Request:
    """One tree to score after one cache.

    Args:
        cache: what the model remembers of the text before the tree.
        tree: the ``N`` nodes.
        rows: nodes whose logits are wanted, in ascending order; ``None`` for all, an empty list for none (the head
            is skipped).
        known: number of leading nodes that an earlier ``score`` of the same cache has seen and that were neither
            committed nor dropped since; only the others are computed. A tree can so be grown level by level.
        inputs: ``[N - known, d]`` vectors that enter in place of the token embeddings; with a range of layers that
            does not begin at 0, the hidden states that enter its first layer.
    """

    cache: Cache
    tree: TokenTree
    rows: list[int] | None = None
    known: int = 0
    inputs: Tensor | None = None


@dataclass
class Scores:
    """The answer to one :class:`Request`. Nodes below ``known`` have no rows.

    Args:
        logits: ``[R, V]`` next-token logits after each requested node.
        rows: the nodes that the rows of ``logits`` belong to, ascending.
        hidden: by layer, ``[N - known, d]`` (see :class:`Want`).
        attentions: by layer, ``[H, N - known, L + N]``: over the ``L`` cached positions, then the nodes.
        queries: by layer, from 0, ``[Hq, N - known, D]``: what the nodes ask with, rotated where the network rotates.
    """

    logits: Tensor
    rows: list[int]
    hidden: dict[int, Tensor] = field(default_factory=dict)
    attentions: tuple[Tensor, ...] = ()
    queries: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, count = (self.rows[0], len(self.rows)) if self.rows else (0, 0)
        # Rows are nearly always a run; then a node's row is found by subtraction.
        self._run = first if self.rows == list(range(first, first + count)) else None
        self._place = None if self._run is not None else {node: row for row, node in enumerate(self.rows)}

    def at(self, node: int) -> Tensor:
        """``[V]`` logits after ``node``."""
        row = node - self._run if self._run is not None else self._place[node]  # type: ignore[index]
        if row < 0:
            raise IndexError(f"node {node} has no logits: rows {self.rows} were asked for")
        return self.logits[row]
