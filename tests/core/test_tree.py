from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspool.core.errors import InvalidInput
from unspool.core.tree import ROOT, TokenTree


@st.composite
def trees(draw: st.DrawFn, most: int = 14, tokens: int = 4) -> TokenTree:
    size = draw(st.integers(0, most))
    parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
    return TokenTree([draw(st.integers(0, tokens)) for _ in range(size)], parents)


def ancestors(tree: TokenTree, node: int) -> set[int]:
    found = set()
    while node != ROOT:
        found.add(node)
        node = tree.parent_list[node]
    return found


def words(tree: TokenTree) -> set[tuple[int, ...]]:
    """Every path from the top, leaves and inner nodes alike."""
    return {tuple(tree.path_tokens(node)) for node in range(len(tree))}


@given(trees())
def test_the_mask_shows_ancestors(tree: TokenTree) -> None:
    assert tree.mask.shape == (len(tree), len(tree))
    for node in range(len(tree)):
        assert set(tree.mask[node].nonzero().flatten().tolist()) == ancestors(tree, node)


@given(trees())
def test_what_is_derived(tree: TokenTree) -> None:
    for node in range(len(tree)):
        path = tree.path(node)
        assert set(path) == ancestors(tree, node)
        assert path == sorted(path)
        assert tree.depths[node] == len(path) - 1
        assert tree.children(node) == [other for other in range(len(tree)) if tree.parent_list[other] == node]
        assert tree.path_tokens(node) == [tree.token_list[n] for n in path]
    assert tree.children() == [node for node in range(len(tree)) if tree.parent_list[node] == ROOT]
    assert tree.path(ROOT) == []
    assert tree.depth == max((len(tree.path(node)) for node in range(len(tree))), default=0)
    assert tree.leaves == [node for node in range(len(tree)) if node not in tree.parent_list]
    assert tree.paths == [tree.path(leaf) for leaf in tree.leaves]
    assert tree.is_chain == (tree.parent_list == list(range(-1, len(tree) - 1)))
    assert tree.tokens.tolist() == tree.token_list
    assert tree.parents.tolist() == tree.parent_list
    assert bool(tree) == (len(tree) > 0)


