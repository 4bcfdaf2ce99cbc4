"""Matrices: what is packed is what the format defines, and products are right for every kind and number of tokens."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from unspool.core.errors import WeightsError
from unspool.models.native.library import kernels
from unspool.models.native.packing import GROUP, Kind, Matrix, Rows, from_blocks, from_floats
from unspool.models.native.weights import PRECISIONS


def blocks(kind: str, n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of a type, and the values that the format's own reader makes of them."""
    of = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(seed)
    if kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"):
        raw = quantize(rng.standard_normal((n, k)).astype(np.float32), of)
    else:
        # The package reads these and does not write them: any bytes are blocks, if their scales are numbers.
        block, size = gguf.GGML_QUANT_SIZES[of]
        raw = rng.integers(0, 256, (n, k // block, size), dtype=np.uint8)
        scales = (
            rng.uniform(-0.01, 0.01, (n, k // block, 2)).astype(np.float16).view(np.uint8).reshape(n, k // block, 4)
        )
        if kind == "Q4_K":
            raw[..., :4] = scales
        else:
            raw[..., -2:] = scales[..., :2]
        raw = raw.reshape(n, -1)
    return np.ascontiguousarray(raw).view(np.uint8), dequantize(raw, of)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K"])
def test_blocks_are_taken_over_number_for_number(kind: str) -> None:
    raw, expected = blocks(kind, 20, 512)
    rows = from_blocks(kind, raw.reshape(-1), 20, 512)
    assert rows is not None
    np.testing.assert_allclose(rows.floats(), expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", ["Q5_1", "Q5_K", "IQ4_XS"])
def test_other_blocks_are_left_to_who_reads_them(kind: str) -> None:
    assert from_blocks(kind, np.zeros(1, np.uint8), 1, 256) is None


def test_scales_that_are_no_numbers() -> None:
    raw, _ = blocks("Q8_0", 8, 64)
    raw = raw.copy().reshape(8, 2, 34)
    raw[3, 1, :2] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(WeightsError, match="not finite"):
        from_blocks("Q8_0", raw.reshape(-1), 8, 64)


def rows_of(kind: str, n: int, k: int) -> Rows:
    if kind in PRECISIONS:
        return from_floats(torch.randn(n, k, generator=torch.Generator().manual_seed(3)), kind)
    rows = from_blocks(kind, blocks(kind, n, k)[0].reshape(-1), n, k)
    assert rows is not None
    return rows


def product(matrix: Matrix, x: torch.Tensor, threads: int = 1) -> torch.Tensor:
    count, k = x.shape
    out = torch.empty(count, matrix.n)
    normed, integers = torch.empty(count, k), torch.empty(count, k, dtype=torch.int8)
    scale, total = torch.empty(count, -(-k // GROUP)), torch.empty(count, -(-k // GROUP))
    kernels().product(
        matrix.address,
        x.data_ptr(),
        None,
        0.0,
        count,
        *(buffer.data_ptr() for buffer in (normed, integers, scale, total, out)),
        threads,
    )
    return out


def rounded(x: torch.Tensor) -> torch.Tensor:
    """States as the integer products see them: 8 bits with a scale for every 32."""
    groups = x.view(len(x), -1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return ((groups / scale).round() * scale).view_as(x)


@pytest.mark.parametrize("kind", [*PRECISIONS, "Q4_K", "Q6_K"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_products(kind: str, count: int) -> None:
    # 37 rows fill neither eights nor sixteens.
    rows = rows_of(kind, 37, 256)
    x = torch.randn(count, 256, generator=torch.Generator().manual_seed(count))
    weight = torch.from_numpy(rows.floats()).double()
    read = x if rows.kind <= Kind.BF16 else rounded(x)
    torch.testing.assert_close(product(Matrix(rows), x).double(), read.double() @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*PRECISIONS, "Q4_K", "Q6_K"])
def test_a_row_is_the_same_whatever_stands_beside_it(kind: str) -> None:
    matrix = Matrix(rows_of(kind, 70, 256))
    x = torch.randn(11, 256, generator=torch.Generator().manual_seed(1))
    alone = torch.cat([product(matrix, row[None].clone()) for row in x])
    for threads in (1, 2, 3):
        assert torch.equal(product(matrix, x, threads), alone)


def test_the_largest_integers_do_not_overflow() -> None:
    """Every weight and state at its limit: sums of 16 bits must hold."""
    for kind, value in ((Kind.Q4, 15), (Kind.Q8, -127)):
        dtype: Any = np.uint8 if kind is Kind.Q4 else np.int8
        scales = np.ones((8, 2), np.float16)
        rows = Rows(kind, 8, 64, np.full((8, 64), value, dtype), scales, scales * 0 if kind is Kind.Q4 else None)
        for sign in (1, -1):
            found = product(Matrix(rows), torch.full((4, 64), 127.0 * sign))
            torch.testing.assert_close(found, torch.full((4, 8), 64.0 * value * 127 * sign))


@pytest.mark.parametrize(("precision", "error"), [("int8", 0.006), ("int4", 0.085)])
def test_rounding_of_weights(precision: str, error: float) -> None:
    weight = torch.randn(64, 320, generator=torch.Generator().manual_seed(0))
    found = torch.from_numpy(from_floats(weight, precision).floats())
    assert float((found - weight).norm() / weight.norm()) < error


def test_a_width_that_groups_do_not_fill_stays_in_half_precision() -> None:
    rows = from_floats(torch.randn(8, 40), "int4")
    assert rows.kind is Kind.F16


@pytest.mark.parametrize("kind", [*PRECISIONS, "Q4_K", "Q6_K"])
def test_rows_are_looked_up(kind: str) -> None:
    rows = rows_of(kind, 37, 256)
    matrix, ids = Matrix(rows), torch.tensor([36, 0, 17, 17, 8])
    out = torch.empty(5, 256)
    kernels().embed(matrix.address, ids.data_ptr(), 5, 2.5, out.data_ptr())
    torch.testing.assert_close(out, torch.from_numpy(rows.floats())[ids] * 2.5, rtol=1e-6, atol=1e-7)
