"""Speed over the number of requests that are decoded together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from unspool.core.errors import InvalidInput
from unspool.core.statistics import Statistics
from unspool.evaluation.answerers import conversation, decode_options, engine_of
from unspool.evaluation.answering import ArmSpec
from unspool.evaluation.suites import Item


def parse(sizes: str) -> list[int]:
    """``1,2,4`` as numbers, in rising order.

    Raises:
        InvalidInput: if it is no list of different numbers from 1 on.
    """
    try:
        found = sorted(int(size) for size in sizes.split(","))
    except ValueError:
        found = []
    if not found or found[0] < 1 or len(set(found)) < len(found):
        raise InvalidInput(f"--batches is {sizes!r}; give different numbers from 1 on with commas between, as in 1,2,4")
    return found


def check(sizes: Sequence[int], items: Sequence[Item], specs: Sequence[ArmSpec]) -> None:
    """Whether there are as many prompts as the largest batch takes, and a method to decode them.

    Raises:
        InvalidInput: if not.
    """
    if sizes[-1] > len(items):
        raise InvalidInput(f"--batches {sizes[-1]} needs as many prompts; there are {len(items)}")
    if not any(spec.kind == "method" for spec in specs):
        raise InvalidInput("--batches is for methods of ours, and none is measured here")


def measure(
    sizes: Sequence[int],
    items: Sequence[Item],
    specs: Sequence[ArmSpec],
    engines: dict[Any, Any],
    *,
    seed: int = 0,
    exact: bool = False,
    on_batch: Callable[[str, int], None] = lambda arm, size: None,
) -> list[dict[str, Any]]:
    """Decode the first turns of the same prompts in batches of every size, the arms in turn.

    Args:
        sizes: of batches, rising; as many prompts are answered as the largest takes, by every arm at every size that
            divides them, or as many as fill whole batches.
        exact: whether every answer goes on to its limit, whatever the model says.

    Returns:
        One row for every batch: ``arm``, ``batch`` (its size), ``tokens`` (of all its answers), ``seconds``.
    """
    turns = [spec for spec in specs if spec.kind == "method"]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for first in range(0, sizes[-1] - size + 1, size):
            turns.append(turns.pop(0))
            for spec in turns:
                engine = engine_of(spec, engines)
                group = items[first : first + size]
                prompts = [conversation(engine, [{"role": "user", "content": i.turns[0]}], i.chat) for i in group]
                told = Statistics()
                began = time.perf_counter()
                for event in engine.events(
                    prompts,
                    spec.method,
                    max_new_tokens=max(item.max_new_tokens for item in group),
                    stop_tokens=() if exact else None,
                    seed=seed,
                    **decode_options(spec),
                ):
                    told.update(event, time.perf_counter() - began)
                rows.append({"arm": spec.name, "batch": size, "tokens": told.tokens, "seconds": told.seconds})
                on_batch(spec.name, size)
    return rows
