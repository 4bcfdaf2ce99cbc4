"""Matrix products for a handful of rows on a CPU.

Verifying a draft multiplies 2 to 64 rows by every weight of the network. The usual product ``x @ W.T`` repacks the
large operand each time; as ``(W @ x.T).T`` only the small one is repacked, and a number of rows that is a multiple of
eight suits the kernels best. ``benchmarks/decoding.py --costs`` prints what a pass of k tokens costs.

The result differs from the usual product by rounding alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# One row is a matrix-vector product, which is best as it is; many rows pay for the repacking.
_MOST_ROWS = 96
# Up to here kernels for narrow matrices exist, and padding would cost more than it gives.
_NARROW = 4
_STEP = 8


class FewRowsLinear(nn.Linear):
    """``nn.Linear`` that turns the product round where that is faster; elsewhere it is the same."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in nn.Linear
        rows = input.numel() // self.in_features
        if not (1 < rows <= _MOST_ROWS and input.dtype is torch.float32 and input.device.type == "cpu"):
            return functional.linear(input, self.weight, self.bias)
        flat = input.reshape(rows, self.in_features)
        if rows > _NARROW and rows % _STEP:
            flat = functional.pad(flat, (0, 0, 0, _STEP - rows % _STEP))
        out = torch.mm(self.weight, flat.t()).t()[:rows].contiguous()
        if self.bias is not None:
            out += self.bias
        return out.view(*input.shape[:-1], self.out_features)


def few_rows_bytes(rows: int, width: int) -> int:
    """Bytes of the product before it is turned back, which is there beside the result for a moment."""
    if not 1 < rows <= _MOST_ROWS:
        return 0
    padded = rows if rows <= _NARROW else -(-rows // _STEP) * _STEP
    return 4 * padded * width


def use_few_rows(model: nn.Module) -> None:
    """Make every plain ``nn.Linear`` of ``model`` a :class:`FewRowsLinear`; weights stay where they are."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FewRowsLinear
