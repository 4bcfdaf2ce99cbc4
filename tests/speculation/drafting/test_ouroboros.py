"""Ouroboros: the draft model's greedy text in fewer passes, phrases behind it, phrases from what was refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.shapes import backend
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Scored
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Draft, Observation
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._ngram_pool import NgramPool
from unspool.speculation.drafting.ouroboros import Ouroboros

TARGET = TableModel(12, seed=1, scale=1.5)
NEAR = TableModel(12, seed=1, scale=1.5)
NEAR.table = TARGET.table + 0.6 * TableModel(12, seed=2, scale=1.5).table
PROMPTS = [[1, 2], [3], [4, 5, 6, 7], [1, 2, 3]]


def made(draft: TableModel = NEAR, **settings: Any) -> tuple[Ouroboros, Composition]:
    small = {"window": 4, "ngram": 4, "guesses": 4, **settings}
    composition = compose(TARGET, "ouroboros", settings=small, models={"draft": draft})
    assert isinstance(composition.drafter, Ouroboros)
    return composition.drafter, composition


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, list(tokens), TableCache(), 0, torch.device("cpu"), [])


def greedy(model: TableModel, tokens: list[int], count: int) -> list[int]:
    text = list(tokens)
    for _ in range(count):
        text.append(int(model.next_logits(text).argmax()))
    return text[len(tokens) :]


def run(composition: Composition, prompts: list[list[int]], length: int = 60, **more: Any) -> list[Any]:
    return list(composition.decode(prompts, stop=Stop(max_new_tokens=length), **more))


def texts(events: list[Any]) -> list[tuple[int, ...]]:
    found = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    return [found[index] for index in sorted(found)]


def passes(events: list[Any]) -> tuple[int, int]:
    """Of the target and of the draft model."""
    scored = [event for event in events if isinstance(event, Scored)]
    return sum(event.forwards for event in scored), sum(event.draft_forwards for event in scored)


def observed(drafter: Ouroboros, text: Branch, draft: Draft) -> list[int]:
    """Judge a draft by hand as the loop would, and let the drafter see it; the new tokens."""
    tree = draft.tree.after(text.tokens)
    scores = TARGET.score([Request(TARGET.new_cache(), tree)])[0]
    path: list[int] = []
    tokens: list[int] = []
    node: int | None = ROOT
    while node is not None:
        tokens.append(int(TARGET.next_logits(text.tokens + tokens).argmax()))
        node = draft.tree.child(node, tokens[-1])
        path += [] if node is None else [node]
    drafter.observe(Observation(text, tree, len(text.tokens), scores, draft, path, tokens))
    return tokens


# -- the draft model's text ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"window": 1, "ngram": 3}, {"window": 9, "ngram": 6, "guesses": 9}])
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_draft_is_the_draft_models_own_greedy_text(length: int, settings: dict[str, Any]) -> None:
    drafter, _ = made(tokens=length, phrases=0, **settings)
    text = branch([1, 2, 3])
    # The pool fills, and the caches follow a text that does and does not go on as drafted.
    for turn in range(25):
        draft = drafter.propose([text], [Budget()])[0]
        assert draft.tree == TokenTree.chain(greedy(NEAR, text.tokens, length))
        tokens = observed(drafter, text, draft)
        text.tokens += tokens if turn % 3 else [turn % 12]


def test_lookahead_saves_passes_of_the_draft_model() -> None:
    drafter, _ = made(tokens=8, window=8, guesses=8, phrases=0)
    text = branch([1, 2, 3])
    before = NEAR.forwards
    for _ in range(20):
        draft = drafter.propose([text], [Budget()])[0]
        text.tokens += draft.tree.token_list
    assert NEAR.forwards - before < 0.6 * 20 * 8


def test_a_draft_ends_with_a_stop_token(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = greedy(NEAR, [1, 2, 3], 6)
    monkeypatch.setattr(TARGET, "stop_tokens", frozenset({whole[3]}))
    drafter, _ = made(tokens=6)
    for token in range(12):
        drafter.pool.insert(token, (1, 2, 3))
    expected = whole[: whole.index(whole[3]) + 1]
    assert drafter.propose([branch([1, 2, 3])], [Budget()])[0].tree == TokenTree.chain(expected)


def test_branches_are_drafted_together_as_alone() -> None:
    drafter, _ = made(tokens=5, shared=False, phrases=0)
    branches = [branch([token, 3]) for token in range(6)]
    for index, one in enumerate(branches):
        one.index = index
    budgets = [Budget(depth=depth) for depth in (9, 1, 2, 5, 3, 4)]
    before = NEAR.forwards
    drafts = drafter.propose(branches, budgets)
    assert NEAR.forwards - before <= 5
    for one, budget, draft in zip(branches, budgets, drafts, strict=True):
        assert draft.tree.token_list == greedy(NEAR, one.tokens, min(5, budget.depth or 5))


# -- phrases ------------------------------------------------------------------------------------------------------


def test_the_newest_phrases_lengthen_the_draft() -> None:
    drafter, _ = made(tokens=2, phrases=2)
    text = branch([1, 2, 3])
    chain = greedy(NEAR, text.tokens, 2)
    for phrase in ((9, 9, 9), (5, 6, 7), (5, 8, 1)):
        drafter.pool.insert(chain[-1], phrase)
    newest = drafter.pool.get(chain[-1])
    drafter.propose([text], [Budget()])
    found = drafter.propose([branch([1, 2, 3])], [Budget()])[0].tree
    # What the window wrote on the way may be newer.
    newest = drafter.pool.get(chain[-1])[:2]
    assert found == TokenTree.from_paths([[*chain, *phrase] for phrase in newest])


@pytest.mark.parametrize("nodes", [None, *range(1, 12)])
@pytest.mark.parametrize("depth", [None, 1, 2, 3, 5])
def test_budgets_are_kept(nodes: int | None, depth: int | None) -> None:
    drafter, _ = made(tokens=3, phrases=3)
    text = branch([1, 2, 3])
    for token in range(12):
        for first in range(4):
            drafter.pool.insert(token, (first, 7, 7))
    budget = Budget(nodes, depth)
    draft = drafter.propose([text], [budget])[0]
    assert draft.limited(budget) is draft
    length = min(limit for limit in (3, nodes, depth) if limit is not None)
    assert draft.tree.token_list[:length] == greedy(NEAR, [1, 2, 3], length)
    if (nodes is None or nodes > 5) and (depth is None or depth > 3):
        assert len(draft.tree) > 3


def expected_phrases(text: list[int], draft: TokenTree, chain: int, size: int) -> NgramPool:
    """The rule with texts: what the target says after every refused place, read along the chain and each phrase."""
    pool = NgramPool(1000)
    right = greedy(TARGET, text, chain)
    stood = next((n for n, (a, b) in enumerate(zip(draft.token_list, right, strict=False)) if a != b), chain)
    for leaf in reversed(draft.leaves):
        tokens = draft.path_tokens(leaf)
        said = [greedy(TARGET, text + tokens[:place], 1)[0] for place in range(stood, len(tokens) + 1)]
        pool.insert_text(([tokens[stood - 1]] if stood == chain else []) + said, size - 1)
    return pool


@pytest.mark.parametrize("length", [1, 3, 6])
def test_phrases_from_verification(length: int) -> None:
    drafter, _ = made(tokens=length, guesses=1000, window=2)
    text = branch([1, 2, 3])
    accepted = refused = 0
    for _ in range(30):
        draft = drafter.propose([text], [Budget()])[0]
        pool = drafter.pool
        before = {key: pool.get(key) for key in pool.keys}
        expected = expected_phrases(text.tokens, draft.tree, length, 4)
        tokens = observed(drafter, text, draft)
        for key in {*before, *expected.keys}:
            new = expected.get(key)
            assert pool.get(key) == new + [gram for gram in before.get(key, []) if gram not in new]
        accepted += len(tokens) > length
        refused += len(tokens) <= length
        text.tokens += tokens
    assert accepted
    assert refused


def test_a_phrase_crosses_from_the_draft_into_the_phrases_behind_it() -> None:
    seen = 0
    for first in range(12):
        drafter, _ = made(tokens=2, phrases=1)
        text = branch([first, 5])
        for token in range(12):
            drafter.pool.insert(token, (first, 8, 9))
        draft = drafter.propose([text], [Budget()])[0]
        places = [text.tokens + draft.tree.path_tokens(node) for node in range(ROOT, len(draft.tree))]
        said = [greedy(TARGET, place, 1)[0] for place in places]
        drafter.pool.clear()
        observed(drafter, text, draft)
        assert draft.tree.is_chain
        assert len(draft.tree) == 5
        if said[0] != draft.tree.token_list[0]:
            # Two predictions on the chain, then those on the phrase.
            assert drafter.pool.get(said[0])[0] == tuple(said[1:4]) or said.count(said[0]) > 1
            seen += 1
    assert seen


def test_refining_can_be_switched_off() -> None:
    drafter, _ = made(refine=False)
    text = branch([1, 2, 3])
    draft = drafter.propose([text], [Budget()])[0]
    before = len(drafter.pool)
    observed(drafter, text, draft)
    assert len(drafter.pool) == before


# -- in the loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"phrases": 0}, {"refine": False}, {"shared": False}, {"tokens": 1}])
def test_the_text_is_plain_decodings_in_fewer_passes(settings: dict[str, Any]) -> None:
    _, composition = made(**settings)
    plain = [run(compose(TARGET), [prompt]) for prompt in PROMPTS]
    for prompt, expected in zip(PROMPTS, plain, strict=True):
        events = run(composition, [prompt])
        assert texts(events) == texts(expected)
        assert passes(events)[0] < 0.8 * passes(expected)[0]
    assert texts(run(composition, PROMPTS)) == [texts(expected)[0] for expected in plain]


def test_fewer_passes_than_a_chain_of_equal_length() -> None:
    chain = compose(TARGET, "draft-model", settings={"tokens": 4}, models={"draft": NEAR})
    _, composition = made(tokens=4)
    ours = [passes(run(composition, [[a, b]])) for a in range(4) for b in range(4)]
    theirs = [passes(run(chain, [[a, b]])) for a in range(4) for b in range(4)]
    for model in (0, 1):
        assert sum(count[model] for count in ours) < sum(count[model] for count in theirs)


def test_a_pool_is_shared_or_not() -> None:
    drafter, composition = made()
    cold = passes(run(composition, [[5, 6]]))
    assert drafter.learned == {"ouroboros": drafter.pool}
    warm = passes(run(composition, [[5, 6]]))
    assert warm[0] <= cold[0]
    assert warm[1] < cold[1]
    drafter, composition = made(shared=False)
    assert [passes(run(composition, [[5, 6]])) for _ in range(2)] == [cold, cold]
    assert drafter.learned == {}
    assert not len(drafter.pool)


def test_a_sampled_text_is_the_plain_ones_draw_for_draw() -> None:
    plain = texts(run(compose(TARGET, "sampling"), [[1, 2], [3]], seed=4))
    composition = compose(TARGET, "ouroboros+sampling", models={"draft": NEAR})
    assert texts(run(composition, [[1, 2], [3]], seed=4)) == plain


@pytest.mark.parametrize("context", [6, 9, 14])
def test_a_draft_model_with_a_short_context(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    near = backend("llama", noise=0.1)
    monkeypatch.setattr(near, "context_length", context)
    composition = compose(backend("llama"), "ouroboros", models={"draft": near})
    assert texts(run(composition, [[5, 6, 7]], 20)) == texts(run(compose(backend("llama")), [[5, 6, 7]], 20))


def test_what_is_refused() -> None:
    with pytest.raises(Incompatible, match="needs a draft model"):
        compose(TARGET, "ouroboros")
    chains = TableModel(12, seed=2)
    chains.capabilities = frozenset()
    with pytest.raises(Incompatible, match="tree attention"):
        made(chains)
    with pytest.raises(InvalidInput, match="ouroboros cannot use"):
        made(ngram=2)
