"""Readers: what they are given of finished texts, and the log-probabilities of tokens, however those were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.contracts.exact import RandomDrafts, Softmax
from tests.evaluation.small import small_engine
from tests.toys import TableModel
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Finished, Prefilled
from unspool.core.sockets import (
    Constraint,
    Distribution,
    FinishedText,
    LookAhead,
    Move,
    Node,
    Proposal,
    Reader,
    Reading,
    Sampler,
    Search,
)
from unspool.core.text import spelled
from unspool.core.texts import Stop

VOCABULARY = 5
TARGET = TableModel(VOCABULARY, seed=11)
PROMPTS = [[1, 2, 3], [0], [4, 4, 1, 0, 2]]


class Taker(Reader):
    """Takes what it is given."""

    reads_log_probs = True

    def __init__(self, choice: int | None = None) -> None:
        super().__init__()
        self.choice = choice
        self.seen: list[tuple[list[FinishedText], int]] = []

    def read(self, outputs: Sequence[FinishedText], chosen: int) -> Reading:
        self.seen.append((list(outputs), chosen))
        return Reading("read", {"outputs": len(outputs)}, self.choice)


def by_hand(model: TableModel, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
    """Log-probabilities without the loop."""
    found = []
    for place, token in enumerate(tokens):
        logits = model.next_logits([*prompt, *tokens[:place]]).double()
        found.append(float(torch.log_softmax(logits, -1)[token]))
    return found


def finished(
    *parts: Any, length: int = 20, prompts: Sequence[list[int]] = PROMPTS, **more: Any
) -> tuple[list[Finished], Taker]:
    taker = Taker()
    sampler = more.pop("sampler", None)
    made = compose(TARGET, [*parts, taker], sampler=sampler)
    events = made.decode(prompts, stop=Stop(length, frozenset()), seed=4, **more)
    return sorted((event for event in events if isinstance(event, Finished)), key=lambda event: event.index), taker


def check(found: Sequence[Finished], prompts: Sequence[list[int]] = PROMPTS) -> None:
    assert found
    for event in found:
        assert event.log_probs is not None
        assert list(event.log_probs) == pytest.approx(by_hand(TARGET, prompts[event.index], event.tokens), abs=1e-12)


class Rules(Constraint):
    """0 is followed by 1, 1 by 2, 2 by 4 or 0; nobody is asked where there is no choice."""

    FOLLOWS = ((1,), (2,), (4, 0), (0, 3), (0, 1, 2, 3, 4))

    def follows(self, branch: Branch, tokens: list[int]) -> tuple[int, ...]:
        return self.FOLLOWS[tokens[-1]] if len(tokens) > branch.prompt_length else (0, 2, 3, 4)

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        mask = torch.zeros(VOCABULARY, dtype=torch.bool)
        mask[list(self.follows(branch, tokens))] = True
        return mask

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        found: list[int] = []
        while len(only := self.follows(branch, [*tokens, *found])) == 1:
            found += only
        return found


class Prefix(Constraint):
    """A text begins with four tokens that nobody is asked about; the rest is free."""

    START = (2, 3, 3, 1)

    def allowed(self, branch: Branch, tokens: list[int]) -> None:
        return None

    def forced(self, branch: Branch, tokens: list[int]) -> list[int]:
        return list(self.START[len(tokens) - branch.prompt_length :])


class Peeking(Sampler):
    """Wants to see what follows the best token before it takes it."""

    deterministic = True
    looks_ahead = True

    def distribution(self, node: Node) -> Distribution:
        best = int(node.logits.argmax())
        if node.child_logits(best) is None:
            raise LookAhead(node, [best, (best + 1) % len(node.logits)])
        return Distribution.point(best)


class Restless(Search):
    """Two branches; after a while both go on from the first, cut back, one of them with tokens that it is given."""

    lockstep = False

    def __init__(self) -> None:
        super().__init__()
        self.rounds = 0

    @property
    def width(self) -> int:
        return 2

    def advance(self, branches: Sequence[Branch]) -> list[Move] | None:
        self.rounds += 1
        return [Move(0, 2, (4, 0, 3)), Move(0, 3)] if self.rounds == 5 else None

    def select(self, branches: Sequence[Branch]) -> int:
        return 1


# -- log-probabilities --------------------------------------------------------------------------------------------


def test_of_plain_decoding_and_of_draws() -> None:
    check(finished()[0])
    check(finished(sampler=Softmax(2))[0])


@pytest.mark.parametrize("proposal", [Proposal.POINT, Proposal.SAMPLED, Proposal.WITHOUT_REPLACEMENT])
def test_under_speculation(proposal: Proposal) -> None:
    plain, _ = finished()
    drafted, _ = finished(RandomDrafts(proposal, VOCABULARY, seed=1))
    assert [event.tokens for event in drafted] == [event.tokens for event in plain]
    assert [event.log_probs for event in drafted] == [event.log_probs for event in plain]
    check(finished(RandomDrafts(proposal, VOCABULARY, seed=2), sampler=Softmax())[0])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 19, 20])
@pytest.mark.parametrize("drafts", [False, True])
def test_of_forced_tokens(length: int, drafts: bool) -> None:
    """They are the model's own, unmasked, also where a text ends with tokens that were not asked about."""
    parts = [RandomDrafts(Proposal.POINT, VOCABULARY, seed=3)] if drafts else []
    check(finished(Rules(True), *parts, length=length)[0])


