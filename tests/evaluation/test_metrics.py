"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tests.evaluation.small import small_engine
from tests.toys import TableModel

from unspool.core.errors import Incompatible, InvalidInput
from unspool.evaluation.metrics import (
    auc,
    coherence,
    continuation_logits,
    distinct_n,
    diversity,
    log_probs,
    ngrams,
    perplexity,
    pooled,
    rep_n,
    repeats,
    sibling_logits,
)

ABAB = [1, 2, 1, 2, 1, 2]


def test_ngrams() -> None:
    assert ngrams([1, 2, 3], 2) == [(1, 2), (2, 3)]
    assert ngrams([1, 2, 3], 4) == []


def test_repeats_by_hand() -> None:
    assert repeats(ABAB, 2) == [False, False, True, True, True]
    assert repeats([1, 2, 3], 4) == []
    assert sum(repeats(ABAB, 3)) / 4 == rep_n(ABAB, 3)


def test_rep_n_by_hand() -> None:
    # 12 21 12 21 12: five bigrams, two different. 121 212 121 212: four trigrams, two different. 1212 2121 1212.
    assert rep_n(ABAB, 1) == pytest.approx(1 - 2 / 6)
    assert rep_n(ABAB, 2) == pytest.approx(1 - 2 / 5)
    assert rep_n(ABAB, 3) == pytest.approx(1 - 2 / 4)
    assert rep_n(ABAB, 4) == pytest.approx(1 - 2 / 3)
    assert rep_n([7, 7, 7, 7], 2) == pytest.approx(1 - 1 / 3)
    assert rep_n([1], 2) == 0


def test_diversity_by_hand() -> None:
    assert diversity(ABAB) == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)
    assert diversity([1, 2, 3, 4, 5, 6]) == 1
    assert diversity([3] * 103) == pytest.approx(1 / 102 * 1 / 101 * 1 / 100)


def test_distinct_n_looks_across_texts() -> None:
    assert distinct_n([[1, 2, 3], [1, 2, 4]], 2) == pytest.approx(3 / 4)
    assert distinct_n([[1, 2, 3], [1, 2, 3]], 1) == pytest.approx(3 / 6)
    assert distinct_n([[1]], 2) == 0


def test_auc_by_hand() -> None:
    # Of six pairs 3>2, 3>1, 3>0.5, 1>0.5 and 1=1 counts half, 1<2.
    assert auc([3, 1], [2, 1, 0.5]) == pytest.approx((3 + 1 + 0.5) / 6)
    assert auc([1, 2], [0, 0]) == 1
    assert auc([0.0], [1.0]) == 0
    assert auc([-math.inf, 1.0], [-math.inf]) == pytest.approx(0.75)
    with pytest.raises(InvalidInput, match="0 positive and 1 negative"):
        auc([], [1])


@pytest.mark.parametrize("chunk", [1, 2, 3, 256])
def test_log_probs_against_the_table(chunk: int) -> None:
    model = TableModel(6, seed=3)
    prompt, tokens = [1, 4, 2], [0, 5, 5, 3]
    expected = [
        float(torch.log_softmax(model.next_logits([*prompt, *tokens[:i]]), -1)[token]) for i, token in enumerate(tokens)
    ]
    assert log_probs(model, prompt, tokens, chunk=chunk).tolist() == pytest.approx(expected, abs=1e-12)
    logits = continuation_logits(model, prompt, tokens, chunk=chunk)
    assert torch.equal(logits, torch.stack([model.next_logits([*prompt, *tokens[:i]]) for i in range(4)]))


def test_siblings_are_read_as_if_alone() -> None:
    model = TableModel(6, seed=3)
    texts = [[0, 5, 5, 3], [0, 5, 1], [2], [0, 5, 5, 4]]
    before = model.forwards
    found = sibling_logits(model, [1, 4, 2], texts)
    assert model.forwards - before == 2, "one pass for the prompt, one for the trie"
    for logits, text in zip(found, texts, strict=True):
        assert torch.equal(logits, continuation_logits(model, [1, 4, 2], text))
    assert torch.equal(sibling_logits(model, [3], [[1, 2]])[0], continuation_logits(model, [3], [1, 2]))
    with pytest.raises(InvalidInput, match="got 1 and 0"):
        sibling_logits(model, [1], [[1], []])


def test_perplexity_by_hand() -> None:
    model = TableModel(4, seed=0)
    model.table.zero_()
    assert perplexity(model, [([0], [1, 2, 3]), ([1, 1], [0])]) == pytest.approx(4)
    # A token of probability 1/2 and two of 1/8: exp of (log 2 + 2 log 8) / 3.
    model.table[:] = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64).log()
    assert perplexity(model, [([0], [0, 2]), ([1], [3])]) == pytest.approx((2 * 8 * 8) ** (1 / 3))


def test_empty_sides_are_refused() -> None:
    model = TableModel(4)
    with pytest.raises(InvalidInput, match="got 0 and 1"):
        log_probs(model, [], [1])
    with pytest.raises(InvalidInput, match="got 1 and 0"):
        continuation_logits(model, [1], [])
    with pytest.raises(Incompatible, match="hidden states"):
        coherence(model, [1], [2])


def test_coherence_is_the_cosine_of_means() -> None:
    model = small_engine().model
    prompt, text = [5, 9, 30, 200], [17, 3, 3, 90, 41]
    a = torch.tensor(model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0].tolist())
    b = torch.tensor(model.model(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0].tolist())
    assert pooled(model, prompt, chunk=3).tolist() == pytest.approx(a.mean(0).tolist(), abs=1e-6)
    expected = float(torch.dot(a.mean(0), b.mean(0)) / (a.mean(0).norm() * b.mean(0).norm()))
    assert coherence(model, prompt, text) == pytest.approx(expected, abs=1e-6)
    assert coherence(model, prompt, prompt) == pytest.approx(1, abs=1e-12)
    with pytest.raises(InvalidInput, match="no tokens"):
        pooled(model, [])
