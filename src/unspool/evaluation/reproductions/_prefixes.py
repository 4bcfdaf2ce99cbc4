"""Long prompts that are read once for many runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from unspool.core.model import Cache, LanguageModel
from unspool.core.scores import Request
from unspool.core.tree import TokenTree


@contextmanager
def read_once(model: LanguageModel, prompts: Sequence[Sequence[int]], *, leave: int = 64) -> Iterator[None]:
    """Within this context requests with one of these prompts begin with a copy of its cache.

    Args:
        model: a decoder.
        prompts: read when the context is entered.
        leave: tokens at the end of each that every request still reads itself.
    """
    held: dict[tuple[int, ...], Cache] = {}
    for prompt in prompts:
        cache = held[tuple(prompt)] = model.new_cache()
        model.prefill(cache, prompt[: max(len(prompt) - leave, 0)], rows=[])
    begin = model.start

    def start(asked: Sequence[Sequence[int]]) -> list[tuple[Cache, list[int]]]:
        return [
            (held[tuple(prompt)].fork(), list(prompt)) if tuple(prompt) in held else begin([prompt])[0]
            for prompt in asked
        ]

    try:
        model.start = start  # type: ignore[assignment, method-assign]
        yield
    finally:
        del model.start
        for cache in held.values():
            cache.release()


def tail_log_probs(model: LanguageModel, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """``[T]`` natural-log probabilities of ``tokens`` after ``prompt``, of which only what no cache holds is read."""
    (cache, _), *_ = model.start([prompt])
    try:
        pending = list(prompt[cache.length :])
        tree = TokenTree.chain([*pending, *tokens[:-1]])
        rows = list(range(len(pending) - 1, len(tree)))
        (scores,) = model.score([Request(cache, tree, rows=rows)])
    finally:
        cache.release()
    logs = torch.log_softmax(scores.logits.float(), dim=-1)
    return logs[torch.arange(len(rows)), torch.tensor(tokens)]
