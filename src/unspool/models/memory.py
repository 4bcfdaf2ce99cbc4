"""Bytes of decoding, counted where they are allocated and predicted before they are.

A :class:`Ledger` counts what caches and passes hold, live and at the peak, and refuses what would exceed its limit. It
counts tensors that the models of this package make: keys and values (``cache``, the candidates of a tree among them),
masks (``mask``), logits (``logits``), and, by formula, what a network works with inside of one layer (``work``).
Weights, and what samplers and drafters hold, are not in it.

:class:`Footprint` predicts the same numbers from a model's shape, so that a tree can be chosen by what fits.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from unspool.core.errors import UnspoolError
from unspool.models.few_rows import few_rows_bytes


class BudgetExceeded(UnspoolError):
    """A pass needs more bytes than its budget leaves."""


@dataclass
class Ledger:
    """Bytes by kind.

    Args:
        limit: live bytes at most; ``None`` for no limit.

    Attributes:
        live: bytes held now, by kind.
        peak: the most that was held at any time.
        peaks: what was held then, by kind.
    """

    limit: int | None = None
    live: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    _after: tuple[int, int] = field(default=(0, 0), repr=False)

    @property
    def total(self) -> int:
        return sum(self.live.values())

    def take(self, kind: str, size: int) -> None:
        """Count ``size`` bytes that are about to be allocated.

        Raises:
            BudgetExceeded: if they do not fit; nothing is counted then.
        """
        self._check(kind, size)
        self.live[kind] = self.live.get(kind, 0) + size
        if self.total > self.peak:
            self.peak, self.peaks = self.total, dict(self.live)

    def _check(self, kind: str, size: int) -> None:
        if self.limit is not None and self.total + size > self.limit:
            held = ", ".join(f"{name} {readable(held)}" for name, held in self.live.items() if held) or "nothing"
            raise BudgetExceeded(
                f"the budget is {readable(self.limit)}; held are {held}, and {readable(size)} more are needed "
                f"for {kind}: raise the budget, shorten the text, or decode fewer texts side by side"
            )

    def give(self, kind: str, size: int) -> None:
        """Count ``size`` bytes that were freed."""
        self.live[kind] -= size

    def next_pass(self) -> None:
        """A pass is coming: the loop has dropped the logits of the last one."""
        self.live["logits"] = 0

    def before_pass(self, *, mask: int, work: int, head: int, logits: int, cache: int = 0) -> None:
        """Count what a pass takes, before it does: its mask and what its layers work with.

        Args:
            mask: bytes that live as long as the pass.
            work: bytes that live while the layers run.
            head: bytes that take their place while the head runs.
            logits: bytes that the head makes, and that live until the next pass.
            cache: bytes that the pass will have counted by then, for its first keys and values.

        Raises:
            BudgetExceeded: if any of it does not fit; nothing is counted then.
        """
        self._check("a pass through the layers", mask + work + cache)
        self._check("the logits of a pass", mask + head + logits + cache)
        self.take("mask", mask)
        self.take("work", work)
        self._after = head, logits

    def after_pass(self) -> None:
        head, logits = self._after
        self.live["work"] = head
        self.take("logits", logits)
        self.live["work"] = self.live["mask"] = 0


def readable(size: int) -> str:
    """For people: ``3.1 MB``."""
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 2**10:.1f} kB"


@dataclass(frozen=True)
class Footprint:
    """What decoding with a model takes, in bytes.

    Args:
        layers, heads, kv_heads, head_dim, hidden, inner, vocabulary: of the network.
        item: bytes of one number of its dtype.
        masks: kinds of attention, each with a mask of its own.
        turned: whether the head multiplies few rows the other way round (:mod:`unspool.models.few_rows`).
        block: positions by which a cache grows.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int
    vocabulary: int
    item: int
    masks: int
    turned: bool
    block: int

    @classmethod
    def of(cls, config: Any, *, vocabulary: int, item: int, masks: int, turned: bool, block: int) -> Footprint:
        """From a configuration of transformers."""
        heads = int(config.num_attention_heads)
        hidden = int(config.hidden_size)
        inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
        return cls(
            layers=int(config.num_hidden_layers),
            heads=heads,
            kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(config, "head_dim", None) or hidden // heads),
            hidden=hidden,
            inner=int(inner),
            vocabulary=vocabulary,
            item=item,
            masks=masks,
            turned=turned,
            block=block,
        )

    def room(self, positions: int) -> int:
        """Positions that a cache has room for once it held so many."""
        return -(-positions // self.block) * self.block

    @property
    def layer_position(self) -> int:
        """Bytes of one position's keys and values in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.item

    def cache(self, rows: int, room: int) -> int:
        """Keys and values of ``rows`` sequences with ``room`` positions each."""
        return rows * room * self.layers * self.layer_position

    def mask(self, rows: int, width: int, end: int) -> int:
        return self.masks * rows * width * end * self.item

    def logits(self, rows: int, kept: int) -> int:
        """Logits of ``kept`` places of every row; in half precision also their copy in single precision."""
        return rows * kept * self.vocabulary * (self.item if self.item >= 4 else self.item + 4)

    def head(self, rows: int, width: int, kept: int) -> int:
        """What the head works with besides the logits: the last hidden states, as they come and as they are read."""
        copied = few_rows_bytes(rows * kept, self.vocabulary) if self.turned else 0
        return 2 * rows * width * self.hidden * self.item + copied

    def work(self, rows: int, width: int, end: int) -> int:
        """What one layer works with: the residual stream and either attention or the inner width of its MLP."""
        heads = self.heads * self.head_dim
        # Keys and values are written out once for every query head of a group.
        repeated = 2 * rows * end * heads if self.heads != self.kv_heads and width > 1 else 0
        attention = rows * width * (3 * heads + 2 * self.kv_heads * self.head_dim) + repeated
        mlp = 3 * rows * width * self.inner
        return self.item * (3 * rows * width * self.hidden + max(attention, mlp))

    def peak(self, rows: int, end: int, width: int, places: int, held: int = 0) -> int:
        """The most that is held at any time of a pass.

        Args:
            rows: sequences side by side.
            end: positions of the longest after the pass, the nodes of its tree included.
            width: new tokens of the widest, pending ones and nodes.
            places: of the most, how many have logits.
            held: positions for which the caches have room already.
        """
        room = max(held, self.room(end))
        reading = self.head(rows, width, places) + self.logits(rows, places)
        running = self.mask(rows, width, end) + max(self.work(rows, width, end), reading)
        # A layer grows by being copied, before the pass: for that moment it is there twice.
        growing = rows * held * self.layer_position if room > held else 0
        return self.cache(rows, room) + max(running, growing)


class Counted(Protocol):
    """A model with :attr:`~unspool.core.model.Capability.MEMORY_BUDGET`."""

    def counted(self, ledger: Ledger, block: int) -> AbstractContextManager[None]:
        """Caches that are made in this context grow by ``block`` positions; ``ledger`` counts them and their passes."""

    def footprint(self, block: int) -> Footprint:
        """What decoding takes with caches that grow by ``block`` positions."""