@pytest.mark.parametrize("chunk", [1, 2, 3, 256])
@pytest.mark.parametrize("length", [2, 4, 7])
def test_of_forced_tokens_before_the_first_round(chunk: int, length: int) -> None:
    prompts = [[0, 1, 2, 3, 4], [3]]
    found, _ = finished(Prefix(), length=length, prompts=prompts, chunk=chunk)
    assert all(event.tokens[:4] == Prefix.START[:length] for event in found)
    check(found, prompts)


def test_the_pass_that_is_needed_at_the_end_is_told() -> None:
    taker = Taker()
    before = TARGET.forwards
    events = list(compose(TARGET, [Prefix(), taker]).decode([[0, 1]], stop=Stop(3, frozenset())))
    told = sum(event.forwards for event in events if isinstance(event, Prefilled))
    assert told == TARGET.forwards - before == 1


def test_with_a_sampler_that_looks_ahead() -> None:
    check(finished(sampler=Peeking())[0])
    check(finished(RandomDrafts(Proposal.POINT, VOCABULARY, seed=5), sampler=Peeking())[0])


def test_of_branches_that_are_cut_and_go_on() -> None:
    found, taker = finished(Restless(), sampler=Softmax(), prompts=PROMPTS[:1], length=14)
    check(found)
    ((outputs, chosen),) = taker.seen
    assert (len(outputs), chosen) == (2, 1)
    assert outputs[0].tokens[2:5] == (4, 0, 3)
    for output in outputs:
        assert list(output.log_probs) == pytest.approx(by_hand(TARGET, PROMPTS[0], output.tokens), abs=1e-12)


def test_nothing_is_recorded_unless_it_is_read() -> None:
    class Plain(Taker):
        reads_log_probs = False

    made = compose(TARGET, Plain())
    (event,) = [e for e in made.decode([[1]], stop=Stop(3)) if isinstance(e, Finished)]
    assert event.log_probs is None
    assert event.reading == Reading("read", {"outputs": 1})


# -- the socket ---------------------------------------------------------------------------------------------------


def test_a_reader_may_choose_another_text() -> None:
    taker = Taker(choice=0)
    made = compose(TARGET, [Restless(), taker], sampler=Softmax())
    (event,) = [e for e in made.decode([PROMPTS[0]], stop=Stop(14, frozenset())) if isinstance(e, Finished)]
    ((outputs, chosen),) = taker.seen
    assert chosen == 1
    assert event.tokens == outputs[0].tokens != outputs[1].tokens
    assert event.branch == outputs[0].branch
    assert event.log_probs == outputs[0].log_probs


def test_two_readers_are_one_too_many() -> None:
    with pytest.raises(Incompatible, match="both a reader"):
        compose(TARGET, [Taker(), Taker()])


def test_what_a_reader_sees_of_a_text() -> None:
    engine = small_engine()
    taker = Taker()
    output = engine.generate("abc", ["plain", taker], max_new_tokens=12, temperature=1.0)
    ((seen,), _) = taker.seen[0]
    assert seen.text == output.text
    assert list(seen.tokens) == output.tokens
    assert list(seen.log_probs) == output.log_probs
    assert (seen.reason, seen.index, seen.branch) == (output.finish_reason, 0, 0)
    assert list(seen.prompt) == output.prompt_tokens
    assert output.reading == Reading("read", {"outputs": 1})


def test_which_characters_a_token_writes() -> None:
    tokenizer = small_engine().model.tokenizer
    tokens = [*tokenizer.encode("aé€b"), 256]
    text, spans = spelled(tokenizer, tokens, {256})
    assert text == "aé€b"
    assert spans == [(0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (3, 4), (4, 4)]
    text, spans = spelled(tokenizer, tokenizer.encode("one. two"), stops=[". "])
    assert text == "one"
    assert spans == [(0, 1), (1, 2), (2, 3)] + [(3, 3)] * 5
    text, spans = spelled(tokenizer, tokenizer.encode("a€")[:3])
    assert len(text) == spans[-1][1]
    assert spans[0] == (0, 1), "half a character at the end is not the business of what stands before it"
