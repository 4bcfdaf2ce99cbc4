"""Momentum decoding against a plain reading of its definition."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.sampling.helpers import RandomTrees, node, run
from tests.toys import TableModel
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor

from unspool.core.branch import Branch
from unspool.core.cards import make_settings
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import InvalidInput
from unspool.sampling.momentum_decoding import MomentumDecoding, MomentumSettings


def by_definition(model: TableModel, tokens: list[int], k: int, alpha: float, table: list[float]) -> int:
    """Circuit depth by comparing backwards from every earlier occurrence of a candidate."""
    probs = torch.softmax(model.next_logits(tokens), -1)
    best, best_score = -1, -math.inf
    for candidate in probs.argsort(descending=True, stable=True)[:k].tolist():
        depth = 0
        for at in [i for i, token in enumerate(tokens) if token == candidate]:
            same = 1
            while same < len(table) and same <= at and tokens[at - same] == tokens[len(tokens) - same]:
                same += 1
            depth = max(depth, same)
        resistance = table[depth - 1] if depth else 0.0
        price = resistance if math.isinf(resistance) else alpha * resistance
        if float(probs[candidate]) - price > best_score:
            best, best_score = candidate, float(probs[candidate]) - price
    if best_score == -math.inf:
        unseen = [token for token in range(len(probs)) if token not in tokens]
        return max(unseen, key=lambda t: float(probs[t])) if unseen else int(probs.argmax())
    return best


def decode_by_definition(model: TableModel, prompt: list[int], length: int, *rest: Any) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(by_definition(model, tokens, *rest))
    return tokens[len(prompt) :]


RESISTANCE = st.one_of(st.sampled_from([0.0, 1.0, 2.5, math.inf]), st.floats(0, 5))


@given(
    st.integers(0, 999),
    st.integers(2, 9),
    st.lists(st.integers(0, 1), min_size=1, max_size=8),
    st.integers(1, 10),
    st.sampled_from([0.0, 0.05, 0.2, 0.6]),
    st.lists(RESISTANCE, min_size=1, max_size=6),
)
@examples(max_examples=60)
def test_the_definition_holds_with_and_without_drafts(
    seed: int, vocab: int, prompt: list[int], k: int, alpha: float, table: list[float]
) -> None:
    model = TableModel(vocab, seed)
    made = MomentumSettings(k=k, alpha=alpha, resistance=tuple(table))
    expected = decode_by_definition(model, prompt, 30, k, alpha, table)
    assert run(model, [prompt], MomentumDecoding(made), 30).tokens == [expected]
    assert run(model, [prompt], MomentumDecoding(made), 30, drafter=RandomTrees(model, seed)).tokens == [expected]


def test_alpha_0_is_greedy() -> None:
    model = TableModel(8, 4)
    prompts = [[1, 2, 3], [7]]
    sampler = MomentumDecoding(MomentumSettings(alpha=0))
    assert run(model, prompts, sampler, 40).tokens == run(model, prompts, Greedy(), 40).tokens


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [2, 5])
def test_infinite_resistance_blocks_ngrams_among_the_top_k(size: int, k: int) -> None:
    """``0, ..., 0, inf`` at depth n is transformers' no-repeat n-gram, looking only at the k most probable tokens."""
    model = TableModel(30, size, scale=2.0)
    blocked = MomentumDecoding(MomentumSettings(k=k, resistance=(*[0.0] * (size - 1), math.inf)))
    ban = NoRepeatNGramLogitsProcessor(size)
    tokens = [3, 4]
    fallbacks = 0
    for _ in range(25):
        logits = model.next_logits(tokens)
        allowed = ban(torch.tensor([tokens]), logits[None].clone())[0]
        top = [t for t in logits.topk(k).indices.tolist() if float(allowed[t]) > -math.inf]
        if not top:
            fallbacks += 1
            logits = logits.clone()
            logits[tokens] = -math.inf
            top = [int(logits.argmax())]
        tokens.append(top[0])
    assert run(model, [[3, 4]], blocked, 25).tokens == [tokens[2:]]
    assert fallbacks < 25


def test_it_leaves_a_loop_that_greedy_stays_in() -> None:
    model = TableModel(40, 1, scale=1.0)
    greedy = run(model, [[1]], Greedy(), 120).tokens[0]
    momentum = run(model, [[1]], MomentumDecoding(), 120).tokens[0]

    def distinct(tokens: list[int]) -> float:
        return len(set(zip(tokens, tokens[1:], tokens[2:], strict=False))) / (len(tokens) - 2)

    assert distinct(greedy) < 0.5
    assert distinct(momentum) > 1.5 * distinct(greedy)


def test_one_forward_a_token_and_no_dead_end() -> None:
    model = TableModel(3, 2)
    sampler = MomentumDecoding(MomentumSettings(k=2, resistance=(math.inf,)))
    ran = run(model, [[0, 1, 2]], sampler, 20)
    assert ran.forwards == 20
    assert len(ran.tokens[0]) == 20


def test_forbidden_tokens_do_not_win_by_being_new() -> None:
    model = TableModel(6)
    logits = torch.tensor([2.0, 1.0, *[-math.inf] * 4], dtype=torch.float64)
    at = node(model, [0, 1] * 8, logits)
    sampler = MomentumDecoding(MomentumSettings(alpha=5.0))
    assert sampler.distribution(at).token in (0, 1)


def test_memory_follows_the_text_through_rewinds_and_forks() -> None:
    model = TableModel(5, 3)
    sampler = MomentumDecoding()
    branch = Branch(0, 0, [1, 2, 3, 1, 2], model.new_cache(), 0, model.device, [])
    for extra in ([3, 1, 2], [4], [0, 0, 0]):
        branch.tokens += extra
        branch.log_z += [None] * len(extra)
        for text in (branch.tokens, [*branch.tokens, 1, 2], [*branch.tokens, 3]):
            logits = model.next_logits(text)
            expected = by_definition(model, text, 5, 0.2, [1, 2, 3, 4, 5])
            assert sampler.choose(logits, text, branch) == expected
            assert int(sampler.draft_probs(logits, text, branch).argmax()) == expected
        twin = branch.fork(1)
        twin.tokens.append(4)
        expected = by_definition(model, twin.tokens, 5, 0.2, [1, 2, 3, 4, 5])
        assert sampler.choose(model.next_logits(twin.tokens), twin.tokens, twin) == expected
        branch.rewind(len(branch.generated) - 1)


def test_settings() -> None:
    values = {"resistance": "1, 2,inf", "k": "3"}
    assert make_settings(MomentumSettings, values, "momentum-decoding").resistance == (1.0, 2.0, math.inf)
    for bad in ({"resistance": ()}, {"resistance": (-1.0,)}, {"alpha": -1}, {"k": 0}):
        with pytest.raises(InvalidInput, match=next(iter(bad))):
            make_settings(MomentumSettings, bad, "momentum-decoding")
    assert compose(TableModel(), "momentum-decoding").sampler.deterministic
