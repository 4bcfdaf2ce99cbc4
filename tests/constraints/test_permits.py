"""Whether single tokens may follow, and what greedy decoding asks a constraint for."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.constraints.scripted import STOP, ScriptedModel, writing

from unspool.constraints._grammar import Grammar
from unspool.constraints._matcher import Matcher
from unspool.constraints.greatgramma import GreatGramma
from unspool.constraints.llguidance import LLGuidance, LLGuidanceMatcher
from unspool.constraints.pre3_dpda import Pre3
from unspool.core.branch import Branch
from unspool.core.compose import Composition, compose
from unspool.core.decode import Greedy
from unspool.core.events import Finished
from unspool.core.sockets import Setup
from unspool.core.texts import Stop
from unspool.sampling.standard import SamplingSettings, StandardSampler

GRAMMAR = Grammar.lark('start: "[" (item ("," item)*)? "]"\nitem: start | /[0-9]{1,3}/ | "nil"')
LONGER = [b"[[", b"]]", b"],", b"12", b"nil", b"il", b"nix", b",nil]"]


@pytest.mark.parametrize("engine", [LLGuidance, GreatGramma, Pre3])
@pytest.mark.parametrize("close", [False, True])
def test_it_is_what_the_mask_says(engine: type[Any], close: bool) -> None:
    rng = random.Random(0)
    lm = ScriptedModel(lambda text: "", LONGER)
    for _ in range(6):
        part, masks = (engine(engine.Settings(grammar=GRAMMAR, close=close)) for _ in range(2))
        for each in (part, masks):
            each.bind(Setup(lm, Greedy()))
        branch = Branch(0, 0, [1], lm.new_cache(), 0, lm.device, [])
        branch.limit, branch.stops = 40, lm.stop_tokens
        for _ in range(30):
            mask = masks.allowed(branch, branch.tokens)
            asked = [STOP, *rng.sample(range(lm.vocab_size), 3), *rng.choices(mask.nonzero().flatten().tolist(), k=2)]
            for few in ([token] for token in asked):
                assert part.permits(branch, branch.tokens, few) == [bool(mask[few[0]])]
            assert part.permits(branch, branch.tokens, asked) == mask[asked].tolist()
            following = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
            if not following:
                break
            branch.tokens.append(rng.choice(following))


def wanting(*answers: str) -> ScriptedModel:
    """Behind a prompt of one byte."""
    return ScriptedModel(lambda text: writing(*answers)(text[1:]), LONGER)


def texts(lm: ScriptedModel, made: Composition, count: int = 60) -> list[str]:
    events = made.decode([[1], [2]], stop=Stop(count))
    found = {event.index: lm.tokenizer.decode(event.tokens) for event in events if isinstance(event, Finished)}
    return [found[index] for index in sorted(found)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Matcher]:
    """The matchers that were asked for a mask."""
    found: list[Matcher] = []
    mask = LLGuidanceMatcher.mask

    def counted(self: LLGuidanceMatcher) -> torch.Tensor:
        found.append(self)
        return mask(self)

    monkeypatch.setattr(LLGuidanceMatcher, "mask", counted)
    return found


def test_greedy_decoding_asks_for_a_mask_only_where_the_likeliest_token_may_not_follow(asked: list[Matcher]) -> None:
    right = wanting("[12,[3],nil]")
    wrong = wanting("[12,[3],nix]", "[12,[3],nil]")
    parts = ["plain", LLGuidance(LLGuidance.Settings(grammar=GRAMMAR, jump="off"))]
    made = compose(right, parts)
    asked.clear()  # compiling asks once
    assert texts(right, made) == ["[12,[3],nil]"] * 2
    assert not asked
    made = compose(wrong, parts)
    asked.clear()
    assert texts(wrong, made) == ["[12,[3],nil]"] * 2
    assert len(asked) == 4, "in each text, where it would write 'nix', and after 'ni'"


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 0, "presence_penalty": 0.5}])
def test_other_samplers_see_the_mask(asked: list[Matcher], options: dict[str, float]) -> None:
    sampler = StandardSampler(SamplingSettings(**options))
    assert not sampler.greedy
    lm = wanting("[12]")
    made = compose(lm, ["plain", sampler, LLGuidance(LLGuidance.Settings(grammar=GRAMMAR, jump="off"))])
    asked.clear()
    assert texts(lm, made, 4)
    assert asked
