"""The plain sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tests.sampling.helpers import RandomTrees, node, run
from tests.toys import TableModel
from transformers.generation import logits_process as oracle

from unspool.core.branch import Branch
from unspool.core.cards import make_settings, setting_fields
from unspool.core.compose import compose
from unspool.core.decode import Greedy
from unspool.core.errors import InvalidInput
from unspool.core.sockets import Constraint
from unspool.sampling.standard import SamplingSettings, StandardSampler

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.4},
    {"presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"no_repeat_ngram": 3},
    {"logit_bias": {2: 1.5}},
    {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": -0.2, "no_repeat_ngram": 4},
]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 3},
    {"temperature": 1.3, "top_p": 0.8, "min_p": 0.02},
    {"temperature": 0.9, "typical_p": 0.7, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02},
]


def made(**values: Any) -> StandardSampler:
    return StandardSampler(SamplingSettings(**values))


def test_defaults_are_greedy_and_say_so() -> None:
    model = TableModel()
    assert StandardSampler().deterministic
    assert not made(temperature=0.5).deterministic
    ran = run(model, [[1, 2], [3]], StandardSampler(), 20)
    assert ran.tokens == run(model, [[1, 2], [3]], Greedy(), 20).tokens


@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"typical_p": 0.1}, {"top_p": 0.01, "eta_cutoff": 0.5}])
def test_temperature_0_ignores_truncations(truncation: dict[str, Any]) -> None:
    model = TableModel()
    assert run(model, [[1, 2]], made(**truncation), 12).tokens == run(model, [[1, 2]], Greedy(), 12).tokens


@pytest.mark.parametrize("values", [{**warps, **penalty} for warps in SAMPLED for penalty in [{}, *PENALTIES]], ids=str)
def test_the_order_is_that_of_transformers(values: dict[str, Any]) -> None:
    """Presence and frequency, which transformers lacks, follow the repetition penalty by hand."""
    model = TableModel(vocab_size=9, seed=3, scale=2.0)
    tokens, prompt_length = [1, 4, 1, 5, 8, 1, 4, 1, 5], 4
    at = node(model, tokens, prompt_length=prompt_length)
    ids, scores = torch.tensor([tokens]), at.logits[None].clone()
    if bias := values.get("logit_bias"):
        scores = oracle.SequenceBiasLogitsProcessor({(t,): b for t, b in bias.items()})(ids, scores)
    if penalty := values.get("repetition_penalty"):
        scores = oracle.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)
    for token in tokens[prompt_length:]:
        scores[0, token] -= values.get("frequency_penalty", 0)
    for token in set(tokens[prompt_length:]):
        scores[0, token] -= values.get("presence_penalty", 0)
    if size := values.get("no_repeat_ngram"):
        scores = oracle.NoRepeatNGramLogitsProcessor(size)(ids, scores)
    warpers = {
        "temperature": oracle.TemperatureLogitsWarper,
        "top_k": oracle.TopKLogitsWarper,
        "top_p": oracle.TopPLogitsWarper,
        "min_p": oracle.MinPLogitsWarper,
        "typical_p": oracle.TypicalLogitsWarper,
        "epsilon_cutoff": oracle.EpsilonLogitsWarper,
        "eta_cutoff": oracle.EtaLogitsWarper,
    }
    for name, warper in warpers.items():
        if name in values:
            scores = warper(values[name])(ids, scores)
    dist = made(**values).distribution(at)
    assert dist.probs is not None
    assert torch.allclose(dist.probs, torch.softmax(scores[0], -1), rtol=0, atol=1e-12)
    assert torch.allclose(made(**values).draft_probs(at.logits, tokens, at.branch), dist.probs, rtol=0, atol=1e-12)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.0, 0.7, 1.0, 1.5]),
            "top_k": st.integers(0, 4),
            "top_p": st.sampled_from([0.5, 0.9, 1.0]),
            "repetition_penalty": st.sampled_from([0.8, 1.0, 1.5]),
            "presence_penalty": st.sampled_from([0.0, 0.7]),
            "frequency_penalty": st.sampled_from([0.0, 0.3]),
            "no_repeat_ngram": st.integers(0, 3),
            "logit_bias": st.sampled_from([{}, {1: 0.5}]),
        },
    ),
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(0, 99),
)
@examples(max_examples=60)
def test_drafts_change_nothing(values: dict[str, Any], prompt: list[int], seed: int) -> None:
    """Token for token, draws included: the loop draws once a token, whatever was drafted."""
    model = TableModel(seed=seed)
    plain = run(model, [prompt, [2]], made(**values), 24, seed=seed)
    drafted = run(model, [prompt, [2]], made(**values), 24, seed=seed, drafter=RandomTrees(model, seed))
    assert drafted.tokens == plain.tokens
    assert drafted.forwards <= plain.forwards


def test_drafts_are_of_use() -> None:
    """Otherwise the test above would show nothing."""
    model = TableModel(seed=1)
    ran = run(model, [[1, 2]], made(repetition_penalty=1.05), 40, drafter=RandomTrees(model, 0))
    assert ran.forwards < 30


def test_the_texts_cache_survives_growth_and_rewinding() -> None:
    model = TableModel(vocab_size=12, seed=5)
    sampler = made(repetition_penalty=1.3, frequency_penalty=0.2)
    branch = Branch(0, 0, [3], model.new_cache(), 0, model.device, [])
    rng = torch.Generator().manual_seed(0)
    for step in range(700):
        if step in (300, 600):
            branch.log_z = [None] * (len(branch.tokens) - 1)
            branch.rewind(40)
        branch.tokens.append(int(torch.randint(12, (), generator=rng)))
        if step % 50 < 2:
            path = [1, 1, 7][: step % 4]
            text = branch.tokens + path
            logits = model.next_logits(text)
            fresh = node(model, text, prompt_length=1)
            expected = made(repetition_penalty=1.3, frequency_penalty=0.2).penalised(logits, text, fresh.branch)
            assert torch.equal(sampler.penalised(logits, text, branch), expected)


class Only(Constraint):
    """Allows some tokens everywhere."""

    def __init__(self, tokens: set[int]) -> None:
        super().__init__()
        self.tokens = tokens

    def allowed(self, branch: Branch, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([token in self.tokens for token in range(6)])


@pytest.mark.parametrize(
    "values", [{"temperature": 1.0}, {"temperature": 0.5, "top_k": 2}, {"temperature": 2.0}], ids=str
)
def test_log_z_tells_the_local_normaliser(values: dict[str, Any]) -> None:
    model = TableModel()
    tau = values["temperature"]
    at = node(model, [1, 2])
    dist = made(**values).distribution(at)
    assert dist.probs is not None
    assert dist.log_z is not None
    p = torch.softmax(at.logits, -1)
    assert dist.log_z == pytest.approx(float((p ** (1 / tau))[dist.probs > 0].sum().log()), abs=1e-12)


def test_log_z_counts_what_a_constraint_left_out() -> None:
    model = TableModel()
    captured: list[Branch] = []

    class Watching(StandardSampler):
        def observe(self, step: Any) -> None:
            captured.append(step.branch)

    sampler = Watching(SamplingSettings(temperature=1.0))
    tokens = run(model, [[1, 2]], sampler, 4, constraint=Only({0, 3, 5})).tokens[0]
    text = [1, 2]
    for token, log_z in zip(tokens, captured[0].log_z, strict=True):
        p = torch.softmax(model.next_logits(text), -1)
        assert log_z == pytest.approx(float(p[[0, 3, 5]].sum().log()), abs=1e-12)
        text.append(token)


def test_half_precision_logits_are_summed_in_single() -> None:
    logits = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    at = node(TableModel(), [1], logits)
    dist = made(temperature=1.0, top_p=0.99).distribution(at)
    assert dist.probs is not None
    assert dist.probs.dtype == torch.float32
    assert float(dist.probs.sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 1e-9}, "use 0"),
        ({"top_p": 0}, "top_p=0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"repetition_penalty": 0}, "repetition_penalty=0"),
        ({"logit_bias": "3:inf"}, "logit_bias"),
        ({"top_q": 1}, "top_p"),
    ],
)
def test_bad_settings_are_told(values: dict[str, Any], part: str) -> None:
    with pytest.raises(InvalidInput, match=part):
        make_settings(SamplingSettings, values, "sampling")


def test_settings_from_a_command_line() -> None:
    values = {"temperature": "0.7", "top_k": "40", "logit_bias": "3:-100,7:2.5"}
    assert make_settings(SamplingSettings, values, "sampling") == SamplingSettings(
        temperature=0.7, top_k=40, logit_bias={3: -100.0, 7: 2.5}
    )
    assert all(field.help for field in setting_fields(SamplingSettings))


def test_composition_checks_the_bias() -> None:
    model = TableModel()
    assert str(compose(model, "sampling", settings={"temperature": 0.5})) == "sampling"
    with pytest.raises(InvalidInput, match="token 6"):
        compose(model, "sampling", settings={"logit_bias": {6: 1.0}})
