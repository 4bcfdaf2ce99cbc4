"""Token recycling: the paper's tree, how it is filled, and what is learned from a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.core.events import Finished, Prefilled, Stepped
from unspool.core.scores import Scores
from unspool.core.sockets import Budget, Draft, Observation
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting.token_recycling import TEMPLATE, UNKNOWN, K, TokenRecycling, template

# Number of children of every path of the paper's tree that has any.
PAPER = {
    "": 8,
    **dict(zip("01234567", (8, 4, 3, 2, 1, 1, 1, 1), strict=True)),
    "00": 8,
    "01": 3,
    "02": 2,
    "03": 1,
    "04": 1,
    "05": 1,
    "06": 1,
    "07": 1,
    "10": 2,
    "11": 1,
    "20": 1,
    "30": 1,
    "40": 1,
    "50": 1,
    "000": 5,
    "001": 2,
    "002": 1,
    "003": 1,
    "004": 1,
    "010": 1,
    "020": 1,
    "100": 1,
    "200": 1,
    "300": 1,
    "0000": 3,
    "0001": 1,
    "0002": 1,
    "0010": 1,
    "0100": 1,
    "1000": 1,
    "00000": 2,
    "00010": 1,
}

TARGET = TableModel(12, seed=1, scale=1.5)


def made(model: TableModel = TARGET, **settings: Any) -> tuple[TokenRecycling, Composition]:
    composition = compose(model, "token-recycling", settings=settings)
    assert isinstance(composition.drafter, TokenRecycling)
    return composition.drafter, composition


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])


def run(composition: Composition, prompts: list[list[int]], length: int = 60) -> list[Any]:
    return list(composition.decode(prompts, stop=Stop(max_new_tokens=length)))


def steps(events: list[Any]) -> int:
    return sum(isinstance(event, Stepped) for event in events)


# -- the tree -----------------------------------------------------------------------------------------------------


def test_the_template_is_the_papers() -> None:
    paths = TEMPLATE.split()
    assert sorted(paths) == sorted(path + str(rank) for path, count in PAPER.items() for rank in range(count))
    tree = template(80, 6, False).tree
    assert [tree.depths.count(depth) for depth in range(6)] == [8, 21, 25, 15, 8, 3]


@pytest.mark.parametrize("nodes", range(1, 81))
def test_every_cut_is_a_tree_of_the_best_nodes(nodes: int) -> None:
    kept = TEMPLATE.split()[:nodes]
    assert all(path[:-1] in kept for path in kept if len(path) > 1)
    assert len(template(nodes, 6, False).tree) == nodes


def test_depths_and_chains() -> None:
    assert template(80, 2, False).tree.depth == 2
    assert template(80, 6, True).tree == TokenTree.chain([0] * 6)
    assert template(4, 6, True).tree == TokenTree.chain([0] * 4)


# -- proposing ----------------------------------------------------------------------------------------------------


def test_a_child_is_the_candidate_of_its_rank() -> None:
    drafter, _ = made(nodes=80)
    rng = torch.Generator().manual_seed(0)
    drafter.adjacency.matrix = torch.stack([torch.randperm(12, generator=rng)[:K] for _ in range(12)]).int()
    tree = drafter.propose([branch([3, 7])], [Budget()])[0].tree
    assert len(tree) == 80
    ranks = {ROOT: ""}
    for node in range(80):
        parent = tree.parent_list[node]
        above = 7 if parent == ROOT else tree.token_list[parent]
        rank = int((drafter.adjacency.matrix[above] == tree.token_list[node]).nonzero())
        ranks[node] = ranks[parent] + str(rank)
    del ranks[ROOT]
    assert sorted(ranks.values()) == sorted(TEMPLATE.split())


def test_unknown_rows_propose_nothing() -> None:
    drafter, _ = made(nodes=80)
    assert not drafter.propose([branch([3])], [Budget()])[0].tree
    drafter.adjacency.matrix[3] = torch.arange(K)
    tree = drafter.propose([branch([3])], [Budget()])[0].tree
    # The children of the root, and below the one that is 3 again.
    assert [tree.token_list[node] for node in tree.children()] == list(range(K))
    below = tree.child(ROOT, 3)
    assert below is not None
    assert tree.children(below)
    assert UNKNOWN not in tree.token_list


def test_branches_are_filled_together_as_alone() -> None:
    drafter, composition = made(nodes=40)
    run(composition, [[1, 2, 3]])
    branches = [branch([token]) for token in range(12)]
    budgets = [Budget(nodes=3 * i if i % 2 else None, depth=i if i % 3 else None) for i in range(12)]
    together = drafter.propose(branches, budgets)
    for one, budget, draft in zip(branches, budgets, together, strict=True):
        assert draft.tree == drafter.propose([one], [budget])[0].tree
        assert len(draft.tree) <= (40 if budget.nodes is None else budget.nodes)
        assert draft.tree.depth <= (6 if budget.depth is None else budget.depth)


def test_models_that_score_only_chains_get_chains() -> None:
    model = TableModel(12, seed=1, scale=1.5)
    model.capabilities = frozenset()
    _, composition = made(model)
    run(composition, [[1, 2, 3]])
    events = run(composition, [[1, 2, 3]])
    drafts = [event.draft for event in events if isinstance(event, Stepped)]
    assert all(draft.is_chain for draft in drafts)
    assert max(draft.depth for draft in drafts) == 6
    assert events[-1].tokens == run(compose(TARGET), [[1, 2, 3]])[-1].tokens


# -- learning -----------------------------------------------------------------------------------------------------


def observation(
    tokens: list[int], parents: list[int], offset: int, path: list[int], logits: torch.Tensor, rows: list[int]
) -> Observation:
    tree = TokenTree(tokens, parents)
    draft = Draft(TokenTree.empty())
    return Observation(branch([0]), tree, offset, Scores(logits, rows), draft, path, [])


def test_every_node_teaches_and_the_accepted_one_last() -> None:
    drafter, _ = made()
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    best = logits.topk(K).indices.int()
    # Pending 4, then draft nodes 0..3 with tokens 5, 6, 5, 6: of the 5s the accepted one counts, of the 6s the later.
    drafter.observe(observation([4, 5, 6, 5, 6], [-1, 0, 0, 2, 3], 1, [0], logits, [0, 1, 2, 3, 4]))
    assert torch.equal(drafter.adjacency.matrix[4], best[0])
    assert torch.equal(drafter.adjacency.matrix[5], best[1])
    assert torch.equal(drafter.adjacency.matrix[6], best[4])
    assert bool((drafter.adjacency.matrix[[0, 1, 2, 3, 7, 8, 9, 10, 11]] == UNKNOWN).all())


def test_rows_that_were_not_asked_for_teach_nothing() -> None:
    drafter, _ = made()
    logits = torch.randn(2, 12, generator=torch.Generator().manual_seed(0))
    drafter.observe(observation([1, 2, 3], [-1, 0, 1], 2, [], logits, [1, 2]))
    assert bool((drafter.adjacency.matrix[1] == UNKNOWN).all())
    assert torch.equal(drafter.adjacency.matrix[2:4], logits.topk(K).indices.int())
    drafter.adjacency.clear()
    drafter.observe(observation([1, 2, 3], [-1, 0, 1], 3, [], torch.empty(0, 12), []))
    assert bool((drafter.adjacency.matrix == UNKNOWN).all())


def test_after_a_run_the_matrix_names_the_models_candidates() -> None:
    # A table over the last token alone: then a row can only have one right content.
    model = TableModel(12, seed=1)
    model.table = model.table[:1].expand(13, -1, -1)
    drafter, composition = made(model)
    run(composition, [[1, 2, 3]])
    known = (drafter.adjacency.matrix != UNKNOWN).all(dim=1).nonzero().flatten().tolist()
    assert len(known) > 6
    for token in known:
        assert torch.equal(drafter.adjacency.matrix[token].long(), model.next_logits([token]).topk(K).indices)


@pytest.mark.parametrize(("read", "rows"), [(True, {1, 2, 3, 4}), (False, set())])
def test_the_prompt_teaches_if_wanted(read: bool, rows: set[int]) -> None:
    drafter, composition = made(read_prompt=read)
    known: set[int] = set()
    for event in composition.decode([[1, 2, 3, 4, 5]], chunk=1):
        if isinstance(event, Prefilled):
            known = set((drafter.adjacency.matrix[:, 0] != UNKNOWN).nonzero().flatten().tolist())
    assert known == rows


@pytest.mark.parametrize(("update", "rows"), [("all", {4, 5, 6, 7}), ("accepted", {4, 6}), ("nothing", set())])
def test_which_nodes_teach(update: str, rows: set[int]) -> None:
    drafter, _ = made(update=update)
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    drafter.observe(observation([4, 5, 6, 7], [-1, 0, 0, 2], 1, [1], logits, [0, 1, 2, 3]))
    assert set((drafter.adjacency.matrix[:, 0] != UNKNOWN).nonzero().flatten().tolist()) == rows


def test_a_hot_start_is_faster_and_reset_makes_it_cold() -> None:
    drafter, composition = made()
    cold = steps(run(composition, [[5, 6]], length=30))
    hot = steps(run(composition, [[5, 6]], length=30))
    drafter.adjacency.clear()
    assert hot < cold
    assert steps(run(composition, [[5, 6]], length=30)) == cold


def test_a_batch_shares_what_it_learns_and_stays_exact() -> None:
    _, composition = made()
    prompts = [[1, 2], [3], [4, 5, 6, 7], [1, 2, 3]]
    events = run(composition, prompts)
    found = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    assert [found[i] for i in range(4)] == [run(compose(TARGET), [p])[-1].tokens for p in prompts]


def test_vocabularies_smaller_than_a_row() -> None:
    model = TableModel(5, seed=1)
    drafter, composition = made(model)
    assert run(composition, [[1, 2]])[-1].tokens == run(compose(model), [[1, 2]])[-1].tokens
    assert bool((drafter.adjacency.matrix[:, 5:] == UNKNOWN).all())


def test_the_state_is_small() -> None:
    drafter, _ = made()
    assert drafter.adjacency.matrix.numel() * drafter.adjacency.matrix.element_size() == 12 * 8 * 4


# -- keeping ------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path: Path) -> None:
    drafter, composition = made()
    hot = [steps(run(composition, [[5, 6]])) for _ in range(2)][-1]
    drafter.adjacency.save(tmp_path / "matrix.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["matrix.safetensors"]

    other, later = made()
    other.adjacency.load(tmp_path / "matrix.safetensors")
    assert torch.equal(other.adjacency.matrix, drafter.adjacency.matrix)
    assert steps(run(later, [[5, 6]])) <= hot

    early = TokenRecycling()
    early.adjacency.load(tmp_path / "matrix.safetensors")
    compose(TARGET, [early])
    assert torch.equal(early.adjacency.matrix, drafter.adjacency.matrix)


def file(path: Path, matrix: torch.Tensor, vocab_size: int = 12) -> Path:
    save_file({"matrix": matrix}, path, {"unspool": "token-recycling", "vocab_size": str(vocab_size)})
    return path


def test_matrices_that_cannot_be_used(tmp_path: Path) -> None:
    drafter, _ = made()
    before = drafter.adjacency.matrix.clone()
    bad = tmp_path / "bad.safetensors"
    with pytest.raises(WeightsError, match=r"\(V, 8\) matrix of int32"):
        drafter.adjacency.load(file(bad, torch.zeros(12, 3, dtype=torch.int32)))
    with pytest.raises(WeightsError, match="tokens 12 to 12"):
        drafter.adjacency.load(file(bad, torch.full((12, K), 12, dtype=torch.int32)))
    with pytest.raises(WeightsError, match="9 rows"):
        drafter.adjacency.load(file(bad, torch.zeros(9, K, dtype=torch.int32)))
    assert torch.equal(drafter.adjacency.matrix, before)
    early = TokenRecycling()
    early.adjacency.load(file(bad, torch.zeros(9, K, dtype=torch.int32), 9))
    with pytest.raises(Incompatible, match="vocabulary of 9"):
        compose(TARGET, [early])


@pytest.mark.parametrize("values", [{"nodes": 0}, {"nodes": 81}, {"update": "some"}])
def test_settings_are_checked(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="token-recycling cannot use"):
        made(**values)
