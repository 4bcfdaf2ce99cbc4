"""A model small enough to enumerate: next-token logits are a fixed table over the last two tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unspool.core.errors import InvalidInput
from unspool.core.model import Cache, Capability, LanguageModel
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.tree import ROOT


class TableCache(Cache):
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.scratch: list[int] = []

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self.tokens)

    def commit(self, path: Sequence[int]) -> None:
        for node in path:
            if not 0 <= node < len(self.scratch):
                raise InvalidInput(f"node {node} was not scored: the last tree had {len(self.scratch)} nodes")
        self.tokens += [self.scratch[node] for node in path]
        self.scratch = []

    def fork(self) -> TableCache:
        twin = TableCache()
        twin.tokens = list(self.tokens)
        return twin

    def rewind(self, length: int) -> None:
        self._check_rewind(length)
        del self.tokens[length:]
        self.scratch = []

    @property
    def nbytes(self) -> int:
        return 8 * len(self.tokens)


class ToyModel(LanguageModel):
    """Base of models whose logits are a function of the tokens: of :meth:`next_logits`."""

    def new_caches(self, count: int) -> list[Cache]:
        return [TableCache() for _ in range(count)]

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """``[V]`` logits after ``tokens``."""
        raise NotImplementedError

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        self.forwards += 1
        answers = []
        for request in requests:
            cache, tree = request.cache, request.tree
            assert isinstance(cache, TableCache)
            assert request.known == 0 or cache.scratch[: request.known] == tree.token_list[: request.known]
            cache.scratch = list(tree.token_list)
            rows = list(range(request.known, len(tree))) if request.rows is None else request.rows
            logits = []
            for node in rows:
                assert node != ROOT
                logits.append(self.next_logits(cache.tokens + tree.path_tokens(node)))
            answers.append(Scores(torch.stack(logits) if logits else torch.empty(0, self.vocab_size), list(rows)))
        return answers


class TableModel(ToyModel):
    """``logits = table[a, b]`` where ``a, b`` are the last two tokens of the path (``V`` stands for 'before the
    start').

    Args:
        vocab_size: ``V``.
        seed: of the random table.
        scale: standard deviation of the logits; larger is more peaked.
        mix: if given, another table model whose table is blended in with weight ``blend`` (a related draft model).
    """

    def __init__(
        self,
        vocab_size: int = 6,
        seed: int = 0,
        scale: float = 1.5,
        mix: TableModel | None = None,
        blend: float = 0.7,
        context_length: int | None = 4096,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        rng = torch.Generator().manual_seed(seed)
        v = vocab_size
        self.table = torch.randn(v + 1, v + 1, v, generator=rng, dtype=torch.float64) * scale
        if mix is not None:
            self.table = blend * mix.table.to(torch.float64) + (1 - blend) * self.table
        self.table = self.table.to(dtype)
        self.name = f"table-{v}-{seed}"
        self.vocab_size = v
        self.context_length = context_length
        self.tokenizer = None
        self.stop_tokens = frozenset()
        self.capabilities = frozenset({Capability.TREE, Capability.CACHE_EDITING})
        self.device = torch.device("cpu")
        self.dtype = dtype

    def next_logits(self, tokens: Sequence[int]) -> Tensor:
        """``[V]`` logits after ``tokens``."""
        before = [self.vocab_size, self.vocab_size, *tokens]
        return self.table[before[-2], before[-1]]

    def sequence_probs(self, prompt: Sequence[int], length: int) -> Tensor:
        """``[V] * length`` exact probabilities of every continuation of that length."""
        probs = torch.ones((), dtype=torch.float64)
        paths: list[list[int]] = [[]]
        for _ in range(length):
            probs = torch.stack(
                [
                    p * torch.softmax(self.next_logits([*prompt, *path]).double(), -1)
                    for p, path in zip(probs.reshape(-1), paths, strict=True)
                ]
            )
            paths = [[*path, token] for path in paths for token in range(self.vocab_size)]
        return probs.reshape([self.vocab_size] * length)
