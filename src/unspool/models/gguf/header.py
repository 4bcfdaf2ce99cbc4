"""The header of a GGUF file: metadata, and where the tensors lie."""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.core.errors import WeightsError

if TYPE_CHECKING:
    import numpy as np

# Value types of the metadata (gguf.md, "File Structure"): struct code, or the two that have no fixed size.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its shape in torch's order (slowest dimension first), and where its bytes lie."""

    name: str
    shape: tuple[int, ...]
    kind: str
    """ggml's name of the type: F32, F16, Q4_1, Q6_K, ..."""
    offset: int
    """Bytes from the start of the file."""
    nbytes: int


@dataclass(frozen=True)
class GGUFFile:
    """The header of a GGUF file. ``metadata`` holds numbers, strings, booleans and lists of them."""

    path: Path
    metadata: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``{architecture}.{key}``, or the default."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def need(self, key: str) -> Any:
        """The value of ``{architecture}.{key}``.

        Raises:
            WeightsError: the file does not state it.
        """
        value = self.get(key)
        if value is None:
            raise WeightsError(
                f"{self.path} does not state {self.architecture}.{key}, without which it cannot be read."
            )
        return value

    def array(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The values of a tensor, float32, in the shape of its :class:`TensorInfo`.

        Raises:
            WeightsError: values that are not finite (damaged blocks), or a block format that cannot be unpacked.
        """
        import numpy as np
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self.tensors[name]
        kind = GGMLQuantizationType[info.kind]
        raw = np.memmap(self.path, np.uint8, "r", offset=info.offset, shape=(info.nbytes,))
        rows = math.prod(info.shape[:-1])
        try:
            values = dequantize(raw.reshape(rows, -1), kind)
        except NotImplementedError as error:
            raise WeightsError(
                f"{self.path}: tensor {name} is of type {info.kind}, which cannot be unpacked."
            ) from error
        values = np.ascontiguousarray(values, np.float32).reshape(info.shape)
        if not np.isfinite(values).all():
            raise WeightsError(
                f"{self.path} is damaged: tensor {name} ({info.kind}) holds values that are not finite. "
                "Fetch or copy the file again."
            )
        return values


class _Cursor:
    """Reads little-endian values from a file in memory, and says what it was after when the file ends too early."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def take(self, count: int, what: str) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise WeightsError(
                f"{self.path} is damaged or cut short: it ends (at byte {len(self.data):,}) inside {what}, which needs "
                f"{count:,} bytes from byte {self.position:,} on. Fetch or copy the file again."
            )
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def unpack(self, code: str, what: str) -> tuple[Any, ...]:
        layout = "<" + code
        try:
            size = struct.calcsize(layout)
        except struct.error as error:  # a count beyond what memory can address
            raise WeightsError(f"{self.path} is damaged: {what} cannot be of size {code[:-1]}.") from error
        return struct.unpack(layout, self.take(size, what))

    def text(self, what: str) -> str:
        (length,) = self.unpack("Q", what)
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise WeightsError(f"{self.path} is damaged: {what} is not valid UTF-8 ({error}).") from error

    def value(self, kind: int, what: str) -> Any:
        if kind in _SCALARS:
            return _tidy(kind, self.unpack(_SCALARS[kind], what)[0])
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            element, count = self.unpack("IQ", what)
            if element in _SCALARS:
                return [_tidy(element, value) for value in self.unpack(f"{count}{_SCALARS[element]}", what)]
            if count > len(self.data):  # each element takes bytes of its own: do not try to make the list
                raise WeightsError(f"{self.path} is damaged: {what} claims {count:,} elements.")
            return [self.value(element, what) for _ in range(count)]
        raise WeightsError(f"{self.path} is damaged: {what} is of type {kind}, which GGUF does not have.")


def _tidy(kind: int, value: Any) -> Any:
    """A 32-bit float as the shortest number that stands for it: 1e-05, where struct gives 9.999999747378752e-06."""
    if kind != 6 or not math.isfinite(value):
        return value
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == struct.pack("<f", value):
            return short
    return value


def check_magic(path: str | os.PathLike[str]) -> None:
    """Look at the first bytes only.

    Raises:
        WeightsError: not a GGUF file, or not readable.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    if magic != b"GGUF":
        raise WeightsError(f"{path} is not a GGUF file: it starts with {magic!r} where b'GGUF' belongs.")


def read(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of a GGUF file and check that every tensor lies within the file. No weights are read.

    Raises:
        WeightsError: no such file, not a GGUF file, a version or byte order that is not read, or a file that is cut
            short or damaged. The message names the file and what is wrong.
    """
    path = Path(path)
    check_magic(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise WeightsError(f"{path} is cut short: it has {size} bytes, and the header alone takes 24.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(path, data)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse(path: Path, data: mmap.mmap) -> GGUFFile:
    cursor = _Cursor(path, data)
    cursor.take(4, "the magic bytes")
    (version,) = cursor.unpack("I", "the version")
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0
        raise WeightsError(
            f"{path} is {'in big-endian byte order' if big_endian else f'GGUF version {version}'}; "
            "only little-endian files of version 2 and 3 are read. Convert the model again with a current llama.cpp."
        )
    tensor_count, value_count = cursor.unpack("QQ", "the counts")
    metadata: dict[str, Any] = {}
    for index in range(value_count):
        key = cursor.text(f"the key of metadata value {index}")
        (kind,) = cursor.unpack("I", f"the type of {key}")
        metadata[key] = cursor.value(kind, f"metadata value {key}")
    if not isinstance(metadata.get("general.architecture"), str):
        raise WeightsError(f"{path} does not state general.architecture: it is not a language model's GGUF file.")

    entries = []
    for index in range(tensor_count):
        name = cursor.text(f"the name of tensor {index}")
        (dimensions,) = cursor.unpack("I", f"the shape of tensor {name}")
        shape = tuple(reversed(cursor.unpack(f"{dimensions}Q", f"the shape of tensor {name}")))
        kind_id, offset = cursor.unpack("IQ", f"the place of tensor {name}")
        entries.append((name, shape, kind_id, offset))
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0:
        raise WeightsError(f"{path} is damaged: general.alignment is {alignment!r}.")
    start = -(-cursor.position // alignment) * alignment
    tensors = {entry[0]: _tensor_info(path, len(data), start, *entry) for entry in entries}
    return GGUFFile(path, metadata, tensors)


def _tensor_info(
    path: Path, size: int, start: int, name: str, shape: tuple[int, ...], kind_id: int, offset: int
) -> TensorInfo:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(kind_id)
    except ValueError as error:
        raise WeightsError(f"{path}: tensor {name} is of ggml type {kind_id}, which is not known.") from error
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not shape or shape[-1] % block or 0 in shape:
        raise WeightsError(f"{path} is damaged: tensor {name} of type {kind.name} cannot have shape {list(shape)}.")
    nbytes = math.prod(shape) // block * block_bytes
    end = start + offset + nbytes
    if end > size:
        raise WeightsError(
            f"{path} is cut short: tensor {name} ends at byte {end:,}, but the file has {size:,} bytes. "
            "Fetch or copy the file again."
        )
    return TensorInfo(name, shape, kind.name, start + offset, nbytes)
