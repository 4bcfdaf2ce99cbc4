"""The automatic drafter: several arms in one tree, cut to what pays."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Stepped
from unspool.core.sockets import Budget, Draft
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.models.costs import PassCosts
from unspool.speculation.drafting._acceptance import AcceptanceRates, Judge
from unspool.speculation.drafting.auto import Auto
from unspool.speculation.drafting.token_recycling import K, TokenRecycling

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
    recycling = drafter.arms[1]
    assert isinstance(recycling, TokenRecycling)
    recycling.adjacency.matrix = ((torch.arange(12)[:, None] + 1 + torch.arange(K)) % 12).int()


def has(tree: TokenTree, path: list[int]) -> bool:
    node: int | None = ROOT
    for token in path:
        assert node is not None
        node = tree.child(node, token)
        if node is None:
            return False
    return True


def test_the_arms_are_merged() -> None:
    drafter, _ = made(nodes=47)
    fill(drafter)
    draft = drafter.propose([branch([5, 1, 9, 2, 7, 3, 5, 1])], [Budget()])[0]
    tree = draft.tree
    assert has(tree, [9, 2, 7, 3, 5, 1])
    assert has(tree, [2, 3])
    assert len(tree) <= 47
    # No node is there twice.
    assert len({(parent, token) for parent, token in zip(tree.parent_list, tree.token_list, strict=True)}) == len(tree)
    assert draft.confidence == sorted(draft.confidence, reverse=True)
    for node, parent in enumerate(tree.parent_list):
        assert parent == ROOT or draft.confidence[parent] >= draft.confidence[node]


@pytest.mark.parametrize("budget", [Budget(nodes=5), Budget(nodes=1), Budget(depth=2), Budget(nodes=7, depth=1)])
def test_budgets_are_kept(budget: Budget) -> None:
    drafter, _ = made(nodes=24)
    fill(drafter)
    tree = drafter.propose([branch([5, 1, 9, 2, 7, 3, 5, 1])], [budget])[0].tree
    assert tree
    assert len(tree) <= (24 if budget.nodes is None else budget.nodes)
    assert budget.depth is None or tree.depth <= budget.depth


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
    drafter, composition = made(model)
    drafter.costs = PassCosts((1, 64), (1.0, 1.0))
    stop = Stop(max_new_tokens=80)
    events = list(composition.decode([[1, 2, 3]], stop=stop))
    assert events[-1].tokens == [*compose(TARGET).decode([[1, 2, 3]], stop=stop)][-1].tokens
    assert sum(isinstance(event, Stepped) for event in events) < 50


# -- what pays ----------------------------------------------------------------------------------------------------


def test_the_size_maximises_tokens_per_second() -> None:
    drafter, _ = made()
    drafter.costs = PassCosts((1, 2, 4, 8, 16), (1.0, 1.1, 1.4, 2.0, 3.5))
    chances = [0.9, 0.6, 0.4, 0.2, 0.1, 0.05, 0.02]
    speeds = [(1 + sum(chances[:n])) / drafter.costs.of(1 + n) for n in range(len(chances) + 1)]
    assert drafter._sizes([chances]) == [max(range(len(speeds)), key=speeds.__getitem__)]
    # Two rows cost a pass over twice as many tokens, and a short row is not made longer.
    both = [chances, [0.8]]
    speeds = [(2 + sum(chances[:n]) + sum([0.8][:n])) / drafter.costs.of(2 * (1 + n)) for n in range(len(chances) + 1)]
    best = max(range(len(speeds)), key=speeds.__getitem__)
    assert drafter._sizes(both) == [best, min(best, 1)]


def test_nothing_is_sent_where_nothing_pays() -> None:
    drafter, composition = made()
    drafter.costs = PassCosts((1, 2), (1.0, 2.0))
    events = list(composition.decode([[1, 2, 3, 1, 2, 3]], stop=Stop(max_new_tokens=40)))
    assert all(not event.draft for event in events if isinstance(event, Stepped))
    drafter.costs = PassCosts((1, 2), (1.0, 1.0))
    events = list(composition.decode([[1, 2, 3, 1, 2, 3]], stop=Stop(max_new_tokens=40)))
    assert any(event.draft for event in events if isinstance(event, Stepped))


def test_rates_come_to_what_happens() -> None:
    rates = AcceptanceRates(1)
    judge = Judge(rates)
    draft = Draft(TokenTree([1, 2], [ROOT, ROOT]))
    classes = rates.classes(0, draft)
    assert classes[0] != classes[1], "siblings of different rank are told apart"
    text = [0]
    for token in itertools.islice(itertools.cycle([1, 1, 1, 2]), 400):
        judge.remember(len(text), draft.tree, classes)
        text.append(token)
        judge.read(text)
    first, second = judge.rates(classes)
    assert first == pytest.approx(0.75, abs=0.02)
    assert second == pytest.approx(0.25, abs=0.02)
    # A new text begins with the rates over all texts.
    assert Judge(rates).rates(classes)[0] == pytest.approx(0.75, abs=0.05)


def test_deeper_candidates_are_judged_when_the_text_gets_there() -> None:
    rates = AcceptanceRates(1)
    judge = Judge(rates)
    draft = Draft(TokenTree.chain([1, 2, 3, 4]))
    classes = rates.classes(0, draft)
    judge.remember(1, draft.tree, classes)
    for text in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 9], [0, 1, 2, 9, 4]):
        judge.read(text)
    assert [rates.hits[of] for of in classes] == [1, 1, 0, 0]
    assert [rates.trials[of] for of in classes] == [1, 1, 1, 0], "below a refused token nothing is judged"


def test_rates_are_kept_and_given_back(tmp_path: Any) -> None:
    drafter, composition = made()
    list(composition.decode([[1, 2, 3, 1, 2, 3]], stop=Stop(max_new_tokens=40)))
    assert set(drafter.learned) == {"auto", "token-recycling"}
    drafter.learned["auto"].save(tmp_path / "rates")
    other, _ = made()
    other.learned["auto"].load(tmp_path / "rates")
    assert other.rates.trials == pytest.approx(drafter.rates.trials)
    assert sum(other.rates.trials) > 0
    other.rates.clear()
    assert sum(other.rates.trials) == 0


# -- settings -----------------------------------------------------------------------------------------------------


def test_arms_can_be_chosen() -> None:
    drafter, _ = made(arms=("prompt-lookup:longest=2",))
    assert [arm.card.slug for arm in drafter.arms] == ["prompt-lookup"]
    assert drafter.arms[0].settings.longest == 2


@pytest.mark.parametrize(
    ("arms", "error", "match"),
    [
        ((), InvalidInput, "no arms"),
        (("auto",), InvalidInput, "not a drafter of its own"),
        (("sampling",), InvalidInput, "not a drafter of its own"),
        (("prompt-lookup:3",), InvalidInput, "write slug:name=value"),
        (("prompt-lookup:longest=0",), InvalidInput, "prompt-lookup cannot use"),
        (("draft-model",), Incompatible, "candidates that are fixed"),
    ],
)
def test_arms_that_cannot_be_used(arms: tuple[str, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        made(arms=arms)


# -- naps -----------------------------------------------------------------------------------------------------------


class Clock:
    """Every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-3
        return self.now


