"""A trimmed head says what the whole one says of the tokens that it kept, whatever the head does to its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tests.models.shapes import NATIVE, SHAPES, TREES, backend, network, prompts
from tests.toys import TableModel

from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.model import LanguageModel
from unspool.core.scores import Request, Want
from unspool.core.tree import ROOT, TokenTree
from unspool.models.load import wrap
from unspool.models.trimmed_head import TrimmedHead

KEPT = [3, 5, 6, 40, 63]


def same(whole: LanguageModel, trimmed: LanguageModel, tree: TokenTree | None = None) -> None:
    """Both score a batch of two texts, with and without known nodes and chosen rows."""
    texts = prompts(2)
    trees = [TokenTree.chain(text) if tree is None else tree for text in texts]
    answers = []
    for model in (whole, trimmed):
        caches = [cache for cache, _ in model.start(texts)]
        first = model.score([Request(c, t) for c, t in zip(caches, trees, strict=True)])
        for cache, one in zip(caches, trees, strict=True):
            cache.commit(one.path(len(one) - 1))
        second = model.score([Request(c, TokenTree.chain([7, 8, 9]), rows=[0, 2]) for c in caches])
        answers.append([*first, *second])
        for cache in caches:
            cache.release()
    dropped = [token for token in range(64) if token not in KEPT]
    for full, part in zip(*answers, strict=True):
        assert part.rows == full.rows
        assert torch.allclose(part.logits[:, KEPT], full.logits[:, KEPT], rtol=1e-9, atol=1e-9)
        assert bool((part.logits[:, dropped] == -torch.inf).all())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_kept_logits_are_those_of_the_whole_head(shape: str) -> None:
    whole = backend(shape)
    trimmed = TrimmedHead(whole, KEPT)
    assert trimmed.saves == (shape in TREES and shape not in NATIVE)
    same(whole, trimmed)
    if shape in TREES:
        same(whole, trimmed, TokenTree([4, 5, 6, 7], [ROOT, 0, 0, 2]))
        assert trimmed.head_bytes < 6 * (32 + 1) * 8
        hidden = torch.randn(3, 32, dtype=torch.float64)
        assert torch.allclose(trimmed.head(hidden)[:, KEPT], whole.head(hidden)[:, KEPT])


def test_a_soft_cap_a_scale_and_an_offset_are_kept() -> None:
    capped: Any = network("gemma3")
    capped.config.final_logit_softcapping = 3.0
    same(wrap(capped, name="capped"), TrimmedHead(wrap(capped, name="capped"), KEPT))

    torch.manual_seed(0)
    scaled = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            logits_scaling=7.0,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    ).double()
    trimmed = TrimmedHead(wrap(scaled, name="scaled"), KEPT)
    assert trimmed._scale == pytest.approx(1 / 7)
    same(wrap(scaled, name="scaled"), trimmed)

    shifted: Any = network("bart")
    shifted.final_logits_bias = torch.randn(1, 64, dtype=torch.float64)
    trimmed = TrimmedHead(wrap(shifted, name="shifted"), KEPT)
    assert trimmed.offset is not None
    same(wrap(shifted, name="shifted"), trimmed)


def test_another_kind_of_head_is_refused() -> None:
    model = wrap(network("llama"), name="odd")
    usual = model.head
    model.head = lambda hidden: usual(hidden) ** 3  # type: ignore[method-assign]
    with pytest.raises(Incompatible, match="the head of odd cannot be trimmed"):
        TrimmedHead(model, KEPT)


def test_what_a_method_wants_beside_logits_is_there() -> None:
    whole = backend("llama")
    trimmed = TrimmedHead(whole, KEPT)
    for model in (whole, trimmed):
        cache = model.new_cache()
        plain = model.score([Request(cache, TokenTree.chain([1, 2, 3]), rows=[2])])[0]
        assert not plain.hidden
        seen = model.score([Request(cache, TokenTree.chain([1, 2, 3]), rows=[2])], Want(frozenset({-1, 1})))[0]
        assert set(seen.hidden) == {-1, 1}
        cache.release()
    before = whole.forwards
    cache = trimmed.new_cache()
    trimmed.score([Request(cache, TokenTree.chain([1]))])
    assert whole.forwards == trimmed.forwards == before + 1
    cache.release()


def test_other_tokens_can_be_kept_later() -> None:
    whole = backend("llama")
    trimmed = TrimmedHead(whole, [0])
    assert "1 of 64" in trimmed.name
    trimmed.keep(KEPT)
    same(whole, trimmed)
    assert "5 of 64" in trimmed.name


@pytest.mark.parametrize("kept", [[], [64], [-1, 3]])
def test_tokens_that_are_not_there_are_refused(kept: list[int]) -> None:
    with pytest.raises(InvalidInput, match="tokens to keep"):
        TrimmedHead(TableModel(64), kept)
