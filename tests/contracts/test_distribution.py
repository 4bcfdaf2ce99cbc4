"""Lossless methods under sampling: the output has the target's distribution, exactly.

Three layers. The rules alone: all random choices enumerated, equal to 1e-12. The whole loop: thousands of continuations
of a model small enough to enumerate, for every drafter and verifier of the registry. The test itself: biases planted on
purpose are found.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, RandomDrafts, Softmax, continuations, emitted, fit, outcomes, walk
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Kind
from unspool.core.compose import Composition, compose
from unspool.core.events import Finished
from unspool.core.registry import Method, registry
from unspool.core.sockets import Budget, Distribution, Draft, Drafter, Proposal, Sampler, Setup, Verdict, Verifier, Walk
from unspool.core.texts import Stop
from unspool.core.tree import ROOT, TokenTree
from unspool.speculation.drafting.draft_model import DraftModel, DraftModelSettings
from unspool.speculation.verification._rejection import residual, try_siblings

VOCABULARY = 5
LENGTH = 3
COUNT = 7000
"""Continuations in a sample: enough for a bias of 3%, see below."""
FEWER = 3000
"""Enough where the same rule is held to COUNT as well."""
REFUSED = 3e-4
"""p-value below which a sample is said not to be the target's; seeds are fixed, so it is the same in every run."""

TARGET = FastTable(VOCABULARY, seed=11, scale=1.2)
RELATED = FastTable(VOCABULARY, seed=12, scale=1.2, mix=TARGET, blend=0.7)
# It repeats itself, so that drafters which copy find something to copy.
PROMPT = [1, 3, 0, 2, 1, 3, 0, 4, 1, 3]

# Methods whose kind of proposal depends on their settings; everything else is taken as it comes.
VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "draft-model": [{}, {"branching": (3, 2)}, {"branching": (3, 2), "replacement": True}],
    "dyspec": [{"nodes": 7}, {"nodes": 7, "variant": "layers"}],
    "heterogeneous-vocab-sd": [{"algorithm": "slem"}, {"algorithm": "tli"}, {"algorithm": "slrs"}],
    "recursive-speculative-decoding": [{}, {"variant": "constant", "branching": (3, 2)}],
    "vocabtrim": [{}, {"keep": 3, "branching": (3, 2), "adapt": 50}],
    "improved-mcsd": [{"width": 3, "depth": 3}, {"width": 1}],
}


def lossless(kind: Kind) -> list[Method]:
    return [method for method in registry.of_kind(kind) if method.card.lossless]


def verifiers(proposal: Proposal, *, deterministic: bool) -> list[Method]:
    """The lossless verifiers that compose allows for that kind of draft."""
    return [
        method
        for method in lossless(Kind.VERIFIER)
        if proposal in method.cls.judges and (deterministic or not method.cls.deterministic_only)
    ]


def combinations() -> Iterator[Any]:
    """Every lossless drafter with its default verifier, and with every other one that looks at how drafts were made."""
    for method in lossless(Kind.DRAFTER):
        for variant in VARIANTS.get(method.card.slug, [{}]):
            proposal = method.cls(method.settings(**variant)).proposal
            others = verifiers(proposal, deterministic=False) if proposal is not Proposal.POINT else []
            for verifier in [None, *others]:
                named = [method.card.slug, *(f"{k}={v}" for k, v in variant.items()), verifier and verifier.card.slug]
                yield pytest.param(method, variant, verifier, id="-".join(str(n) for n in named if n))


def composed(drafter: Method, variant: dict[str, Any], verifier: Method | None, sampler: Sampler | None) -> Composition:
    missing = drafter.card.needs - TARGET.capabilities
    if missing:
        pytest.skip(f"the toy has no {', '.join(sorted(missing))}")
    methods = [drafter.card.slug] + ([verifier.card.slug] if verifier is not None else [])
    models = dict.fromkeys(drafter.card.models, RELATED)
    return compose(TARGET, methods, settings=variant, sampler=sampler, models=models)


