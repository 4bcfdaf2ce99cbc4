"""Matrices as the kernels read them.

A weight matrix ``[n, k]`` is laid out so that sixteen (floats) or eight (blocks) of its rows share a vector; see
``kernels.cpp``. GGUF's blocks are taken over as they are, number for number: no weight is rounded on the way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unspool.core.errors import WeightsError
from unspool.models.native.library import kernels

GROUP = 32

Bytes = npt.NDArray[np.uint8]


class Kind(IntEnum):
    """As in ``kernels.cpp``."""

    F32 = 0
    F16 = 1
    BF16 = 2
    Q4 = 3
    Q4F = 4
    Q8 = 5
    Q8H = 6


# Bytes of a block of eight rows and 32 columns.
_BLOCK = {Kind.Q4: 160, Kind.Q4F: 192, Kind.Q8: 272, Kind.Q8H: 320}
_FLOATS = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}
_DTYPES = {kind: dtype for dtype, kind in _FLOATS.items()}


class MatrixStruct(ctypes.Structure):
    """``Matrix`` of ``kernels.cpp``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Rows:
    """A matrix ``[n, k]`` before it is packed, row by row.

    Args:
        kind: how the kernels will hold it.
        n, k: its shape.
        values: ``[n, k]``: floats of the kind, or whole numbers (from 0 to 15, or signed).
        scales: ``[n, k / 32]`` (or ``/ 16`` for :attr:`Kind.Q8H`) in the precision of the kind.
        minima: the same for 4-bit kinds.
    """

    kind: Kind
    n: int
    k: int
    values: npt.NDArray[Any]
    scales: npt.NDArray[Any] | None = None
    minima: npt.NDArray[Any] | None = None

    def floats(self) -> npt.NDArray[np.float32]:
        """``[n, k]`` what the weights stand for."""
        if self.kind is Kind.BF16:
            return (self.values.astype(np.uint32) << 16).view(np.float32)
        if self.scales is None:
            return self.values.astype(np.float32)
        width = self.k // self.scales.shape[1]
        whole = self.values.astype(np.float32) * np.repeat(self.scales.astype(np.float32), width, axis=1)
        if self.minima is not None:
            whole += np.repeat(self.minima.astype(np.float32), width, axis=1)
        return whole

    def taken(self, order: npt.NDArray[np.int64]) -> Rows:
        """The same rows in another order."""
        pick = lambda values: None if values is None else values[order]  # noqa: E731
        return Rows(self.kind, self.n, self.k, self.values[order], pick(self.scales), pick(self.minima))


@dataclass(frozen=True)
class Packed:
    """A matrix ``[n, k]`` as the kernels read it.

    Args:
        data: its floats or its blocks.
    """

    kind: Kind
    n: int
    k: int
    data: Tensor


class Matrix:
    """A packed matrix and its bias; ``struct`` is what the kernels are given.

    Args:
        rows: the matrix, to be packed if it is not yet.
        bias: ``[n]`` or ``None``.
    """

    def __init__(self, rows: Rows | Packed, bias: Tensor | None = None) -> None:
        self.kind, self.n, self.k = rows.kind, rows.n, rows.k
        self.bias = None if bias is None else bias.detach().to(torch.float32).contiguous().clone()
        self.packed = (rows if isinstance(rows, Packed) else pack(rows)).data
        self.struct = MatrixStruct(
            self.packed.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.n,
            self.k,
            int(self.kind),
            0,
        )
        self.address = ctypes.addressof(self.struct)

    @property
    def nbytes(self) -> int:
        return self.packed.numel() * self.packed.element_size()


def pack(rows: Rows) -> Packed:
    """Lay a matrix out as the kernels read it."""
    return Packed(rows.kind, rows.n, rows.k, _packed(rows))


