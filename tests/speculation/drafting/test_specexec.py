"""SpecExec: the most probable nodes are found, whatever the size of the batches in which they are looked for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, Softmax

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget, Draft
from unspool.speculation.drafting.specexec import SpecExec

Path = tuple[int, ...]
EVERYTHING = {"beams": 1000, "branch_width": 1000, "min_log_prob": -1e9}


class Counting(FastTable):
    """Notes how many nodes each pass computes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.widths: list[int] = []

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        self.widths.append(max(len(request.tree) - request.known for request in requests))
        return super().score(requests, want, layers)


def made(draft: FastTable, sampler: Any = None, **settings: Any) -> SpecExec:
    target = FastTable(draft.vocab_size, seed=1)
    drafter = compose(target, "specexec", settings=settings, sampler=sampler, models={"draft": draft}).drafter
    assert isinstance(drafter, SpecExec)
    return drafter


def propose(drafter: SpecExec, *texts: list[int], budget: Budget | None = None) -> list[Draft]:
    branches = [
        Branch(i, 0, text, drafter.model.new_cache(), 0, torch.device("cpu"), []) for i, text in enumerate(texts)
    ]
    return drafter.propose(branches, [budget or Budget()] * len(texts))


def paths(draft: Draft) -> set[Path]:
    return {tuple(draft.tree.path_tokens(node)) for node in range(len(draft.tree))}


def values(model: FastTable, text: list[int], depth: int, decay: float) -> dict[Path, float]:
    """The value of every path up to a depth."""
    found: dict[Path, float] = {(): 0.0}
    for deep in range(depth):
        for path in itertools.product(range(model.vocab_size), repeat=deep):
            log_q = torch.log_softmax(model.next_logits([*text, *path]), -1).tolist()
            found |= {(*path, t): found[path] + log_q[t] + math.log(decay) for t in range(model.vocab_size)}
    del found[()]
    return found


@pytest.mark.parametrize("decay", [1.0, 0.95, 0.6])
@pytest.mark.parametrize("nodes", [1, 6, 20])
def test_the_tree_holds_the_best_nodes(nodes: int, decay: float) -> None:
    model = FastTable(4, seed=2, scale=2.0)
    draft = propose(made(model, nodes=nodes, decay=decay, **EVERYTHING), [1, 2], budget=Budget(depth=6))[0]
    worth = values(model, [1, 2], 6, decay)
    assert paths(draft) == set(sorted(worth, key=lambda path: -worth[path])[:nodes])
    for node, confidence in enumerate(draft.confidence):
        path = tuple(draft.tree.path_tokens(node))
        assert math.log(confidence * decay) == pytest.approx(worth[path] - worth.get(path[:-1], 0.0), rel=1e-4)


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_smaller_batches_find_the_same_tree_in_more_passes(beams: int) -> None:
    whole, parts = Counting(4, seed=2, scale=2.0), Counting(4, seed=2, scale=2.0)
    expected = propose(made(whole, nodes=12, beams=100), [1, 2])[0]
    found = propose(made(parts, nodes=12, beams=beams), [1, 2])[0]
    assert paths(found) == paths(expected)
    assert len(parts.widths) >= len(whole.widths) + (beams == 1)
    assert sum(parts.widths) <= sum(whole.widths), "what is expanded later is expanded with more knowledge"
    # The first pass also reads the text.
    assert max(parts.widths[1:]) <= beams


def test_only_leaves_that_might_help_are_read() -> None:
    """One leaf at a time: what is read has a child in the tree, or could have had one with a certain token."""
    model = Counting(4, seed=2, scale=2.0)
    draft = propose(made(model, nodes=12, **(EVERYTHING | {"beams": 1})), [1, 2])[0]
    worth = values(model, [1, 2], draft.tree.depth, 0.95)
    cut = min(worth[path] for path in paths(draft))
    hopeful = [path for path in paths(draft) if worth[path] + math.log(0.95) > cut]
    assert sum(model.widths[1:]) == len(hopeful) < 12


def test_limits() -> None:
    model = FastTable(6, seed=3)
    every = propose(made(model, nodes=40, min_log_prob=-2.0, decay=1.0), [1])[0]
    worth = values(model, [1], 5, 1.0)
    assert paths(every) == {path for path, value in worth.items() if value >= -2.0}
    narrow = propose(made(model, nodes=40, branch_width=2), [1])[0]
    assert max(len(narrow.tree.children(node)) for node in range(-1, len(narrow.tree))) == 2
    assert propose(made(model, nodes=40, passes=3), [1])[0].tree.depth == 3
    drafter = made(model, nodes=40)
    assert len(propose(drafter, [1], budget=Budget(nodes=7))[0].tree) == 7
    assert propose(drafter, [1], budget=Budget(depth=2))[0].tree.depth == 2
    assert not propose(drafter, [1], budget=Budget(depth=0))[0].tree


def test_decay_makes_trees_shallower() -> None:
    model = FastTable(4, seed=2, scale=4.0)
    depths = [
        propose(made(model, nodes=16, decay=decay, **EVERYTHING), [1, 2])[0].tree.depth for decay in (1.0, 0.8, 0.3)
    ]
    assert depths[0] > depths[1] > depths[2]


def test_a_batch_is_drafted_together_and_as_alone() -> None:
    model = Counting(5, seed=3, scale=2.0)
    texts = [[4], [1, 2], [3, 3, 3, 0]]
    alone = [propose(made(model, nodes=10, beams=3), text)[0] for text in texts]
    passes = len(model.widths)
    together = propose(made(model, nodes=10, beams=3), *texts)
    assert [draft.tree for draft in together] == [draft.tree for draft in alone]
    assert len(model.widths) - passes < passes


def test_the_sampler_has_no_say() -> None:
    model = FastTable(5, seed=3, scale=2.0)
    greedy = propose(made(model, nodes=12), [1, 2])[0]
    sampled = propose(made(model, Softmax(top=2), nodes=12), [1, 2])[0]
    assert greedy.tree == sampled.tree
    assert sampled.q is None


def test_models_that_score_only_chains_are_refused() -> None:
    chains = FastTable(6, seed=2)
    chains.capabilities = frozenset()
    for target, draft in ((FastTable(6), chains), (chains, FastTable(6))):
        with pytest.raises(Incompatible, match="tree attention"):
            compose(target, "specexec", models={"draft": draft})
