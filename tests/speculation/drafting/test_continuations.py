from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest

from unspool.speculation.drafting._continuations import heaviest_tree, padded


def rows_and_weights(seed: int) -> tuple[list[tuple[int, ...]], list[float]]:
    rng = random.Random(seed)
    paths = [tuple(rng.randrange(3) for _ in range(rng.randrange(6))) for _ in range(40)]
    return paths, [float(rng.randrange(4)) for _ in paths]


def trie(paths: list[tuple[int, ...]], weights: list[float]) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for path, weight in zip(paths, weights, strict=True):
        for depth in range(1, len(path) + 1):
            found[path[:depth]] += weight
    return {path: weight for path, weight in found.items() if weight}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("nodes", [1, 7, 30, 1000])
def test_it_is_the_heaviest_part_of_the_trie(seed: int, nodes: int) -> None:
    paths, weights = rows_and_weights(seed)
    draft = heaviest_tree(padded(paths, 6), np.array(weights), nodes)
    expected = trie(paths, weights)
    best = sorted(expected, key=lambda path: (-expected[path], len(path), path))[:nodes]
    assert sorted(tuple(draft.tree.path_tokens(node)) for node in range(len(draft.tree))) == sorted(best)
    total = sum(weights)
    for node, confidence in enumerate(draft.confidence):
        path = tuple(draft.tree.path_tokens(node))
        above = expected[path[:-1]] if len(path) > 1 else total
        assert confidence == pytest.approx(expected[path] / above)
    for node in range(-1, len(draft.tree)):
        siblings = [draft.tree.token_list[child] for child in draft.tree.children(node)]
        assert len(set(siblings)) == len(siblings)


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_follows_the_heaviest_child(seed: int) -> None:
    paths, weights = rows_and_weights(seed)
    expected = trie(paths, weights)
    path: tuple[int, ...] = ()
    while children := [child for child in expected if len(child) == len(path) + 1 and child[: len(path)] == path]:
        path = min(children, key=lambda child: (-expected[child], child))
    for nodes in (1, 3, 10):
        assert heaviest_tree(padded(paths, 6), np.array(weights), nodes, chain=True).tree.token_list == list(
            path[:nodes]
        )


@pytest.mark.parametrize(
    ("rows", "weight", "nodes"), [([], 1.0, 4), ([[-1, -1]], 1.0, 4), ([[1, 2]], 0.0, 4), ([[1, 2]], 1.0, 0)]
)
def test_nothing_gives_an_empty_draft(rows: list[list[int]], weight: float, nodes: int) -> None:
    array = np.array(rows, dtype=np.int32).reshape(len(rows), 2)
    assert not heaviest_tree(array, np.full(len(rows), weight), nodes).tree


def test_rows_are_cut_and_padded() -> None:
    assert padded([(1, 2, 3), (4,), ()], 2).tolist() == [[1, 2], [4, -1], [-1, -1]]
