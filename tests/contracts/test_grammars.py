"""A grammar under every drafter and every sampler, on tiny networks whose tokens spell letters.

Jumps forward, pruned drafts and closing are the loop's and the matcher's business; a drafter must not change the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from tests.contracts.test_distribution import lossless
from tests.contracts.test_greedy import collect, related
from tests.models.shapes import backend, prompts

from unspool.constraints._constraint import GrammarSettings
from unspool.constraints.llguidance import LLGuidance
from unspool.core.cards import Kind
from unspool.core.compose import compose
from unspool.core.model import LanguageModel
from unspool.core.registry import Method, registry
from unspool.core.texts import Stop
from unspool.engine import DEFAULT_METHOD


class Letters:
    """A tokenizer of single letters and some pairs, as wide as the shapes' vocabularies."""

    def __init__(self, size: int) -> None:
        letters = [bytes([97 + i]) for i in range(26)] + [b" ", b",", b"0", b"1", b"2", b"3"]
        pairs = [a + b for a in letters[:6] for b in letters[:6]]
        self.token_bytes: list[bytes | None] = [None, *letters, *pairs][: size - 1]

    def encode(self, text: str, special: bool = True) -> list[int]:
        # Drafters that read files encode long texts: by a table, other letters standing for a space.
        table = np.full(256, self.token_bytes.index(b" "), dtype=np.int64)
        for token, string in enumerate(self.token_bytes):
            if string is not None and len(string) == 1:
                table[string[0]] = token
        ids: list[int] = table[np.frombuffer(text.encode(), dtype=np.uint8)].tolist()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes[i] or b"" for i in ids if i < len(self.token_bytes)).decode()


GRAMMAR = "regex:(name [a-f]{2,9} is [a-f ]+, )*end"
SHAPES = ("llama", "t5", "mamba2")


@pytest.fixture
def spelling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    """A tiny model of a shape whose tokens are letters and pairs of letters; token 0 ends a text."""
    lm = backend(request.param)
    monkeypatch.setattr(lm, "tokenizer", Letters(lm.vocab_size))
    monkeypatch.setattr(lm, "stop_tokens", frozenset({0}))
    return lm


@pytest.mark.parametrize(
    ("spelling", "jump", "close"),
    [("llama", "text", False), ("llama", "off", True), ("mamba2", "text", True), ("t5", "token", False)],
    indirect=["spelling"],
)
def test_grammars_under_every_drafter(spelling: LanguageModel, jump: str, close: bool) -> None:
    settings = GrammarSettings(GRAMMAR, jump=jump, close=close)
    shape = next(name for name in SHAPES if backend(name) is spelling)
    asked, length = prompts(2, 0), 20
    expected = collect(compose(spelling, LLGuidance(settings)).decode(asked, stop=Stop(length)))[0]
    pattern = re.compile(GRAMMAR.removeprefix("regex:"))
    for answer in expected:
        whole = pattern.fullmatch(answer.text) is not None
        assert whole == (answer.reason == "stop-token")
        assert whole or not close
    for method in lossless(Kind.DRAFTER):
        if method.card.needs - spelling.capabilities:
            continue
        parts = [method.card.slug, LLGuidance(settings)]
        # Drafters that look things up in files read a little of them.
        little = {"corpus_megabytes": 1} if any(f.name == "corpus_megabytes" for f in fields(method.settings)) else {}
        made = compose(spelling, parts, settings=little, models=related(method.card.slug, shape))
        assert collect(made.decode(asked, stop=Stop(length)))[0] == expected, method.card.slug


@pytest.mark.parametrize("spelling", ["llama"], indirect=True)
@pytest.mark.parametrize("method", registry.of_kind(Kind.SAMPLER), ids=lambda m: m.card.slug)
def test_grammars_under_every_sampler(spelling: LanguageModel, method: Method) -> None:
    """Samplers that keep state choose the same with and without fixed candidates, jumps included."""
    asked = prompts(1, 0)

    def run(*names: str) -> Any:
        made = compose(
            spelling, [*names, LLGuidance(GrammarSettings(GRAMMAR))], models=related("+".join(names), "llama")
        )
        return collect(made.decode(asked, stop=Stop(16), seed=3))[0]

    alone = run(method.card.slug)
    assert all(re.compile(r"[a-z ,]*").fullmatch(answer.text) for answer in alone)
    for drafter in (DEFAULT_METHOD, "token-recycling"):
        assert run(drafter, method.card.slug) == alone, drafter
