"""Speculation across vocabularies: the text in two tokenizers, what is proposed, and that the output stays exact."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.contracts.exact import FastTable, Softmax, continuations, fit
from tests.models.shapes import ByteTokenizer
from tests.toys import TableCache, TableModel

from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.errors import Incompatible
from unspool.core.events import Finished
from unspool.core.model import Capability
from unspool.core.sockets import Budget, Draft, Proposal
from unspool.core.texts import Stop
from unspool.sampling.standard import SamplingSettings, StandardSampler
from unspool.speculation.drafting._text_alignment import Alignment, longest_run, spellings, unfinished
from unspool.speculation.drafting.heterogeneous_vocab_sd import HeterogeneousVocab


class Pieces:
    """Tokens are strings; the longest that fits comes first."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def encode(self, text: str, special: bool = True) -> list[int]:
        ids = []
        while text:
            best = max((p for p in self.pieces if text.startswith(p)), key=len, default=text[0])
            if best in self.pieces:
                ids.append(self.pieces.index(best))
            text = text[len(best) :]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids)


OURS = Pieces("a", "b", "c", "ab", "bca")
THEIRS = Pieces("c", "b", "a", "bc")
TARGET = FastTable(5, seed=1, scale=1.2)
TARGET.tokenizer = OURS
DRAFT = FastTable(4, seed=2, scale=1.2)
DRAFT.tokenizer = THEIRS
PROMPT = [0, 1, 2, 3, 4, 0]


def made(sampler: Any = None, target: Any = TARGET, draft: Any = DRAFT, **settings: Any) -> Composition:
    return compose(target, "heterogeneous-vocab-sd", settings=settings, sampler=sampler, models={"draft": draft})


def drafter(composition: Composition) -> HeterogeneousVocab:
    assert isinstance(composition.drafter, HeterogeneousVocab)
    return composition.drafter


def branch(tokens: list[int]) -> Branch:
    return Branch(0, 0, tokens, TableCache(), 0, torch.device("cpu"), [])


def one(composition: Composition, tokens: list[int], budget: Budget | None = None) -> Draft:
    return drafter(composition).propose([branch(tokens)], [budget or Budget()])[0]


# -- the text in two tokenizers -----------------------------------------------------------------------------------

TEXTS = [
    "the nation and the actions, the é and the ß of the 中文 x\n",
    "    x\n        x  the  the\n\n\n      x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "😀😀é中😀文 ß",
]


class Letters:
    """Every letter, and some pairs: merges depend on what follows."""

    def __init__(self) -> None:
        letters = sorted(set("".join(TEXTS)))
        self.pieces = Pieces(*letters, "th", "e ", "  ", "    ", "aa", "ion", "an", "d t")

    def encode(self, text: str, special: bool = True) -> list[int]:
        return self.pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.pieces.decode(ids)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("look_behind", [1, 3, 10])
def test_the_drafters_tokens_spell_the_text_however_it_grows(text: str, look_behind: int) -> None:
    for ours, theirs in ((ByteTokenizer(), Letters()), (Letters(), ByteTokenizer())):
        tokens = ours.encode(text)
        assert ours.decode(tokens) == text
        for stride in (1, 2, 5):
            alignment = Alignment(ours, theirs, look_behind)
            for end in range(1, len(tokens) + stride, stride):
                ids = alignment.follow(tokens[:end])
                waiting = unfinished(ours, tokens[:end])
                whole = ours.decode(tokens[: len(tokens[:end]) - waiting])
                assert theirs.decode(ids) == whole
                assert len(alignment.held(tokens[:end])) == waiting
            # In the end it is what encoding the whole text gives, but for a token or so at the end of a window.
            assert abs(len(ids) - len(theirs.encode(text))) <= (len(tokens) if look_behind < 10 else 3)