# -- the whole loop -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("drafter", "variant", "verifier"), list(combinations()))
def test_every_drafter_keeps_the_distribution(
    drafter: Method, variant: dict[str, Any], verifier: Method | None
) -> None:
    sampler = Softmax()
    composition = composed(drafter, variant, verifier, sampler)
    # Drafters that learn have learned something when the sample begins.
    continuations(composition, PROMPT, 20, LENGTH, seed=1)
    tokens = continuations(composition, PROMPT, COUNT if verifier is None else FEWER, LENGTH, seed=2)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, LENGTH)) > REFUSED


def pairs(*, deterministic: bool) -> list[Any]:
    """Every lossless verifier with every kind of draft that it judges."""
    return [
        pytest.param(verifier, proposal, id=f"{verifier.card.slug}-{proposal.name.lower()}")
        for proposal in Proposal
        for verifier in verifiers(proposal, deterministic=deterministic)
    ]


@pytest.mark.parametrize(("verifier", "proposal"), pairs(deterministic=False))
@pytest.mark.parametrize("top", [None, 3], ids=["full", "truncated"])
def test_every_verifier_keeps_the_distribution(verifier: Method, proposal: Proposal, top: int | None) -> None:
    if top is not None and proposal is Proposal.POINT:
        pytest.skip("fixed candidates have no distribution that could be truncated")
    sampler = Softmax(top)
    composition = compose(TARGET, [RandomDrafts(proposal, VOCABULARY, seed=3), verifier.card.slug], sampler=sampler)
    tokens = continuations(composition, PROMPT, COUNT if top is None else FEWER, LENGTH, seed=4)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, LENGTH)) > REFUSED


def greedy(composition: Composition, prompts: list[list[int]], seed: int = 0) -> list[tuple[int, ...]]:
    events = composition.decode(prompts, stop=Stop(max_new_tokens=40), seed=seed)
    found = {event.index: event.tokens for event in events if isinstance(event, Finished)}
    return [found[index] for index in range(len(prompts))]


PROMPTS = [[1], [2, 0, 3], PROMPT, PROMPT[::-1], [4, 4, 4, 4]]


@pytest.mark.parametrize(("verifier", "proposal"), pairs(deterministic=True))
def test_every_verifier_keeps_the_greedy_text(verifier: Method, proposal: Proposal) -> None:
    plain = greedy(compose(TARGET), PROMPTS)
    for seed in range(10):
        drafter = RandomDrafts(proposal, VOCABULARY, seed=seed)
        assert greedy(compose(TARGET, [drafter, verifier.card.slug]), PROMPTS, seed) == plain


@pytest.mark.parametrize(
    ("drafter", "variant", "verifier"), [case for case in combinations() if case.values[2] is None]
)
def test_every_drafter_keeps_the_greedy_text(drafter: Method, variant: dict[str, Any], verifier: None) -> None:
    composition = composed(drafter, variant, verifier, None)
    for _ in range(2):
        assert greedy(composition, PROMPTS) == greedy(compose(TARGET), PROMPTS)


def test_matching_draws_what_plain_decoding_draws() -> None:
    plain = continuations(compose(TARGET, sampler=Softmax()), PROMPT, 300, 8, seed=5)
    drafter = RandomDrafts(Proposal.POINT, VOCABULARY, seed=6)
    matched = continuations(compose(TARGET, [drafter, "target-match"], sampler=Softmax()), PROMPT, 300, 8, seed=5)
    assert torch.equal(plain, matched)


# -- the test itself ----------------------------------------------------------------------------------------------


class NoResidual(Verifier):
    """After a rejection it draws from the target instead of from the residual."""

    judges = frozenset({Proposal.SAMPLED})

    def verify(self, walk: Walk) -> Verdict:
        node = ROOT
        while children := walk.tree.children(node):
            p, q = walk.distribution(node).probs, walk.draft.q[walk.draft.q_rows[children[0]]].double()
            token = walk.tree.token_list[children[0]]
            if not torch.bernoulli((p[token] / q[token]).clamp_max(1), generator=walk.rng):
                break
            node = children[0]
        return Verdict(walk.tree.path(node), walk.distribution(node).draw(walk.rng))


