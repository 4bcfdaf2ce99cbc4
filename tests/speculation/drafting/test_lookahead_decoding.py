"""Lookahead decoding: the window against the paper's procedure written out, the pool, budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Stepped
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Draft, Observation
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._jacobi_window import JacobiWindow, Trie
from unspool.speculation.drafting.lookahead_decoding import LookaheadDecoding

TARGET = TableModel(12, seed=1, scale=1.5)


def made(model: TableModel = TARGET, **settings: Any) -> tuple[LookaheadDecoding, Composition]:
    composition = compose(model, "lookahead-decoding", settings=settings)
    assert isinstance(composition.drafter, LookaheadDecoding)
    return composition.drafter, composition


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, list(tokens), TableCache(), 0, torch.device("cpu"), [])


def best(tokens: list[int]) -> int:
    return int(TARGET.next_logits(tokens).argmax())


def step(drafter: LookaheadDecoding, text: Branch, budget: Budget | None = None) -> Draft:
    """One round of the loop by hand, which commits one token whatever the draft was."""
    draft = drafter.propose([text], [budget or Budget()])[0]
    tree = draft.tree.after(text.tokens)
    cache = TARGET.new_cache()
    scores = TARGET.score([Request(cache, tree)])[0]
    token = best(text.tokens)
    drafter.observe(Observation(text, tree, len(text.tokens), scores, draft, [], [token]))
    text.tokens.append(token)
    return draft


# -- the window ---------------------------------------------------------------------------------------------------


class Paper:
    """The paper's procedure with lists: every prediction is made from the tokens that its mask shows."""

    def __init__(self, width: int, size: int, first: list[int]) -> None:
        self.width, self.size = width, size
        self.levels = [list(first)]
        self.pool: dict[int, list[tuple[int, ...]]] = {}

    def step(self, text: list[int]) -> None:
        top, count = self.levels[0], len(self.levels)
        if count == 1:
            new = [best(text + top[: j + 1]) for j in range(len(top))]
        else:
            new = [
                best(text + top[:i] + [self.levels[level][i] for level in range(1, count)])
                for i in range(len(self.levels[1]))
            ]
        if count < self.size - 1:
            self.levels = [level[1:] for level in self.levels] + [new if count == 1 else new[1:]]
            return
        for i in range(self.width):
            key = text[-1] if i == 0 else top[i - 1]
            gram = (*(self.levels[level][i] for level in range(1, count)), new[i])
            grams = self.pool.setdefault(key, [])
            if gram in grams:
                grams.remove(gram)
            self.pool[key] = [gram, *grams]
        self.levels = [self.levels[1][1:], *self.levels[2:], new]


@pytest.mark.parametrize(("width", "size"), [(1, 3), (3, 3), (5, 4), (4, 5), (2, 7)])
def test_the_window_is_the_papers(width: int, size: int) -> None:
    drafter, _ = made(window=width, ngram=size, guesses=1000)
    text = branch([1, 3, 5, 7])
    drafter.propose([text], [Budget()])
    window: JacobiWindow = text.memo[drafter].window
    assert len(window.levels[0]) == width + size - 3
    assert set(window.levels[0]) <= {1, 3, 5, 7}
    paper = Paper(width, size, window.levels[0])
    for _ in range(20):
        before = list(text.tokens)
        step(drafter, text)
        paper.step(before)
        assert window.levels == paper.levels
        assert {key: drafter.pool.get(key) for key in drafter.pool.keys} == paper.pool
    assert [len(level) for level in window.levels] == [width - 1] + [width] * (size - 2)
    assert all(len(gram) == size - 1 for grams in paper.pool.values() for gram in grams)


def test_positions_and_mask_are_the_papers() -> None:
    window = JacobiWindow(4, 5, iter(range(100)).__next__)
    last = 1000
    while len(window.levels) < 4:
        trie = Trie()
        window.hang(trie)
        assert len(trie) == len(window)
        assert window.advance(last, list(range(last + 1, last + 1 + len(window.ends)))) == []
        last += 100
    trie = Trie()
    window.hang(trie)
    tree = trie.tree
    # All tokens differ, so that each stands for its place: (level, column).
    place = {token: (level, i) for level, tokens in enumerate(window.levels) for i, token in enumerate(tokens)}
    assert [len(level) for level in window.levels] == [3, 4, 4, 4]
    for node, token in enumerate(tree.token_list):
        level, column = place[token]
        assert tree.depths[node] == (column if level == 0 else level - 1 + column)
        seen = {place[tree.token_list[other]] for other in tree.path(node)}
        before = {(0, j) for j in range(column + 1 if level == 0 else column)}
        assert seen == before | {(above, column) for above in range(1, level + 1)}
    assert [tree.token_list[node] for node in window.ends] == window.levels[-1]