def test_only_a_window_is_encoded_again() -> None:
    class Counting(Letters):
        encoded = 0

        def encode(self, text: str, special: bool = True) -> list[int]:
            self.encoded += len(text)
            return super().encode(text)

    ours, theirs = ByteTokenizer(), Counting()
    alignment = Alignment(ours, theirs, 10)
    tokens = ours.encode("the nation and the actions of the nation, " * 20)
    alignment.follow(tokens[:300])
    before = theirs.encoded
    for end in range(301, len(tokens) + 1):
        alignment.follow(tokens[:end])
    assert theirs.encoded - before < 60 * (len(tokens) - 300)


def test_unfinished_characters_are_held_back() -> None:
    tokenizer = ByteTokenizer()
    face = [tokenizer.pieces.index(piece) for piece in (b"\xf0", b"\x9f\x98", b"\x80")]
    letter = tokenizer.encode("a")
    assert [unfinished(tokenizer, letter + face[:n]) for n in range(4)] == [0, 1, 2, 0]
    # Bytes that no character can begin with do not wait for ever.
    assert unfinished(tokenizer, [face[2]] * 6) == 0
    alignment = Alignment(tokenizer, Letters(), 10)
    assert alignment.follow(letter + face[:2]) == Letters().encode("a")
    assert alignment.held(letter + face[:2]) == face[:2]
    assert alignment.follow(letter + face) == Letters().encode("a😀")


def test_the_longest_run_of_equal_tokens() -> None:
    assert longest_run([1, 2, 3, 4], [9, 2, 3, 5]) == (3, 3)
    assert longest_run([1, 1, 1], [1, 1, 1, 1, 1]) == (3, 3)
    assert longest_run([1], [2]) == (0, 0)


def test_candidates_continue_the_committed_tokens() -> None:
    alignment = Alignment(OURS, THEIRS, 10)
    for length in range(1, 5):
        for tokens in itertools.product(range(5), repeat=length):
            alignment = Alignment(OURS, THEIRS, 2)
            ids = alignment.follow(list(tokens))
            for drafted in ([0], [1, 0], [3, 2], [2, 1, 0, 2, 1]):
                candidates = alignment.candidates(list(tokens), drafted)
                assert OURS.decode([*tokens, *candidates]) == THEIRS.decode([*ids, *drafted])


def test_candidates_finish_the_character_that_the_text_began() -> None:
    tokenizer = ByteTokenizer()
    begun = [*tokenizer.encode("x "), tokenizer.pieces.index(b"\xf0\x9f")]
    alignment = Alignment(tokenizer, Letters(), 10)
    alignment.follow(begun)
    # The tokenizer has a token for the whole face, so encoding again does not begin with these bytes: no candidates.
    assert alignment.candidates(begun, Letters().encode("😀")) == []
    tokenizer.pieces[tokenizer.pieces.index("😀".encode())] = b"<no face>"
    assert alignment.candidates(begun, Letters().encode("😀a")) == [
        tokenizer.pieces.index(b"\x98\x80"),
        *tokenizer.encode("a"),
    ]


def test_an_unfinished_draft_is_held_back() -> None:
    tokenizer = ByteTokenizer()
    alignment = Alignment(Letters(), tokenizer, 10)
    alignment.follow(Letters().encode("the "))
    assert alignment.candidates(Letters().encode("the "), [tokenizer.pieces.index(b"\xe4\xb8")]) == []


def test_strings_of_a_vocabulary() -> None:
    assert spellings(OURS, 5) == {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"bca": 4}
    assert spellings(OURS, 2) == {b"a": 0, b"b": 1}
    known = spellings(ByteTokenizer(), 64)
    assert b"the" in known
    assert b"\xf0" not in known


# -- what is proposed ---------------------------------------------------------------------------------------------


def argmax_chain(tokens: list[int], count: int, allowed: Sequence[int] = range(4)) -> list[int]:
    text = list(tokens)
    for _ in range(count):
        logits = DRAFT.next_logits(text)
        text.append(max(allowed, key=lambda t: float(logits[t])))
    return text[len(tokens) :]


