"""Improved MCSD: the fork and its slices, when a draft stops, the lossless and the relaxed mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.contracts.exact import FastTable, Softmax, continuations, fit
from tests.models.shapes import backend, prompts
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible, WeightsError
from unspool.core.events import Finished, Stepped
from unspool.core.scores import Want
from unspool.core.sockets import Budget, Constraint, Draft, Proposal
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting._decision import DecisionModel, q_features
from unspool.speculation.drafting.improved_mcsd import ImprovedMCSD, fork, sliced_fork
from unspool.speculation.verification.longest_branch import LongestBranch
from unspool.speculation.verification.recursive_rejection import RecursiveRejection

TARGET = FastTable(7, seed=1, scale=1.5)
DRAFT = FastTable(7, seed=2, scale=1.5, mix=TARGET, blend=0.7)
SHARP = FastTable(7, seed=3, scale=3.0)
PROMPT = [1, 3, 0, 2]


def made(
    sampler: Any = None, extra: Any = (), draft: Any = DRAFT, target: Any = TARGET, **settings: Any
) -> Composition:
    return compose(target, ["improved-mcsd", *extra], settings=settings, sampler=sampler, models={"draft": draft})


def drafter(composition: Composition) -> ImprovedMCSD:
    assert isinstance(composition.drafter, ImprovedMCSD)
    return composition.drafter


def one(composition: Composition, tokens: list[int], budget: Budget | None = None) -> Draft:
    branch = Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])
    return drafter(composition).propose([branch], [budget or Budget()])[0]


def texts(composition: Composition, asked: list[list[int]], length: int = 40) -> list[tuple[int, ...]]:
    found = {e.index: e.tokens for e in composition.decode(asked, stop=Stop(length)) if isinstance(e, Finished)}
    return [found[index] for index in range(len(asked))]


def thresholded(place: int, least: float) -> DecisionModel:
    """Says 1 where a feature is above a number, else 0."""
    weight = torch.zeros(1, 11)
    weight[0, place] = 1e4
    return DecisionModel("q", [(weight, torch.tensor([-1e4 * least]))])


# -- the fork -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 4])
def test_a_slice_of_the_mask_is_the_mask_made_anew(width: int) -> None:
    deepest = 6
    for depth in range(1, deepest + 1):
        sliced = sliced_fork(width, depth, deepest)
        assert len(sliced) == width * depth
        anew = TokenTree.from_paths([[100 * j + d for d in range(depth)] for j in range(width)])
        place = {token: node for node, token in enumerate(anew.token_list)}
        order = [place[100 * (node % width) + node // width] for node in range(len(sliced))]
        assert torch.equal(sliced.mask, anew.mask[order][:, order])
        assert sliced.depths == [node // width for node in range(len(sliced))]
        assert sliced.depth == depth
        assert [sliced.path(node) for node in range(len(sliced))] == [
            list(range(node % width, node + 1, width)) for node in range(len(sliced))
        ]
        assert sliced.children() == list(range(width))
        # A view of the deepest fork's, not a copy.
        assert sliced.mask.data_ptr() == fork(width, deepest).mask.data_ptr()


def test_the_leading_nodes_of_any_tree() -> None:
    tree = TokenTree([5, 6, 7, 8, 9], [ROOT, 0, 0, 2, 1])
    for count in range(6):
        cut = tree.leading(count)
        assert cut == tree.select(range(count))
        assert torch.equal(cut.mask, tree.select(range(count)).mask)


@pytest.mark.parametrize("sampler", [None, Softmax()], ids=["greedy", "sampled"])
def test_a_draft_is_a_fork_of_the_draft_model(sampler: Any) -> None:
    composition = made(sampler, width=3, depth=4)
    assert drafter(composition).proposal is Proposal.WITHOUT_REPLACEMENT
    assert isinstance(composition.verifier, RecursiveRejection)
    for start in range(7):
        draft = one(composition, [start, 1])
        assert draft.tree.parent_list == fork(3, 4).parent_list
        roots = draft.tree.token_list[:3]
        assert len(set(roots)) == 3
        for node in range(12):
            above = draft.tree.parent_list[node]
            probs = torch.softmax(DRAFT.next_logits([start, 1, *draft.tree.path_tokens(above)]), -1)
            token = draft.tree.token_list[node]
            assert draft.confidence[node] == pytest.approx(float(probs[token]), abs=1e-6)
            if sampler is None:
                assert token in probs.topk(3 if node < 3 else 1).indices.tolist()
            else:
                assert draft.q is not None
                assert torch.allclose(draft.q[draft.q_rows[node]].double(), probs)
        if sampler is None:
            assert roots == torch.softmax(DRAFT.next_logits([start, 1]), -1).topk(3).indices.tolist()


def test_budgets_make_narrower_and_shorter_forks() -> None:
    composition = made(width=3, depth=4)
    assert len(one(composition, PROMPT, Budget(nodes=7)).tree) == 6
    assert one(composition, PROMPT, Budget(nodes=2)).tree.parent_list == [ROOT, ROOT]
    assert one(composition, PROMPT, Budget(depth=2)).tree.depth == 2
    few = made(Softmax(top=2), width=3, depth=3)
    assert one(few, PROMPT).tree.parent_list == fork(2, 3).parent_list


# -- when a draft stops -------------------------------------------------------------------------------------------


def test_features_of_a_distribution() -> None:
    logits = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
    probs = torch.softmax(logits, -1)
    features = q_features(logits)
    assert features.shape == (3, 11)
    assert torch.allclose(features[:, 0], torch.distributions.Categorical(probs).entropy(), atol=1e-5)
    assert torch.allclose(features[:, 1:], probs.sort(descending=True).values[:, :10])
    few = q_features(torch.tensor([[0.0, -torch.inf, 0.0]]))
    assert torch.allclose(few[0, :4], torch.tensor([0.6931, 0.5, 0.5, 0.0]), atol=1e-4)


def test_a_draft_goes_on_while_some_branch_is_likely_enough() -> None:
    depths = {depth for least in (0.0, 0.5, 0.6, 0.7, 1.0) for depth in _depths(least)}
    assert len(depths) > 2
    assert _depths(0.0) == {6}
    assert _depths(1.0) == {1}


def _depths(least: float) -> set[int]:
    """Depths of drafts, each compared with what a draft is by hand."""
    composition = made(width=2, depth=6, draft=SHARP)
    part = drafter(composition)
    part.decision, part.reads = thresholded(1, least), "q"
    depths = set()
    for start in range(7):
        tree = one(composition, [start, 2]).tree
        # By hand: the largest probability where each branch's newest token was drawn.
        fronts, depth = [[start, 2]], 0
        while depth < 6:
            laws = [torch.softmax(SHARP.next_logits(text), -1) for text in fronts]
            sure = max(float(law.max()) for law in laws)
            if depth == 0:
                fronts = [[start, 2, token] for token in laws[0].topk(2).indices.tolist()]
            else:
                fronts = [[*text, int(law.argmax())] for text, law in zip(fronts, laws, strict=True)]
            depth += 1
            if sure <= least:
                break
        assert tree.depth == depth
        depths.add(depth)
    return depths


def test_a_decision_model_is_saved_and_loaded(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    layers = [(torch.randn(5, 32, generator=rng), torch.randn(5, generator=rng)), (torch.randn(1, 5), torch.randn(1))]
    model = DecisionModel("hidden", layers)
    model.save(tmp_path / "d.safetensors")
    loaded = DecisionModel.load(tmp_path / "d.safetensors")
    assert (loaded.reads, loaded.width) == ("hidden", 32)
    read = torch.randn(9, 32, generator=rng)
    by_hand = torch.sigmoid(torch.relu(read @ layers[0][0].T + layers[0][1]) @ layers[1][0].T + layers[1][1])[:, 0]
    assert torch.allclose(loaded(read), by_hand)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, words in (("other", "something else"), ("missing", "holds no decision model")):
        with pytest.raises(WeightsError, match=words):
            DecisionModel.load(tmp_path / f"{name}.safetensors")


def test_hidden_states_are_those_that_the_tokens_were_drawn_from(tmp_path: Path) -> None:
    target, draft = backend("llama"), backend("llama", noise=0.2)
    asked = prompts(3)
    seen: list[torch.Tensor] = []

    class Watching(DecisionModel):
        def __call__(self, features: torch.Tensor) -> torch.Tensor:
            seen.append(features)
            # Stops where a number of the state says so, which depends on the place.
            return (features[:, 0] > 0).float()

    composition = compose(target, "improved-mcsd", settings={"width": 2, "depth": 4}, models={"draft": draft})
    part = drafter(composition)
    part.decision = Watching("hidden", [(torch.zeros(1, 32), torch.zeros(1))])
    events = list(composition.decode(asked, stop=Stop(12)))
    assert [e.tokens for e in events if isinstance(e, Finished)] == texts(compose(target), asked, 12)
    shallow = [e.draft.depth for e in events if isinstance(e, Stepped) and e.draft]
    assert len(set(shallow)) > 1

    seen.clear()
    text = asked[0]
    branch = Branch(0, 0, list(text), target.new_cache(), 0, torch.device("cpu"), [])
    part.propose([branch], [Budget()])
    cache = draft.new_cache()
    states = draft.prefill(cache, text)[-1]
    assert states.rows[-1] == len(text) - 1

    cache.rewind(0)
    hidden = draft.prefill(cache, text, want=Want(frozenset({-1})))[-1].hidden[-1][-1]
    assert torch.allclose(seen[0], hidden.expand(2, -1))

    DecisionModel("hidden", [(torch.zeros(1, 31), torch.zeros(1))]).save(tmp_path / "d.safetensors")
    settings = {"decision": str(tmp_path / "d.safetensors")}
    with pytest.raises(Incompatible, match="reads 31 numbers"):
        compose(target, "improved-mcsd", settings=settings, models={"draft": draft})
    with pytest.raises(Incompatible, match="hidden states"):
        compose(TARGET, "improved-mcsd", settings=settings, models={"draft": DRAFT})


@pytest.mark.parametrize("sampler", [None, Softmax()], ids=["greedy", "sampled"])
def test_what_is_recorded_for_training(sampler: Any) -> None:
    composition = made(sampler, width=2, depth=3)
    part = drafter(composition)
    part.recorded, part.reads = [], "q"
    steps = [e for e in composition.decode([PROMPT], stop=Stop(20)) if isinstance(e, Stepped)]
    assert len(part.recorded) == sum(len(step.draft) for step in steps)
    text, at = list(PROMPT), 0
    for step in steps:
        for node in range(len(step.draft)):
            above = [*text, *step.draft.path_tokens(step.draft.parent_list[node])]
            q, p = (torch.softmax(model.next_logits(above), -1) for model in (DRAFT, TARGET))
            read, label = part.recorded[at]
            assert torch.allclose(read, q_features(DRAFT.next_logits(above)[None])[0], atol=1e-6)
            token = step.draft.token_list[node]
            wanted = float(int(p.argmax()) == token) if sampler is None else min(1.0, float(p[token] / q[token]))
            assert label == pytest.approx(wanted, abs=1e-5)
            at += 1
        text += step.tokens


# -- lossless -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [None, 0.4])
def test_the_lossless_mode_keeps_the_distribution(least: float | None) -> None:
    sampler = Softmax()
    composition = made(sampler, width=3, depth=3)
    if least is not None:
        drafter(composition).decision, drafter(composition).reads = thresholded(1, least), "q"
    tokens = continuations(composition, PROMPT, 900, 2, seed=5)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, 2)) > 1e-3


# -- relaxed ------------------------------------------------------------------------------------------------------


def relaxed_by_hand(prompt: list[int], length: int, width: int, depth: int) -> list[int]:
    """The published method at temperature 0, written down once more."""
    text = [*prompt, int(TARGET.next_logits(prompt).argmax())]
    while len(text) - len(prompt) < length:
        best: list[int] = []
        for root in TARGET.next_logits(text).topk(width).indices.tolist():
            run, drafted, standing = [root], [*text, root], True
            for _ in range(depth - 1):
                token = int(DRAFT.next_logits(drafted).argmax())
                standing = standing and token == int(TARGET.next_logits(drafted).argmax())
                drafted.append(token)
                if standing:
                    run.append(token)
            if len(run) > len(best):
                best = run
        text += best
    return text[len(prompt) : len(prompt) + length]


@pytest.mark.parametrize(("width", "depth"), [(1, 3), (3, 4), (4, 1)])
def test_the_relaxed_mode_keeps_the_longest_branch(width: int, depth: int) -> None:
    composition = made(mode="relaxed", width=width, depth=depth)
    assert isinstance(composition.verifier, LongestBranch)
    assert not composition.lossless
    asked = [PROMPT, [0], [6, 5, 4]]
    expected = [relaxed_by_hand(prompt, 40, width, depth) for prompt in asked]
    assert [list(text) for text in texts(composition, asked)] == expected
    plain = texts(compose(TARGET), asked)
    # One branch of the target's own choices is plain decoding; several are not.
    assert (plain == [tuple(text) for text in expected]) == (width == 1 or depth == 1)


def test_the_relaxed_mode_asks_for_no_further_passes() -> None:
    composition = made(mode="relaxed", width=3, depth=4)
    before = TARGET.forwards
    steps = [e for e in composition.decode([PROMPT], stop=Stop(40)) if isinstance(e, Stepped)]
    # One more than rounds with a draft: at first the target is asked for its token, then for what follows.
    assert TARGET.forwards - before == len(steps)
    assert [len(step.tokens) for step in steps[:2]] == [0, 1]
    assert all(len(step.draft) % 3 == 0 for step in steps[2:])
    assert all(step.tokens for step in steps[1:])


def test_the_relaxed_mode_fails_the_test_of_the_distribution() -> None:
    sampler = Softmax()
    composition = made(sampler, mode="relaxed", width=3, depth=3)
    # There must be room for branches when the second token is chosen.
    tokens = continuations(composition, PROMPT, 900, 5, seed=6)
    assert fit(tokens[:, :2], sampler.exact(TARGET, PROMPT, 2)) < 1e-3


def test_exact_verifiers_make_the_relaxed_branches_lossless() -> None:
    asked = [PROMPT, [0]]
    composition = made(mode="relaxed", extra=["target-match"], width=3, depth=3)
    assert texts(composition, asked) == texts(compose(TARGET), asked)


def test_other_drafts_are_refused_by_the_longest_branch() -> None:
    with pytest.raises(Incompatible, match="on which it would be wrong"):
        made(extra=["longest-branch"])


def test_forbidden_roots_do_not_stand() -> None:
    class NoFives(Constraint):
        def allowed(self, branch: Branch, tokens: list[int]) -> torch.Tensor | None:
            return torch.arange(7) != 5

    composition = made(mode="relaxed", extra=[NoFives()], width=7, depth=2)
    for text in texts(composition, [PROMPT, [0], [6, 5, 4]], 60):
        assert len(text) == 60
        assert 5 not in text


def test_when_nobody_drafts_the_targets_choices_go_on() -> None:
    short = TableModel(7, seed=2, context_length=12)
    composition = made(mode="relaxed", width=3, depth=4, draft=short)
    (text,) = texts(composition, [PROMPT], 40)
    assert len(text) == 40
    context = [*PROMPT, *text]
    for at in range(20, len(context)):
        assert context[at] == int(TARGET.next_logits(context[:at]).argmax())


def test_models_that_score_only_chains_get_one_branch() -> None:
    chains = FastTable(7, seed=1)
    chains.capabilities = frozenset()
    for target, draft in ((chains, DRAFT), (TARGET, chains)):
        composition = made(target=target, draft=draft)
        assert one(composition, PROMPT).tree.is_chain
        assert texts(composition, [PROMPT]) == texts(compose(target), [PROMPT])
