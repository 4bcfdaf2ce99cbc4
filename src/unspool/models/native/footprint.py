"""What a pass of the native runtime takes, in bytes: its buffers instead of what a layer of transformers makes."""

from __future__ import annotations

from dataclasses import dataclass

from unspool.models.memory import Footprint
from unspool.models.native.network import Network

_INTEGER, _FLOAT = 4, 4
# Numbers for each token that say where it stands and what it sees; see ``Tokens`` in ``kernels.cpp``.
_NUMBERS = 7


@dataclass(frozen=True)
class NativeFootprint(Footprint):
    """As :class:`~unspool.models.memory.Footprint`, for buffers that are there for all layers of a pass.

    Args:
        network: whose buffers they are.
        threads: that share the work.
    """

    network: Network
    threads: int

    @classmethod
    def of_network(cls, network: Network, block: int, threads: int) -> NativeFootprint:
        """Of a network whose caches grow by ``block`` positions."""
        shape = network.shape
        return cls(
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            hidden=shape.hidden,
            inner=shape.mlp,
            vocabulary=network.head.n,
            item=2 if network.half_cache else 4,
            masks=1,
            turned=False,
            block=block,
            network=network,
            threads=threads,
        )

    def mask(self, rows: int, width: int, end: int) -> int:
        """Places of the tokens, and of what they see in their trees at most."""
        return _INTEGER * rows * width * (_NUMBERS + width)

    def work(self, rows: int, width: int, end: int) -> int:
        sizes = self.network.buffer_sizes(rows * width, end, self.threads)
        return sum(dtype.itemsize * count for dtype, count in sizes.values())

    def head(self, rows: int, width: int, kept: int) -> int:
        """The rows that are read, beside the buffers, which stay."""
        return self.work(rows, width, 1) + _FLOAT * rows * kept * self.hidden

    def logits(self, rows: int, kept: int) -> int:
        return _FLOAT * rows * kept * self.vocabulary
