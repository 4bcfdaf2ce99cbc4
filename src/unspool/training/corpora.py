"""Text that every Python brings along, and token streams on disk.

The corpus is the running interpreter's standard library: its source files, and the docstrings in them. The order is
fixed, and which files are held out depends on their path alone, so that a file held out under one release of Python is
held out under the next.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.models.storage import write_whole
from unspool.training.objectives import Batch

Split = Literal["train", "held-out", "all"]

HELD_OUT_SHARE = 16
"""One file in so many is held out."""

SPLITS: tuple[Split, Split] = ("train", "held-out")

SHORT_SHARE = 0.7
"""Of a training, with sequences of half the length."""

_TESTS = {"test", "tests", "idle_test"}
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class Document:
    """A file of the corpus, or a docstring."""

    name: str
    """Its path below the library, with slashes; behind a colon the documented object."""
    text: str


def is_held_out(path: str) -> bool:
    """Whether a file of the corpus, by its path below the library, is kept from training."""
    return hashlib.sha256(path.encode()).digest()[0] % HELD_OUT_SHARE == 0


def stdlib(split: Split = "all", *, tests: bool = False, folder: Path | None = None) -> Iterator[Document]:
    """Source files of the standard library, sorted by path.

    Args:
        split: those for training, those held out, or all.
        tests: whether the library's tests belong to it; they are as large as all the rest.
        folder: another folder of Python source.

    Raises:
        InvalidInput: if the folder holds no Python file.
    """
    root = folder if folder is not None else Path(sysconfig.get_paths()["stdlib"])
    left_out = _NOT_LIBRARY if tests else _NOT_LIBRARY | _TESTS
    paths = []
    for place, below, files in os.walk(root):
        below[:] = [name for name in below if name not in left_out]
        paths += [Path(place, name) for name in files if name.endswith(".py")]
    if not paths:
        raise InvalidInput(f"{root} holds no Python source; this Python came without its library's source files")
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    for name, path in named:
        if split != "all" and is_held_out(name) != (split == "held-out"):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a few files are written in other encodings, as the library's own material for tests
        if text.strip():
            yield Document(name, text)


def docstrings(split: Split = "all", *, least: int = 80, folder: Path | None = None) -> Iterator[Document]:
    """Docstrings of the standard library's modules, classes and functions, read from the source, nothing imported.

    Args:
        split: as in :func:`stdlib`; a docstring belongs where its file does.
        least: shorter ones are left out, in characters.
    """
    for document in stdlib(split, folder=folder):
        try:
            tree = ast.parse(document.text)
        except SyntaxError:
            continue  # broken on purpose
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text is not None and len(text) >= least:
                    name = "module" if isinstance(node, ast.Module) else node.name
                    yield Document(f"{document.name}:{name}", text)


def fingerprint(documents: Iterable[Document]) -> str:
    """A hash of names and texts, in hexadecimal: equal for equal corpora."""
    whole = hashlib.sha256()
    for document in documents:
        for part in (document.name, document.text):
            # The length in front keeps ("ab", "c") from being ("a", "bc").
            raw = part.encode("utf-8", "surrogatepass")
            whole.update(len(raw).to_bytes(8, "little") + raw)
    return whole.hexdigest()


class TokenStream:
    """Tokens of documents, one after the other, mapped from a file: a corpus larger than memory costs nothing.

    Args:
        path: a file of little-endian unsigned numbers, two bytes each if ``dtype`` is uint16, else four (int32).
        dtype: the numbers' type.
    """

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path = path
        self.tokens = np.memmap(path, dtype=dtype, mode="r")

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def windows(self, starts: Tensor, length: int) -> Tensor:
        """Tokens [N, length] int64 that begin at ``starts`` [N]."""
        return torch.stack([torch.from_numpy(self.tokens[s : s + length].astype(np.int64)) for s in starts.tolist()])

    def random(self, count: int, length: int, rng: torch.Generator) -> Tensor:
        """``count`` windows from anywhere, [count, length] int64."""
        return self.windows(torch.randint(len(self) - length + 1, (count,), generator=rng), length)

    def even(self, count: int, length: int) -> Tensor:
        """At most ``count`` windows that do not overlap, spread evenly, always the same; [n, length] int64."""
        room = len(self) // length
        count = min(count, room)
        return self.windows(torch.arange(count) * (room // max(count, 1)) * length, length)


def pack(
    texts: Iterable[str], encode: Callable[[str], list[int]], end: int, path: Path, vocabulary: int
) -> TokenStream:
    """Encode documents into one stream with an end token in front of each and behind the last.

    Args:
        texts: the documents.
        encode: text to token ids, without special tokens.
        end: what separates documents.
        path: where the stream is written, whole or not at all.
        vocabulary: number of tokens; up to 65,536 of them take two bytes each.

    Raises:
        InvalidInput: if there are no documents.
    """
    return pack_tokens((encode(text) for text in texts), end, path, vocabulary)


def pack_tokens(texts: Iterable[Sequence[int]], end: int, path: Path, vocabulary: int) -> TokenStream:
    """:func:`pack` for documents that are token ids already."""
    dtype = np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<i4")
    pieces = [np.array([end], dtype), *(np.array([*text, end], dtype) for text in texts)]
    if len(pieces) == 1:
        raise InvalidInput("there are no documents to pack")
    write_whole(path, np.concatenate(pieces).tobytes())
    return TokenStream(path, dtype)


def windows(stream: TokenStream, batch: int, length: int, seed: int) -> Callable[[int, float], Batch]:
    """Batches for the loop: random windows, twice as many of half the length in the first part of the training.

    Short sequences cost less attention, and most of what there is to learn is near.

    Args:
        batch: sequences of a step.
        length: tokens of each, besides the one in front.
    """
    rng = torch.Generator().manual_seed(seed)

    def make(step: int, share: float) -> Batch:
        if share < SHORT_SHARE and length >= 64:
            return Batch(stream.random(2 * batch, length // 2 + 1, rng))
        return Batch(stream.random(batch, length + 1, rng))

    return make
