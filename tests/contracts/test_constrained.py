"""Under a constraint every lossless method gives what plain decoding gives under it: the registry is walked.

The target is the model's distribution, masked and renormalised at every token; where the constraint forces tokens, a
point. Greedy text is compared token for token, samples with the exact distribution, batches with single runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from tests.contracts.exact import FastTable, RandomDrafts, Softmax, continuations, fit
from tests.contracts.test_distribution import (
    FEWER,
    LENGTH,
    PROMPT,
    PROMPTS,
    REFUSED,
    RELATED,
    TARGET,
    VOCABULARY,
    combinations,
    pairs,
)
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import DeadEnd
from unspool.core.events import Finished
from unspool.core.registry import Method
from unspool.core.sockets import Constraint, Proposal, Sampler
from unspool.core.statistics import Statistics
from unspool.core.texts import Stop


class Rules(Constraint):
    """A finite automaton over tokens, written as what may follow each token; with ``jumps`` single ones are forced.

    0 is followed by 1 alone, 1 by 2 alone, 2 by anything but itself, 3 by 0 or 3, 4 by anything. The prompt does not
    matter: a text begins with anything but 3.
    """

    FOLLOWS: ClassVar[dict[int | None, list[int]]] = {
        0: [1],
        1: [2],
        2: [0, 1, 3, 4],
        3: [0, 3],
        4: [0, 1, 2, 3, 4],
        None: [0, 1, 2, 4],
    }

    def __init__(self, jumps: bool) -> None:
        super().__init__()
        self.jumps = jumps

    def follows(self, text: Sequence[int]) -> list[int]:
        return self.FOLLOWS[text[-1] if text else None]

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        mask = torch.zeros(VOCABULARY, dtype=torch.bool)
        mask[self.follows(tokens[branch.prompt_length :])] = True
        return mask

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        text, found = tokens[branch.prompt_length :], []
        while self.jumps and len(only := self.follows([*text, *found])) == 1:
            found += only
        return found

    def complete(self, branch: Branch, tokens: list[int]) -> bool:
        return bool(tokens[branch.prompt_length :]) and tokens[-1] == 2

    def exact(self, sampler: Softmax, model: FastTable, prompt: Sequence[int], length: int) -> Tensor:
        """``[V] * length`` probabilities of every continuation."""
        probs, texts = torch.ones(1, dtype=torch.float64), [[]]
        for _ in range(length):
            rows = []
            for text in texts:
                logits = model.next_logits([*prompt, *text]).double()
                mask = torch.zeros(VOCABULARY, dtype=torch.bool)
                mask[self.follows(text)] = True
                rows.append(sampler.probs(logits.masked_fill(~mask, -torch.inf)))
            probs = torch.cat([p * row for p, row in zip(probs, rows, strict=True)])
            texts = [[*text, token] for text in texts for token in range(VOCABULARY)]
        return probs.reshape([VOCABULARY] * length)


def by_hand(model: FastTable, prompt: Sequence[int], length: int) -> list[int]:
    """Greedy decoding under the rules, without the loop."""
    rules, text = Rules(False), []
    while len(text) < length:
        logits = model.next_logits([*prompt, *text])
        text.append(max(rules.follows(text), key=lambda token: float(logits[token])))
    return text


def composed(
    drafter: Method, variant: dict[str, Any], verifier: Method | None, sampler: Sampler | None, jumps: bool
) -> Composition:
    missing = drafter.card.needs - TARGET.capabilities
    if missing:
        pytest.skip(f"the toy has no {', '.join(sorted(missing))}")
    methods = [drafter.card.slug, Rules(jumps)] + ([verifier.card.slug] if verifier is not None else [])
    models = dict.fromkeys(drafter.card.models, RELATED)
    return compose(TARGET, methods, settings=variant, sampler=sampler, models=models)


def run(composition: Composition, asked: list[list[int]], length: int) -> tuple[list[list[int]], Statistics]:
    counted, found = Statistics(), {}
    for event in composition.decode(asked, stop=Stop(length)):
        counted.update(event, 0.0)
        if isinstance(event, Finished):
            found[event.index] = list(event.tokens)
            assert event.complete == (event.tokens[-1] == 2)
    return [found[index] for index in sorted(found)], counted


# -- the loop alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jumps", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 40])
def test_plain_decoding_under_rules(length: int, jumps: bool) -> None:
    texts, counted = run(compose(TARGET, Rules(jumps)), PROMPTS, length)
    assert texts == [by_hand(TARGET, prompt, length) for prompt in PROMPTS]
    assert counted.tokens == length * len(PROMPTS)
    if jumps:
        assert length < 3 or counted.forced > 0
    else:
        assert counted.forced == 0
    assert counted.incomplete == sum(text[-1] != 2 for text in texts)


def test_forced_tokens_cost_no_pass() -> None:
    for jumps in (False, True):
        (text,), counted = run(compose(TARGET, Rules(jumps)), [PROMPT], 40)
        asked = sum(not jumps or place == 0 or text[place - 1] not in (0, 1) for place in range(len(text)))
        assert counted.forwards == asked
        assert counted.tokens == counted.forced + counted.forwards


class Choosy(Rules):
    """Nothing may follow 2."""

    FOLLOWS: ClassVar[dict[int | None, list[int]]] = {**Rules.FOLLOWS, 2: []}


def test_a_dead_end_is_said() -> None:
    with pytest.raises(DeadEnd, match="no token after"):
        run_until(compose(TARGET, Choosy(False)), stop_tokens=frozenset({VOCABULARY}))


def test_a_text_that_cannot_go_on_is_complete() -> None:
    finished = run_until(compose(TARGET, Choosy(False)), stop_tokens=frozenset())
    assert finished.reason == "complete"
    assert finished.complete is True
    assert finished.tokens[-1] == 2


def run_until(composition: Composition, stop_tokens: frozenset[int]) -> Finished:
    events = composition.decode([PROMPT], stop=Stop(40, stop_tokens))
    return next(event for event in events if isinstance(event, Finished))


# -- every method -------------------------------------------------------------------------------------------------

ONE_VERIFIER = [case for case in combinations() if case.values[2] is None]


@pytest.mark.parametrize("jumps", [False, True], ids=["masked", "jumping"])
@pytest.mark.parametrize(("drafter", "variant", "verifier"), ONE_VERIFIER)
def test_every_drafter_keeps_the_greedy_text(
    drafter: Method, variant: dict[str, Any], verifier: None, jumps: bool
) -> None:
    composition = composed(drafter, variant, verifier, None, jumps)
    expected = [by_hand(TARGET, prompt, 40) for prompt in PROMPTS]
    for _ in range(2):
        assert run(composition, PROMPTS, 40)[0] == expected
    assert [run(composition, [prompt], 40)[0][0] for prompt in PROMPTS] == expected, "one by one"


@pytest.mark.parametrize(("verifier", "proposal"), pairs(deterministic=True))
def test_every_verifier_keeps_the_greedy_text(verifier: Method, proposal: Proposal) -> None:
    expected = [by_hand(TARGET, prompt, 40) for prompt in PROMPTS]
    for seed in range(4):
        drafter = RandomDrafts(proposal, VOCABULARY, seed=seed)
        assert run(compose(TARGET, [drafter, Rules(seed % 2 == 0), verifier.card.slug]), PROMPTS, 40)[0] == expected


@pytest.mark.parametrize(("drafter", "variant", "verifier"), ONE_VERIFIER)
def test_every_drafter_keeps_the_distribution(drafter: Method, variant: dict[str, Any], verifier: None) -> None:
    sampler = Softmax()
    composition = composed(drafter, variant, verifier, sampler, jumps=True)
    continuations(composition, PROMPT, 20, LENGTH, seed=1)
    tokens = continuations(composition, PROMPT, FEWER, LENGTH, seed=2)
    assert fit(tokens, Rules(True).exact(sampler, TARGET, PROMPT, LENGTH)) > REFUSED


@pytest.mark.parametrize(("verifier", "proposal"), pairs(deterministic=False))
@pytest.mark.parametrize("jumps", [False, True], ids=["masked", "jumping"])
def test_every_verifier_keeps_the_distribution(verifier: Method, proposal: Proposal, jumps: bool) -> None:
    sampler = Softmax()
    drafter = RandomDrafts(proposal, VOCABULARY, seed=3)
    composition = compose(TARGET, [drafter, Rules(jumps), verifier.card.slug], sampler=sampler)
    tokens = continuations(composition, PROMPT, FEWER, LENGTH, seed=4)
    assert fit(tokens, Rules(jumps).exact(sampler, TARGET, PROMPT, LENGTH)) > REFUSED


def test_a_seed_gives_one_text_with_and_without_jumps_under_speculation() -> None:
    """Fixed candidates are matched draw for draw, and where tokens are forced nothing is drawn."""
    alone = continuations(compose(TARGET, Rules(True), sampler=Softmax()), PROMPT, 300, 8, seed=5)
    drafted = compose(TARGET, [RandomDrafts(Proposal.POINT, VOCABULARY, seed=6), Rules(True)], sampler=Softmax())
    assert torch.equal(alone, continuations(drafted, PROMPT, 300, 8, seed=5))


def test_the_test_finds_a_mask_that_is_forgotten() -> None:
    """Samples without the constraint do not pass for constrained ones, nor those whose refused tokens are redrawn in
    proportion to a wrong normaliser."""
    sampler = Softmax()
    tokens = continuations(compose(TARGET, sampler=sampler), PROMPT, FEWER, LENGTH, seed=7)
    exact = Rules(True).exact(sampler, TARGET, PROMPT, LENGTH)
    assert fit(tokens, exact) < REFUSED
    free = sampler.exact(TARGET, PROMPT, LENGTH)
    conditioned = torch.where(exact > 0, free, 0.0)
    drawn = torch.multinomial(
        (conditioned / conditioned.sum()).reshape(-1),
        FEWER,
        replacement=True,
        generator=torch.Generator().manual_seed(8),
    )
    assert fit(torch.stack(torch.unravel_index(drawn, exact.shape), dim=1), exact) < REFUSED