def test_slem_proposes_the_drafters_string() -> None:
    composition = made(algorithm="slem", tokens=4, confidence=0.0)
    assert drafter(composition).proposal is Proposal.POINT
    for prompt in ([0], [0, 1, 2], PROMPT, [4, 3, 2]):
        draft = one(composition, prompt)
        ids = THEIRS.encode(OURS.decode(prompt))
        wanted = OURS.decode(prompt) + THEIRS.decode(argmax_chain(ids, 4))
        assert OURS.decode([*prompt, *draft.tree.token_list]) == wanted
        assert draft.q is None


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tli_stays_within_the_common_strings(temperature: float) -> None:
    sampler = StandardSampler(SamplingSettings(temperature=temperature))
    composition = made(sampler, algorithm="tli", tokens=3, confidence=0.0)
    assert drafter(composition).common.tolist() == [[0, 1, 2], [2, 1, 0]]
    for prompt in ([0], [3, 4], PROMPT):
        draft = one(composition, prompt)
        assert len(draft.tree) == 3
        assert set(draft.tree.token_list) <= {0, 1, 2}
        text = THEIRS.encode(OURS.decode(prompt))
        for node, token in enumerate(draft.tree.token_list):
            logits = DRAFT.next_logits(text)[[2, 1, 0]]
            text.append([2, 1, 0][token])
            if not temperature:
                assert token == int(logits.argmax())
                continue
            assert draft.q is not None
            q = draft.q[draft.q_rows[node]]
            assert torch.allclose(q[:3].double(), torch.softmax(logits / temperature, -1), atol=1e-6)
            assert not q[3:].any()
            assert draft.confidence[node] == pytest.approx(float(q[token]))


def brute_force_psi(prompt: list[int], length: int) -> torch.Tensor:
    psi = torch.zeros(5, dtype=torch.float64)
    ids = THEIRS.encode(OURS.decode(prompt))
    for sequence in itertools.product(range(4), repeat=length):
        chance, text = 1.0, list(ids)
        for token in sequence:
            chance *= float(torch.softmax(DRAFT.next_logits(text), -1)[token])
            text.append(token)
        psi[OURS.encode(THEIRS.decode(sequence))[0]] += chance
    return psi


@pytest.mark.parametrize("length", [1, 2, 3])
def test_slrs_sums_over_all_sequences(length: int) -> None:
    composition = made(Softmax(), algorithm="slrs", psi_tokens=length)
    for prompt in ([0], PROMPT):
        draft = one(composition, prompt)
        assert draft.q is not None
        assert len(draft.tree) == 1
        assert torch.allclose(draft.q[0], brute_force_psi(prompt, length), atol=1e-6)
    greedy = one(made(algorithm="slrs", psi_tokens=length), PROMPT)
    assert greedy.tree.token_list == [int(brute_force_psi(PROMPT, length).argmax())]
    assert greedy.q is None


def test_slrs_accepts_at_least_what_drawn_strings_do() -> None:
    p = torch.softmax(TARGET.next_logits(PROMPT), -1)
    psi = brute_force_psi(PROMPT, 3)
    assert float(torch.minimum(p, psi).sum()) > float((p * psi).sum())


def test_auto_goes_by_the_mass_on_common_strings() -> None:
    low, high = made(Softmax(), mass=1.0), made(Softmax(), mass=0.0)
    assert drafter(low).proposal is drafter(high).proposal is Proposal.SAMPLED
    assert one(low, PROMPT).q is None
    assert one(high, PROMPT).q is not None
    logits = DRAFT.next_logits(THEIRS.encode(OURS.decode(PROMPT)))
    assert drafter(low).common_mass(logits) == pytest.approx(float(torch.softmax(logits, -1)[:3].sum()), abs=1e-6)


def test_a_draft_ends_after_a_token_of_low_confidence() -> None:
    for algorithm in ("slem", "tli"):
        sure = made(algorithm=algorithm, tokens=6, confidence=0.0)
        unsure = made(algorithm=algorithm, tokens=6, confidence=1.0)
        for prompt in ([0], PROMPT):
            calls = DRAFT.forwards
            whole = one(sure, prompt)
            assert DRAFT.forwards - calls == 6
            part = one(unsure, prompt)
            assert DRAFT.forwards - calls == 7
            if algorithm == "tli":
                assert part.tree.token_list == whole.tree.token_list[:1]