def _packed(rows: Rows) -> Tensor:
    if rows.kind in _DTYPES:
        values = np.ascontiguousarray(rows.values)
        out = torch.empty(-(-rows.n // 16) * rows.k * 16, dtype=_DTYPES[rows.kind])
        kernels().pack_floats(values.ctypes.data, rows.n, rows.k, values.itemsize, out.data_ptr())
        return out
    out = torch.empty(-(-rows.n // 8) * (rows.k // GROUP) * _BLOCK[rows.kind], dtype=torch.uint8)
    values, scales = np.ascontiguousarray(rows.values), np.ascontiguousarray(rows.scales)
    if rows.kind in (Kind.Q4, Kind.Q4F):
        minima = np.ascontiguousarray(rows.minima)
        single = int(rows.kind is Kind.Q4F)
        kernels().pack4(
            values.ctypes.data, scales.ctypes.data, minima.ctypes.data, rows.n, rows.k, single, out.data_ptr()
        )
    else:
        kernels().pack8(
            values.ctypes.data, scales.ctypes.data, rows.n, rows.k, int(rows.kind is Kind.Q8H), out.data_ptr()
        )
    return out


# -- from floats --------------------------------------------------------------------------------------------------


def from_floats(weight: Tensor, precision: str) -> Rows:
    """A matrix of floats in a precision: ``float32``, ``bfloat16``, ``float16``, ``int8`` or ``int4``.

    ``int8`` is symmetric in groups of 32 columns (as GGUF's Q8_0), ``int4`` has a scale and a minimum for each group
    (as Q4_1), chosen among shrunken ranges by least squares. A matrix whose width is no multiple of 32 stays in half
    precision.
    """
    n, k = weight.shape
    weight = weight.detach()
    if precision in ("int4", "int8") and k % GROUP:
        precision = "float16"
    if precision == "int8":
        return _int8(weight.to(torch.float32).numpy())
    if precision == "int4":
        return _int4(weight.to(torch.float32))
    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[precision]
    values = weight.to(dtype).contiguous()
    raw = values.view(torch.int16).numpy().view(np.uint16) if dtype is torch.bfloat16 else values.numpy()
    return Rows(_FLOATS[dtype], n, k, raw)


def _int8(weight: npt.NDArray[np.float32]) -> Rows:
    n, k = weight.shape
    groups = weight.reshape(n, k // GROUP, GROUP)
    scales = (np.abs(groups).max(axis=2) / 127).astype(np.float16)
    true = scales.astype(np.float32)[..., None]
    whole = np.divide(groups, true, out=np.zeros_like(groups), where=true > 0)
    return Rows(Kind.Q8, n, k, np.clip(np.rint(whole), -127, 127).astype(np.int8).reshape(n, k), scales)


# Shares of a group's range that are tried; outliers are cut where that costs less than coarser steps for all.
_RANGES = (1.0, 0.95, 0.9, 0.85, 0.8)


def _int4(weight: Tensor) -> Rows:
    n, k = weight.shape
    groups = weight.reshape(n, k // GROUP, GROUP)
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    middle, reach = (low + high) / 2, (high - low) / 2
    best = torch.full((n, k // GROUP, 1), float("inf"))
    chosen: list[Tensor] = []
    for share in _RANGES:
        minimum = (middle - share * reach).to(torch.float16).float()
        scale = (2 * share * reach / 15).to(torch.float16).float()
        whole = ((groups - minimum) / scale.clamp_min(1e-12)).round().clamp(0, 15)
        error = (groups - (whole * scale + minimum)).square().sum(dim=2, keepdim=True)
        found = [whole, scale, minimum]
        better = error < best
        chosen = (
            found if not chosen else [torch.where(better, new, old) for new, old in zip(found, chosen, strict=True)]
        )
        best = torch.minimum(best, error)
    whole, scale, minimum = chosen
    half = lambda values: values.squeeze(2).to(torch.float16).numpy()  # noqa: E731
    return Rows(Kind.Q4, n, k, whole.to(torch.uint8).reshape(n, k).numpy(), half(scale), half(minimum))


# -- from the blocks of a GGUF file ----------------------------------------------------------------------------------


def from_blocks(kind: str, raw: Bytes, n: int, k: int) -> Rows | None:
    """The rows of a GGUF tensor ``[n, k]`` without any rounding, or ``None`` for a type that the kernels do not hold.

    Args:
        kind: ggml's name of the type.
        raw: its bytes.
    """
    reader = _READERS.get(kind)
    if reader is None or (kind not in _PLAIN and k % GROUP):
        return None
    rows = reader(raw, n, k)
    for numbers in (rows.scales, rows.minima):
        if numbers is not None and not np.isfinite(numbers).all():
            raise WeightsError(f"a tensor of type {kind} holds scales that are not finite: the file is damaged")
    return rows


def _plain(raw: Bytes, n: int, k: int, kind: Kind) -> Rows:
    dtype = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.BF16: np.uint16}[kind]
    return Rows(kind, n, k, raw.view(dtype).reshape(n, k))


def _nibbles(packed: Bytes) -> Bytes:
    """``[..., 16]`` bytes to ``[..., 32]``: the low halves, then the high ones."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _halves(columns: Bytes) -> npt.NDArray[np.float16]:
    """The one number in the last two bytes of ``[n, groups, 2]``: ``[n, groups]``."""
    return np.ascontiguousarray(columns).view(np.float16)[..., 0]


def _q4_0(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // GROUP, 18)
    d = _halves(blocks[..., :2])
    # w = d (q - 8): eight times a number in half precision is one as well.
    return Rows(
        Kind.Q4, n, k, _nibbles(blocks[..., 2:]).reshape(n, k), d, (d.astype(np.float32) * -8).astype(np.float16)
    )


def _q4_1(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // GROUP, 20)
    return Rows(
        Kind.Q4, n, k, _nibbles(blocks[..., 4:]).reshape(n, k), _halves(blocks[..., :2]), _halves(blocks[..., 2:4])
    )


def _q5_0(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // GROUP, 22)
    fifth = np.unpackbits(blocks[..., 2:6], axis=-1, bitorder="little")
    whole = (_nibbles(blocks[..., 6:]) | (fifth << 4)).astype(np.int8) - 16
    return Rows(Kind.Q8, n, k, whole.reshape(n, k), _halves(blocks[..., :2]))


def _q8_0(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // GROUP, 34)
    return Rows(
        Kind.Q8, n, k, np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(n, k), _halves(blocks[..., :2])
    )


def _q4_k(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // 256, 144)
    d = _halves(blocks[..., :2]).astype(np.float32)[..., None]
    low = _halves(blocks[..., 2:4]).astype(np.float32)[..., None]
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scale = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=-1)
    least = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=-1)
    # 64 weights share 32 bytes: the first 32 are the low halves.
    bytes_ = blocks[..., 16:].reshape(n, k // 256, 4, 32)
    whole = np.stack([bytes_ & 15, bytes_ >> 4], axis=3).reshape(n, k)
    return Rows(Kind.Q4F, n, k, whole, (d * scale).reshape(n, k // GROUP), (-low * least).reshape(n, k // GROUP))


def _q6_k(raw: Bytes, n: int, k: int) -> Rows:
    blocks = raw.reshape(n, k // 256, 210)
    low = blocks[..., :128].reshape(n, k // 256, 2, 2, 32)
    high = blocks[..., 128:192].reshape(n, k // 256, 2, 1, 32)
    scale = np.ascontiguousarray(blocks[..., 192:208]).view(np.int8).astype(np.float32)
    d = _halves(blocks[..., 208:]).astype(np.float32)[..., None]
    # Of each half of 128 weights: the low bits of the first 64, of the last 64; two high bits for each quarter.
    four = np.concatenate([low & 15, low >> 4], axis=3)
    two = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=3)
    whole = (four | (two << 4)).astype(np.int8) - 32
    return Rows(Kind.Q8H, n, k, whole.reshape(n, k), (d * scale).reshape(n, k // 16))


_PLAIN = {"F32", "F16", "BF16"}
_READERS: dict[str, Callable[[Bytes, int, int], Rows]] = {
    "F32": lambda raw, n, k: _plain(raw, n, k, Kind.F32),
    "F16": lambda raw, n, k: _plain(raw, n, k, Kind.F16),
    "BF16": lambda raw, n, k: _plain(raw, n, k, Kind.BF16),
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