def test_a_window_keeps_no_stop_token_and_the_pool_does() -> None:
    window = JacobiWindow(2, 3, lambda: 7, stops={5})
    window.hang(Trie())
    window.advance(1, [5, 2])
    assert window.levels == [[7], [7, 2]]
    window.hang(Trie())
    assert window.advance(1, [5, 5]) == [(1, (7, 5)), (7, (2, 5))]
    assert window.levels == [[2], [7, 7]]


@pytest.mark.parametrize("filled", [1, 2, 3])
@pytest.mark.parametrize(("nodes", "depth"), [(None, None), (None, 6), (None, 2), (9, None), (14, 5), (1, 9), (3, 3)])
def test_a_window_takes_the_columns_that_fit(filled: int, nodes: int | None, depth: int | None) -> None:
    numbers = iter(range(1000))
    window = JacobiWindow(5, 4, numbers.__next__)
    for _ in range(filled - 1):
        window.hang(Trie())
        window.advance(0, [next(numbers) for _ in window.ends])
    before = [list(level) for level in window.levels]
    if window.fit(nodes, depth):
        trie = Trie()
        window.hang(trie)
        assert nodes is None or len(trie) <= nodes
        assert depth is None or trie.tree.depth <= depth
        columns = len(window.levels[-1]) - (3 - filled) + (filled == 1)
        for tokens, old in zip(window.levels, before, strict=True):
            assert tokens == old[: len(tokens)]
        # One column more would not have fitted.
        more = len(trie) + filled
        assert columns == 5 or (nodes is not None and more > nodes) or (depth is not None and columns + 2 > depth)
        assert window.fit(None, None)
        assert [len(level) for level in window.levels] == [len(level) for level in before]
    else:
        assert window.levels == before
        assert (nodes is not None and nodes < filled * (3 - filled + 1) + filled - 1) or (
            depth is not None and depth < 2
        )


# -- what is proposed ---------------------------------------------------------------------------------------------


def test_the_pools_ngrams_are_proposed() -> None:
    drafter, _ = made(window=2, ngram=4, guesses=3)
    for gram in ((1, 2, 3), (1, 2, 4), (8, 9, 10), (1, 5, 6)):
        drafter.pool.insert(7, gram)
    tree = drafter.propose([branch([11, 7])], [Budget()])[0].tree
    for gram in ((1, 2, 4), (8, 9, 10), (1, 5, 6)):
        node: int | None = ROOT
        for token in gram:
            assert node is not None
            node = tree.child(node, token)
        assert node is not None
    # The oldest was forgotten; the prompt's 11 and 7 are the window's three first guesses.
    assert tree.child(tree.child(tree.child(ROOT, 1) or 0, 2) or 0, 3) is None
    assert len(tree) == 8 + 3


