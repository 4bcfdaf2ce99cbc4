"""SpecPV: most rounds read a small part of a long cache, every few tokens one reads all of it.

A pass over the part sees ``[sink | retrieval | window | buffer]``: the first blocks of the text, the blocks that the
last full pass asked for most, the latest tokens, and what was committed since. Tokens that are accepted on this partial
evidence stand. After ``partial_tokens`` of them a full round runs: they are pending once more and enter in front of
the draft, which puts their true keys and values into the whole cache, verifies the draft against all of it, and chooses
the next part by its own queries.

Blocks are chosen for each head of keys by their summaries, the element-wise minimum and maximum of their keys: a query
scores a block by the larger of its products with the two; queries and the query heads of a group are averaged.
Summaries are made once for each block and grow with the text. Keys are stored rotated with their true positions, so
that nothing is numbered anew.

Paper: SpecPV: Improving Self-Speculative Decoding for Long-Context Generation via Partial Verification, 2025 (blocks of
16, 2 of sink, 256 or 512 retrieved, 4 of window, 20 tokens between full rounds).

Not lossless between full rounds; with ``partial_tokens=0`` all rounds are full, and the text is the model's own. The
drafter is free: the paper adapts EAGLE-3, here any drafter goes that leaves the target's layers alone.

Where it departs: the window is rounded up to a whole block, so that no token lies between it and the last block that
can be retrieved; the buffer has no fixed size, what counts is how many tokens stand on partial evidence; a text whose
blocks would all be retrieved anyway is read in full. The last piece of a prompt enters here with the first draft; of it
only the last token's queries count, as in a first round behind a prompt that was read before.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind, settings
from unspool.core.errors import Incompatible
from unspool.core.model import Capability
from unspool.core.registry import register
from unspool.core.scores import Want
from unspool.core.sockets import CachePolicy, Observation, Setup
from unspool.models.kv import KVCache
from unspool.models.partial import PartialCache


@settings
class SpecPVSettings:
    """The paper's sizes: about 4400 tokens are read in place of all."""

    partial_tokens: Annotated[
        int, Field(ge=0, description="tokens that may stand on partial evidence before a full round; 0 for none")
    ] = 20
    block: Annotated[int, Field(ge=1, description="tokens of a block")] = 16
    sink_blocks: Annotated[int, Field(ge=0, description="first blocks, always read")] = 2
    retrieval_blocks: Annotated[int, Field(ge=0, description="blocks that are chosen by the queries")] = 256
    window_blocks: Annotated[int, Field(ge=1, description="latest blocks, always read")] = 4


