"""Every lossless method gives, token for token, what plain greedy decoding gives: the registry is walked."""

from __future__ import annotations

import functools
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.shapes import CONTEXT, ENCODER_DECODERS, RECURRENT, ROUNDED, SHAPES, SHORT_CONTEXT, backend, prompts

import unspool
from unspool.core.branch import Branch
from unspool.core.cards import Kind, setting_fields
from unspool.core.compose import Composition, compose
from unspool.core.decode import decode
from unspool.core.errors import Incompatible
from unspool.core.events import Event, Finished, Stepped
from unspool.core.model import Capability, LanguageModel
from unspool.core.registry import Method, registry
from unspool.core.scores import Request
from unspool.core.sockets import Budget, Draft, Drafter, Part, Proposal
from unspool.core.texts import Stop
from unspool.core.tree import TokenTree
from unspool.engine import DEFAULT_METHOD

LONGEST = 40
IN_ORDER = [method for method in registry if method.card.kind is not Kind.SCHEDULE]
LOSSLESS = [method for method in IN_ORDER if method.card.lossless]
DRAFTERS = [method for method in LOSSLESS if method.card.kind is Kind.DRAFTER]
OTHERS = [method for method in LOSSLESS if method.card.kind is not Kind.DRAFTER]


# Without fused kernels these run a token at a time; one recurrent shape stands for all where the loop is at stake.
BY_AND_LARGE = [pytest.param(s, marks=pytest.mark.slow) if s in ("mamba", "jamba") else s for s in SHAPES]
# Stops are the loop's business: one shape of every kind of cache.
KINDS_OF_CACHE = ("llama", "gemma3", "t5", "mamba2")
ONE_OF_A_KIND = [s if s in KINDS_OF_CACHE else pytest.param(s, marks=pytest.mark.slow) for s in SHAPES]


def slug(value: Any) -> str:
    return value.card.slug if isinstance(value, Method) else str(value)


# -- running ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    tokens: list[int]
    reason: str
    text: str = ""


def collect(events: Any) -> tuple[list[Answer], list[Event]]:
    texts: dict[int, str] = {}
    answers: dict[int, Answer] = {}
    seen: list[Event] = []
    for event in events:
        seen.append(event)
        if isinstance(event, Stepped):
            texts[event.index] = texts.get(event.index, "") + event.text
        elif isinstance(event, Finished):
            answers[event.index] = Answer(list(event.tokens), event.reason, texts.get(event.index, "") + event.text)
    return [answers[index] for index in sorted(answers)], seen


@functools.cache
def reference(shape: str, row: int, seed: int = 0) -> tuple[list[int], list[int]]:
    """A prompt, and what transformers' own greedy ``generate`` says after it."""
    lm: Any = backend(shape)
    prompt = prompts(3, seed)[row]
    if shape in ROUNDED:
        return prompt, by_hand(lm, prompt)
    out = lm.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=LONGEST,
        do_sample=False,
        pad_token_id=0,
    )[0].tolist()
    text = out[1:] if shape in ENCODER_DECODERS else out[len(prompt) :]
    assert len(text) == LONGEST
    return prompt, text


def by_hand(lm: LanguageModel, prompt: list[int]) -> list[int]:
    """Greedy decoding without the loop: the whole text is read anew for every token."""
    text: list[int] = []
    while len(text) < LONGEST:
        (scores,) = lm.score([Request(lm.new_cache(), TokenTree.chain([*prompt, *text]))])
        text.append(int(scores.logits[-1].argmax()))
    return text


def batch(shape: str, rows: Sequence[int] = (0, 1, 2)) -> tuple[list[list[int]], list[list[int]]]:
    pairs = [reference(shape, row) for row in rows]
    return [prompt for prompt, _ in pairs], [text for _, text in pairs]


def quick(shape: str) -> list[int]:
    """Rows of a batch: recurrent states are run one by one and token by token, which is slow."""
    return [1, 2] if shape in RECURRENT else [0, 1, 2]


def related(method: str, shape: str) -> dict[str, LanguageModel]:
    """The further models that a composition asks for: disturbed copies of the target."""
    roles = [role for part in method.split("+") for role in registry[part].card.models]
    return {role: backend(shape, noise=0.25) for role in roles}


