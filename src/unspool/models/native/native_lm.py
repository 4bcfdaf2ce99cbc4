"""The native runtime as a language model."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unspool.core.model import Capability
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.models.checks import check, check_inputs, check_want
from unspool.models.kv import KVCache
from unspool.models.memory import Ledger
from unspool.models.native.footprint import NativeFootprint
from unspool.models.native.network import Network, SequenceStruct, TokensStruct
from unspool.models.pooled import PooledModel


class NativeModel(PooledModel):
    """A decoder-only model of the Llama family on the CPU.

    A token is computed by the same operations in the same order whatever is scored beside it, so what a tree says of a
    path is what plain decoding would say, bit for bit.

    Args:
        network: its packed weights.
        tokenizer: text to tokens and back, or ``None``.
        name: what to call it in messages.
        stop_tokens: tokens that end a text.
        precision: of the weights, for people.
    """

    forks_share = True

    def __init__(
        self,
        network: Network,
        tokenizer: Any = None,
        name: str = "",
        *,
        stop_tokens: frozenset[int] = frozenset(),
        precision: str = "float32",
    ) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.name = name or network.shape.model_type
        self.precision = precision
        self.stop_tokens = stop_tokens
        self.vocab_size = network.head.n
        self.context_length = network.shape.context_length
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.capabilities = frozenset(
            {
                Capability.TREE,
                Capability.HIDDEN_STATES,
                Capability.ATTENTIONS,
                Capability.LAYER_RANGES,
                Capability.INPUT_EMBEDDINGS,
                Capability.CACHE_EDITING,
                Capability.SPLIT_ATTENTION,
                Capability.QUERIES,
                Capability.MEMORY_BUDGET,
            }
        )
        shape = network.shape
        # Keys and values of no tokens: what pools have to hold.
        kept = torch.float16 if network.half_cache else torch.float32
        self.row = torch.empty(1, shape.kv_heads, 0, shape.head_dim, dtype=kept)

    @property
    def num_layers(self) -> int:
        return self.network.shape.layers

    @property
    def hidden_size(self) -> int:
        return self.network.shape.hidden

    # -- caches ------------------------------------------------------------------------------------------------------

    def footprint(self, block: int) -> NativeFootprint:
        """What decoding takes with caches that grow by ``block`` positions."""
        return NativeFootprint.of_network(self.network, block, torch.get_num_threads())

    def _announce(self, ledger: Ledger, requests: Sequence[Request], caches: Sequence[KVCache], batch: _Batch) -> None:
        """Tell the ledger what a pass is about to take, beyond the caches that are there."""
        width = max(last - first for first, last in batch.spans)
        places = max(len(r.tree) - r.known if r.rows is None else len(r.rows) for r in requests)
        rows, end = len(requests), batch.most_rows
        sizes = self.footprint(caches[0].pool.block or 1)
        ledger.before_pass(
            mask=sizes.mask(rows, width, end),
            work=sizes.work(rows, width, end),
            head=sizes.head(rows, width, places),
            logits=sizes.logits(rows, places),
        )
        # Buffers of a wider pass would be there beside what was announced.
        self.network.drop_buffers()

    # -- scoring -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        caches: list[KVCache] = [request.cache for request in requests]  # type: ignore[misc]
        check(self, requests, caches, layers)
        check_want(self, want)
        network, threads = self.network, torch.get_num_threads()
        ledger = caches[0].pool.ledger
        if ledger is not None:
            ledger.next_pass()
        batch = _Batch(self, requests, caches)
        if ledger is not None:
            self._announce(ledger, requests, caches, batch)
        network.prepare(batch.count, batch.most_rows, batch.reach, threads)
        states = network.states(batch.count)
        self._enter(requests, batch, states)

        running: Sequence[int] = range(self.num_layers) if layers is None else layers
        hidden: dict[int, Tensor] = {}
        attentions, queries = self._run(running, batch, states, want, hidden, threads)
        if -1 in want.hidden:
            hidden[-1] = network.normed(states)
        rows = [list(range(r.known, len(r.tree))) if r.rows is None else r.rows for r in requests]
        logits = self._logits(states, batch, rows, requests, threads)
        if ledger is not None:
            ledger.after_pass()

        self.forwards += 1
        self.layers_run += len(running)
        shape = network.shape
        seen = sum(cache.held + len(request.tree) for cache, request in zip(caches, requests, strict=True))
        self.kv_read += 2 * shape.kv_heads * shape.head_dim * len(running) * seen
        answers = []
        place = 0
        for index, (request, cache) in enumerate(zip(requests, caches, strict=True)):
            cache.scored = len(request.tree)
            mine = slice(*batch.spans[index])
            end = cache.held + len(request.tree)
            answers.append(
                Scores(
                    logits[place : place + len(rows[index])],
                    rows[index],
                    {layer: found[mine] for layer, found in hidden.items()},
                    tuple(probabilities[:, mine, :end] for probabilities in attentions),
                    {layer: asked[mine].transpose(0, 1) for layer, asked in queries.items()},
                )
            )
            place += len(rows[index])
        return answers

    def _enter(self, requests: Sequence[Request], batch: _Batch, states: Tensor) -> None:
        if any(request.inputs is None for request in requests):
            self.network.embed(batch.ids, states)
        for (first, last), request in zip(batch.spans, requests, strict=True):
            if request.inputs is not None:
                check_inputs(request.inputs, last - first, self.hidden_size)
                states[first:last] = request.inputs.to(states)

    def _run(
        self,
        running: Sequence[int],
        batch: _Batch,
        states: Tensor,
        want: Want,
        hidden: dict[int, Tensor],
        threads: int,
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Run the layers, all at once or from one look inside to the next."""
        network, shape = self.network, self.network.shape
        if 0 in want.hidden and running[0] == 0:
            hidden[0] = states.clone()
        if not (want.attentions or want.queries or want.hidden - {0, -1}):
            network.run(running, batch.struct, threads)
            return [], {}
        attentions: list[Tensor] = []
        queries: dict[int, Tensor] = {}
        for layer in running:
            if want.attentions:
                attentions.append(torch.zeros(shape.heads, batch.count, batch.most_rows))
                batch.struct.probabilities = attentions[-1].data_ptr()
            if want.queries:
                queries[layer] = torch.empty(batch.count, shape.heads, shape.head_dim)
                batch.struct.queries = queries[layer].data_ptr()
            network.run(range(layer, layer + 1), batch.struct, threads)
            if layer + 1 in want.hidden:
                hidden[layer + 1] = states.clone()
        return attentions, queries

    def _logits(
        self, states: Tensor, batch: _Batch, rows: list[list[int]], requests: Sequence[Request], threads: int
    ) -> Tensor:
        """``[sum R, V]`` logits of the wanted rows of all requests."""
        wanted = [
            first + row - request.known
            for (first, _), request, mine in zip(batch.spans, requests, rows, strict=True)
            for row in mine
        ]
        if not wanted:
            return torch.empty(0, self.vocab_size)
        if wanted != list(range(wanted[0], wanted[0] + len(wanted))):
            chosen = states[torch.tensor(wanted)]
        else:
            chosen = states[wanted[0] : wanted[0] + len(wanted)]
        return self.network.logits(chosen, norm=True, threads=threads)

    # -- parts -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        flat = tokens.reshape(-1).to(torch.int64).contiguous()
        out = torch.empty(len(flat), self.hidden_size)
        self.network.embed(flat, out)
        return out.view(*tokens.shape, self.hidden_size)

    @torch.no_grad()
    def head(self, hidden: Tensor) -> Tensor:
        return self._read_out(hidden, norm=False)

    @torch.no_grad()
    def exit_head(self, hidden: Tensor) -> Tensor:
        return self._read_out(hidden, norm=True)

    def _read_out(self, hidden: Tensor, *, norm: bool) -> Tensor:
        threads = torch.get_num_threads()
        self.network.prepare(len(hidden), 1, 1, threads)
        return self.network.logits(hidden.to(torch.float32).contiguous(), norm=norm, threads=threads)


