"""TETRIS: the choice is the best within the capacity, and neither it nor what it drops biases the text."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch
from tests.contracts.exact import FastTable, RandomDrafts, Softmax, continuations, fit
from tests.models.shapes import backend, prompts

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.events import Finished, Stepped
from unspool.core.sockets import Budget, Draft, Drafter, Entered, Proposal, Setup
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.speculation.control.tetris import Tetris, TetrisSettings, select

TARGET = FastTable(4, seed=1, scale=0.6)


def chain(*confidence: float) -> Draft:
    return Draft(TokenTree.chain([1] * len(confidence)), confidence=list(confidence))


def allocate(drafts: list[Draft], **settings: object) -> list[Draft]:
    return Tetris(TetrisSettings(**settings)).allocate([None] * len(drafts), drafts)  # type: ignore[arg-type, list-item]


def test_no_other_lengths_are_expected_to_gain_more() -> None:
    rng = random.Random(5)
    for _ in range(100):
        rows = [[rng.random() for _ in range(4)] for _ in range(3)]
        lengths = [len(draft.tree) for draft in allocate([chain(*row) for row in rows], tokens=2)]

        def expected(lengths: Sequence[int], rows: list[list[float]] = rows) -> float:
            """Accepted tokens, if every token stands with its own chance after those above it."""
            return sum(torch.tensor(row[:n]).cumprod(0).sum().item() for row, n in zip(rows, lengths, strict=True) if n)

        best = max(expected(each) for each in itertools.product(range(5), repeat=3) if sum(each) == 6)
        assert sum(lengths) == 6
        assert expected(lengths) == pytest.approx(best, abs=1e-6)


def test_of_trees_it_keeps_the_best_closed_set() -> None:
    rng = random.Random(6)
    for _ in range(60):
        parents = [[-1] + [rng.randrange(-1, node) for node in range(1, 5)] for _ in range(2)]
        chances = [[rng.random() for _ in range(5)] for _ in range(2)]
        drafts = [
            Draft(TokenTree(range(5), shape), confidence=row) for shape, row in zip(parents, chances, strict=True)
        ]
        value = []
        for draft, row in zip(drafts, chances, strict=True):
            value += [torch.tensor([row[n] for n in draft.tree.path(node)]).prod().item() for node in range(5)]

        def closed(nodes: tuple[int, ...], parents: list[list[int]] = parents) -> bool:
            above = (parents[node // 5][node % 5] for node in nodes)
            return all(p == -1 or node - node % 5 + p in nodes for node, p in zip(nodes, above, strict=True))

        best = max(sum(value[n] for n in nodes) for nodes in itertools.combinations(range(10), 4) if closed(nodes))
        kept = allocate(drafts, tokens=2)
        assert sum(len(draft.tree) for draft in kept) == 4
        total = sum(value[5 * row + token] for row, draft in enumerate(kept) for token in draft.tree.token_list)
        assert total == pytest.approx(best, abs=1e-6)


def test_equal_values_keep_parents_and_the_capacity() -> None:
    kept = allocate([chain(1.0, 1.0, 1.0, 1.0), chain(1.0, 1.0, 1.0)], tokens=2)
    assert [len(draft.tree) for draft in kept] == [2, 2]
    assert [len(draft.tree) for draft in allocate([chain(0.9, 0.9, 0.9), chain(0.1, 0.9, 0.9)], tokens=2)] == [3, 1]
    assert [len(draft.tree) for draft in allocate([chain(1, 1, 1, 1), chain(0.1, 0.1)], tokens=2, floor=1)] == [3, 1]
    assert [len(draft.tree) for draft in allocate([chain(1, 1, 1, 1), chain(0.1, 0.1)], tokens=2)] == [4, 0]
    assert select([[0.5], []], 7) == [[0], []]


def test_drafts_without_probabilities_go_by_their_place() -> None:
    tree = TokenTree([1, 2, 3, 4, 5, 6], [-1, 0, 1, -1, 3, -1])
    first, second = allocate([Draft(tree), Draft(TokenTree.chain([7, 8, 9]))], tokens=3)
    # Four nodes at depth 0, then the first two of depth 1.
    assert (first.tree.token_list, second.tree.token_list) == ([1, 2, 4, 6], [7, 8])


def test_of_what_has_entered_the_target_leading_nodes_are_kept() -> None:
    hidden = torch.zeros(4, 2)
    draft = Draft(
        TokenTree([1, 2, 3, 4], [-1, -1, 0, 1]),
        confidence=[0.1, 0.9, 0.9, 0.9],
        entered=Entered(1, hidden[:1], hidden),
    )
    (kept,) = allocate([draft], tokens=2)
    assert kept.tree.token_list == [1, 2]
    assert kept.entered is not None
    assert len(kept.entered.hidden) == 2


class Itself(Drafter):
    """Draws chains or pairs of siblings from the target's own distributions."""

    def __init__(self, proposal: Proposal, depth: int = 3) -> None:
        super().__init__()
        self.proposal, self.depth = proposal, depth

    def bind(self, setup: Setup) -> None:
        self.model = setup.target

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        tokens: list[int] = []
        parents: list[int] = []
        rows: list[int] = []
        q = []
        level = [-1]
        for _ in range(min(self.depth, budget.depth or 0)):
            below = []
            for node in level:
                text = branch.tokens if node < 0 else branch.tokens + TokenTree(tokens, parents).path_tokens(node)
                p = torch.softmax(self.model.next_logits(text), dim=-1)  # type: ignore[attr-defined]
                several = self.proposal is not Proposal.SAMPLED
                for token in torch.multinomial(p, 1 + several, generator=branch.rng).tolist():
                    below.append(len(tokens))
                    tokens.append(token)
                    parents.append(node)
                    rows.append(len(q))
                q.append(p)
            level = below
        return Draft(TokenTree(tokens, parents), torch.stack(q), rows) if q else Draft.empty()


