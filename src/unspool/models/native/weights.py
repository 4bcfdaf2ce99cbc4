"""Where the runtime's weights come from: a folder of safetensors, a GGUF file, or a network in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unspool.core.errors import WeightsError
from unspool.models.gguf.architectures import ARCHITECTURES
from unspool.models.gguf.header import GGUFFile
from unspool.models.native.packing import Packed, Rows, from_blocks, from_floats

PRECISIONS = ("float32", "bfloat16", "float16", "int8", "int4")


class Weights(Protocol):
    """Parameters by the names that transformers gives them."""

    def __contains__(self, name: str) -> bool: ...

    def matrix(self, name: str) -> Rows | Packed: ...

    def vector(self, name: str) -> Tensor: ...


class TensorWeights:
    """Parameters of a network, in a precision.

    Args:
        tensors: by name.
        precision: of matrices, one of :data:`PRECISIONS`.
        head: of the embedding and the output matrix; by default 8 bits where the others have 4.
    """

    def __init__(self, tensors: Mapping[str, Tensor], precision: str, head: str | None = None) -> None:
        self._tensors = tensors
        self._precision = precision
        self._head = head or ("int8" if precision == "int4" else precision)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def _get(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise WeightsError(f"the weights lack {name}; fetch or convert the model again")
        return self._tensors[name]

    def matrix(self, name: str) -> Rows:
        precision = self._head if name in ("model.embed_tokens.weight", "lm_head.weight") else self._precision
        return from_floats(self._get(name), precision)

    def vector(self, name: str) -> Tensor:
        return self._get(name).to(torch.float32)


class _Folder(Mapping[str, Tensor]):
    """The tensors of a folder's safetensors files, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        try:
            index = folder / "model.safetensors.index.json"
            names = (
                sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                if index.exists()
                else ["model.safetensors"]
            )
            for name in names:
                file = safe_open(str(folder / name), framework="pt")
                self._files |= dict.fromkeys(file.keys(), file)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise WeightsError(
                f"the weights in {folder} cannot be read: {error}; fetch or convert the model again"
            ) from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Any:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def folder_weights(folder: Path, precision: str) -> TensorWeights:
    """The weights of a Hugging Face folder.

    Raises:
        WeightsError: if there are none, or they are damaged.
    """
    return TensorWeights(_Folder(folder), precision)


class GGUFWeights:
    """The blocks of a GGUF file as they are; types that the kernels do not hold become half precision."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._architecture = ARCHITECTURES[file.architecture]
        self._names = {
            parameter: name for name in file.tensors if (parameter := self._architecture.parameter(name)) is not None
        }

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def _tensor(self, name: str) -> str:
        if name not in self._names:
            raise WeightsError(f"{self._file.path} lacks the tensor for {name}")
        return self._names[name]

    def matrix(self, name: str) -> Rows:
        tensor = self._tensor(name)
        info = self._file.tensors[tensor]
        n, k = info.shape
        raw = np.fromfile(self._file.path, np.uint8, info.nbytes, offset=info.offset)
        try:
            rows = from_blocks(info.kind, raw, n, k)
        except WeightsError as error:
            raise WeightsError(f"{self._file.path}, {tensor}: {error}. Fetch or copy the file again.") from error
        if rows is None:
            rows = from_floats(torch.from_numpy(self._file.array(tensor)), "float16")
        # What the converter did to the order of rows is undone; nothing else is done to matrices of these networks.
        order = self._architecture.undo(self._file, tensor, np.arange(n)[:, None])[:, 0]
        return rows if (order == np.arange(n)).all() else rows.taken(order)

    def vector(self, name: str) -> Tensor:
        tensor = self._tensor(name)
        values = self._architecture.undo(self._file, tensor, self._file.array(tensor).reshape(-1, 1))
        return torch.from_numpy(np.array(values[:, 0]))