def built(method: str, shape: str) -> Composition | None:
    """The composition; ``None`` if the model lacks what it needs and that was refused as it should be."""
    lm = backend(shape)
    for part in method.split("+"):
        missing = registry[part].card.needs - lm.capabilities
        if missing:
            with pytest.raises(Incompatible) as refusal:
                compose(lm, method, models=related(method, shape))
            assert part in str(refusal.value)
            assert lm.name in str(refusal.value)
            for need in missing:
                assert need.value in str(refusal.value)
            return None
    return compose(lm, method, models=related(method, shape))


def proposal(method: Method) -> Proposal:
    return method.cls().proposal  # type: ignore[no-any-return, attr-defined]


def compositions(method: Method) -> list[str]:
    """What to put around a method so that it has something to do."""
    name = method.card.slug
    match method.card.kind:
        case Kind.DRAFTER | Kind.SEARCH:
            return [name]
        case Kind.VERIFIER:
            # One drafter for every kind of draft that it judges.
            found = {proposal(d): d.card.slug for d in reversed(DRAFTERS) if proposal(d) in method.cls.judges}  # type: ignore[attr-defined]
            if Proposal.POINT in found:
                found[Proposal.POINT] = DEFAULT_METHOD
            return [f"{drafter}+{name}" for drafter in found.values()]
        case _:
            return [f"{DEFAULT_METHOD}+{name}"]


# -- the yardstick itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_decoding_is_transformers_own(shape: str) -> None:
    asked, expected = batch(shape)
    answers, _ = collect(decode(backend(shape), asked, stop=Stop(LONGEST)))
    assert [answer.tokens for answer in answers] == expected
    if shape != "bart":
        assert len({token for text in expected for token in text}) > 5, "a text that never varies proves little"


def test_the_registry_is_not_empty() -> None:
    assert {"plain", DEFAULT_METHOD} <= {method.card.slug for method in DRAFTERS}
    assert OTHERS


# -- the walk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", DRAFTERS, ids=slug)
def test_drafters(method: Method, shape: str) -> None:
    made = built(method.card.slug, shape)
    if made is None:
        return
    assert made.lossless
    asked, expected = batch(shape)
    long = 16 if shape in RECURRENT else LONGEST
    for size in (1, 2, 7, long):
        answers, _ = collect(made.decode(asked, stop=Stop(size)))
        assert answers == [Answer(text[:size], "length") for text in expected]
    (answer,), _ = collect(made.decode(asked[1:2], stop=Stop(long)))
    assert answer == Answer(expected[1][:long], "length"), "a batch of one, after what was learned from the others"


@pytest.mark.slow
@pytest.mark.parametrize("shape", RECURRENT)
@pytest.mark.parametrize("method", DRAFTERS, ids=slug)
def test_drafters_of_long_recurrent_texts(method: Method, shape: str) -> None:
    made = built(method.card.slug, shape)
    if made is not None:
        asked, expected = batch(shape)
        answers, _ = collect(made.decode(asked, stop=Stop(LONGEST)))
        assert answers == [Answer(text, "length") for text in expected]


@pytest.mark.parametrize("shape", BY_AND_LARGE)
@pytest.mark.parametrize("method", OTHERS, ids=slug)
def test_everything_else(method: Method, shape: str) -> None:
    if method.card.kind is Kind.SAMPLER and not method.cls().deterministic:  # type: ignore[attr-defined]
        names = {field.name for field in setting_fields(method.settings)}
        assert "temperature" in names, (
            "a lossless sampler that draws at random is the business of the tests of distributions"
        )
        pytest.skip("draws at random unless its temperature is 0")
    around = compositions(method)
    assert around, f"no drafter makes what {method.card.slug} judges"
    asked, expected = batch(shape, quick(shape))
    size = 10 if shape in RECURRENT else 16
    for name in around:
        made = built(name, shape)
        if made is None:
            continue
        assert made.lossless
        answers, _ = collect(made.decode(asked, stop=Stop(size)))
        assert answers == [Answer(text[:size], "length") for text in expected], name


