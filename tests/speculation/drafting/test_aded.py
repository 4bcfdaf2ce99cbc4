from __future__ import annotations

from math import log, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.events import Finished, Stepped
from unspool.core.sockets import Budget
from unspool.core.texts import Stop
from unspool.core.tree import ROOT
from unspool.speculation.drafting._trigrams import TrigramTable
from unspool.speculation.drafting.aded import Aded, AdedSettings, Search

VOCABULARY = 9


def table(seed: int = 0) -> TrigramTable:
    rng = torch.Generator().manual_seed(seed)
    text = (torch.rand(600, generator=rng) ** 2 * VOCABULARY).long().tolist()
    return TrigramTable.build([text], VOCABULARY)


def by_the_book(of: TrigramTable, first: int, second: int, depth: int, simulations: int, c1: float, c2: float) -> Any:
    """The search as the paper describes it: every continuation is scored at every step. Visits by path."""
    visits: dict[tuple[int, ...], int] = {}
    worth: dict[tuple[int, ...], float] = {}
    for _ in range(simulations):
        path: tuple[int, ...] = ()
        reward = 1.0
        while len(path) < depth:
            before, last = [first, second, *path][-2:]
            row = of.row(before, last)
            if row is None:
                break
            total = sum(row[1])
            priors = {token: count / total for token, count in zip(*row, strict=True)}
            tried = sum(visits.get((*path, token), 0) for token in priors)
            scores = {}
            for token, prior in priors.items():
                n = visits.get((*path, token), 0)
                known = worth[(*path, token)] / n if n else 0.0
                scores[token] = known + prior * sqrt(tried) / (1 + n) * (c1 + log((tried + c2 + 1) / c2))
            # A visited one goes before one that is not, then the more probable, as the order of the row has it.
            token = max(priors, key=lambda t: (scores[t], (*path, t) in visits))
            reward *= priors[token]
            path = (*path, token)
        for end in range(1, len(path) + 1):
            visits[path[:end]] = visits.get(path[:end], 0) + 1
            worth[path[:end]] = worth.get(path[:end], 0.0) + reward
    return visits


def paths_of(search: Search) -> list[tuple[int, ...]]:
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(search.tokens, search.parents, strict=True):
        paths.append((*(paths[parent] if parent != ROOT else ()), token))
    return paths


@pytest.mark.parametrize("pair", [(0, 0), (1, 0), (3, 2), (8, 1)])
@pytest.mark.parametrize("c2", [19_652.0, 5.0])
def test_the_search_is_the_papers(pair: tuple[int, int], c2: float) -> None:
    of = table()
    search = Search(of, *pair, 4, 80, 1.25, c2)
    assert dict(zip(paths_of(search), search.visits, strict=True)) == by_the_book(of, *pair, 4, 80, 1.25, c2)


def test_the_most_visited_places_are_drafted() -> None:
    search = Search(table(), 1, 0, 5, 100, 1.25, 19_652)
    visits = dict(zip(paths_of(search), search.visits, strict=True))
    for nodes in (1, 6, 20, 1000):
        tree = search.best(nodes).tree
        drafted = [tuple(tree.path_tokens(node)) for node in range(len(tree))]
        assert len(tree) == min(nodes, len(visits))
        left_out = max((n for path, n in visits.items() if path not in drafted), default=0)
        assert min(visits[path] for path in drafted) >= left_out
        assert len(set(drafted)) == len(drafted)
    chain = search.best(3, chain=True).tree
    assert chain.is_chain
    path = tuple(chain.path_tokens(len(chain) - 1))
    for depth in range(1, len(path) + 1):
        siblings = [n for p, n in visits.items() if p[:-1] == path[: depth - 1]]
        assert visits[path[:depth]] == max(siblings)


def test_confidence_is_the_tables_probability() -> None:
    of = table()
    draft = Search(of, 1, 0, 5, 100, 1.25, 19_652).best(20)
    for node, confidence in enumerate(draft.confidence):
        first, second, token = [1, 0, *draft.tree.path_tokens(node)][-3:]
        ids, counts = of.row(first, second) or ([], [])
        assert confidence == pytest.approx(counts[ids.index(token)] / sum(counts))


def test_nothing_known_nothing_drafted() -> None:
    empty = TrigramTable()
    empty.vocab_size = VOCABULARY
    assert not Search(empty, 1, 2, 4, 10, 1.25, 19_652).best(8).tree


