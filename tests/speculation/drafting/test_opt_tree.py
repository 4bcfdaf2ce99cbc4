"""OPT-Tree: the tree is the best of its size, and no layer is drafted that does not pay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, Softmax

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.sockets import Budget, Draft
from unspool.core.tree import TokenTree
from unspool.speculation.drafting.opt_tree import OptTree

Path = tuple[int, ...]


def made(draft: FastTable, sampler: Any = None, **settings: Any) -> OptTree:
    target = FastTable(draft.vocab_size, seed=1)
    drafter = compose(target, "opt-tree", settings=settings, sampler=sampler, models={"draft": draft}).drafter
    assert isinstance(drafter, OptTree)
    return drafter


def propose(drafter: OptTree, *texts: list[int], budget: Budget | None = None) -> list[Draft]:
    branches = [
        Branch(i, 0, text, drafter.model.new_cache(), 0, torch.device("cpu"), []) for i, text in enumerate(texts)
    ]
    return drafter.propose(branches, [budget or Budget()] * len(texts))


def chance(model: FastTable, text: list[int], path: Path) -> float:
    """The draft model's probability of a path."""
    product = 1.0
    for place, token in enumerate(path):
        product *= float(torch.softmax(model.next_logits([*text, *path[:place]]), -1)[token])
    return product


def expected(model: FastTable, text: list[int], tree: TokenTree) -> float:
    """Accepted tokens that the draft model expects of a tree."""
    return sum(chance(model, text, tuple(tree.path_tokens(node))) for node in range(len(tree)))


def every_tree(size: int, vocab: int) -> Iterator[frozenset[Path]]:
    """All connected sets of that many paths."""
    level: set[frozenset[Path]] = {frozenset()}
    for _ in range(size):
        level = {
            tree | {(*parent, token)}
            for tree in level
            for parent in [(), *tree]
            for token in range(vocab)
            if (*parent, token) not in tree
        }
    return iter(level)


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_no_tree_of_that_size_is_expected_to_be_accepted_deeper(scale: float) -> None:
    model = FastTable(4, seed=2, scale=scale)
    for size in (1, 3, 5):
        tree = propose(made(model, nodes=size, delta=0.0), [1, 2])[0].tree
        assert len(tree) == size
        memo: dict[Path, float] = {}

        def value(path: Path, memo: dict[Path, float] = memo) -> float:
            if path not in memo:
                memo[path] = chance(model, [1, 2], path)
            return memo[path]

        best = max(sum(map(value, other)) for other in every_tree(size, 4))
        assert expected(model, [1, 2], tree) == pytest.approx(best, abs=1e-6)


def test_the_tree_holds_the_most_probable_paths() -> None:
    model = FastTable(5, seed=3, scale=2.0)
    paths: list[Path] = [()]
    weights: dict[Path, float] = {}
    for _ in range(4):
        paths = [(*path, token) for path in paths for token in range(5)]
        weights |= {path: chance(model, [4], path) for path in paths}
    best = sorted(weights, key=lambda path: -weights[path])[:9]
    draft = propose(made(model, nodes=9, delta=0.0, depth=4), [4])[0]
    assert {tuple(draft.tree.path_tokens(node)) for node in range(9)} == set(best)
    for node, confidence in enumerate(draft.confidence):
        path = tuple(draft.tree.path_tokens(node))
        assert confidence == pytest.approx(weights[path] / weights.get(path[:-1], 1.0), rel=1e-5)


def test_a_higher_delta_drafts_fewer_layers() -> None:
    model = FastTable(5, seed=3, scale=3.0)
    passes, depths, values = [], [], []
    for delta in (0.0, 0.1, 0.3, 0.6, 1.01):
        before = model.forwards
        tree = propose(made(model, nodes=8, delta=delta), [4])[0].tree
        passes.append(model.forwards - before)
        depths.append(tree.depth)
        values.append(expected(model, [4], tree))
    assert passes == sorted(passes, reverse=True)
    assert all(after <= before + 1e-6 for before, after in itertools.pairwise(values))
    assert passes[0] > passes[-1] == 1
    assert depths[-1] == 1


def test_layers_go_on_while_they_pay() -> None:
    """Another layer is drafted exactly if the last one added more than delta to the best tree so far."""
    model = FastTable(4, seed=5, scale=2.5)
    layers: list[float] = [0.0]
    for depth in range(1, 6):
        layers.append(expected(model, [3], propose(made(model, nodes=6, delta=0.0, depth=depth), [3])[0].tree))
    for delta in (0.05, 0.2, 0.4):
        before = model.forwards
        propose(made(model, nodes=6, delta=delta, depth=5), [3])
        gains = [after - earlier for earlier, after in itertools.pairwise(layers)]
        wanted = next((place for place, gain in enumerate(gains, 1) if gain <= delta), 5)
        assert model.forwards - before == wanted


def test_equal_weights_keep_their_ancestors() -> None:
    """A draft model that is certain gives every node of its one path the weight 1."""
    model = FastTable(4, seed=6)
    model.table = torch.full_like(model.table, -1e9)
    model.table[..., 2] = 0.0
    tree = propose(made(model, nodes=4, delta=0.0, depth=7), [1])[0].tree
    assert tree.path_tokens(len(tree) - 1)[-1] == 2
    chain = [node for node in range(len(tree)) if set(tree.path_tokens(node)) == {2}]
    assert len(chain) == 4
    assert sorted(tree.depths) == [0, 1, 2, 3]


def test_limits() -> None:
    model = FastTable(5, seed=3, scale=2.0)
    drafter = made(model, nodes=9, delta=0.0, depth=4)
    assert len(propose(drafter, [4], budget=Budget(nodes=4))[0].tree) == 4
    assert propose(drafter, [4], budget=Budget(depth=2))[0].tree.depth == 2
    assert not propose(drafter, [4], budget=Budget(nodes=0))[0].tree
    assert len(propose(made(model, nodes=50, delta=0.0, depth=1), [4])[0].tree) == 5, "no more than there are tokens"


def test_a_batch_is_drafted_together_and_as_alone() -> None:
    model = FastTable(5, seed=3, scale=4.0)
    texts = [[4], [1, 2], [3, 3, 3, 0]]
    alone = []
    passes = []
    for text in texts:
        before = model.forwards
        alone.append(propose(made(model, nodes=7, delta=0.3), text)[0].tree)
        passes.append(model.forwards - before)
    before = model.forwards
    together = propose(made(model, nodes=7, delta=0.3), *texts)
    assert [draft.tree for draft in together] == alone
    assert model.forwards - before == max(passes)
    assert len(set(passes)) > 1, "drafts that end early are worth a test"


def test_the_sampler_has_no_say() -> None:
    model = FastTable(5, seed=3, scale=2.0)
    greedy = propose(made(model, nodes=7), [1, 2])[0]
    sampled = propose(made(model, Softmax(top=2), nodes=7), [1, 2])[0]
    assert greedy.tree == sampled.tree
    assert sampled.q is None


def test_models_that_score_only_chains_are_refused() -> None:
    chains = FastTable(6, seed=2)
    chains.capabilities = frozenset()
    for target, draft in ((FastTable(6), chains), (chains, FastTable(6))):
        with pytest.raises(Incompatible, match="tree attention"):
            compose(target, "opt-tree", models={"draft": draft})