def asked(composition: Composition, drafter: Auto, new_tokens: int) -> tuple[list[int], int]:
    """How often each arm was asked for a draft, in how many steps."""
    counts = [0] * len(drafter.arms)
    for place, arm in enumerate(drafter.arms):
        inner = arm.propose

        def propose(branches: Any, budgets: Any, place: int = place, inner: Any = inner) -> Any:
            counts[place] += 1
            return inner(branches, budgets)

        arm.propose = propose  # type: ignore[method-assign]
    events = composition.decode([[1, 2, 3]], stop=Stop(max_new_tokens=new_tokens))
    return counts, sum(isinstance(event, Stepped) for event in events)


def test_arms_that_do_not_pay_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.speculation.drafting.auto.time", Clock())
    drafter, composition = made(TableModel(64, seed=3, scale=1.0))
    # A pass takes ten times an arm's work, and a draft never pays.
    drafter.costs = PassCosts((1, 2), (1e-2, 3e-2))
    counts, steps = asked(composition, drafter, 400)
    assert steps == 400
    assert all(10 < count < 150 for count in counts), counts


def test_arms_that_pay_are_asked_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.speculation.drafting.auto.time", Clock())
    drafter, composition = made()
    drafter.costs = PassCosts((1, 64), (1.0, 1.01))
    fill(drafter)
    counts, steps = asked(composition, drafter, 120)
    # The last token of a request needs no draft.
    assert steps < 100
    assert all(steps - 1 <= count <= steps for count in counts), (counts, steps)