class _Batch:
    """The tokens of a pass, one request behind the other, as the kernels want them.

    Attributes:
        count: of tokens.
        spans: of each request, where its tokens begin and end.
        most_rows: the longest that a token of it can look back.
        reach: positions below which all of it lies.
    """

    def __init__(self, model: NativeModel, requests: Sequence[Request], caches: Sequence[KVCache]) -> None:
        counts = [len(request.tree) - request.known for request in requests]
        self.count = sum(counts)
        self.most_rows = max(c.held + len(r.tree) for c, r in zip(caches, requests, strict=True))
        self.reach = 0
        self.spans: list[tuple[int, int]] = []
        tokens: list[int] = []
        position, row, until, further = [], [], [], []
        begin = np.zeros(self.count + 1, dtype=np.int32)
        self._sequences = (SequenceStruct * len(requests))()
        first = 0
        pools = {id(cache.pool): cache.pool for cache in caches}
        for cache, request in zip(caches, requests, strict=True):
            cache.pool.reserve(cache.held + len(request.tree))
        # The rows of a pool move when it grows: it does so here, and no more until the pass is over.
        self._tables = {key: pool.addresses(model.num_layers, model.row) for key, pool in pools.items()}
        for index, (request, cache, count) in enumerate(zip(requests, caches, counts, strict=True)):
            tree, known, held = request.tree, request.known, cache.held
            self._sequences[index] = SequenceStruct(
                ctypes.addressof(self._tables[id(cache.pool)]),
                cache.slot,
                cache.pool.layers[0][0].shape[2],
                cache.solid - cache.dropped if cache.dropped else 0,
                cache.slot if cache.lender is None else cache.lender.slot,
                cache.shared,
            )
            tokens += tree.token_list[known:] if known else tree.token_list
            rows = np.arange(held + known, held + len(tree), dtype=np.int32)
            row.append(rows)
            depths = np.asarray(tree.depths[known:], dtype=np.int32)
            position.append(depths + cache.length)
            self.reach = max(self.reach, cache.length + tree.depth)
            if tree.is_chain:
                # A chain sees every row before its own, so it needs no list.
                until.append(rows + 1)
            else:
                nodes, ancestors = np.nonzero(tree.mask[known:].numpy())
                further.append((ancestors + held).astype(np.int32))
                begin[first + 1 : first + count + 1] = np.bincount(nodes, minlength=count)
                until.append(np.full(count, held, dtype=np.int32))
            self.spans.append((first, first + count))
            first += count
        self.ids = torch.tensor(tokens, dtype=torch.int64)
        sequence = np.repeat(np.arange(len(requests), dtype=np.int32), counts)
        np.cumsum(begin, out=begin)
        joined = [
            np.concatenate(parts) if parts else np.zeros(1, np.int32) for parts in (position, row, until, further)
        ]
        self._arrays = (sequence, *joined[:3], begin, joined[3])
        self.struct = TokensStruct(
            self.count, *(array.ctypes.data for array in self._arrays), ctypes.addressof(self._sequences), None, None,
            self.most_rows,
        )  # fmt: skip
