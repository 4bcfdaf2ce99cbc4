"""Networks that keep some of their tensors in another model's file: a draft that shares its target's embeddings.

Such a folder has an ``unspool.json`` with ``base``, the name of the other model, and ``shared``, the names of the
tensors that are read from there. Its weights file holds only the rest, its tokenizer is the base's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from unspool.core.errors import WeightsError

FILE = "unspool.json"


@dataclass(frozen=True)
class Borrowed:
    """What a network takes from another: the name of that model, and the names of the tensors."""

    base: str
    shared: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Say so in a folder."""
        text = json.dumps({"base": self.base, "shared": list(self.shared)}, indent=2)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def state(self, own: Path, base: Path) -> dict[str, Tensor]:
        """All tensors of the network: those in its own folder, and those that are shared.

        Raises:
            WeightsError: if the base lacks one.
        """
        return {**_tensors(own), **_tensors(base, self.shared)}


def read_borrowed(folder: Path) -> Borrowed | None:
    """What a folder says that it borrows; ``None`` if its weights are all its own.

    Raises:
        WeightsError: if what it says cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        # Converted weights have a file of this name too, which tells where they came from.
        return Borrowed(about["base"], tuple(about["shared"])) if "shared" in about else None
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{file} is damaged: it names no base model and shared tensors ({error!r})") from error


def _tensors(folder: Path, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Tensors of a folder's safetensors files: all, or those named."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if names is None or name in names}  # noqa: SIM118
    if missing := sorted(set(names or ()) - found.keys()):
        raise WeightsError(f"the weights in {folder} lack {', '.join(missing)}, which another model shares")
    return found
