"""Attention row by row against one call with padding, and the look at the queries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.shapes import DECODERS, VOCAB, backend, network

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import Cache, Capability
from unspool.core.scores import LOGITS, Request, Want
from unspool.core.tree import TokenTree
from unspool.models.attention import attending
from unspool.models.load import wrap

TREE = TokenTree([5, 9, 11, 3, 7, 8], [-1, 0, 0, 1, 1, 3])
CHAIN = TokenTree.chain([13, 4])


def filled(lm: Any, lengths: list[int]) -> list[Cache]:
    rng = torch.Generator().manual_seed(3)
    caches: list[Cache] = lm.new_caches(len(lengths))
    for cache, length in zip(caches, lengths, strict=True):
        lm.prefill(cache, torch.randint(VOCAB, (length,), generator=rng).tolist())
    return caches


@pytest.mark.parametrize("shape", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_split_and_pad_give_the_same_logits(shape: str, dtype: torch.dtype) -> None:
    lm = backend(shape, dtype)
    caches = filled(lm, [9, 1, 17])
    # Ragged in both directions: a tree after a short text, a chain after a long one, a single token.
    requests = [Request(cache, tree) for cache, tree in zip(caches, [TREE, CHAIN, TokenTree.chain([2])], strict=True)]
    padded = lm.score(requests)
    split = lm.score(requests, Want(split=True))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for one, other in zip(padded, split, strict=True):
        assert torch.allclose(one.logits, other.logits, rtol=0, atol=tolerance)
    again = lm.score(requests)
    assert all(torch.equal(one.logits, other.logits) for one, other in zip(padded, again, strict=True))


def test_split_calls_attention_once_a_row_with_its_true_length(monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.models import attention

    lm = backend("llama")
    caches = filled(lm, [9, 1])
    calls: list[tuple[int, ...]] = []
    fused = attention.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def counted(module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any) -> Any:
        calls.append((query.shape[0], query.shape[2], key.shape[2], mask.shape[3]))
        return fused(module, query, key, value, mask, **more)

    monkeypatch.setitem(attention.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", counted)
    requests = [Request(caches[0], TREE), Request(caches[1], CHAIN)]
    lm.score(requests)
    assert calls == [(2, 6, 15, 15)] * 3
    calls.clear()
    lm.score(requests, Want(split=True))
    assert calls == [(1, 6, 15, 15), (1, 2, 3, 3)] * 3


def test_queries_are_seen_and_change_nothing() -> None:
    lm: Any = backend("llama")
    (cache,) = filled(lm, [9])
    request = Request(cache, TREE)
    (plain,) = lm.score([request])
    seen: dict[int, torch.Tensor] = {}
    with attending(lm.model, queries=seen):
        (tapped,) = lm.score([request])
    assert torch.equal(plain.logits, tapped.logits)
    assert {layer: tuple(q.shape) for layer, q in seen.items()} == dict.fromkeys(range(3), (1, 4, 6, 8))
    assert lm.model.config._attn_implementation == "sdpa"
    # What was seen is what attention used: the first layer's probabilities follow from it and the cached keys.
    (looked,) = lm.score([request], Want(attentions=True))
    keys = cache.pool.layers[0][0][0, :, :15].repeat_interleave(2, dim=0)  # type: ignore[attr-defined]
    scores = seen[0][0] @ keys.mT / 8**0.5
    allowed = torch.ones(6, 15, dtype=torch.bool)
    allowed[:, 9:] = TREE.mask
    probs = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    assert torch.allclose(probs, looked.attentions[0], atol=1e-12)


def test_what_cannot_be_split_says_so() -> None:
    lm = backend("t5")
    assert Capability.SPLIT_ATTENTION not in lm.capabilities
    ((cache, start),) = lm.start([[5, 6, 7]])
    with pytest.raises(Incompatible, match="row by row"):
        lm.score([Request(cache, TokenTree.chain(start))], Want(split=True))
    eager = network("llama")
    eager.set_attn_implementation("eager")
    assert Capability.SPLIT_ATTENTION not in wrap(eager).capabilities
    llama = backend("llama")
    with pytest.raises(InvalidInput, match="split"):
        llama.score([Request(llama.new_cache(), CHAIN)], Want(split=True, attentions=True))
    assert (LOGITS | Want(split=True)).split