def run(drafter: Aded, prompts: list[list[int]], size: int = 30) -> tuple[list[tuple[int, ...]], int]:
    made = compose(TableModel(VOCABULARY, seed=5, scale=4.0), drafter)
    texts, steps = [], 0
    for prompt in prompts:
        for event in made.decode([prompt], stop=Stop(size)):
            steps += isinstance(event, Stepped)
            if isinstance(event, Finished):
                texts.append(event.tokens)
    return texts, steps


PROMPTS = [[first, second] for first in range(4) for second in range(3)]


def test_what_the_model_says_is_learned() -> None:
    drafter = Aded(AdedSettings(corpus=None, nodes=8))
    texts, steps = run(drafter, PROMPTS)
    frozen = Aded(AdedSettings(corpus=None, nodes=8, adapt=False))
    same, without = run(frozen, PROMPTS)
    assert texts == same
    assert steps < 0.6 * without
    assert frozen.table is not None
    assert len(frozen.table) == 0
    assert drafter.table is not None
    expected = TrigramTable()
    expected.vocab_size = VOCABULARY
    for prompt, text in zip(PROMPTS, texts, strict=True):
        expected.learn([*prompt, *text], 16.0)
    for first in range(VOCABULARY):
        for second in range(VOCABULARY):
            row, other = drafter.table.row(first, second), expected.row(first, second)
            assert (row is None) == (other is None)
            assert row is None or other is None or dict(zip(*row, strict=True)) == dict(zip(*other, strict=True))


def test_the_table_is_kept(tmp_path: Path) -> None:
    made = compose(TableModel(VOCABULARY, seed=5, scale=4.0), "aded", settings={"corpus": None})
    list(made.decode([[1, 2]], stop=Stop(30)))
    made.save_learned(tmp_path)
    again = compose(TableModel(VOCABULARY, seed=5, scale=4.0), "aded", settings={"corpus": None})
    assert again.load_learned(tmp_path) == ["aded"]
    first = sum(isinstance(event, Stepped) for event in made.decode([[1, 2]], stop=Stop(30)))
    assert sum(isinstance(event, Stepped) for event in again.decode([[1, 2]], stop=Stop(30))) == first < 30


def test_predictions_are_learned_in_parts() -> None:
    model = TableModel(VOCABULARY, seed=5, scale=1.0)
    drafter = Aded(AdedSettings(corpus=None, weight=1.0, predictions=3))
    made = compose(model, drafter)
    list(made.decode([[1, 2]], stop=Stop(1)))
    assert drafter.table is not None
    ids, counts = drafter.table.row(1, 2) or ([], [])
    probs = torch.softmax(model.table[1, 2], 0)
    expected = {int(token): float(probs[token]) for token in probs.topk(3).indices}
    expected[int(probs.argmax())] += 1.0
    assert dict(zip(ids, counts, strict=True)) == pytest.approx(expected, rel=1e-6)


def test_predictions_of_a_tree_are_those_of_its_paths() -> None:
    model = TableModel(VOCABULARY, seed=5, scale=1.0)
    drafter = Aded(AdedSettings(corpus=None, weight=1.0, predictions=2, nodes=12))
    list(compose(model, drafter).decode([[1, 2], [4]], stop=Stop(40)))
    assert drafter.table is not None
    checked = 0
    for first in range(VOCABULARY):
        for second in range(VOCABULARY):
            row = drafter.table._find(first * VOCABULARY + second)
            if row is None:
                continue
            # What is not among the best two of this very pair was never said after it.
            allowed = set(model.table[first, second].topk(2).indices.tolist())
            assert set(row[0]) <= allowed
            checked += 1
    assert checked > 20


def test_budgets_and_short_texts() -> None:
    drafter = Aded(AdedSettings(corpus=None), table=table())
    model = TableModel(VOCABULARY)
    compose(model, drafter)
    branch = Branch(0, 0, [3], model.new_cache(), 0, torch.device("cpu"), [])
    draft = drafter.draft(branch, Budget(5, 2))
    assert (len(draft.tree), draft.tree.depth) == (5, 2)
    assert drafter.notes == []
    with_corpus = Aded()
    compose(model, with_corpus)
    assert "no tokenizer" in with_corpus.notes[0]