class KeepsRefused(Verifier):
    """Judges siblings drawn without replacement as if they had been drawn with replacement: no ``q[x] = 0``."""

    judges = frozenset({Proposal.WITHOUT_REPLACEMENT})

    def verify(self, walk: Walk) -> Verdict:
        node = ROOT
        while children := walk.tree.children(node):
            p, q = walk.distribution(node).probs, walk.draft.q[walk.draft.q_rows[children[0]]].double()
            tokens = [walk.tree.token_list[child] for child in children]
            place, p = try_siblings(p, q, tokens, walk.rng, replacement=True)
            if place is None:
                return Verdict(walk.tree.path(node), Distribution(p).draw(walk.rng))
            node = children[place]
        return Verdict(walk.tree.path(node), walk.distribution(node).draw(walk.rng))


class LongestBranch(Verifier):
    """Judges every path of a random tree on its own and keeps the longest that stands."""

    judges = frozenset({Proposal.WITH_REPLACEMENT})

    def verify(self, walk: Walk) -> Verdict:
        best: list[int] = []
        last: Tensor | None = None
        for path in walk.tree.paths:
            stands: list[int] = []
            for node in path:
                above = stands[-1] if stands else ROOT
                p, q = walk.distribution(above).probs, walk.draft.q[walk.draft.q_rows[node]].double()
                token = walk.tree.token_list[node]
                if not torch.bernoulli((p[token] / q[token]).clamp_max(1), generator=walk.rng):
                    if last is None or len(stands) > len(best):
                        best, last = stands, residual(p, q)
                    break
                stands = [*stands, node]
            else:
                if last is None or len(stands) > len(best):
                    best, last = stands, walk.distribution(stands[-1]).probs
        if last is None:
            return Verdict([], walk.distribution(ROOT).draw(walk.rng))
        return Verdict(best, Distribution(last).draw(walk.rng))


class Sloppy(Verifier):
    """Right, but for three of a hundred tokens, which it replaces with one fixed token."""

    judges = frozenset(Proposal)

    def verify(self, walk: Walk) -> Verdict:
        if torch.rand((), generator=walk.rng) < 0.03:
            return Verdict([], 2)
        return Verdict([], walk.distribution(ROOT).draw(walk.rng))


class DropsUnlikely(DraftModel):
    """Cuts a sampled chain where the draft model was unsure of the token that it drew."""

    def propose(self, branches: Sequence[Branch], budgets: Sequence[Budget]) -> list[Draft]:
        return [self.cut(draft) for draft in super().propose(branches, budgets)]

    def cut(self, draft: Draft) -> Draft:
        keep = 0
        while keep < len(draft.tree) and draft.q[draft.q_rows[keep], draft.tree.token_list[keep]] > 0.25:
            keep += 1
        return Draft(draft.tree.select(range(keep)), draft.q, draft.q_rows[:keep])


class TopK(Drafter):
    """The two most probable tokens of the draft model, passed off as drawn without replacement."""

    proposal = Proposal.WITHOUT_REPLACEMENT

    def bind(self, setup: Setup) -> None:
        self.model = setup.models["draft"]

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        q = torch.softmax(self.model.next_logits(branch.tokens), dim=-1)
        return Draft(TokenTree(q.topk(2).indices, [ROOT, ROOT]), q[None], [0, 0])


class Peaked(Drafter):
    """Three tokens, really drawn without replacement, of a distribution that is far from the target's."""

    proposal = Proposal.WITHOUT_REPLACEMENT
    q = torch.tensor([0.02, 0.03, 0.05, 0.1, 0.8], dtype=torch.float64)

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        return Draft(TokenTree(torch.multinomial(self.q, 3, generator=branch.rng), [ROOT] * 3), self.q[None], [0] * 3)


