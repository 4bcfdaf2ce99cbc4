"""DySpec: slots are filled by value, the values are what they are said to be, and the output stays exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, Softmax, emitted, outcomes, walk
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible
from unspool.core.events import Scored
from unspool.core.sockets import Budget, Distribution, Draft
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting import dyspec
from unspool.speculation.drafting.dyspec import DySpec

VARIANTS = ["heap", "layers"]


def made(draft: FastTable, sampler: Any = None, **settings: Any) -> tuple[DySpec, Composition]:
    target = FastTable(draft.vocab_size, seed=1)
    composition = compose(target, "dyspec", settings=settings, sampler=sampler, models={"draft": draft})
    assert isinstance(composition.drafter, DySpec)
    return composition.drafter, composition


def propose(drafter: DySpec, count: int = 1, budget: Budget | None = None) -> list[Draft]:
    branches = [Branch(i, 0, [1, 2], drafter.model.new_cache(), 0, torch.device("cpu"), []) for i in range(count)]
    return drafter.propose(branches, [budget or Budget()] * count)


def slots(draft: Draft, q: Any) -> tuple[list[float], list[float]]:
    """The value of the slot of every node, and of every slot that stayed empty; ``q(node)`` gives distributions."""
    values: dict[int, float] = {}
    empty: list[float] = []

    def visit(node: int, value: float) -> None:
        left = q(node).clone()
        for child in draft.tree.children(node):
            token = draft.tree.token_list[child]
            share = float(left[token] / left.sum())
            values[child] = value
            visit(child, value * share)
            value *= 1 - share
            left[token] = 0
        if float(left.sum()) > 1e-9:
            empty.append(value)

    visit(ROOT, 1.0)
    return [values[node] for node in range(len(draft.tree))], empty


def distribution(model: FastTable, draft: Draft, temperature: float = 1.0) -> Any:
    return lambda node: torch.softmax(
        model.next_logits([1, 2, *(draft.tree.path_tokens(node) if node != ROOT else [])]) / temperature, -1
    )


# -- which slots are filled ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_most_valuable_slots_are_filled(variant: str) -> None:
    model = FastTable(5, seed=2)
    drafter, _ = made(model, Softmax(), nodes=9, variant=variant, threshold=1e-6 if variant == "layers" else None)
    for draft in propose(drafter, 30):
        assert len(draft.tree) == 9
        filled, empty = slots(draft, distribution(model, draft))
        assert min(filled) >= max(empty) - 1e-9


def test_under_greedy_both_variants_make_one_tree() -> None:
    model = FastTable(5, seed=2)
    heap = propose(made(model, nodes=12)[0])[0]
    layers = propose(made(model, nodes=12, variant="layers", threshold=1e-6)[0])[0]
    assert heap.q is None
    assert {tuple(heap.tree.path_tokens(n)) for n in range(12)} == {
        tuple(layers.tree.path_tokens(n)) for n in range(12)
    }
    for draft in (heap, layers):
        filled, empty = slots(draft, distribution(model, draft, 0.6))
        assert min(filled) >= max(empty) - 1e-6
        for node in range(-1, 12):
            children = [draft.tree.token_list[child] for child in draft.tree.children(node)]
            assert children == distribution(model, draft)(node).topk(5).indices.tolist()[: len(children)]


def test_the_threshold_leaves_slots_empty() -> None:
    model = FastTable(5, seed=2)
    sizes = []
    for threshold in (0.05, 0.2, 0.6):
        drafter, _ = made(model, Softmax(), nodes=400, variant="layers", threshold=threshold)
        trees = propose(drafter, 20)
        for draft in trees:
            filled, empty = slots(draft, distribution(model, draft))
            assert min(filled) >= threshold
            assert max(empty) < threshold
        sizes.append(sum(len(draft.tree) for draft in trees))
    assert sizes[0] > sizes[1] > sizes[2]
    drafter, _ = made(model, Softmax(), nodes=8, variant="layers")
    for draft in propose(drafter, 20):
        assert min(slots(draft, distribution(model, draft))[0]) >= 1 / 8


@pytest.mark.parametrize("variant", VARIANTS)
def test_siblings_say_what_they_were_drawn_from(variant: str) -> None:
    model = FastTable(5, seed=2)
    drafter, composition = made(model, Softmax(), nodes=9, variant=variant)
    assert composition.verifier is not None
    assert composition.verifier.card.slug == "recursive-rejection"
    for draft in propose(drafter, 20):
        assert draft.q is not None
        q = distribution(model, draft)
        for node, row in enumerate(draft.q_rows):
            above = draft.tree.parent_list[node]
            siblings = draft.tree.children(above)
            assert torch.allclose(draft.q[row], q(above))
            assert draft.confidence[node] == pytest.approx(float(q(above)[draft.tree.token_list[node]]))
            assert {draft.q_rows[sibling] for sibling in siblings} == {row}
            assert len({draft.tree.token_list[sibling] for sibling in siblings}) == len(siblings)


# -- exactness ----------------------------------------------------------------------------------------------------


def one_after_another(q: Tensor, count: int, rng: torch.Generator, *, replacement: bool) -> list[int]:
    """Drawing in a way that can be enumerated."""
    assert not replacement
    left, drawn = q.double().clone(), []
    for _ in range(min(count, int((left > 0).sum()))):
        drawn.append(Distribution(left / left.sum()).draw(rng))
        left[drawn[-1]] = 0
    return drawn


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("vocab", "nodes", "equal"), [(4, 1, False), (4, 2, False), (4, 3, False), (3, 4, False), (3, 3, True)]
)
def test_all_outcomes_together_are_the_target(
    vocab: int, nodes: int, equal: bool, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All trees that can be drawn, all decisions of the verifier: the first two tokens have the target's joint law."""
    monkeypatch.setattr(dyspec, "draw_siblings", one_after_another)
    model = FastTable(vocab, seed=7, scale=1.0)
    target = model if equal else FastTable(vocab, seed=8, scale=1.0)
    drafter, composition = made(model, Softmax(), nodes=nodes, variant=variant)
    verifier = composition.verifier
    assert verifier is not None

    def tree() -> tuple[tuple[int, ...], tuple[int, ...]]:
        (draft,) = propose(drafter, budget=Budget(depth=2))
        return tuple(draft.tree.token_list), tuple(draft.tree.parent_list)

    def law(text: list[int]) -> Tensor:
        return torch.softmax(target.next_logits(text), -1)

    joint = torch.zeros(vocab, vocab, dtype=torch.float64)
    trees = outcomes(tree)
    assert sum(trees.values()) == pytest.approx(1.0, abs=1e-12)
    for (tokens, parents), share in trees.items():  # type: ignore[misc]
        made_tree = TokenTree(tokens, parents)
        inner = [ROOT, *range(len(made_tree))]
        texts = [[1, 2, *(made_tree.path_tokens(node) if node != ROOT else [])] for node in inner]
        q = torch.stack([torch.softmax(model.next_logits(text), -1) for text in texts])
        here = walk(made_tree, torch.stack([law(text) for text in texts]), q, [parent + 1 for parent in parents])
        for emission, chance in outcomes(lambda t=made_tree, h=here: emitted(t, verifier.verify(h))).items():
            if len(emission) == 1:  # type: ignore[arg-type]
                joint[emission[0]] += share * chance * law([1, 2, emission[0]])  # type: ignore[index]
            else:
                joint[emission[:2]] += share * chance  # type: ignore[index]
    exact = torch.stack([law([1, 2])[a] * law([1, 2, a]) for a in range(vocab)])
    assert torch.allclose(joint, exact, rtol=0, atol=1e-12)