@given(trees(), st.integers(0, 4))
def test_a_child_is_found_by_its_token(tree: TokenTree, token: int) -> None:
    for node in range(-1, len(tree)):
        having = [child for child in tree.children(node) if tree.token_list[child] == token]
        assert tree.child(node, token) == (having[0] if having else None)


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), max_size=8))
def test_a_trie_holds_every_beginning_once(paths: list[list[int]]) -> None:
    tree = TokenTree.from_paths(paths)
    beginnings = {tuple(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    assert words(tree) == beginnings
    assert len(tree) == len(beginnings)


@given(st.lists(trees(most=7), min_size=1, max_size=4))
def test_merging_is_the_union(several: list[TokenTree]) -> None:
    merged = TokenTree.merge(several)
    assert words(merged) == set().union(*(words(tree) for tree in several))
    if len(several) > 1:
        assert len(merged) == len(words(merged))


def test_merging_keeps_the_order_of_the_first() -> None:
    first = TokenTree([5, 6, 7], [-1, -1, 0])
    merged = TokenTree.merge([first, TokenTree([6, 8, 5, 7, 9], [-1, 0, -1, 2, 3])])
    assert merged.token_list[:3] == [5, 6, 7]
    assert merged == TokenTree([5, 6, 7, 8, 9], [-1, -1, 0, 1, 2])


@given(trees(), st.data())
def test_hanging_a_tree_off_a_chain(tree: TokenTree, data: st.DataObject) -> None:
    prefix = data.draw(st.lists(st.integers(0, 9), max_size=4))
    whole = tree.after(prefix)
    assert len(whole) == len(prefix) + len(tree)
    for node in range(len(tree)):
        assert whole.path_tokens(len(prefix) + node) == prefix + tree.path_tokens(node)
    assert [whole.path_tokens(node) for node in range(len(prefix))] == [prefix[: n + 1] for n in range(len(prefix))]


@given(trees(), st.data())
def test_a_budget_keeps_whole_paths(tree: TokenTree, data: st.DataObject) -> None:
    nodes = data.draw(st.none() | st.integers(0, 16))
    depth = data.draw(st.none() | st.integers(0, 6))
    values = data.draw(st.none() | st.lists(st.floats(-5, 5), min_size=len(tree), max_size=len(tree)))
    weights = None if values is None else torch.tensor(values, dtype=torch.float64)
    kept = tree.kept_by(nodes=nodes, depth=depth, weights=weights)
    assert kept == sorted(set(kept))
    assert all(tree.parent_list[node] == ROOT or tree.parent_list[node] in kept for node in kept), (
        "closed under ancestors"
    )
    shallow = [node for node in range(len(tree)) if depth is None or tree.depths[node] < depth]
    assert set(kept) <= set(shallow)
    assert len(kept) == (len(shallow) if nodes is None else min(nodes, len(shallow))), "no room is given away"
    if values is not None:
        # A node is worth the least on its path; nothing that was left out is worth more than what was kept.
        worth = [min(values[n] for n in tree.path(node)) for node in range(len(tree))]
        left = [worth[node] for node in shallow if node not in kept]
        assert not left or not kept or max(left) <= min(worth[node] for node in kept)
    pruned = tree.prune(nodes=nodes, depth=depth, weights=weights)
    assert words(pruned) <= words(tree)
    assert len(pruned) == len(kept)


@given(trees(), st.data())
def test_selecting(tree: TokenTree, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, max(len(tree) - 1, 0)), max_size=len(tree))) if len(tree) else set()
    closed = all(tree.parent_list[node] in (chosen | {ROOT}) for node in chosen)
    if not closed:
        with pytest.raises(InvalidInput, match=r"cannot be kept without its parent"):
            tree.select(chosen)
        return
    small = tree.select(chosen)
    assert [small.path_tokens(new) for new in range(len(small))] == [tree.path_tokens(node) for node in sorted(chosen)]


@given(trees(), st.data())
def test_a_template_with_other_tokens(tree: TokenTree, data: st.DataObject) -> None:
    fresh = data.draw(st.lists(st.integers(5, 9), min_size=len(tree), max_size=len(tree)))
    filled = tree.with_tokens(torch.tensor(fresh, dtype=torch.int64))
    assert filled == TokenTree(fresh, tree.parent_list)
    assert filled.mask is tree.mask, "derived values are shared"
    with pytest.raises(InvalidInput, match=rf"a template of {len(tree)} nodes was given {len(tree) + 1} tokens"):
        tree.with_tokens([*fresh, 1])


@pytest.mark.parametrize("parents", [[0], [-2], [-1, 1], [-1, 5], [1, -1]])
def test_parents_come_before_children(parents: list[int]) -> None:
    with pytest.raises(InvalidInput, match=r"a parent must come before its child"):
        TokenTree([1] * len(parents), parents)


def test_lengths_must_agree() -> None:
    with pytest.raises(InvalidInput, match=r"a tree of 2 tokens was given 1 parents"):
        TokenTree([1, 2], [-1])


def test_chains_and_the_empty_tree() -> None:
    chain = TokenTree.chain(torch.tensor([4, 5, 6]))
    assert chain == TokenTree([4, 5, 6], [-1, 0, 1])
    assert chain.is_chain
    assert not TokenTree.empty()
    assert TokenTree.empty().depth == 0
    assert TokenTree.empty().mask.shape == (0, 0)
    assert chain != TokenTree([4, 5, 6], [-1, -1, 1])
    assert chain != "chain"
    assert repr(chain) == "TokenTree(tokens=[4, 5, 6], parents=[-1, 0, 1])"