PLANTED: dict[str, Callable[[], list[Any]]] = {
    "no residual": lambda: ["draft-model", NoResidual()],
    "q not emptied": lambda: [Peaked(), KeepsRefused()],
    "top-k as draws": lambda: [TopK(), "recursive-rejection"],
    "longest branch": lambda: [DraftModel(DraftModelSettings(branching=(3, 2), replacement=True)), LongestBranch()],
    "unlikely dropped": lambda: [DropsUnlikely(), "speculative-sampling"],
    "three percent": lambda: [Sloppy()],
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_test_finds_planted_biases(fault: str) -> None:
    sampler = Softmax()
    composition = compose(TARGET, PLANTED[fault](), sampler=sampler, models={"draft": RELATED})
    tokens = continuations(composition, PROMPT, COUNT, LENGTH, seed=7)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, LENGTH)) < REFUSED


def test_three_percent_moved_between_two_tokens_are_found_wherever_they_are() -> None:
    exact = Softmax().exact(TARGET, PROMPT, LENGTH)
    rng = torch.Generator().manual_seed(8)
    for source, sink in itertools.permutations(range(VOCABULARY), 2):
        first = exact.sum(dim=(1, 2))
        if first[source] < 0.03:
            continue
        moved = first.clone()
        moved[source] -= 0.03
        moved[sink] += 0.03
        biased = exact * (moved / first)[:, None, None]
        drawn = torch.multinomial(biased.reshape(-1), COUNT, replacement=True, generator=rng)
        tokens = torch.stack(torch.unravel_index(drawn, exact.shape), dim=1)
        assert fit(tokens, exact) < REFUSED, (source, sink)


def test_honest_samples_pass() -> None:
    exact = Softmax().exact(TARGET, PROMPT, LENGTH)
    rng = torch.Generator().manual_seed(9)
    values = []
    for _ in range(200):
        drawn = torch.multinomial(exact.reshape(-1), COUNT, replacement=True, generator=rng)
        values.append(fit(torch.stack(torch.unravel_index(drawn, exact.shape), dim=1), exact))
    # p-values of honest samples are spread evenly (a little towards 1, for three tests share one bound).
    assert min(values) > REFUSED
    assert 2 <= sum(value < 0.1 for value in values) <= 35


# -- the rules alone ----------------------------------------------------------------------------------------------

Rows = tuple[Tensor, Tensor]


def rows(*values: float) -> Tensor:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor / tensor.sum()


def tables() -> dict[str, Rows]:
    rng = torch.Generator().manual_seed(10)
    p, q = (torch.rand(2, 5, generator=rng, dtype=torch.float64) * 3).softmax(-1)
    return {
        "random": (p, q),
        "equal": (p, p.clone()),
        "zeros": (rows(0, 3, 0, 2, 1), rows(1, 0, 4, 2, 0)),
        "one-hot target": (rows(0, 0, 1, 0, 0), q),
        "one-hot draft": (p, rows(0, 0, 0, 1, 0)),
        "both one-hot": (rows(0, 1, 0, 0, 0), rows(0, 1, 0, 0, 0)),
        "disjoint": (rows(1, 2, 0, 0, 0), rows(0, 0, 3, 1, 1)),
        "tiny": (rows(1, 1e-12, 1e-12, 1, 1e-30), rows(1e-30, 1, 1, 1e-12, 1)),
    }