@pytest.mark.parametrize("nodes", range(1, 40))
@pytest.mark.parametrize("depth", [1, 2, 3, 6, 20])
def test_budgets_are_kept(nodes: int, depth: int) -> None:
    drafter, _ = made(window=5, ngram=4, guesses=4)
    text = branch([1, 2, 3])
    for _ in range(30):
        step(drafter, text)
    had = drafter.pool.get(text.tokens[-1])
    assert had
    draft = step(drafter, text, Budget(nodes, depth))
    assert 0 < len(draft.tree) <= nodes
    assert draft.tree.depth <= depth
    assert draft.limited(Budget(nodes, depth)) is draft
    # Guesses are not crowded out: half of the budget is theirs, as far as they need it.
    half = min(nodes // 2, len(had[0]), depth)
    node: int | None = ROOT
    for token in had[0][:half]:
        assert node is not None
        node = draft.tree.child(node, token)
    assert node is not None


def test_a_draft_that_was_cut_leaves_the_window_as_it_is() -> None:
    drafter, _ = made(window=3, ngram=3)
    text = branch([1, 2, 3])
    draft = drafter.propose([text], [Budget()])[0]
    window = text.memo[drafter].window
    before = [list(level) for level in window.levels]
    cut = Draft(draft.tree.select(range(2)))
    tree = cut.tree.after(text.tokens)
    scores = TARGET.score([Request(TARGET.new_cache(), tree)])[0]
    drafter.observe(Observation(text, tree, 3, scores, cut, [], [best(text.tokens)]))
    assert window.levels == before
    step(drafter, text)
    assert len(window.levels) == 2


# -- in the loop --------------------------------------------------------------------------------------------------


def run(composition: Composition, prompts: list[list[int]], length: int = 60, **more: Any) -> list[Any]:
    return list(composition.decode(prompts, stop=Stop(max_new_tokens=length), **more))


def texts(events: list[Any]) -> list[tuple[int, ...]]:
    found = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    return [found[index] for index in sorted(found)]


def steps(events: list[Any]) -> int:
    return sum(isinstance(event, Stepped) for event in events)


@pytest.mark.parametrize("settings", [{}, {"window": 3, "ngram": 3, "guesses": 3}, {"shared": False}])
def test_the_text_is_plain_decodings_in_fewer_steps(settings: dict[str, Any]) -> None:
    prompts = [[1, 2], [3], [4, 5, 6, 7], [1, 2, 3]]
    _, composition = made(**settings)
    for prompt in prompts:
        plain = run(compose(TARGET), [prompt])
        events = run(composition, [prompt])
        assert texts(events) == texts(plain)
        assert steps(events) < 0.8 * steps(plain)
    assert texts(run(composition, prompts)) == texts(run(compose(TARGET), prompts))


def test_a_wider_window_takes_fewer_steps() -> None:
    count = {}
    for width in (1, 4, 15):
        _, composition = made(window=width, ngram=5, guesses=width, shared=False)
        count[width] = sum(steps(run(composition, [[a, b]])) for a in range(4) for b in range(4))
    assert count[15] < count[4] < count[1]


def test_a_pool_is_shared_or_not() -> None:
    drafter, composition = made(window=4, ngram=4, guesses=4)
    cold = steps(run(composition, [[5, 6]], 30))
    assert len(drafter.pool)
    assert drafter.learned == {"lookahead-decoding": drafter.pool}
    assert steps(run(composition, [[5, 6]], 30)) < cold
    drafter.pool.clear()
    assert steps(run(composition, [[5, 6]], 30)) == cold

    drafter, composition = made(window=4, ngram=4, guesses=4, shared=False)
    assert [steps(run(composition, [[5, 6]], 30)) for _ in range(2)] == [cold, cold]
    assert not len(drafter.pool)
    assert drafter.learned == {}


def test_the_prompt_may_fill_the_pool() -> None:
    drafter, _ = made(ngram=4, read_prompt=True)
    text = [1, 2, 3, 4, 2, 3]
    tree = drafter.propose([branch([*text, 1])], [Budget()])[0].tree
    assert drafter.pool.get(2) == [(3, 4, 2)] or drafter.pool.get(2) == [(3, 1), (3, 4, 2)]
    node: int | None = ROOT
    for token in (2, 3, 4):
        assert node is not None
        node = tree.child(node, token)
    assert node is not None


def test_a_sampled_text_is_the_plain_ones_draw_for_draw() -> None:
    plain = texts(run(compose(TARGET, "sampling"), [[1, 2], [3]], seed=4))
    assert texts(run(compose(TARGET, "lookahead-decoding+sampling"), [[1, 2], [3]], seed=4)) == plain


def test_what_is_refused() -> None:
    chains = TableModel(12, seed=1)
    chains.capabilities = frozenset()
    with pytest.raises(Incompatible, match="tree attention"):
        made(chains)
    with pytest.raises(InvalidInput, match="lookahead-decoding cannot use"):
        made(ngram=2)


def test_paths_of_a_trie_are_stored_once() -> None:
    trie = Trie()
    trie.add_path([1, 2, 3])
    trie.add_path([1, 2, 4])
    trie.add_path([])
    assert trie.tree == TokenTree([1, 2, 3, 4], [-1, 0, 1, 1])
    assert trie.child(1, 4) == 3
    assert trie.child(0, 4) is None
