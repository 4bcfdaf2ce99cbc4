"""Caches that hold a part of their text: rows that were selected, positions that stay true, two views of one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.models.shapes import VOCAB, backend
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from unspool.core.errors import InvalidInput
from unspool.core.scores import Request, Want
from unspool.core.tree import TokenTree
from unspool.models.kv import KVCache
from unspool.models.partial import PartialCache

TEXT = [(11 * place + place * place) % VOCAB for place in range(40)]
TREE = TokenTree([5, 9, 9, 30, 2], [-1, 0, 0, 2, -1])

Rows = dict[int, tuple[Tensor, Tensor]]


def forward(
    lm: Any, tree: TokenTree, position: int, held: Rows, grown: Rows | None = None
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits ``[N, V]`` of a tree after rows ``[H, K, D]`` of every layer, and its queries; Llama, step by step.

    With ``grown``, all rows behind the pass are put there.
    """
    net = lm.model.model
    states = net.embed_tokens(tree.tokens[None])
    places = torch.tensor([[position + depth for depth in tree.depths]])
    cos, sin = net.rotary_emb(states, places)
    queries = {}
    for index, layer in enumerate(net.layers):
        attention, x = layer.self_attn, layer.input_layernorm(states)
        q, k, v = (
            part(x).view(1, len(tree), -1, attention.head_dim).transpose(1, 2)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        queries[index] = q[0]
        if grown is not None:
            grown[index] = (torch.cat([held[index][0], k[0]], dim=1), torch.cat([held[index][1], v[0]], dim=1))
        outs = []
        for head in range(q.shape[1]):
            group = head // attention.num_key_value_groups
            keys = torch.cat([held[index][0][group], k[0, group]])
            values = torch.cat([held[index][1][group], v[0, group]])
            weights = q[0, head] @ keys.T * attention.scaling
            weights[:, len(keys) - len(tree) :].masked_fill_(~tree.mask, -torch.inf)
            outs.append(torch.softmax(weights, dim=-1) @ values)
        states = states + attention.o_proj(torch.cat(outs, dim=-1))[None]
        states = states + layer.mlp(layer.post_attention_layernorm(states))
    return lm.model.lm_head(net.norm(states))[0], queries


def filled(lm: Any, text: Sequence[int] = TEXT) -> KVCache:
    cache = lm.new_cache()
    lm.prefill(cache, text, rows=[])
    return cache  # type: ignore[no-any-return]


def ragged(lm: Any, length: int, tail: int, count: int, seed: int = 0) -> dict[int, Tensor]:
    """``count`` random rows of each head before the last ``tail`` ones, and these."""
    rng = torch.Generator().manual_seed(seed)
    heads = lm.config.num_key_value_heads
    return {
        layer: torch.stack(
            [
                torch.cat(
                    [
                        torch.randperm(length - tail, generator=rng)[:count].sort().values,
                        torch.arange(length - tail, length),
                    ]
                )
                for _ in range(heads)
            ]
        )
        for layer in range(lm.num_layers)
    }


def test_what_a_partial_cache_says_is_what_its_rows_say() -> None:
    lm: Any = backend("llama")
    whole = filled(lm)
    rows = ragged(lm, 40, 6, 9)
    held = {
        layer: tuple(t.gather(1, rows[layer][:, :, None].expand(-1, -1, t.shape[-1])) for t in whole.rows(layer))
        for layer in rows
    }
    with torch.no_grad():
        expected, queries = forward(lm, TREE, 40, held)  # type: ignore[arg-type]
    kept = filled(lm)
    kept.select(rows, 34)
    assert (kept.length, kept.held, kept.dropped, kept.solid) == (40, 15, 25, 34)
    (scores,) = lm.score([Request(kept, TREE)], Want(queries=True))
    torch.testing.assert_close(scores.logits, expected)
    for layer, asked in queries.items():
        torch.testing.assert_close(scores.queries[layer], asked)
    # A tree that grows, a path that is committed, more text: the positions stay true.
    (root,) = lm.score([Request(kept, TREE.select([0]))])
    (rest,) = lm.score([Request(kept, TREE, known=1)])
    torch.testing.assert_close(torch.cat([root.logits, rest.logits]), expected)
    kept.commit([0, 2, 3])
    assert (kept.length, kept.held) == (43, 18)
    with torch.no_grad():
        path = TokenTree.chain([*TREE.path_tokens(3), 7])
        longer, _ = forward(lm, path, 40, held)  # type: ignore[arg-type]
    (scores,) = lm.score([Request(kept, TokenTree.chain([7]))])
    torch.testing.assert_close(scores.logits[0], longer[-1])


def test_selected_rows_of_another_cache_leave_it_alone() -> None:
    lm: Any = backend("llama")
    whole, part = filled(lm), lm.new_cache()
    before = [tensor.clone() for layer in range(lm.num_layers) for tensor in whole.rows(layer)]
    part.select(ragged(lm, 40, 3, 5), 37, whole)
    after = [tensor for layer in range(lm.num_layers) for tensor in whole.rows(layer)]
    assert all(map(torch.equal, before, after))
    assert (whole.length, whole.held, part.length, part.held) == (40, 40, 40, 8)
    own = filled(lm)
    own.select(ragged(lm, 40, 3, 5), 37)
    for layer in range(lm.num_layers):
        assert all(map(torch.equal, own.rows(layer), part.rows(layer)))


@pytest.mark.parametrize("shape", ["mistral", "gemma3"])
def test_windows_are_counted_in_positions(shape: str) -> None:
    """Rows that no window reaches may go: of Mistral's layers all, of Gemma's those with a window."""
    lm: Any = backend(shape)
    whole = filled(lm)
    (expected,) = lm.score([Request(whole, TREE)])
    kept = filled(lm)
    kept.select(ragged(lm, 40, 7, 0 if shape == "mistral" else 33), 33)
    (scores,) = lm.score([Request(kept, TREE)])
    torch.testing.assert_close(scores.logits, expected.logits)


def test_gaps_lie_before_every_window() -> None:
    """Rows with gaps between them would look nearer than they are."""
    lm: Any = backend("mistral")
    (expected,) = lm.score([Request(filled(lm), TREE)])
    kept = filled(lm)
    kept.select(ragged(lm, 40, 6, 12), 34)
    (scores,) = lm.score([Request(kept, TREE)])
    torch.testing.assert_close(scores.logits, expected.logits)


def test_batches_of_whole_and_partial_caches() -> None:
    lm: Any = backend("llama")
    caches: list[Any] = lm.new_caches(4)
    for place, cache in enumerate(caches):
        lm.prefill(cache, TEXT[place:], rows=[])
    mixed = [PartialCache(cache) for cache in caches]
    for place in (1, 2):
        length = 40 - place
        mixed[place].select(ragged(lm, length, 4, 6, seed=place), length - 4)
    alone = [lm.score([Request(cache, TREE)])[0].logits for cache in mixed]
    before = lm.kv_read
    answers = lm.score([Request(cache, TREE) for cache in mixed])
    for scores, expected in zip(answers, alone, strict=True):
        torch.testing.assert_close(scores.logits, expected)
    size = 2 * lm.config.num_key_value_heads * 8 * lm.num_layers
    assert lm.kv_read - before == size * (40 + 10 + 10 + 37 + 4 * len(TREE))
    assert mixed[1].pool is mixed[2].pool is not mixed[0].pool


def test_the_two_views_of_a_partial_cache() -> None:
    lm: Any = backend("llama")
    cache = PartialCache(filled(lm))
    (full,) = lm.score([Request(cache, TREE)])
    cache.commit([0])
    cache.select(ragged(lm, 41, 4, 6), 37)
    assert cache.partial
    assert (cache.length, cache.held, cache.whole.length) == (41, 10, 41)
    (part,) = lm.score([Request(cache, TREE)])
    assert not torch.allclose(part.logits, full.logits)
    cache.commit([0, 1])
    assert (cache.length, cache.held, cache.whole.length) == (43, 12, 41)
    with pytest.raises(InvalidInput, match="cannot rewind to 44"):
        cache.rewind(44)

    twin = cache.fork()
    assert twin.partial
    for one in (cache, twin):
        (said,) = lm.score([Request(one, TREE)])
        torch.testing.assert_close(said.logits, lm.score([Request(cache, TREE)])[0].logits)
    twin.rewind(42)
    assert twin.partial
    assert (twin.length, twin.held) == (42, 11)
    twin.rewind(38)
    assert not twin.partial, "what lies before the part is read from the whole"
    (said,) = lm.score([Request(twin, TREE)])
    torch.testing.assert_close(said.logits, lm.score([Request(filled(lm, TEXT[:38]), TREE)])[0].logits)

    cache.put_on_whole()
    assert (cache.length, cache.held) == (41, 41), "what only the part has seen is pending"
    (said,) = lm.score([Request(cache, TREE)])
    torch.testing.assert_close(said.logits, lm.score([Request(filled(lm, [*TEXT, 5]), TREE)])[0].logits)
    assert cache.nbytes == cache.whole.nbytes + cache.part.nbytes  # type: ignore[union-attr]
    pools = [cache.whole.pool, cache.part.pool]  # type: ignore[union-attr]
    for one in (cache, twin):
        one.release()
    assert not any(pool.owners or pool.layers for pool in pools)


def test_selections_that_make_no_sense() -> None:
    lm: Any = backend("llama")
    cache = filled(lm)
    rows = ragged(lm, 40, 4, 6)
    with pytest.raises(InvalidInput, match="as many rows"):
        cache.select({0: rows[0]}, 36)
    with pytest.raises(InvalidInput, match="as many rows"):
        cache.select({**rows, 1: rows[1][:, :-1]}, 36)
    cache.select(rows, 36)
    with pytest.raises(InvalidInput, match="rows before position 36 were dropped"):
        cache.rewind(35)
    cache.rewind(37)
    assert (cache.length, cache.held) == (37, 7)
    with pytest.raises(InvalidInput, match="not with split or queries"):
        lm.score([Request(cache, TREE)], Want(attentions=True, queries=True))
