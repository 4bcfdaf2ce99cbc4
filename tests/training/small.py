"""A corpus of a few files, and recipes that take a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from transformers import LlamaForCausalLM

from unspool.core.cards import settings
from unspool.training.networks import llama
from unspool.training.objectives import Batch
from unspool.training.recipes import Bench, Quality, Recipe

VOCABULARY = 16


def network(layers: int = 2, seed: int = 0) -> LlamaForCausalLM:
    return llama(
        vocabulary=VOCABULARY, layers=layers, hidden=16, mlp=24, heads=2, kv_heads=1, context=64, end=0, seed=seed
    )


def counting(seed: int = 0, rows: int = 8, length: int = 12) -> Callable[[int, float], Batch]:
    """Batches of sequences in which each token is the one before plus one."""
    rng = torch.Generator().manual_seed(seed)

    def make(step: int, share: float) -> Batch:
        first = torch.randint(VOCABULARY, (rows, 1), generator=rng)
        return Batch((first + torch.arange(length + 1)) % VOCABULARY)

    return make


def library(folder: Path, files: int = 40) -> Path:
    """Python files, one of them in a folder of tests, one with a broken encoding."""
    for number in range(files):
        place = folder / f"part{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        text = f"Module {number}.\n\nIt has a docstring that is quite long enough to be one, in words {number} times."
        code = f"def f{number}(x):\n    return x + {number}  # größer\n"
        (place / f"module{number}.py").write_text(f'"""{text}"""\n\n{code}', encoding="utf-8")
    (folder / "test").mkdir()
    (folder / "test" / "test_all.py").write_text("assert True\n")
    (folder / "latin.py").write_bytes(b"# gr\xf6\xdfer\n")
    return folder


@settings
class SmallSettings:
    """Of :func:`small_recipe`."""

    seed: Annotated[int, Field(description="written into the file")] = 0
    text: Annotated[str, Field(min_length=1, description="the file's content")] = "text"


def small_recipe(fill: Callable[[SmallSettings, Bench], Quality] | None = None, version: int = 1) -> Recipe:
    """A recipe that writes one file, under the name of a real one."""

    def write(chosen: SmallSettings, bench: Bench) -> Quality:
        (bench.folder / "file.txt").write_text(f"{chosen.text} {chosen.seed}")
        (bench.scratch / "notes").write_text("gone afterwards")
        return {"length": len(chosen.text)}

    return Recipe("chained-sums", "A file.", version, 0.1, 0.1, SmallSettings, lambda chosen: "data", fill or write)
