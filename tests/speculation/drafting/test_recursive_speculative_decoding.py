"""Recursive speculative decoding: what is drawn, how often, and in which order."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from scipy import stats
from tests.contracts.exact import FastTable, Softmax
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Scored, Stepped
from unspool.core.sockets import Budget, Draft
from unspool.core.texts import Stop
from unspool.core.tree import ROOT
from unspool.speculation.drafting.recursive_speculative_decoding import (
    RecursiveSpeculativeDecoding,
    RecursiveSpeculativeDecodingSettings,
    _conditioned,
)

SLUG = "recursive-speculative-decoding"
TARGET = FastTable(6, seed=1)
CONSTANT = {"variant": "constant", "branching": (3, 2)}
STOCHASTIC = {"width": 3, "depth": 3}


def made(draft: TableModel, sampler: Any = None, **settings: Any) -> tuple[RecursiveSpeculativeDecoding, Composition]:
    target = FastTable(draft.vocab_size, seed=1)
    composition = compose(target, SLUG, settings=settings, sampler=sampler, models={"draft": draft})
    assert isinstance(composition.drafter, RecursiveSpeculativeDecoding)
    return composition.drafter, composition


def drafts(drafter: RecursiveSpeculativeDecoding, count: int, budget: Budget | None = None) -> list[Draft]:
    """Many drafts of one text, each branch with random numbers of its own."""
    branches = [Branch(i, 0, [1, 2], drafter.model.new_cache(), 0, torch.device("cpu"), []) for i in range(count)]
    return drafter.propose(branches, [budget or Budget()] * count)


def chi_square(seen: Mapping[Any, int], expected: Mapping[Any, float]) -> float:
    assert seen.keys() <= expected.keys()
    assert min(expected.values()) >= 5
    statistic = sum((seen.get(key, 0) - e) ** 2 / e for key, e in expected.items())
    return float(stats.chi2.sf(statistic, len(expected) - 1))


# -- shapes -------------------------------------------------------------------------------------------------------


def test_constant_branching() -> None:
    drafter, _ = made(FastTable(6, seed=2), Softmax(), **CONSTANT)
    for draft in drafts(drafter, 5):
        assert [len(draft.tree.children(node)) for node in (ROOT, *draft.tree.children())] == [3, 2, 2, 2]
        assert draft.tree.depth == 2


def test_stochastic_levels_have_the_width() -> None:
    drafter, _ = made(FastTable(6, seed=2), Softmax(), **STOCHASTIC)
    shapes = set()
    for draft in drafts(drafter, 50):
        assert [draft.tree.depths.count(depth) for depth in range(3)] == [3, 3, 3]
        shapes.add(tuple(draft.tree.parent_list))
    assert len(shapes) > 5, "the shape follows the draws"


@pytest.mark.parametrize("settings", [CONSTANT, STOCHASTIC], ids=["constant", "stochastic"])
def test_siblings_are_distinct_and_say_what_they_were_drawn_from(settings: dict[str, Any]) -> None:
    model = FastTable(6, seed=2)
    drafter, composition = made(model, Softmax(), **settings)
    assert composition.verifier is not None
    assert composition.verifier.card.slug == "recursive-rejection"
    for draft in drafts(drafter, 20):
        assert draft.q is not None
        for node, row in enumerate(draft.q_rows):
            above = draft.tree.parent_list[node]
            expected = torch.softmax(model.next_logits([1, 2, *draft.tree.path_tokens(above)]), dim=-1)
            assert torch.allclose(draft.q[row], expected)
            assert draft.confidence[node] == pytest.approx(float(expected[draft.tree.token_list[node]]))
            siblings = draft.tree.children(above)
            assert {draft.q_rows[sibling] for sibling in siblings} == {row}
            assert len({draft.tree.token_list[sibling] for sibling in siblings}) == len(siblings)


def test_no_more_candidates_than_the_distribution_holds() -> None:
    drafter, _ = made(FastTable(6, seed=2), Softmax(top=2), variant="constant", branching=(9,))
    assert {len(draft.tree) for draft in drafts(drafter, 5)} == {2}
    drafter, _ = made(FastTable(6, seed=2), Softmax(top=2), width=9, depth=2)
    assert {len(draft.tree) for draft in drafts(drafter, 5)} == {2 + 4}


@pytest.mark.parametrize("settings", [CONSTANT, STOCHASTIC], ids=["constant", "stochastic"])
@pytest.mark.parametrize("sampler", [None, Softmax()], ids=["greedy", "sampled"])
def test_budgets(settings: dict[str, Any], sampler: Any) -> None:
    drafter, _ = made(FastTable(6, seed=2), sampler, **settings)
    assert {len(draft.tree) for draft in drafts(drafter, 5, Budget(nodes=5))} == {5}
    assert {draft.tree.depth for draft in drafts(drafter, 5, Budget(depth=1))} == {1}
    before = drafter.model.forwards
    assert not drafts(drafter, 1, Budget(nodes=0))[0].tree
    assert drafter.model.forwards == before


# -- distributions ------------------------------------------------------------------------------------------------


def test_constant_branching_draws_one_after_another() -> None:
    model = FastTable(4, seed=3, scale=1.0)
    q = torch.softmax(model.next_logits([1, 2]), -1).tolist()
    drafter, _ = made(model, Softmax(), variant="constant", branching=(2,))
    count = 3000
    seen = Counter(tuple(draft.tree.token_list) for draft in drafts(drafter, count))
    expected = {(a, b): count * q[a] * q[b] / (1 - q[a]) for a, b in itertools.permutations(range(4), 2)}
    assert chi_square(seen, expected) > 1e-3


def test_stochastic_beams_are_paths_drawn_without_replacement() -> None:
    """The last level, in the order of its values, is an ordered draw from the joint distribution of all paths."""
    model = FastTable(3, seed=4, scale=0.3)
    first = torch.softmax(model.next_logits([1, 2]), -1)
    joint = {
        (a, b): float(first[a] * torch.softmax(model.next_logits([1, 2, a]), -1)[b])
        for a, b in itertools.product(range(3), repeat=2)
    }
    drafter, _ = made(model, Softmax(), width=2, depth=2)
    count = 4000
    seen: Counter[Any] = Counter()
    for draft in drafts(drafter, count):
        last = [node for node, depth in enumerate(draft.tree.depths) if depth == 1]
        seen[tuple(tuple(draft.tree.path_tokens(node)) for node in last)] += 1
    expected = {(x, y): count * joint[x] * joint[y] / (1 - joint[x]) for x, y in itertools.permutations(joint, 2)}
    assert chi_square(seen, expected) > 1e-3


def test_conditioned_values() -> None:
    """Against the defining formula in 60 digits; far from zero its terms differ by many orders of magnitude."""
    values = torch.tensor(
        [[2.0, 1.999999, 1.0, -3.0], [-40.0, -40.5, -41.0, -90.0], [5.0, 4.0, -30.0, -600.0]]
    ).double()
    maximum = torch.tensor([[0.3], [-1.0], [-25.0]]).double()
    found = _conditioned(values, maximum)
    assert torch.equal(found[:, 0], maximum[:, 0])
    with localcontext(prec=60):
        for row, top, largest in zip(values.tolist(), maximum[:, 0].tolist(), values[:, 0].tolist(), strict=True):
            for value, got in zip(row, found[values.tolist().index(row)].tolist(), strict=True):
                exact = -((-Decimal(top)).exp() - (-Decimal(largest)).exp() + (-Decimal(value)).exp()).ln()
                assert got == pytest.approx(float(exact), rel=1e-9)
    impossible = _conditioned(torch.tensor([[1.0, -torch.inf]]).double(), torch.tensor([[0.5]]).double())
    assert impossible.tolist() == [[0.5, -float("inf")]]


def test_two_of_two_tokens_are_always_enough() -> None:
    """With both tokens drawn at every node, one of them is accepted each time, whatever the two models think."""
    draft = FastTable(2, seed=5, scale=3.0)
    for settings in ({"variant": "constant", "branching": (2, 2, 2)}, {"width": 2, "depth": 1}):
        _, composition = made(draft, Softmax(), **settings)
        for event in composition.decode([[0, 1]] * 30, stop=Stop(max_new_tokens=12), seed=3):
            if isinstance(event, Stepped):
                assert len(event.accepted) == event.draft.depth


# -- without randomness -------------------------------------------------------------------------------------------


def test_greedy_beams_are_the_best_paths_of_each_level() -> None:
    model = FastTable(5, seed=6)
    drafter, _ = made(model, width=3, depth=3)
    tree = drafts(drafter, 1)[0].tree
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for depth in range(3):
        every = [
            (value + float(torch.log_softmax(model.next_logits([1, 2, *path]), -1)[token]), (*path, token))
            for value, path in beams
            for token in range(5)
        ]
        beams = sorted(every, reverse=True)[:3]
        level = [tuple(tree.path_tokens(node)) for node, d in enumerate(tree.depths) if d == depth]
        assert level == [path for _, path in beams]


def test_greedy_constant_branching_holds_the_most_probable_tokens() -> None:
    model = FastTable(6, seed=2)
    drafter, _ = made(model, **CONSTANT)
    draft = drafts(drafter, 1)[0]
    assert draft.q is None
    for node in (ROOT, *draft.tree.children()):
        children = draft.tree.children(node)
        best = model.next_logits([1, 2, *draft.tree.path_tokens(node)]).topk(6).indices.tolist()
        assert [draft.tree.token_list[child] for child in children] == best[: len(children)]


# -- passes, refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CONSTANT, STOCHASTIC], ids=["constant", "stochastic"])
def test_one_pass_a_level_for_the_whole_batch(settings: dict[str, Any]) -> None:
    draft = FastTable(6, seed=2, mix=TARGET, blend=0.8)
    _, composition = made(draft, Softmax(), **settings)
    events = list(composition.decode([[1], [2, 3], [4, 4, 4]], stop=Stop(max_new_tokens=20), seed=1))
    rounds = [event for event in events if isinstance(event, Scored)]
    assert max(event.draft_forwards for event in rounds) == drafts_depth(settings)


def drafts_depth(settings: dict[str, Any]) -> int:
    return len(settings["branching"]) if "branching" in settings else int(settings["depth"])


def test_models_that_score_only_chains_are_refused() -> None:
    chains = FastTable(6, seed=2)
    chains.capabilities = frozenset()
    for target, draft in ((TARGET, chains), (chains, TARGET)):
        with pytest.raises(Incompatible, match="tree attention"):
            compose(target, SLUG, models={"draft": draft})


def test_a_tree_without_levels_is_refused() -> None:
    with pytest.raises(InvalidInput, match="branching is empty"):
        RecursiveSpeculativeDecoding(RecursiveSpeculativeDecodingSettings(variant="constant", branching=()))
