"""A draft model: what it proposes, and that its caches follow the text without reading anything twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from tests.contracts.exact import Softmax
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.events import Finished, Scored, Stepped
from unspool.core.model import Capability
from unspool.core.scores import LOGITS, Request, Scores, Want
from unspool.core.sockets import Budget, Draft, Move, Proposal, Search
from unspool.core.texts import Stop
from unspool.core.tree import ROOT
from unspool.speculation.drafting._draws import draw_siblings
from unspool.speculation.drafting.draft_model import DraftModel, DraftModelSettings

TARGET = TableModel(6, seed=1, scale=1.5)


class Counting(TableModel):
    """Counts what it computes, and what is held of it."""

    computed = 0
    made = 0
    released = 0

    def new_caches(self, count: int) -> list[Any]:
        self.made += count
        return super().new_caches(count)

    def score(
        self, requests: Sequence[Request], want: Want = LOGITS, layers: Sequence[int] | None = None
    ) -> list[Scores]:
        assert len({id(request.cache) for request in requests}) == len(requests)
        self.computed += sum(len(request.tree) - request.known for request in requests)
        return super().score(requests, want, layers)


def made(draft: TableModel, sampler: Any = None, **settings: Any) -> tuple[DraftModel, Composition]:
    composition = compose(TARGET, "draft-model", settings=settings, sampler=sampler, models={"draft": draft})
    assert isinstance(composition.drafter, DraftModel)
    return composition.drafter, composition


def run(composition: Composition, prompts: list[list[int]], length: int = 40, seed: int = 0) -> list[Any]:
    return list(composition.decode(prompts, stop=Stop(max_new_tokens=length), seed=seed))


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])


def one(drafter: DraftModel, tokens: list[int], budget: Budget | None = None) -> Draft:
    return drafter.propose([branch(tokens)], [budget or Budget()])[0]


# -- what is proposed ---------------------------------------------------------------------------------------------


def test_greedy_chain_is_the_draft_models_own_text() -> None:
    model = TableModel(6, seed=2)
    drafter, _ = made(model, tokens=4)
    draft = one(drafter, [1, 2, 3])
    text = [1, 2, 3]
    for _ in range(4):
        text.append(int(model.next_logits(text).argmax()))
    assert draft.tree.is_chain
    assert draft.tree.token_list == text[3:]
    assert draft.q is None


def test_greedy_tree_holds_the_most_probable_tokens() -> None:
    model = TableModel(6, seed=2)
    drafter, _ = made(model, tokens=3, branching=(3, 2))
    tree = one(drafter, [1, 2]).tree
    assert [len(tree.children(node)) for node in (ROOT, *tree.children())] == [3, 2, 2, 2]
    assert tree.depth == 3
    assert len(tree) == 3 + 6 + 6
    for node in range(-1, len(tree)):
        children = tree.children(node)
        best = model.next_logits([1, 2, *tree.path_tokens(node)]).topk(6).indices.tolist()
        assert [tree.token_list[child] for child in children] == best[: len(children)]


@pytest.mark.parametrize(
    ("settings", "proposal"),
    [
        ({}, Proposal.SAMPLED),
        ({"branching": (1, 1)}, Proposal.SAMPLED),
        ({"branching": (2,)}, Proposal.WITHOUT_REPLACEMENT),
        ({"branching": (1, 2), "replacement": True}, Proposal.WITH_REPLACEMENT),
    ],
)
def test_sampled_drafts_say_what_they_were_drawn_from(settings: dict[str, Any], proposal: Proposal) -> None:
    model = TableModel(6, seed=2)
    drafter, composition = made(model, Softmax(), **settings)
    assert drafter.proposal is proposal
    assert composition.verifier is not None
    assert proposal in composition.verifier.default_for
    draft = one(drafter, [1, 2])
    assert draft.q is not None
    for node, row in enumerate(draft.q_rows):
        above = draft.tree.parent_list[node]
        expected = torch.softmax(model.next_logits([1, 2, *draft.tree.path_tokens(above)]), dim=-1)
        assert torch.allclose(draft.q[row].double(), expected)
        siblings = draft.tree.children(above)
        assert {draft.q_rows[sibling] for sibling in siblings} == {row}
        if not drafter.settings.replacement:
            assert len({draft.tree.token_list[sibling] for sibling in siblings}) == len(siblings)


def test_duplicates_stay_but_nothing_follows_them() -> None:
    model = TableModel(6, seed=2, scale=4.0)
    drafter, _ = made(model, Softmax(), tokens=3, branching=(4, 2), replacement=True)
    found = 0
    for first in range(6):
        tree = one(drafter, [first, 1]).tree
        tops = tree.children()
        tokens = [tree.token_list[node] for node in tops]
        assert len(tops) == 4
        for place, node in enumerate(tops):
            elder = tokens[place] in tokens[:place]
            found += elder
            assert len(tree.children(node)) == (0 if elder else 2)
    assert found > 0


def test_budgets_are_kept_before_anything_is_drawn() -> None:
    model = Counting(6, seed=2)
    drafter, _ = made(model, tokens=4, branching=(3, 2))
    assert len(one(drafter, [1, 2], Budget(nodes=5)).tree) == 5
    assert one(drafter, [1, 2], Budget(depth=2)).tree.depth == 2
    before = model.forwards
    assert not one(drafter, [1, 2], Budget(depth=0)).tree
    assert model.forwards == before


def test_no_more_children_than_tokens() -> None:
    drafter, _ = made(TableModel(6, seed=2), tokens=1, branching=(9,))
    assert len(one(drafter, [1]).tree) == 6
    drafter, _ = made(TableModel(6, seed=2), Softmax(top=2), tokens=1, branching=(9,))
    assert len(one(drafter, [1]).tree) == 2


@pytest.mark.parametrize("q", [[0.5, 0.3, 0.2, 0.0], [0.01, 0.01, 0.97, 0.01]])
def test_drawing_without_replacement_is_drawing_one_after_another(q: list[float]) -> None:
    probs = torch.tensor(q)
    rng = torch.Generator().manual_seed(0)
    count = 20_000
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(count):
        drawn = tuple(draw_siblings(probs, 2, rng, replacement=False))
        seen[drawn] = seen.get(drawn, 0) + 1
    expected = {
        (a, b): count * q[a] * q[b] / (1 - q[a]) for a in range(4) for b in range(4) if a != b and q[a] * q[b] > 0
    }
    assert seen.keys() <= expected.keys()
    statistic = sum((seen.get(pair, 0) - e) ** 2 / e for pair, e in expected.items())
    assert min(expected.values()) >= 1
    assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-4


# -- the caches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"branching": (3, 2), "tokens": 3}], ids=["chain", "tree"])
@pytest.mark.parametrize("sampler", [None, Softmax()], ids=["greedy", "sampled"])
def test_nothing_is_read_twice(settings: dict[str, Any], sampler: Any) -> None:
    draft = Counting(6, seed=2, scale=1.5, mix=TARGET, blend=0.8)
    _, composition = made(draft, sampler, **settings)
    prompt = [1, 2, 3, 4] * 175
    events = run(composition, [prompt], length=60)
    steps = [event for event in events if isinstance(event, Stepped)]
    tree = len(steps[0].draft)
    assert draft.made == 1
    # Each token of the text enters once as text; each level but the last of a draft enters to grow the next one.
    assert draft.computed <= len(prompt) + 60 + len(steps) * tree
    assert sum(event.draft_forwards for event in events if isinstance(event, Scored)) == draft.forwards
    # A prompt of 700 tokens is read in three pieces, the last of which gives the first draft.
    depth = composition.drafter.settings.tokens  # type: ignore[union-attr]
    assert draft.forwards <= 2 + depth * len(steps)


def test_a_batch_is_drafted_together() -> None:
    draft = Counting(6, seed=2, scale=1.5, mix=TARGET, blend=0.8)
    _, composition = made(draft, tokens=4)
    prompts = [[1], [2, 3], [4] * 300, [5, 1, 2]]
    events = run(composition, prompts, length=30)
    rounds = sum(isinstance(event, Scored) for event in events)
    assert draft.forwards <= 1 + 4 * rounds
    alone = [run(compose(TARGET), [prompt], length=30)[-1].tokens for prompt in prompts]
    together = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    assert [together[i] for i in range(4)] == alone


class Watched(DraftModel):
    """Checks after every proposal that the draft model holds a prefix of the text and nothing else."""

    checked = 0

    def propose(self, branches: Any, budgets: Any) -> list[Draft]:
        drafts = super().propose(branches, budgets)
        for one_branch in branches:
            memory = self._memories[id(one_branch)]
            cache = memory.cache
            assert isinstance(cache, TableCache)
            assert memory.held == cache.tokens == one_branch.tokens[: len(cache.tokens)]
            self.checked += 1
        return drafts


class Wandering(Search):
    """Forks, drops and rewinds branches at random."""

    lockstep = False
    width = 3

    def begin(self, request: int, rng: torch.Generator) -> None:
        self.rng = rng
        self.rounds = 0

    def advance(self, branches: Any) -> list[Move] | None:
        self.rounds += 1
        if self.rounds > 30 or any(branch.finished for branch in branches):
            return None
        moves = []
        for _ in range(3):
            source = int(torch.randint(len(branches), (), generator=self.rng))
            length = len(branches[source].generated)
            keep = int(torch.randint(length + 1, (), generator=self.rng)) if self.rounds % 3 == 0 else None
            moves.append(Move(source, keep))
        return moves

    def select(self, branches: Any) -> int:
        return 0


@pytest.mark.parametrize("branching", [(), (2, 2)], ids=["chain", "tree"])
def test_caches_follow_branches_that_fork_and_rewind(branching: tuple[int, ...]) -> None:
    draft = Counting(6, seed=2, scale=1.5, mix=TARGET, blend=0.8)
    drafter = Watched(DraftModelSettings(tokens=3, branching=branching))
    composition = compose(TARGET, [drafter, Wandering()], sampler=Softmax(), models={"draft": draft})
    prompt = [1, 2, 3] * 50
    for seed in range(3):
        run(composition, [prompt, [4, 5]], length=60, seed=seed)
    assert drafter.checked > 100
    assert not drafter._memories
    # Twins start from their relatives: prompts are read once a run, not once a branch.
    assert draft.made == 6


def test_caches_are_released() -> None:
    drafter, composition = made(TableModel(6, seed=2))
    events = composition.decode([[1, 2], [3]], stop=Stop(max_new_tokens=50))
    for event in events:
        if isinstance(event, Stepped):
            break
    assert len(drafter._memories) == 2
    events.close()  # type: ignore[attr-defined]
    assert not drafter._memories


def test_a_short_context_of_the_draft_model_ends_drafting_only() -> None:
    draft = TableModel(6, seed=2, context_length=20, mix=TARGET, blend=0.8)
    _, composition = made(draft, tokens=4)
    events = run(composition, [[1, 2, 3]], length=40)
    assert events[-1].tokens == run(compose(TARGET), [[1, 2, 3]], length=40)[-1].tokens
    drafts = [event.draft for event in events if isinstance(event, Stepped)]
    assert drafts[0]
    assert not drafts[-2]


# -- what is refused ----------------------------------------------------------------------------------------------


class Chains(TableModel):
    capabilities = frozenset()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.capabilities = frozenset()


def test_models_that_score_only_chains_get_chains() -> None:
    model = Chains(6, seed=2)
    composition = compose(Chains(6, seed=1), "draft-model", models={"draft": model})
    assert isinstance(run(composition, [[1, 2]])[-1], Finished)
    for target, draft in ((TARGET, model), (model, TARGET)):
        with pytest.raises(Incompatible, match="branching"):
            compose(target, "draft-model", settings={"branching": (2,)}, models={"draft": draft})


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(Incompatible, match="7 tokens and table-6-1 has 6"):
        made(TableModel(7))


def test_another_tokenizer_is_refused() -> None:
    class Words:
        def __init__(self, shift: int) -> None:
            self.shift = shift

        def encode(self, text: str) -> list[int]:
            return [(ord(c) + self.shift) % 6 for c in text]

        def decode(self, ids: Sequence[int]) -> str:
            return ""

    one_model, other = TableModel(6), TableModel(6)
    one_model.tokenizer, other.tokenizer = Words(0), Words(1)
    with pytest.raises(Incompatible, match="tokenize differently"):
        compose(one_model, "draft-model", models={"draft": other})


def test_a_model_with_an_encoder_needs_another() -> None:
    reader = TableModel(6)
    reader.capabilities |= {Capability.ENCODER}
    with pytest.raises(Incompatible, match="has an encoder"):
        compose(TARGET, "draft-model", models={"draft": reader})


def test_the_draft_model_is_loaded_by_name() -> None:
    names = []

    def load(name: str) -> TableModel:
        names.append(name)
        return TableModel(6, seed=2)

    compose(TARGET, "draft-model", settings={"model": "small"}, load=load)
    assert names == ["small"]
    with pytest.raises(Incompatible, match="needs a draft model"):
        compose(TARGET, "draft-model")


def test_more_levels_than_tokens_are_refused() -> None:
    with pytest.raises(InvalidInput, match="fewer levels or more tokens"):
        made(TableModel(6), tokens=1, branching=(2, 2))
    with pytest.raises(InvalidInput, match="branching"):
        made(TableModel(6), branching=(0,))
