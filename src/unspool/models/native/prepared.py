"""A network as it stands in memory, kept in one file: what a second start reads instead of packing anew.

The file is a line of JSON (the shape, the stop tokens, where every matrix lies), then the bytes as the kernels read
them. It belongs to one layout of the kernels and to one conversion, beside which it lies.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unspool.core.errors import WeightsError
from unspool.models.native.families import Shape
from unspool.models.native.library import layout
from unspool.models.native.packing import Kind, Packed, Rows, pack
from unspool.models.native.weights import Weights
from unspool.models.storage import disk, draft_of, lock

_ALIGNED = 64


@dataclass(frozen=True)
class Prepared:
    """What the file holds.

    Args:
        shape: the network's numbers.
        stop_tokens: tokens that end a text.
        precision: of the weights, for people.
        weights: its parameters, packed.
    """

    shape: Shape
    stop_tokens: frozenset[int]
    precision: str
    weights: Weights


def place(folder: Path) -> Path:
    """Where the file of a conversion in ``folder`` lies."""
    return folder / f"packed-{layout()}.bin"


def read(file: Path) -> Prepared | None:
    """The network in a file; ``None`` if there is none, or it is not whole."""
    try:
        with file.open("rb") as stream:
            header = json.loads(stream.readline())
            data = torch.empty(header["bytes"], dtype=torch.uint8)
            # One read into memory of our own: mapped pages of a file are small, which costs every later pass.
            if stream.readinto(data.numpy().data) != header["bytes"] or stream.read(1):
                return None
    except (OSError, ValueError, KeyError):
        return None
    weights = _Stored(data, header["tensors"])
    return Prepared(Shape.stored(header["shape"]), frozenset(header["stop_tokens"]), header["precision"], weights)


class _Stored:
    """Parameters in the bytes of a file."""

    def __init__(self, data: Tensor, tensors: Mapping[str, Mapping[str, Any]]) -> None:
        self._data = data
        self._tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _bytes(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise WeightsError(f"the packed weights lack {name}; convert the model again")
        of = self._tensors[name]
        return self._data[of["offset"] : of["offset"] + of["bytes"]]

    def matrix(self, name: str) -> Packed:
        data, of = self._bytes(name), self._tensors[name]
        return Packed(Kind(of["kind"]), of["n"], of["k"], data)

    def vector(self, name: str) -> Tensor:
        return self._bytes(name).view(torch.float32)


class Packing:
    """Weights that are packed when they are asked for, and remembered, so that they can be written.

    Args:
        weights: where they come from.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._matrices: dict[str, Packed] = {}
        self._vectors: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._weights

    def matrix(self, name: str) -> Packed:
        rows = self._weights.matrix(name)
        found = self._matrices[name] = pack(rows) if isinstance(rows, Rows) else rows
        return found

    def vector(self, name: str) -> Tensor:
        found = self._vectors[name] = self._weights.vector(name).to(torch.float32)
        return found

    def write(self, file: Path, shape: Shape, stop_tokens: frozenset[int], precision: str) -> None:
        """Keep what was asked for until now.

        Raises:
            DownloadError: if there is no room on the disk.
        """
        tensors: dict[str, dict[str, Any]] = {}
        parts: list[Tensor] = []
        end = 0
        for name, of in (self._matrices | self._vectors).items():
            raw = of.data if isinstance(of, Packed) else of
            shown = {"kind": int(of.kind), "n": of.n, "k": of.k} if isinstance(of, Packed) else {}
            size = raw.numel() * raw.element_size()
            tensors[name] = {**shown, "offset": end, "bytes": size}
            parts.append(raw)
            end += -(-size // _ALIGNED) * _ALIGNED
        header = {
            "shape": asdict(shape),
            "stop_tokens": sorted(stop_tokens),
            "precision": precision,
            "tensors": tensors,
            "bytes": end,
        }
        with lock("native-packed"), disk(file):
            draft = draft_of(file)
            try:
                with draft.open("wb") as stream:
                    stream.write(json.dumps(header).encode() + b"\n")
                    for raw in parts:
                        size = raw.numel() * raw.element_size()
                        stream.write(raw.contiguous().view(torch.uint8).numpy().data)
                        stream.write(bytes(-size % _ALIGNED))
                draft.replace(file)
            finally:
                draft.unlink(missing_ok=True)