def test_budgets_count_the_targets_tokens() -> None:
    for algorithm in ("slem", "tli", "slrs"):
        assert len(one(made(algorithm=algorithm, confidence=0.0), PROMPT, Budget(depth=1)).tree) <= 1


# -- exactness ----------------------------------------------------------------------------------------------------

ALGORITHMS: list[dict[str, Any]] = [
    {"algorithm": "slem"},
    {"algorithm": "slem", "draw": True},
    {"algorithm": "tli", "confidence": 0.3},
    {"algorithm": "slrs"},
    {"algorithm": "auto", "mass": 0.75},
]


@pytest.mark.parametrize("settings", ALGORITHMS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_distribution_is_the_targets(settings: dict[str, Any]) -> None:
    sampler = Softmax()
    tokens = continuations(made(sampler, **settings, tokens=4), PROMPT, 900, 2, seed=5)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, 2)) > 1e-3


def test_the_test_would_find_a_draft_that_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the draft model had drawn from its whole vocabulary: q not renormalised over what is common.
    plain_step = HeterogeneousVocab._step_in_common

    def lying(self: HeterogeneousVocab, guess: Any, logits: Any) -> float:
        stops = plain_step(self, guess, logits)
        guess.q[-1] = (guess.q[-1] + 0.5) / (guess.q[-1] + 0.5).sum()
        return stops

    monkeypatch.setattr(HeterogeneousVocab, "_step_in_common", lying)
    sampler = Softmax()
    tokens = continuations(made(sampler, algorithm="tli", tokens=4, confidence=0.0), PROMPT, 900, 2, seed=5)
    assert fit(tokens, sampler.exact(TARGET, PROMPT, 2)) < 1e-3


@pytest.mark.parametrize("settings", ALGORITHMS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_greedy_text_is_the_targets(settings: dict[str, Any]) -> None:
    prompts = [PROMPT, [0], [4, 4, 4, 2]]

    def run(composition: Composition) -> list[Any]:
        return [e for e in composition.decode(prompts, stop=Stop(40)) if isinstance(e, Finished)]

    found = {event.index: event.tokens for event in run(made(**settings))}
    assert found == {event.index: event.tokens for event in run(compose(TARGET))}


def test_caches_are_released() -> None:
    composition = made(Softmax())
    continuations(composition, PROMPT, 5, 4, seed=0)
    assert not drafter(composition)._readings
    assert not drafter(composition)._memories


# -- what is refused ----------------------------------------------------------------------------------------------


def test_sums_that_are_too_long_are_refused() -> None:
    with pytest.raises(Incompatible, match=r"4\^3 = 64 sequences of table-4-2, more than psi_sequences=63"):
        made(algorithm="slrs", psi_sequences=63)


def test_without_two_tokenizers_the_vocabularies_must_be_as_large() -> None:
    with pytest.raises(Incompatible, match="not both have a tokenizer"):
        made(draft=TableModel(4))
    composition = made(draft=TableModel(5, seed=3), algorithm="tli", confidence=0.0)
    assert drafter(composition).common.shape == (2, 5)


def test_nothing_in_common_is_refused() -> None:
    stranger = FastTable(2, seed=4)
    stranger.tokenizer = Pieces("x", "y")
    with pytest.raises(Incompatible, match="share no token"):
        made(draft=stranger, algorithm="tli")
    assert not one(made(Softmax(), draft=stranger), PROMPT).tree


def test_an_encoder_is_refused() -> None:
    reader = FastTable(4, seed=2)
    reader.tokenizer = THEIRS
    reader.capabilities |= {Capability.ENCODER}
    with pytest.raises(Incompatible, match="has an encoder"):
        made(draft=reader)
