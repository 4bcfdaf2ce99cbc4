"""Bytes that torch really allocates: what a prediction of memory is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Allocations(TorchDispatchMode):
    """Adds up the storages of all results that are alive at once; what was there before does not count.

    Temporaries inside of one operation are not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.before: dict[int, StorageWeakRef] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # An address may be used again, so both lists are cleared of what is gone.
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        self.before = {key: ref for key, ref in self.before.items() if not ref.expired()}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.before[storage._cdata] = StorageWeakRef(storage)
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.before:
                    self.alive.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return out


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that tensors made by ``run`` held at once. Much slower than ``run`` alone."""
    with _Allocations() as seen:
        run()
    return seen.most