def block_scores(queries: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """How much a pass asks for each block, ``[H, B]``.

    Args:
        queries: ``[Hq, N, D]`` of all nodes of the pass; ``Hq`` is a multiple of ``H``.
        least, most: ``[H, B, D]`` element-wise minimum and maximum of each block's keys.
    """
    heads, _, size = least.shape
    grouped = queries.reshape(heads, -1, size)
    products = torch.maximum(grouped @ least.transpose(1, 2), grouped @ most.transpose(1, 2))
    # A group holds as many queries of each of its heads, so that one mean is the mean of means.
    return products.mean(dim=1)


class Summaries:
    """Minimum and maximum of the keys of whole blocks behind the sink, by layer ``[H, B, D]``; made when needed."""

    def __init__(self, sink: int, block: int) -> None:
        self.sink = sink
        self.block = block
        self.least: dict[int, Tensor] = {}
        self.most: dict[int, Tensor] = {}

    def extend(self, cache: KVCache, blocks: int) -> None:
        """Bring all layers to ``blocks`` blocks of a cache that holds every row."""
        for layer in cache.pool.layers:
            known = self.least[layer].shape[1] if layer in self.least else 0
            if known >= blocks:
                continue
            keys = cache.rows(layer)[0][:, self.sink + known * self.block : self.sink + blocks * self.block]
            low, high = keys.unflatten(1, (blocks - known, self.block)).aminmax(dim=2)
            if known:
                low, high = torch.cat([self.least[layer], low], dim=1), torch.cat([self.most[layer], high], dim=1)
            self.least[layer], self.most[layer] = low, high


class _Memory:
    """What is noted of one branch: the summaries of its blocks, and the queries of the pass that was just made."""

    def __init__(self, settings: SpecPVSettings) -> None:
        self.summaries = Summaries(settings.sink_blocks * settings.block, settings.block)
        self.queries: dict[int, Tensor] = {}


@register(
    Card(
        slug="specpv",
        name="SpecPV, partial verification",
        kind=Kind.CACHE_POLICY,
        summary="Verifies most drafts against a small part of a long cache, and every few tokens against all of it.",
        paper="SpecPV: Improving Self-Speculative Decoding for Long-Context Generation via Partial Verification, 2025",
        claim="up to 6x over plain decoding on long contexts with minor loss of quality",
        needs=frozenset({Capability.CACHE_EDITING, Capability.QUERIES}),
    ),
    SpecPVSettings,
)
class SpecPV(CachePolicy):
    """Parts of the cache, chosen anew by every full round.

    Attributes:
        full_rounds, partial_rounds: how many rounds read what, since binding; the first round of a text is full.
    """

    settings: SpecPVSettings
    want = Want(queries=True)

    def bind(self, setup: Setup) -> None:
        self._layers = setup.target.num_layers
        self.full_rounds = self.partial_rounds = 0

    def _memory(self, branch: Branch) -> _Memory:
        return branch.memo.setdefault(self, _Memory(self.settings))

    def observe(self, step: Observation) -> None:
        branch = step.branch
        if branch.cache.length + step.offset < len(branch.tokens):
            return  # a piece of the prompt
        if isinstance(branch.cache, PartialCache) and branch.cache.partial:
            self.partial_rounds += 1
            return
        self.full_rounds += 1
        if len(step.scores.queries) < self._layers:
            raise Incompatible(
                f"specpv chooses what to read by the queries of all {self._layers} layers, and this pass ran "
                f"{len(step.scores.queries)}: go without self-speculation and without layers left out"
            )
        first = 0
        if branch.cache.length < branch.prompt_length:
            first = max(step.offset - 1, 0)
        self._memory(branch).queries = {layer: asked[:, first:] for layer, asked in step.scores.queries.items()}

    def shrink(self, branch: Branch) -> None:
        cache = branch.cache
        if not isinstance(cache, PartialCache):
            assert isinstance(cache, KVCache)
            branch.cache = cache = PartialCache(cache)
        awaiting = len(branch.tokens) - cache.whole.length
        if cache.partial:
            if awaiting > self.settings.partial_tokens:
                cache.put_on_whole()
            return
        memory = self._memory(branch)
        queries, memory.queries = memory.queries, {}
        if queries and awaiting <= self.settings.partial_tokens:
            self._refresh(cache, memory.summaries, queries)

    def _refresh(self, cache: PartialCache, summaries: Summaries, queries: dict[int, Tensor]) -> None:
        """Put on a part of the whole that was chosen by these queries, if it is less than the whole."""
        block, length = self.settings.block, cache.whole.length
        behind = length - summaries.sink - self.settings.window_blocks * block
        blocks = max(behind, 0) // block
        if blocks <= self.settings.retrieval_blocks:
            return
        summaries.extend(cache.whole, blocks)
        solid = summaries.sink + blocks * block
        device = next(iter(queries.values())).device
        sink, window = torch.arange(summaries.sink, device=device), torch.arange(solid, length, device=device)
        within = torch.arange(block, device=device)
        rows = {}
        for layer, asked in queries.items():
            low, high = summaries.least[layer][:, :blocks], summaries.most[layer][:, :blocks]
            best = block_scores(asked.to(low.dtype), low, high).topk(self.settings.retrieval_blocks, dim=1).indices
            first = summaries.sink + best.sort(dim=1).values * block
            found = (first[:, :, None] + within).flatten(1)
            heads = len(found)
            rows[layer] = torch.cat([sink.expand(heads, -1), found, window.expand(heads, -1)], dim=1)
        cache.select(rows, solid)