# -- stops --------------------------------------------------------------------------------------------------------


class Pairs:
    """Two letters a token, so that a stop string can begin and end within tokens."""

    def encode(self, text: str) -> list[int]:
        # Drafters that read files encode any text: other letters stand for one of these.
        codes = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64)
        codes = codes[: len(codes) // 2 * 2]
        ids: list[int] = ((codes[0::2] - ord("a")) % 8 * 8 + (codes[1::2] - ord("s")) % 8).tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefgh"[i // 8] + "stuvwxyz"[i % 8] for i in ids)


class Prophet(Drafter):
    """Guesses what will come, between wrong siblings where the model takes trees: everything it says right stands."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], depth: int, tree: bool) -> None:
        super().__init__()
        self.answers = answers
        self.depth = depth
        self.tree = tree

    def draft(self, branch: Branch, budget: Budget) -> Draft:
        said = len(branch.tokens) - branch.prompt_length
        key = tuple(branch.source or branch.tokens[: branch.prompt_length])
        coming = self.answers[key][said : said + self.depth]
        if not self.tree:
            return Draft(TokenTree.chain(coming))
        tokens, parents, node = [], [], -1
        for token in coming:
            wrong = (token + 1) % 64
            tokens += [wrong, token, wrong]
            parents += [node, node, len(tokens) - 3]
            node = len(tokens) - 2
        return Draft(TokenTree(tokens, parents))


def prophet(shape: str, depth: int = 9) -> Prophet:
    answers = {tuple(prompt): text for prompt, text in (reference(shape, row) for row in range(3))}
    return Prophet(answers, depth, Capability.TREE in backend(shape).capabilities)


def first_at_or_after(text: list[int], place: int) -> int:
    """The first place from ``place`` on whose token did not occur before."""
    return next(
        (at for at in range(place, len(text)) if text[at] not in text[:at]),
        max(at for at in range(len(text)) if text[at] not in text[:at]),
    )


def stopping_methods(shape: str) -> list[tuple[str, Callable[[], Composition | None]]]:
    lm = backend(shape)
    return [
        ("prophet", lambda: compose(lm, prophet(shape))),
        *((method.card.slug, functools.partial(built, method.card.slug, shape)) for method in DRAFTERS),
    ]


def inside_a_run(events: list[Event]) -> bool:
    """Whether a request ended with a draft token, others of the same draft being thrown away behind it."""
    last = {event.index: event for event in events if isinstance(event, Stepped)}
    return any(event.accepted and len(event.tokens) == len(event.accepted) for event in last.values())


@pytest.mark.parametrize("shape", ONE_OF_A_KIND)
def test_stop_tokens(shape: str) -> None:
    asked, expected = batch(shape, quick(shape))
    for name, make in stopping_methods(shape):
        made = make()
        if made is None:
            continue
        for place in (5,) if shape in RECURRENT else (0, 5, 12):
            stops = frozenset(text[first_at_or_after(text, place)] for text in expected)
            ends = [next(at for at, token in enumerate(text) if token in stops) for text in expected]
            answers, events = collect(made.decode(asked, stop=Stop(LONGEST, tokens=stops)))
            want = [Answer(text[: end + 1], "stop-token") for text, end in zip(expected, ends, strict=True)]
            assert answers == want, name
            if name == "prophet" and max(ends) > 0:
                assert inside_a_run(events)


@pytest.mark.parametrize("shape", ONE_OF_A_KIND)
def test_stop_strings(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = backend(shape)
    monkeypatch.setattr(lm, "tokenizer", Pairs())
    asked, expected = batch(shape, quick(shape))
    for name, make in stopping_methods(shape):
        made = make()
        if made is None:
            continue
        for place in (5,) if shape in RECURRENT else (2, 5, 15):
            # From the second letter of one token to the first of the one after the next.
            stops = tuple(Pairs().decode(text[place : place + 3])[1:5] for text in expected)
            want = []
            for text in expected:
                end, cut = next(
                    (end, min(at for stop in stops if (at := whole.find(stop)) >= 0))
                    for end in range(1, LONGEST + 1)
                    if any(stop in (whole := Pairs().decode(text[:end])) for stop in stops)
                )
                want.append(Answer(text[:end], "stop-string", Pairs().decode(text)[:cut]))
            answers, events = collect(made.decode(asked, stop=Stop(LONGEST, strings=stops)))
            assert answers == want, name
            if name == "prophet":
                assert inside_a_run(events)


@pytest.mark.parametrize("shape", BY_AND_LARGE)
def test_texts_end_with_the_context(shape: str) -> None:
    lm = backend(shape)
    if lm.context_length is None:
        assert shape in ("t5", "mamba", "mamba2")
        return
    if shape in ENCODER_DECODERS:
        asked, room = prompts(2), SHORT_CONTEXT - len(lm.start_tokens)  # type: ignore[attr-defined]
    else:
        asked, room = [(prompt * CONTEXT)[: CONTEXT - 6] for prompt in prompts(2)], 6
    (plain, _) = collect(decode(lm, asked))
    assert [(len(answer.tokens), answer.reason) for answer in plain] == [(room, "context")] * 2
    for method in DRAFTERS:
        made = built(method.card.slug, shape)
        if made is not None:
            assert collect(made.decode(asked))[0] == plain, method.card.slug


@pytest.mark.parametrize("shape", ["llama", "mamba"])
def test_drafts_that_stand_save_passes(shape: str) -> None:
    lm = backend(shape)
    asked, expected = batch(shape, [0])
    before = lm.forwards
    answers, events = collect(decode(lm, asked, drafter=prophet(shape), stop=Stop(LONGEST)))
    assert answers[0].tokens == expected[0]
    steps = [event for event in events if isinstance(event, Stepped)]
    assert len(steps) == LONGEST // 10
    if shape not in RECURRENT:
        assert lm.forwards - before == LONGEST // 10


# -- samplers that keep state, and chance -------------------------------------------------------------------------


def sampler_settings(method: Method) -> list[dict[str, Any]]:
    if method.card.slug == "sampling":
        return [
            {"repetition_penalty": 1.3, "no_repeat_ngram": 2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
            {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
        ]
    return [{}]


@pytest.mark.parametrize("shape", KINDS_OF_CACHE)
@pytest.mark.parametrize("method", [m for m in IN_ORDER if m.card.kind is Kind.SAMPLER], ids=slug)
def test_samplers_choose_the_same_under_speculation(method: Method, shape: str) -> None:
    """Fixed candidates are matched with the sampler's own choices, draw for draw: a seed gives one text."""
    lm = backend(shape)
    asked, _ = batch(shape, quick(shape))
    size = 10 if shape in RECURRENT else 30
    fixed = [
        d.card.slug
        for d in DRAFTERS
        if proposal(d) is Proposal.POINT and d.card.slug != "plain" and d.card.needs <= lm.capabilities
    ]
    for settings in sampler_settings(method):
        if method.card.needs - lm.capabilities:
            with pytest.raises(Incompatible, match=method.card.slug):
                compose(lm, method.card.slug, settings=settings)
            return

        def run(names: str, settings: dict[str, Any] = settings) -> list[Answer]:
            own = {f"{method.card.slug}.{key}": value for key, value in settings.items()}
            made = compose(lm, names, settings=own, models=related(names, shape))
            return collect(made.decode(asked, stop=Stop(size), seed=3))[0]

        alone = run(method.card.slug)
        assert [len(answer.tokens) for answer in alone] == [size] * len(asked)
        for drafter in fixed:
            assert run(f"{drafter}+{method.card.slug}") == alone, (drafter, settings)


@pytest.mark.parametrize("combination", [0, 1])
def test_random_combinations(combination: int) -> None:
    """Two combinations of drafter, controller and sampler, other ones in every run; the seed is in the failure."""
    shape = "llama"
    lm = backend(shape)
    seed = int(os.environ.get("UNSPOOL_TEST_SEED", time.time_ns() % 1_000_000)) + combination
    rng = random.Random(seed)
    samplers = [m for m in IN_ORDER if m.card.kind is Kind.SAMPLER and m.card.needs <= lm.capabilities]
    controllers = [m for m in OTHERS if m.card.kind is Kind.CONTROLLER and m.card.needs <= lm.capabilities]
    drafters = [m for m in DRAFTERS if m.card.slug != "plain" and m.card.needs <= lm.capabilities]
    while True:
        drafter, controller, sampler = (rng.choice(of) for of in (drafters, controllers, samplers))
        settings = rng.choice(sampler_settings(sampler))
        chance = settings.get("temperature", 0) > 0 or not sampler.cls(sampler.settings(**settings)).deterministic
        # What is drawn from a draft model changes with the draft; then only distributions can be compared.
        if proposal(drafter) is Proposal.POINT or not chance:
            break
    own = {f"{sampler.card.slug}.{key}": value for key, value in settings.items()}
    asked, _ = batch(shape)
    alone = compose(lm, sampler.card.slug, settings=own)
    names = "+".join(method.card.slug for method in (drafter, controller, sampler))
    together = compose(lm, names, settings=own, models=related(names, shape))
    want = collect(alone.decode(asked, stop=Stop(30), seed=seed))[0]
    for _ in range(2):
        got = collect(together.decode(asked, stop=Stop(30), seed=seed))[0]
        assert got == want, f"{names} {settings}: UNSPOOL_TEST_SEED={seed - combination}"


# -- a real model -------------------------------------------------------------------------------------------------

QUESTIONS = (
    "Repeat after me: one two three four, one two three four, one two three four.",
    "Why is the sky blue?",
)
NEARLY_EQUAL = 1e-3
"""Gap of the two best logits below which the order of summation may decide, in single precision."""


@pytest.fixture(scope="module")
def smollm() -> tuple[LanguageModel, list[list[int]], list[Answer]]:
    """The model, the prompts, and plain decoding's answers."""
    engine = unspool.load("smollm2-135m", dtype="float32", progress=False)
    asked = [engine.encode(question) for question in QUESTIONS]
    return engine.model, asked, collect(decode(engine.model, asked, stop=Stop(24)))[0]


@pytest.mark.model
@pytest.mark.parametrize("method", [m for m in DRAFTERS if m.card.slug != "plain"], ids=slug)
def test_smollm2_is_decoded_as_by_plain_greedy(
    method: Method,
    smollm: tuple[LanguageModel, list[list[int]], list[Answer]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm, asked, expected = smollm
    made = compose(lm, method.card.slug, models=dict.fromkeys(method.card.models, lm))
    answers, events = collect(made.decode(asked, stop=Stop(24)))
    assert sum(len(e.accepted) for e in events if isinstance(e, Stepped)) > 0, "nothing was ever accepted"
    ties: list[str] = []
    for prompt, answer, plain in zip(asked, answers, expected, strict=True):
        if answer == plain:
            continue
        at = next(i for i, (a, b) in enumerate(zip(answer.tokens, plain.tokens, strict=False)) if a != b)
        cache = lm.new_cache()
        text = [*prompt, *plain.tokens[:at]]
        logits = lm.prefill(cache, text, rows=[len(text) - 1])[-1].logits[-1]
        best = logits.topk(2)
        gap = float(best.values[0] - best.values[1])
        ties.append(f"token {at}, gap {gap:.2g}")
        assert gap < NEARLY_EQUAL, ties[-1]
        assert {answer.tokens[at], plain.tokens[at]} == set(best.indices.tolist())
    with capsys.disabled():
        sys.stdout.write(f"\nSmolLM2-135M, {method.card.slug}: {len(asked)} texts, {len(ties)} numerical ties {ties}\n")
    assert len(ties) <= 1


def test_a_hand_made_part_needs_no_card() -> None:
    parts: list[Part] = [prophet("llama")]
    made = compose(backend("llama"), parts)
    asked, expected = batch("llama")
    assert [a.tokens for a in collect(made.decode(asked, stop=Stop(9)))[0]] == [text[:9] for text in expected]


def test_logits_are_asked_for_where_they_decide() -> None:
    """Of pending tokens only the last row is computed: the walk would fail on any other."""
    lm = backend("llama")
    cache = lm.new_cache()
    scores = lm.score([Request(cache, TokenTree.chain([1, 2, 3]), rows=[2])])[0]
    with pytest.raises(IndexError):
        scores.at(0)
