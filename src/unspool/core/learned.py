"""What a method keeps between requests: matrices, pools, tables, datastores.

A :class:`Learned` object belongs to nobody in particular. Parts of several compositions may share one, every user may
have one of their own, it is written to a file and read again, and it says how large it is and never grows beyond what
it was made for.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unspool.core.errors import Incompatible, WeightsError


class Learned(ABC):
    """State of a method that outlives a request.

    Class attributes:
        kind: what it is, in a word or two; stands in the file, and a file of another kind is refused.

    Attributes:
        vocab_size: tokens of the vocabulary that it is about; ``None`` until a model is bound. A file of another
            vocabulary is refused.
    """

    kind: ClassVar[str]
    vocab_size: int | None = None

    @abstractmethod
    def arrays(self) -> dict[str, Tensor]:
        """Everything that a file must hold."""

    @abstractmethod
    def restore(self, arrays: Mapping[str, Tensor]) -> None:
        """Become what ``arrays`` describe, which may be any tensors under any names.

        Raises:
            WeightsError: if they are not what :meth:`arrays` gives. Nothing is changed then.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget everything (a cold start)."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes that it holds now."""

    def bind(self, vocab_size: int, who: str) -> None:
        """Say whose vocabulary it is about.

        Raises:
            Incompatible: if it was made for another one.
        """
        if self.vocab_size is not None and self.vocab_size != vocab_size:
            raise Incompatible(
                f"{self.kind}: what was learned is of a vocabulary of {self.vocab_size} tokens, {who} has {vocab_size}"
            )
        self.vocab_size = vocab_size

    def save(self, path: str | Path) -> None:
        """Write it to a safetensors file, whole or not at all.

        Raises:
            WeightsError: if the file cannot be written.
        """
        path = Path(path)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        metadata = {"unspool": self.kind, "vocab_size": str(self.vocab_size or 0)}
        try:
            save_file({name: array.contiguous() for name, array in self.arrays().items()}, draft, metadata)
            draft.replace(path)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"what {self.kind} has learned cannot be written to {path}: {error}") from error
        finally:
            draft.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        """Start from a file that :meth:`save` wrote.

        Raises:
            WeightsError: if the file is missing, damaged, or holds something else.
            Incompatible: if it is of another vocabulary.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path} does not hold what {self.kind} has learned: {error}") from error
        if metadata.get("unspool") != self.kind:
            raise WeightsError(f"{path} holds {metadata.get('unspool') or 'something else'}; {self.kind} is needed")
        size = int(metadata.get("vocab_size", "0"))
        if self.vocab_size is not None and size not in (0, self.vocab_size):
            raise Incompatible(f"{path} is of a vocabulary of {size} tokens; the model has {self.vocab_size}")
        self.restore(arrays)
        self.vocab_size = self.vocab_size or size or None
