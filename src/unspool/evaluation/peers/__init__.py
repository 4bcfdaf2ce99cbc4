"""Other programs that decode language models, beside ours: a file for each program, an arm for each way of using it.

All sides are given the same model, the same token ids, the same number of threads and of new tokens, and decode
greedily. Each stands in a process of its own and does nothing while others are measured. A program that is not
installed, or does not read the model, is told with its reason and its install line.

>>> from unspool.evaluation import peers
>>> peers.available()["llama.cpp"]                                                               # doctest: +SKIP
'the package llama-cpp-python is not installed'

A new peer is a new file here with one subclass of :class:`~unspool.evaluation.peers._peer.Peer`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unspool.core.errors import InvalidInput
from unspool.evaluation.peers._peer import Contest, Peer, PeerAbsent
from unspool.evaluation.peers._process import PeerProcess

if TYPE_CHECKING:
    from unspool.models.hub import ModelSource

__all__ = [
    "Contest",
    "Peer",
    "PeerAbsent",
    "PeerProcess",
    "absence",
    "available",
    "install_line",
    "make",
    "make_here",
    "names",
]


def _classes() -> Iterator[type[Peer]]:
    """The peers' classes, by file name; none of them imports its program before it is made."""
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"{__name__}.{found.name}")
            yield from (
                value
                for value in vars(module).values()
                if isinstance(value, type) and issubclass(value, Peer) and value.__module__ == module.__name__
            )


def _by_name() -> dict[str, type[Peer]]:
    return {name: peer for peer in _classes() for name in peer.ways}


def names() -> list[str]:
    """All arms that there are peers for."""
    return list(_by_name())


def available(model: str | None = None, *, draft: str | None = None) -> dict[str, str | None]:
    """Every peer's arm, and the reason why it is absent, or ``None`` if it can take part.

    Args:
        model: also say which of them do not read this model, as far as that can be told without starting them; it is
            fetched if it has to be.
        draft: a draft model by name, for assisted generation.
    """
    contest = None if model is None else _contest(model, None, draft, "auto")
    return {name: peer.absent(name, contest) for name, peer in _by_name().items()}


def install_line(name: str) -> str:
    """How to get what an arm needs.

    Raises:
        InvalidInput: if there is no such peer.
    """
    return _find(name).remedy(name)


def absence(name: str, reason: str) -> dict[str, str]:
    """An entry of ``absent`` in a results file."""
    return {"peer": name, "install": install_line(name), "reason": reason}


def make(
    name: str, model: str, threads: int | None = None, *, draft: str | None = None, dtype: str = "auto"
) -> PeerProcess:
    """Start a peer in a process of its own.

    Args:
        name: one of :func:`names`.
        model: as :func:`unspool.models.hub.resolve` takes it.
        threads: of the CPU; by default as many as torch uses.
        draft: a draft model by name, for assisted generation.
        dtype: of the weights where they are not read as they are stored; ``auto`` is ``float32``.

    Raises:
        InvalidInput: if there is no such peer or model.
        PeerAbsent: if it is not installed or does not read this model.
    """
    _checked(name, model, threads, draft, dtype)
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    asked = {"name": name, "model": model, "threads": threads, "draft": draft, "dtype": dtype}
    return PeerProcess(name, asked)


def make_here(
    name: str, model: str, threads: int | None = None, *, draft: str | None = None, dtype: str = "auto"
) -> Peer:
    """Start a peer in this process, where it and everything else share threads; see :func:`make` for the arguments."""
    contest = _checked(name, model, threads, draft, dtype)
    return _find(name)(name, contest)


def _checked(name: str, model: str, threads: int | None, draft: str | None, dtype: str) -> Contest:
    """What the sides are given.

    Raises:
        PeerAbsent: if it can be told before it starts that this peer cannot take part.
    """
    peer = _find(name)
    contest = _contest(model, threads, draft, dtype)
    if (reason := peer.absent(name, contest)) is not None:
        raise PeerAbsent(f"{name} cannot take part: {reason}. What helps: {peer.remedy(name)}")
    return contest


def _find(name: str) -> type[Peer]:
    known = _by_name()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"; did you mean {' or '.join(near)}?" if near else "."
        raise InvalidInput(f"there is no peer {name!r}{hint} There are: {', '.join(known)}")
    return known[name]


def _contest(model: str, threads: int | None, draft: str | None, dtype: str) -> Contest:
    from unspool.models.hub import resolve

    if threads is None:
        import torch

        threads = torch.get_num_threads()
    source = resolve(model, progress=False)
    config = _read(source, "config.json")
    generation = _read(source, "generation_config.json")
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return Contest(
        source=source,
        threads=threads,
        stop_tokens=frozenset() if eos is None else frozenset(eos if isinstance(eos, Sequence) else [eos]),
        context=config.get("max_position_embeddings"),
        dtype="float32" if dtype in ("auto", "int8", "int4") else dtype,
        draft=draft,
    )


def _read(source: ModelSource, name: str) -> dict[str, Any]:
    path = Path(source.path) / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if os.path.isfile(path) else {}