def drawings(q: Tensor, count: int, *, replacement: bool) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every sequence of siblings that ``q`` can give, with its probability."""
    support = q.nonzero().flatten().tolist()
    if replacement:
        for tokens in itertools.product(support, repeat=count):
            yield tokens, float(q[list(tokens)].prod())
        return
    for tokens in itertools.permutations(support, min(count, len(support))):
        probability, left = 1.0, q.clone()
        for token in tokens:
            probability *= float(left[token] / left.sum())
            left[token] = 0
        yield tokens, probability


RULES = [
    ("speculative-sampling", 1, True),
    *[("recursive-rejection", k, False) for k in range(1, 6)],
    *[("multi-step-sampling", k, True) for k in range(1, 5)],
]


@pytest.mark.parametrize("table", tables())
@pytest.mark.parametrize(("slug", "count", "replacement"), RULES)
def test_rules_emit_the_target_exactly(slug: str, count: int, replacement: bool, table: str) -> None:
    p, q = tables()[table]
    verifier = registry[slug].cls()
    total = torch.zeros(5, dtype=torch.float64)
    for tokens, probability in drawings(q, count, replacement=replacement):
        tree = TokenTree(tokens, [ROOT] * len(tokens))
        here = walk(tree, p.expand(len(tree) + 1, -1), q[None], [0] * len(tree))
        found = outcomes(lambda tree=tree, here=here: emitted(tree, verifier.verify(here)))
        for emission, share in found.items():
            total[emission[0]] += probability * share
    assert torch.allclose(total, p, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("slug", "replacement"), [("recursive-rejection", False), ("multi-step-sampling", True)])
def test_two_levels_emit_the_target_exactly(slug: str, replacement: bool) -> None:
    """A tree of two levels over three tokens; the pair of the first two tokens has the target's joint distribution."""
    rng = torch.Generator().manual_seed(13)
    first, second = torch.rand(3, generator=rng).double(), torch.rand(3, 3, generator=rng).double()
    first, second = first / first.sum(), second / second.sum(-1, keepdim=True)
    q = torch.rand(4, 3, generator=rng).double() ** 2
    q /= q.sum(-1, keepdim=True)
    verifier = registry[slug].cls()
    total = torch.zeros(3, 3, dtype=torch.float64)
    for tops, top_probability in drawings(q[3], 2, replacement=replacement):
        below = [list(drawings(q[token], 2, replacement=replacement)) for token in tops]
        for pairs in itertools.product(*below):
            probability = top_probability
            tokens, parents, q_rows = list(tops), [ROOT] * len(tops), [3] * len(tops)
            for parent, (pair, share) in enumerate(pairs):
                probability *= share
                tokens += pair
                parents += [parent] * len(pair)
                q_rows += [tops[parent]] * len(pair)
            tree = TokenTree(tokens, parents)
            p = torch.stack([first, *(second[token] for token in tokens)])
            here = walk(tree, p, q, q_rows)
            for emission, share in outcomes(lambda t=tree, h=here: emitted(t, verifier.verify(h))).items():
                if len(emission) == 1:
                    total[emission[0]] += probability * share * second[emission[0]]
                else:
                    total[emission[:2]] += probability * share
    assert torch.allclose(total, first[:, None] * second, rtol=0, atol=1e-12)


def test_both_tokens_of_two_are_always_enough() -> None:
    rng = torch.Generator().manual_seed(14)
    verifier = registry["recursive-rejection"].cls()
    for _ in range(50):
        p, q = (torch.rand(2, 2, generator=rng).double() ** 3).softmax(-1)
        for tokens, _ in drawings(q, 2, replacement=False):
            tree = TokenTree(tokens, [ROOT, ROOT])
            here = walk(tree, p.expand(3, -1), q[None], [0, 0])
            accepted = outcomes(lambda t=tree, h=here: len(verifier.verify(h).path))
            assert accepted.get(0, 0.0) < 1e-12
            assert accepted[1] == pytest.approx(1.0, abs=1e-12)


def test_large_vocabularies_in_single_precision() -> None:
    """50,000 tokens of single precision: the accepted share is one minus the total variation, as the theory has it."""
    rng = torch.Generator().manual_seed(15)
    p = torch.softmax(torch.randn(50_000, generator=rng) * 3, -1)
    q = torch.softmax(p.log() + torch.randn(50_000, generator=rng) * 0.5, -1).double()
    p, q = p.double() / p.double().sum(), q / q.sum()
    accepted = 0
    for token in torch.multinomial(q, 1000, replacement=True, generator=rng).tolist():
        place, left = try_siblings(p, q, [token], rng, replacement=True)
        accepted += place is not None
        assert float(left.sum()) == pytest.approx(1.0, abs=1e-9)
    assert accepted / 1000 == pytest.approx(float(torch.minimum(p, q).sum()), abs=0.04)
