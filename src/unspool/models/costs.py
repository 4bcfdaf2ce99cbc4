"""What a pass over ``k`` tokens costs on this machine: the price list of speculation.

Verifying a draft is worth its price or not, and the price depends on the model, the device, the kernels and the number
of threads; so it is measured, once, and kept. Where the measurement took long enough to be worth it, it is also written
to the cache folder and found again by the next process.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unspool.core.model import LanguageModel
from unspool.core.scores import Request
from unspool.core.tree import TokenTree
from unspool.models.conversation import Conversation
from unspool.models.storage import cache_dir, write_whole

WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_CONTEXT = 256
_ROUNDS = 3
# A table that took less to make is made again rather than kept in a file.
_WORTH_KEEPING = 0.5


@dataclass(frozen=True)
class PassCosts:
    """Seconds of a pass by its number of tokens.

    Args:
        widths: ascending numbers of tokens, the first being 1.
        seconds: of a pass over so many, none less than that of a narrower one.
    """

    widths: tuple[int, ...]
    seconds: tuple[float, ...]

    def of(self, tokens: int) -> float:
        """Seconds of a pass over ``tokens``; linear between what was measured, and beyond it."""
        if len(self.widths) == 1:
            return self.seconds[0] * tokens
        place = min(max(bisect.bisect_left(self.widths, tokens), 1), len(self.widths) - 1)
        (a, b), (x, y) = self.widths[place - 1 : place + 1], self.seconds[place - 1 : place + 1]
        return x + (y - x) * (tokens - a) / (b - a)

    def ratio(self, tokens: int) -> float:
        """The same in units of a pass over one token."""
        return self.of(tokens) / self.seconds[0]


def pass_costs(model: LanguageModel) -> PassCosts:
    """The costs of ``model`` here; measured when first asked for (a few seconds for a large model).

    Passes of the measurement do not count as the model's forwards.
    """
    if isinstance(model, Conversation):
        # It is one text, in which nothing can be tried out; its passes are those of the model inside.
        model = model.inner
    known: PassCosts | None = getattr(model, "_pass_costs", None)
    if known is None:
        path = cache_dir() / "costs" / f"{_fingerprint(model)}.json"
        known = _read(path)
        if known is None:
            began = time.perf_counter()
            known = measure(model)
            if time.perf_counter() - began > _WORTH_KEEPING:
                _write(path, known)
        model._pass_costs = known  # type: ignore[attr-defined]
    return known


@torch.no_grad()
def measure(
    model: LanguageModel, widths: Sequence[int] = WIDTHS, rounds: int = _ROUNDS, context: int = _CONTEXT
) -> PassCosts:
    """Time passes over chains of ``widths`` tokens after ``context`` cached ones (fewer if the model reads fewer).

    The widths take turns and the least time of each counts, because what else runs on a machine only ever adds.
    """
    forwards, layers, read = model.forwards, model.layers_run, model.kv_read
    room = model.context_length
    context = context if room is None else max(1, min(context, room - widths[-1] - 1))
    fitting = [width for width in widths if room is None or context + width < room] or [1]
    token = next((t for t in range(model.vocab_size) if t not in model.stop_tokens), 0)
    cache, start = model.start([[token] * context])[0]
    best = dict.fromkeys(fitting, float("inf"))
    try:
        if len(start) > 1:
            model.prefill(cache, start[:-1], rows=[])
        trees = {width: TokenTree.chain([start[-1]] * width) for width in fitting}
        for turn in range(rounds + 1):
            for width, tree in trees.items():
                began = time.perf_counter()
                model.score([Request(cache, tree)])
                _wait(model.device)
                if turn:
                    best[width] = min(best[width], time.perf_counter() - began)
    finally:
        cache.release()
        model.forwards, model.layers_run, model.kv_read = forwards, layers, read
    seconds = [best[width] for width in fitting]
    for place in range(len(seconds) - 2, -1, -1):
        seconds[place] = min(seconds[place], seconds[place + 1])
    return PassCosts(tuple(fitting), tuple(seconds))


def _wait(device: torch.device) -> None:
    """Kernels of an accelerator run on; the clock must not stop before they have."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _fingerprint(model: LanguageModel) -> str:
    """What the costs depend on, as a file name."""
    network = getattr(model, "model", None)
    parameters = sum(p.numel() for p in network.parameters()) if isinstance(network, torch.nn.Module) else 0
    chip = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else platform.processor()
    facts = (
        type(model).__name__,
        model.name,
        model.vocab_size,
        model.num_layers,
        parameters,
        str(model.dtype),
        getattr(model, "precision", None),
        str(model.device),
        chip,
        platform.machine(),
        platform.node(),
        os.cpu_count(),
        torch.get_num_threads(),
        torch.__version__,
        WIDTHS,
        _CONTEXT,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _read(path: Path) -> PassCosts | None:
    """The table in a file; ``None`` if there is none that can be used, and it is measured anew."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        widths, seconds = tuple(map(int, data["widths"])), tuple(map(float, data["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not widths or widths[0] != 1 or len(widths) != len(seconds) or min(seconds) <= 0:
        return None
    return PassCosts(widths, seconds)


def _write(path: Path, costs: PassCosts) -> None:
    """Keep the table; a folder that cannot be written to costs the next process a few seconds, and nothing else."""
    with contextlib.suppress(OSError):
        write_whole(path, json.dumps({"widths": costs.widths, "seconds": costs.seconds}).encode())
