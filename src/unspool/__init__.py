"""Unspool: every published way of decoding a language model behind one interface.

>>> import unspool
>>> lm = unspool.load("smollm2-135m")                                                            # doctest: +SKIP
>>> lm.generate("Write a haiku about rivers.", method="token-recycling", seed=1).text            # doctest: +SKIP
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unspool.core.compose import compose
    from unspool.core.errors import UnspoolError
    from unspool.core.registry import registry as methods
    from unspool.engine import Engine, Output, load
    from unspool.models.custom_generate import as_custom_generate

    __version__: str

# A thread that waits for the others of its team spins for milliseconds by default, and keeps the core from one of them
# when anything else runs on the machine. Read when OpenMP is loaded, that is by the first import of torch.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__all__ = ["Engine", "Output", "UnspoolError", "as_custom_generate", "compose", "load", "methods"]

_HOMES = {
    "Engine": "unspool.engine",
    "Output": "unspool.engine",
    "load": "unspool.engine",
    "compose": "unspool.core.compose",
    "UnspoolError": "unspool.core.errors",
    "as_custom_generate": "unspool.models.custom_generate",
}


def __getattr__(name: str) -> Any:
    # Loaded when first used: `unspool --help` should not wait for torch, nor a first token for the version.
    import importlib

    if name == "__version__":
        return _version()
    if name == "methods":
        return importlib.import_module("unspool.core.registry").registry
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unspool' has no attribute {name!r}")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("unspool")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+unknown"
