"""What each rule accepts, on trees small enough to follow by hand. Exactness is held in tests/contracts."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.exact import Given, emitted, outcomes, walk
from tests.toys import TableModel

from unspool.core.cards import Kind
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import Incompatible, InvalidInput
from unspool.core.registry import registry
from unspool.core.sockets import Constraint, Distribution, Node, Proposal, Sampler, Verifier
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting.prompt_lookup import PromptLookup
from unspool.speculation.verification._rejection import residual, try_siblings
from unspool.speculation.verification.relaxed_top_k import RelaxedTopK, RelaxedTopKSettings

TREE = TokenTree([1, 2, 3, 0, 4], [ROOT, ROOT, 0, 0, 2])
"""1 -> (3 -> 4, 0), and 2, below the root."""


def verifier(slug: str) -> Verifier:
    made: Verifier = registry[slug].cls()
    return made


def argmax_at(*tokens: int) -> torch.Tensor:
    """``[N + 1, 5]`` distributions; the token given for each place is the most probable."""
    p = torch.full((len(tokens), 5), 0.05, dtype=torch.float64)
    for row, token in enumerate(tokens):
        p[row, token] = 0.8
    return p


@pytest.mark.parametrize("slug", ["greedy-match", "target-match", "speculative-sampling", "recursive-rejection",
                                  "multi-step-sampling", "relaxed-top-k"])  # fmt: skip
def test_fixed_candidates_are_followed_as_far_as_the_target_goes(slug: str) -> None:
    # After the root 1, after 1 comes 3, after 3 comes 4, after 4 comes 0.
    p = argmax_at(1, 3, 0, 4, 2, 0)
    made = walk(TREE, p, None, [], sampler=Greedy())
    verdict = verifier(slug).verify(made)
    assert (verdict.path, verdict.token) == ([0, 2, 4], 0)


@pytest.mark.parametrize("slug", ["greedy-match", "target-match", "recursive-rejection"])
def test_nothing_stands_if_the_target_wants_something_else(slug: str) -> None:
    verdict = verifier(slug).verify(walk(TREE, argmax_at(4, 3, 0, 4, 2, 0), None, [], sampler=Greedy()))
    assert (verdict.path, verdict.token) == ([], 4)


@pytest.mark.parametrize("slug", ["target-match", "recursive-rejection", "multi-step-sampling", "speculative-sampling"])
def test_an_empty_draft_is_plain_decoding(slug: str) -> None:
    p = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]], dtype=torch.float64)
    empty = TokenTree.empty()
    found = outcomes(lambda: emitted(empty, verifier(slug).verify(walk(empty, p, None, []))))
    assert found == pytest.approx({(0,): 0.1, (1,): 0.2, (2,): 0.3, (3,): 0.4})


def test_a_chain_that_agrees_with_the_target_stands_whole() -> None:
    chain = TokenTree.chain([2, 4])
    p = torch.tensor([[0.2, 0.2, 0.3, 0.2, 0.1], [0.0, 0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0, 0]], dtype=torch.float64)
    made = walk(chain, p, p[:2].clone(), [0, 1])
    assert outcomes(lambda: emitted(chain, verifier("speculative-sampling").verify(made))) == {(2, 4, 0): 1.0}


def test_acceptance_and_residual_of_a_chain() -> None:
    chain = TokenTree.chain([0])
    p = torch.tensor([[0.2, 0.5, 0.3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[0.8, 0.1, 0.1]], dtype=torch.float64)
    found = outcomes(lambda: emitted(chain, verifier("speculative-sampling").verify(walk(chain, p, q, [0]))))
    # 0 stands in a quarter of the cases; else the residual (0, 0.4, 0.2) / 0.6.
    assert found == pytest.approx({(0, 2): 0.25, (1,): 0.75 * 2 / 3, (2,): 0.75 / 3})


def test_refused_siblings_leave_the_draft_distribution() -> None:
    p = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    q = torch.tensor([0.5, 0.4, 0.1], dtype=torch.float64)
    rng = torch.Generator()
    # After 0 is refused p is (0, 0.2, 0.8) and q (0, 0.8, 0.2): 1 stands with 1/4, and the residual is all on 2.
    seen = outcomes(lambda: str(try_siblings(p, q, [0, 1], rng, replacement=False)[0]))
    assert seen == pytest.approx({"1": 0.25, "None": 0.75})
    seen = outcomes(lambda: str(try_siblings(p, q, [0, 1], rng, replacement=True)[0]))
    assert seen == pytest.approx({"1": 0.5, "None": 0.5})


def test_residual_of_equal_distributions_is_the_distribution() -> None:
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.equal(residual(p, p), p)


def test_a_candidate_that_cannot_have_been_drawn_is_a_fault() -> None:
    p = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    q = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="draft token 1 has no probability"):
        try_siblings(p, q, [1], torch.Generator(), replacement=True)
    with pytest.raises(ValueError, match="draft token 0 has no probability"):
        try_siblings(
            torch.tensor([0.0, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.0]), [0, 0], torch.Generator(), replacement=False
        )


def test_a_point_is_emitted_whatever_was_drawn() -> None:
    """Samplers that draw at random elsewhere may be certain here; then p is one-hot."""
    tree = TokenTree([0, 2], [ROOT, ROOT])
    q = torch.tensor([[0.4, 0.3, 0.3]], dtype=torch.float64)

    class Certain(Sampler):
        def distribution(self, node: Node) -> Distribution:
            return Distribution.point(2)

    p = torch.full((3, 3), 1 / 3, dtype=torch.float64)
    for slug in ("recursive-rejection", "multi-step-sampling"):
        made = walk(tree, p, q, [0, 0], sampler=Certain())
        found = outcomes(lambda slug=slug, made=made: emitted(tree, verifier(slug).verify(made))[0])
        assert found == pytest.approx({2: 1.0})


# -- relaxed ------------------------------------------------------------------------------------------------------

NEAR = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04]] * 2, dtype=torch.float64)


@pytest.mark.parametrize(
    ("token", "beta", "tau", "stands"),
    [
        (0, 1, 0.0, True),
        (1, 1, 9.0, False),
        (1, 2, 0.1, False),  # ln(4/3) is 0.29
        (1, 2, 0.3, True),
        (2, 2, 9.0, False),
        (2, 3, 0.5, False),  # ln 2 is 0.69
        (2, 3, 0.7, True),
        (4, 5, 2.2, False),  # ln 10 is 2.30
        (4, 5, 2.4, True),
    ],
)
def test_relaxed_thresholds(token: int, beta: int, tau: float, stands: bool) -> None:
    rule = RelaxedTopK(RelaxedTopKSettings(beta=beta, tau=tau))
    chain = TokenTree.chain([token])
    verdict = rule.verify(walk(chain, NEAR, None, [], sampler=Greedy()))
    assert verdict.path == ([0] if stands else [])
    assert verdict.token == 0


def test_relaxed_prefers_the_best_that_stands() -> None:
    rule = RelaxedTopK(RelaxedTopKSettings(beta=3, tau=5.0))
    siblings = TokenTree([2, 1], [ROOT, ROOT])
    p = NEAR[:1].expand(3, -1)
    assert rule.verify(walk(siblings, p, None, [], sampler=Greedy())).path == [1]
    siblings = TokenTree([2, 1, 0], [ROOT, ROOT, ROOT])
    assert rule.verify(walk(siblings, NEAR[:1].expand(4, -1), None, [], sampler=Greedy())).path == [2]


def test_strict_means_the_first_of_equals_only() -> None:
    tied = torch.tensor([[0.1, 0.4, 0.4, 0.05, 0.05]] * 2, dtype=torch.float64)
    strict = RelaxedTopK(RelaxedTopKSettings(beta=1, tau=0.0))
    made = walk(TokenTree.chain([2]), tied, None, [], sampler=Greedy())
    assert strict.verify(made).path == []
    made = walk(TokenTree.chain([1]), tied, None, [], sampler=Greedy())
    assert strict.verify(made).path == [0]


def test_the_choice_of_a_sampler_with_penalties_counts_as_the_best() -> None:
    class Other(Sampler):
        deterministic = True

        def distribution(self, node: Node) -> Distribution:
            return Distribution.point(1)

    strict = RelaxedTopK(RelaxedTopKSettings(beta=1, tau=0.0))
    assert strict.verify(walk(TokenTree.chain([0]), NEAR, None, [], sampler=Other())).path == []
    assert strict.verify(walk(TokenTree.chain([1]), NEAR, None, [], sampler=Other())).path == [0]


def test_forbidden_tokens_never_stand() -> None:
    made = walk(TokenTree.chain([1]), NEAR, None, [], sampler=Greedy())
    allowed = torch.tensor([True, False, True, True, True])
    made._constraint = type("Only", (Constraint,), {"allowed": lambda self, branch, tokens: allowed})()  # type: ignore[assignment]
    assert RelaxedTopK(RelaxedTopKSettings(beta=5, tau=100.0)).verify(made).path == []


@pytest.mark.parametrize("values", [{"beta": 0}, {"tau": -0.1}, {"tau": float("nan")}])
def test_relaxed_settings_are_checked(values: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="relaxed-top-k cannot use"):
        compose(TableModel(), ["prompt-lookup", "relaxed-top-k"], settings=values)


def test_relaxed_text_differs_and_strict_text_does_not() -> None:
    model = TableModel(6, seed=1, scale=0.5)
    prompt = [1, 2, 3, 1, 2, 4, 1, 2]

    def text(**values: float) -> tuple[int, ...]:
        methods = ["prompt-lookup", "relaxed-top-k"] if values else []
        return [*compose(model, methods, settings=values).decode([prompt])][-1].tokens

    assert text(beta=1, tau=0.0) == text(beta=1, tau=5.0) == text(beta=6, tau=0.0) == text()
    assert text(beta=3, tau=2.0) != text()


# -- what compose allows ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["greedy-match", "relaxed-top-k"])
def test_rules_for_deterministic_samplers_refuse_others(slug: str) -> None:
    with pytest.raises(Incompatible, match="only judges deterministic choices"):
        compose(TableModel(), [PromptLookup(), slug], sampler=Given(NEAR))


def test_rules_refuse_drafts_that_they_would_judge_wrongly() -> None:
    settings = {"branching": (2,)}
    with pytest.raises(Incompatible, match="siblings sampled without replacement"):
        compose(TableModel(), ["draft-model", "multi-step-sampling"], settings=settings, models={"draft": TableModel()})


def test_every_kind_of_draft_has_one_default_rule() -> None:
    for proposal in Proposal:
        judges = [m.card.slug for m in registry.of_kind(Kind.VERIFIER) if proposal in m.cls.default_for]
        assert len(judges) == 1, (proposal, judges)