# -- passes, limits -----------------------------------------------------------------------------------------------


def test_layers_need_fewer_passes() -> None:
    target = FastTable(5, seed=1)
    passes = {}
    for variant in VARIANTS:
        draft = FastTable(5, seed=2, mix=target, blend=0.7)
        _, composition = made(draft, Softmax(), nodes=24, variant=variant)
        events = list(composition.decode([[1, 2]], stop=Stop(max_new_tokens=40), seed=1))
        rounds = [event.draft_forwards for event in events if isinstance(event, Scored)]
        passes[variant] = sum(rounds) / len(rounds)
    assert passes["layers"] < passes["heap"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_is_drafted_together(variant: str) -> None:
    model = FastTable(5, seed=2)
    drafter, _ = made(model, nodes=10, variant=variant)
    alone = propose(drafter)[0]
    single = model.forwards
    drafter, _ = made(model, nodes=10, variant=variant)
    together = propose(drafter, 4)
    assert model.forwards == 2 * single
    assert all(draft.tree == alone.tree for draft in together)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("sampler", [None, Softmax(), Softmax(top=2)], ids=["greedy", "sampled", "truncated"])
def test_limits(variant: str, sampler: Any) -> None:
    drafter, _ = made(FastTable(5, seed=2), sampler, nodes=30, variant=variant, threshold=1e-4)
    assert {len(draft.tree) for draft in propose(drafter, 5, Budget(nodes=4))} == {4}
    assert {draft.tree.depth for draft in propose(drafter, 5, Budget(depth=2))} == {2}
    if sampler is not None and sampler.top:
        assert {len(draft.tree) for draft in propose(drafter, 5, Budget(depth=2))} == {2 + 4}
    before = drafter.model.forwards
    assert not propose(drafter, 1, Budget(nodes=0))[0].tree
    assert drafter.model.forwards == before


def test_models_that_score_only_chains_are_refused() -> None:
    chains = FastTable(6, seed=2)
    chains.capabilities = frozenset()
    for target, draft in ((FastTable(6), chains), (chains, FastTable(6))):
        with pytest.raises(Incompatible, match="tree attention"):
            compose(target, "dyspec", models={"draft": draft})
