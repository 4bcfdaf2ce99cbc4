"""The automatic drafter: both sources in one tree, within one budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.decode import Stop
from unspool.core.events import Stepped
from unspool.core.sockets import Budget
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting.auto import Auto
from unspool.speculation.drafting.token_recycling import K

TARGET = TableModel(12, seed=1, scale=1.5)


def made(model: TableModel = TARGET, **settings: Any) -> tuple[Auto, Composition]:
    composition = compose(model, "auto", settings=settings)
    assert isinstance(composition.drafter, Auto)
    return composition.drafter, composition


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])


def chains() -> TableModel:
    model = TableModel(12, seed=1, scale=1.5)
    model.capabilities = frozenset()
    return model


def fill(drafter: Auto) -> None:
    """Every token is followed by the eight after it."""
    drafter.recycling.adjacency.matrix = ((torch.arange(12)[:, None] + 1 + torch.arange(K)) % 12).int()


def has(tree: TokenTree, path: list[int]) -> bool:
    node: int | None = ROOT
    for token in path:
        assert node is not None
        node = tree.child(node, token)
        if node is None:
            return False
    return True


def test_the_copy_and_the_recycled_tree_are_merged() -> None:
    drafter, _ = made(nodes=16, lookup=3)
    fill(drafter)
    tree = drafter.propose([branch([5, 1, 9, 2, 7, 3, 5, 1])], [Budget()])[0].tree
    assert has(tree, [9, 2, 7, 3, 5, 1])
    assert has(tree, [2, 3])
    assert len(tree) <= 16
    # No node is there twice.
    assert len({(parent, token) for parent, token in zip(tree.parent_list, tree.token_list, strict=True)}) == len(tree)


def test_longer_matches_are_copied_further() -> None:
    drafter, _ = made(nodes=16, lookup=2)
    text = [5, 1, 9, 2, 7, 3, 4, 6, 8, 10]
    lengths = []
    for end in ([1], [5, 1], [0, 5, 1]):
        tree = drafter.propose([branch([0, *text, 11, *end])], [Budget()])[0].tree
        lengths.append(tree.depth)
    assert lengths == [2, 4, 6]


@pytest.mark.parametrize("budget", [Budget(nodes=5), Budget(nodes=1), Budget(depth=2), Budget(nodes=7, depth=1)])
def test_budgets_are_kept(budget: Budget) -> None:
    drafter, _ = made(nodes=24)
    fill(drafter)
    tree = drafter.propose([branch([5, 1, 9, 2, 7, 3, 5, 1])], [budget])[0].tree
    assert tree
    assert len(tree) <= (24 if budget.nodes is None else budget.nodes)
    assert tree.depth <= (6 if budget.depth is None else budget.depth)


def test_models_that_score_only_chains_get_one_chain() -> None:
    drafter, composition = made(chains(), nodes=11)
    fill(drafter)
    copied = drafter.propose([branch([5, 1, 9, 2, 7, 3, 5, 1])], [Budget()])[0].tree
    assert copied.is_chain
    assert copied.token_list[:2] == [9, 2]
    recycled = drafter.propose([branch([5])], [Budget()])[0].tree
    assert recycled == TokenTree.chain([6, 7, 8, 9, 10, 11])
    events = list(composition.decode([[1, 2, 3]], stop=Stop(max_new_tokens=60)))
    assert all(event.draft.is_chain for event in events if isinstance(event, Stepped))


@pytest.mark.parametrize("model", [TARGET, chains()], ids=["trees", "chains"])
def test_it_saves_passes_and_changes_nothing(model: TableModel) -> None:
    _, composition = made(model)
    stop = Stop(max_new_tokens=80)
    events = list(composition.decode([[1, 2, 3]], stop=stop))
    assert events[-1].tokens == [*compose(TARGET).decode([[1, 2, 3]], stop=stop)][-1].tokens
    assert sum(isinstance(event, Stepped) for event in events) < 50
