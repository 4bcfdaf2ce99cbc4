from __future__ import annotations

import pytest
import torch
from tests.toys import TableModel

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import Incompatible, InvalidInput, UnknownMethod
from unspool.core.model import Capability
from unspool.core.sockets import Budget, Distribution, Draft, Drafter, Node, Part, Proposal, Sampler, Search, Verifier


class Random(Sampler):
    def distribution(self, node: Node) -> Distribution:
        return Distribution(torch.softmax(node.logits, -1))


class Guess(Drafter):
    proposal = Proposal.SAMPLED

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        return Draft.empty()


class Beam(Search):
    width = 2  # type: ignore[assignment]

    def advance(self, branches: object) -> None:
        return None

    def select(self, branches: object) -> int:
        return 0


@pytest.fixture
def model() -> TableModel:
    return TableModel()


def test_slugs_and_parts_fill_sockets(model: TableModel) -> None:
    made = compose(model, "prompt-lookup + fixed-budget+target-match", settings={"depth": "2"})
    assert [type(part).__name__ for part in made.parts] == ["PromptLookup", "FixedBudget", "TargetMatch", "Greedy"]
    assert made.controller.settings.depth == 2  # type: ignore[union-attr]
    assert str(made) == "prompt-lookup + fixed-budget + target-match"
    assert made.lossless
    assert str(compose(model)) == "plain"
    assert not compose(model, ["prompt-lookup", "relaxed-top-k"]).lossless


def test_the_verifier_follows_the_drafter(model: TableModel) -> None:
    assert compose(model, "prompt-lookup").verifier is None, "fixed candidates are matched by the loop itself"
    made = compose(model, Guess(), sampler=Random())
    assert made.verifier is not None
    assert made.verifier.card.slug == "speculative-sampling"


@pytest.mark.parametrize(
    ("methods", "options", "error", "message"),
    [
        ("prompt-lokup", {}, UnknownMethod, "did you mean prompt-lookup"),
        ("plain+prompt-lookup", {}, Incompatible, r"plain and prompt-lookup are both a drafter; take one of them"),
        ("prompt-lookup", {"settings": {"tokns": 3}}, InvalidInput, r"no method in use has a setting 'tokns'.*tokens"),
        ("prompt-lookup", {"settings": {"plain.x": 3}}, InvalidInput, r"'plain' is not in use; in use: prompt-lookup"),
        ("prompt-lookup", {"settings": {"tokens": "x"}}, InvalidInput, r"prompt-lookup cannot use tokens='x'"),
        (
            "prompt-lookup",
            {"settings": {"prompt-lookup.tokens": 0}},
            InvalidInput,
            r"tokens=0: .* greater than or equal",
        ),
        (
            "token-recycling+fixed-budget",
            {"settings": {"nodes": 3}},
            InvalidInput,
            r"'nodes' belongs to token-recycling and fixed-budget; write token-recycling.nodes=",
        ),
        ("draft-model", {}, Incompatible, r"draft-model needs a draft model: pass one as draft="),
        (
            [Guess(), "recursive-rejection"],
            {"models": {}},
            None,
            "",
        ),
        (
            "prompt-lookup+greedy-match",
            {"sampler": Random()},
            Incompatible,
            r"greedy-match only judges deterministic choices; Random draws at random: use temperature 0",
        ),
        (
            [Beam(), "prompt-lookup"],
            {},
            Incompatible,
            r"Beam needs all branches to gain one token a step; prompt-lookup",
        ),
        ([Beam(), Guess()], {}, Incompatible, r"Beam needs all branches to gain one token a step; Guess"),
        ([Part()], {}, Incompatible, r"Part fills no socket of the in-order loop"),
    ],
)
def test_refusals_name_the_reason(
    model: TableModel, methods: object, options: dict[str, object], error: type[Exception] | None, message: str
) -> None:
    if error is None:
        assert compose(model, methods, **options).drafter is not None  # type: ignore[arg-type]
        return
    with pytest.raises(error, match=message):
        compose(model, methods, **options)  # type: ignore[arg-type]


def test_a_verifier_that_does_not_judge_the_draft(model: TableModel) -> None:
    class Replacing(Guess):
        proposal = Proposal.WITH_REPLACEMENT

    with pytest.raises(
        Incompatible,
        match=r"recursive-rejection judges .*without replacement; Replacing proposes siblings sampled with repl",
    ):
        compose(model, [Replacing(), "recursive-rejection"])


def test_no_verifier_for_a_kind_of_draft(model: TableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.core import compose as module

    monkeypatch.setattr(module.registry, "of_kind", lambda kind: [])
    with pytest.raises(Incompatible, match="no verifier judges a sampled chain, which Guess proposes"):
        compose(model, Guess())


def test_a_missing_capability_names_both(model: TableModel) -> None:
    model.capabilities = frozenset({Capability.CACHE_EDITING})
    with pytest.raises(
        Incompatible, match=r"look-back-decoding needs a model with tree attention; table-6-0 \(TableModel\)"
    ):
        compose(model, "look-back-decoding")


def test_parts_are_bound_with_their_surroundings(model: TableModel) -> None:
    seen = []

    class Curious(Verifier):
        judges = frozenset(Proposal)

        def bind(self, setup: object) -> None:
            seen.append(setup)

        def verify(self, walk: object) -> None:  # type: ignore[override]
            raise AssertionError

    other = TableModel(seed=2)
    sampler = Greedy()
    compose(model, [Guess(), Curious()], sampler=sampler, models={"draft": other}, load=lambda name: other)
    (setup,) = seen
    assert (setup.target, setup.sampler, setup.model("draft", "x")) == (model, sampler, other)
    assert setup.model("teacher", "x", name="any") is other
    with pytest.raises(Incompatible, match="x needs a teacher model"):
        setup.model("teacher", "x")
