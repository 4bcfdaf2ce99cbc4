"""Bytes: predicted, counted, and really allocated; caches that grow by blocks; a conversation that keeps its cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.models.shapes import VOCAB, backend

from unspool.core.compose import compose
from unspool.core.errors import InvalidInput, UnspoolError
from unspool.core.events import Finished
from unspool.core.model import Cache, Capability
from unspool.core.scores import Request
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.evaluation.allocations import allocated
from unspool.models.conversation import Conversation
from unspool.models.few_rows import use_few_rows
from unspool.models.kv import KVPool
from unspool.models.load import wrap
from unspool.models.memory import BudgetExceeded, Footprint, Ledger

TREE = TokenTree([5, 9, 11, 3, 7, 8], [-1, 0, 0, 1, 1, 3])


def counted(lm: Any, count: int, block: int = 8, limit: int | None = None) -> tuple[list[Cache], Ledger]:
    ledger = Ledger(limit)
    with lm.counted(ledger, block):
        return lm.new_caches(count), ledger


def held(pool: KVPool) -> int:
    return sum(t.numel() * t.element_size() for pair in pool.layers.values() for t in pair)


@pytest.mark.parametrize("shape", ["llama", "gemma3", "gpt2"])
def test_caches_grow_by_blocks_and_every_byte_is_counted(shape: str) -> None:
    lm: Any = backend(shape)
    caches, ledger = counted(lm, 2)
    pool = caches[0].pool  # type: ignore[attr-defined]
    rooms = []
    for length in range(1, 30):
        lm.score([Request(cache, TokenTree.chain([length])) for cache in caches])
        for cache in caches:
            cache.commit([0])
        rooms.append(pool.room)
        assert ledger.live["cache"] == held(pool) == lm.footprint(8).cache(2, pool.room)
    assert rooms == [-(-length // 8) * 8 for length in range(1, 30)]
    twin = caches[0].fork()
    assert ledger.live["cache"] == held(pool) == lm.footprint(8).cache(3, 32)
    twin.release()
    caches[0].release()
    # Slots are given back, and what is left is still right.
    assert ledger.live["cache"] == held(pool) == lm.footprint(8).cache(1, 32)
    fresh = backend(shape).new_cache()
    lm.prefill(fresh, list(range(1, 30)))
    (a,), (b,) = lm.score([Request(caches[1], TREE)]), lm.score([Request(fresh, TREE)])
    assert torch.allclose(a.logits, b.logits, atol=1e-10)
    caches[1].release()
    assert ledger.live["cache"] == 0


def test_other_caches_grow_as_before() -> None:
    lm: Any = backend("llama")
    caches, _ = counted(lm, 1)
    other = lm.new_cache()
    assert caches[0].pool.block == 8  # type: ignore[attr-defined]
    assert other.pool.block is None
    assert other.pool.ledger is None
    lm.prefill(other, [1, 2, 3])
    assert other.pool.room == 256


@pytest.mark.parametrize(("rows", "length", "nodes"), [(1, 20, 0), (1, 23, 6), (1, 8, 40), (3, 30, 12), (2, 60, 1)])
def test_the_prediction_is_what_is_counted(rows: int, length: int, nodes: int) -> None:
    lm: Any = backend("llama", torch.float32)
    caches, ledger = counted(lm, rows)
    for cache in caches:
        lm.prefill(cache, [token % VOCAB for token in range(length)], rows=[])
    ledger.peak, before = 0, caches[0].pool.room  # type: ignore[attr-defined]
    tree = TokenTree.chain([3] * (nodes + 1))
    lm.score([Request(cache, tree) for cache in caches])
    sizes: Footprint = lm.footprint(8)
    assert ledger.peak == sizes.peak(rows, length + 1 + nodes, nodes + 1, nodes + 1, before)


@pytest.mark.parametrize("turned", [False, True], ids=["plain", "few-rows"])
@pytest.mark.parametrize(("length", "nodes"), [(200, 0), (200, 12), (100, 60), (40, 90), (400, 40)])
def test_what_is_really_allocated_is_what_was_predicted(length: int, nodes: int, turned: bool) -> None:
    """All tensors that torch makes, of a network whose sizes stand to one another as in real ones."""
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=144,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
    )
    network = transformers.LlamaForCausalLM(config)
    if turned:
        use_few_rows(network)
    lm: Any = wrap(network, name="medium")
    caches, ledger = counted(lm, 1, 32)
    tree = TokenTree.chain([3] * (nodes + 1))

    def run() -> None:
        lm.prefill(caches[0], [token % VOCAB for token in range(length)], rows=[], chunk=64)
        lm.score([Request(caches[0], tree)])

    real = allocated(run)
    assert 0.9 * ledger.peak <= real <= 1.02 * ledger.peak


def test_a_byte_too_many_is_refused_before_it_is_taken() -> None:
    lm: Any = backend("llama")
    sizes: Footprint = lm.footprint(8)
    needed = sizes.peak(1, 6, 6, 6, 0)
    for limit in (needed, needed - 1):
        (cache,), ledger = counted(lm, 1, limit=limit)
        if limit == needed:
            lm.score([Request(cache, TREE)])
        else:
            with pytest.raises(BudgetExceeded, match="budget"):
                lm.score([Request(cache, TREE)])
            assert not cache.pool.layers  # type: ignore[attr-defined]
        assert ledger.peak <= limit
    assert issubclass(BudgetExceeded, UnspoolError)


def answer(model: Any, prompt: list[int], tokens: int = 9) -> list[int]:
    (done,) = [
        e for e in compose(model, "prompt-lookup").decode([prompt], stop=Stop(tokens)) if isinstance(e, Finished)
    ]
    return list(done.tokens)


def test_a_conversation_reads_only_what_is_new() -> None:
    lm = backend("llama")
    talk = Conversation(lm)
    text: list[int] = []
    for turn in range(4):
        text = [*text, 7 + turn, 20, 21, 7 + turn, 20]
        before, length = talk.forwards, len(text)
        said = answer(talk, text)
        assert said == answer(lm, text)
        assert talk.forwards > before
        # All but what was new, and the last token said before, which no pass has read.
        assert talk.reused == (length - 6 if turn else 0)
        text += said
    # An earlier turn is dropped: what still agrees is kept, the rest is read again.
    changed = [*text[:5], 3, *text[8:]]
    assert answer(talk, changed) == answer(lm, changed)
    assert talk.reused == 5
    shorter = changed[:4]
    assert answer(talk, shorter) == answer(lm, shorter)
    assert talk.reused == 3
    talk.close()
    assert answer(talk, text) == answer(lm, text)
    assert talk.reused == 0
    with pytest.raises(InvalidInput, match="one prompt"):
        talk.start([[1], [2]])


def test_what_keeps_no_keys_and_values_has_no_budget() -> None:
    assert Capability.MEMORY_BUDGET not in backend("mamba2").capabilities
    assert Capability.MEMORY_BUDGET not in backend("t5").capabilities


def test_allocations_are_added_up_while_they_live() -> None:
    there = torch.ones(1000)

    def run() -> torch.Tensor:
        a = torch.ones(100)
        b = a + 1
        del a
        c = torch.cat([b, b])
        view = there.view(10, 100)[0]
        return c[:100] + view

    # 100 and 100; then 100 and 200; then 100, 200 and 100 more. What was there before is not in it.
    assert allocated(run) == 4 * 400