class Roomy(Tetris):
    """Leaves trees their size, so that there is something to choose from."""

    def budget(self, branch: Branch) -> Budget:
        return Budget()


def p_value(ranking: str, proposal: Proposal, tokens: int) -> float:
    sampler = Softmax()
    made = compose(
        TARGET, [Itself(proposal), Roomy(TetrisSettings(tokens=tokens, extra=2, ranking=ranking))], sampler=sampler
    )
    assert made.lossless == (ranking == "exact")
    return fit(continuations(made, [1, 2], 1500, 3, seed=2), sampler.exact(TARGET, [1, 2], 3))


@pytest.mark.parametrize(
    ("proposal", "tokens"), [(Proposal.SAMPLED, 1), (Proposal.WITHOUT_REPLACEMENT, 2)], ids=["chain", "tree"]
)
def test_the_exact_ranking_keeps_the_distribution_and_the_published_one_does_not(
    proposal: Proposal, tokens: int
) -> None:
    """The draft model is the target itself, where a drafted token that is dropped for being improbable shows most."""
    assert p_value("exact", proposal, tokens) > 3e-4
    assert p_value("published", proposal, tokens) < 1e-6


def test_every_kind_of_draft_keeps_the_distribution() -> None:
    sampler = Softmax()
    for proposal in (Proposal.POINT, Proposal.WITH_REPLACEMENT, Proposal.WITHOUT_REPLACEMENT):
        drafter = RandomDrafts(proposal, 4, seed=3)
        made = compose(TARGET, [drafter, Roomy(TetrisSettings(tokens=2))], sampler=sampler)
        tokens = continuations(made, [1, 2], 1000, 3, seed=4)
        assert fit(tokens, sampler.exact(TARGET, [1, 2], 3)) > 3e-4, proposal


def test_the_published_ranking_is_lossless_where_nothing_is_drawn() -> None:
    assert compose(TARGET, ["tetris"], settings={"ranking": "published"}).lossless
    assert not compose(TARGET, ["tetris"], settings={"ranking": "published"}, sampler=Softmax()).lossless
    assert Tetris.card.lossless


@pytest.mark.parametrize("extra", [1, 3])
def test_a_batch_fills_its_capacity_and_says_what_single_runs_say(extra: int) -> None:
    lm, draft = backend("llama"), backend("llama", noise=0.15)
    asked = prompts(4)
    plain = {}
    for index, prompt in enumerate(asked):
        (done,) = [e for e in compose(lm).decode([prompt], stop=Stop(24)) if isinstance(e, Finished)]
        plain[index] = done.tokens
    made = compose(lm, "draft-model+tetris", settings={"tetris.tokens": 2, "extra": extra}, models={"draft": draft})
    events = list(made.decode(asked, stop=Stop(24)))
    assert {e.index: e.tokens for e in events if isinstance(e, Finished)} == plain
    lengths = set()
    said = dict.fromkeys(range(4), 0)
    for _, group in itertools.groupby((e for e in events if isinstance(e, Stepped)), key=lambda e: e.step):
        steps = list(group)
        # Near the end a draft has less room than it may take.
        if all(24 - said[e.index] - 1 >= 2 + extra for e in steps):
            assert sum(len(e.draft) for e in steps) == 2 * len(steps)
            lengths.update(len(e.draft) for e in steps)
        for e in steps:
            said[e.index] += len(e.tokens)
    assert len(lengths) > 2, "all drafts were of one length: nothing was chosen"
