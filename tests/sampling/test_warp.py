"""Functions on logits: against transformers' where it has them, and what must hold of all."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation import logits_process as oracle

from unspool.core.errors import InvalidInput
from unspool.sampling import warp

Warper = Callable[[Tensor], Tensor]


def random_logits(rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(rows, vocab, generator=rng, dtype=torch.float64) * scale


TRUNCATIONS: list[tuple[str, Warper, oracle.LogitsProcessor]] = []
for k in (1, 3, 50, 5000):
    TRUNCATIONS.append((f"top_k {k}", lambda x, k=k: warp.top_k(x, k), oracle.TopKLogitsWarper(k)))
for p in (1e-6, 0.3, 0.9, 0.999):
    TRUNCATIONS.append((f"top_p {p}", lambda x, p=p: warp.top_p(x, p), oracle.TopPLogitsWarper(p)))
    TRUNCATIONS.append((f"typical {p}", lambda x, p=p: warp.typical(x, p), oracle.TypicalLogitsWarper(p)))
for p in (0.0, 0.05, 0.5, 1.0):
    TRUNCATIONS.append((f"min_p {p}", lambda x, p=p: warp.min_p(x, p), oracle.MinPLogitsWarper(p)))
for p in (3e-4, 2e-3, 0.5):
    TRUNCATIONS.append((f"epsilon {p}", lambda x, p=p: warp.epsilon_cutoff(x, p), oracle.EpsilonLogitsWarper(p)))
    TRUNCATIONS.append((f"eta {p}", lambda x, p=p: warp.eta_cutoff(x, p), oracle.EtaLogitsWarper(p)))
for t in (0.3, 1.7):
    TRUNCATIONS.append((f"temperature {t}", lambda x, t=t: warp.temperature(x, t), oracle.TemperatureLogitsWarper(t)))


@pytest.mark.parametrize(("name", "ours", "theirs"), TRUNCATIONS, ids=[name for name, _, _ in TRUNCATIONS])
@pytest.mark.parametrize("vocab", [7, 3000])
def test_truncations_are_those_of_transformers(
    name: str, ours: Warper, theirs: oracle.LogitsProcessor, vocab: int
) -> None:
    logits = torch.cat([random_logits(4, vocab, scale=scale) for scale in (0.1, 3.0, 20.0)])
    # A second truncation meets logits that are -inf already.
    for given_logits in (logits, warp.top_k(logits, 5)):
        expected = theirs(torch.zeros(len(logits), 1, dtype=torch.int64), given_logits.clone())
        assert torch.equal(ours(given_logits), expected), name


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 4))
def test_text_penalties_are_those_of_transformers(seed: int, length: int, size: int) -> None:
    logits = random_logits(3, 5, seed)
    tokens = torch.randint(5, (3, length), generator=torch.Generator().manual_seed(seed))
    expected = oracle.RepetitionPenaltyLogitsProcessor(1.3)(tokens, logits.clone())
    assert torch.equal(warp.repetition_penalty(logits, tokens, 1.3), expected)

    expected = oracle.NoRepeatNGramLogitsProcessor(size)(tokens, logits.clone())
    everything = (expected == -torch.inf).all(-1, keepdim=True)
    assert torch.equal(warp.no_repeat_ngram(logits, tokens, size), torch.where(everything, logits, expected))


def test_bias_is_that_of_transformers() -> None:
    logits = random_logits(2, 9)
    bias = {3: 2.5, 0: -100.0}
    expected = oracle.SequenceBiasLogitsProcessor({(t,): b for t, b in bias.items()})(torch.zeros(2, 1).long(), logits)
    assert torch.allclose(warp.logit_bias(logits, bias), expected, rtol=0, atol=1e-12)
    assert torch.equal(logits, random_logits(2, 9)), "the argument must not change"
    with pytest.raises(InvalidInput, match="token 9; the vocabulary has tokens 0 to 8"):
        warp.logit_bias(logits, {9: 1.0})


@given(st.lists(st.integers(0, 4), max_size=15), st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_follow_the_definition(text: list[int], presence: float, frequency: float) -> None:
    logits = random_logits(1, 5)[0]
    tokens = torch.tensor(text, dtype=torch.int64)
    ours = warp.frequency_penalty(warp.presence_penalty(logits, tokens, presence), tokens, frequency)
    counts = Counter(text)
    for token in range(5):
        expected = float(logits[token]) - counts[token] * frequency - float(counts[token] > 0) * presence
        assert float(ours[token]) == pytest.approx(expected, abs=1e-12)


def test_a_fully_banned_row_is_left_alone() -> None:
    logits = random_logits(2, 2)
    tokens = torch.tensor([[0, 0, 1, 0], [0, 0, 0, 0]])
    out = warp.no_repeat_ngram(logits, tokens, 2)
    assert torch.equal(out[0], logits[0])
    assert out[1].tolist() == [-math.inf, float(logits[1, 1])]


# -- what holds of every truncation -------------------------------------------------------------------------------

UNIT = st.floats(1e-6, 1.0)
WARPERS = st.one_of(
    st.integers(1, 40).map(lambda k: lambda x: warp.top_k(x, k)),
    UNIT.map(lambda p: lambda x: warp.top_p(x, p)),
    UNIT.map(lambda p: lambda x: warp.min_p(x, p)),
    UNIT.map(lambda p: lambda x: warp.typical(x, p)),
    UNIT.map(lambda p: lambda x: warp.epsilon_cutoff(x, p)),
    UNIT.map(lambda p: lambda x: warp.eta_cutoff(x, p)),
    st.floats(0.01, 100).map(lambda t: lambda x: warp.temperature(x, t)),
)
# Few different values, so that ties are common; rows with forbidden tokens.
LOGITS = st.integers(1, 24).flatmap(
    lambda width: st.lists(
        st.lists(
            st.one_of(st.sampled_from([-3.0, 0.0, 0.5, 40.0, -math.inf]), st.floats(-30, 30)),
            min_size=width,
            max_size=width,
        ).filter(lambda row: max(row) > -math.inf),
        min_size=1,
        max_size=4,
    )
)


@given(WARPERS, LOGITS, st.sampled_from([torch.float32, torch.float64]))
def test_no_row_dies_and_rows_do_not_meet(warper: Warper, rows: list[list[float]], dtype: torch.dtype) -> None:
    logits = torch.tensor(rows, dtype=dtype)
    before = logits.clone()
    out = warper(logits)
    assert torch.equal(logits, before), "the argument must not change"
    assert out.shape == logits.shape
    assert out.dtype == dtype
    assert bool((out > -torch.inf).any(-1).all())
    assert not bool(out.isnan().any())
    assert bool((out[logits == -torch.inf] == -torch.inf).all()), "what is forbidden stays so"
    for row, one in zip(out, logits, strict=True):
        assert torch.equal(row, warper(one))
    # A row's result does not depend on the order of its vocabulary.
    assert torch.allclose(warper(logits.flip(-1)).flip(-1), out, rtol=0, atol=0)


@given(
    st.sampled_from([warp.top_k, warp.top_p, warp.min_p, warp.epsilon_cutoff, warp.eta_cutoff]),
    LOGITS,
    UNIT,
    UNIT,
)
def test_truncations_keep_the_top_and_are_monotone(
    warper: Callable[[Tensor, float], Tensor], rows: list[list[float]], a: float, b: float
) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    if warper is warp.top_k:
        a, b = 1 + int(a * 10), 1 + int(b * 10)
    loose, tight = (min(a, b), max(a, b)) if warper not in (warp.top_k, warp.top_p) else (max(a, b), min(a, b))
    kept, fewer = warper(logits, loose) > -torch.inf, warper(logits, tight) > -torch.inf
    assert not bool((fewer & ~kept).any()), "a tighter setting keeps no other token"
    for row, keep in zip(logits, fewer, strict=True):
        left_out = row[~keep]
        assert (
            len(left_out) == 0 or float(row[keep].min()) > float(left_out.max()) or bool((left_out == -torch.inf).all())
        )


@given(UNIT, st.integers(0, 2**31), st.sampled_from([6, 600, 5000]))
def test_nucleus_is_the_smallest_set_with_the_mass(p: float, seed: int, vocab: int) -> None:
    logits = random_logits(2, vocab, seed)
    probs = torch.softmax(logits, -1)
    kept = warp.top_p(logits, p) > -torch.inf
    for row, keep in zip(probs, kept, strict=True):
        mass = float(row[keep].sum())
        assert mass >= p - 1e-9
        assert mass - float(row[keep].min()) < p + 1e-9


def test_log_normaliser() -> None:
    logits = random_logits(3, 8)
    probs = torch.softmax(logits, -1)
    tau = 0.7
    warped = warp.top_k(warp.temperature(logits, tau), 3)
    kept = warped > -torch.inf
    expected = (probs ** (1 / tau) * kept).sum(-1).log()
    assert torch.allclose(warp.log_normaliser(warped, logits, tau), expected, rtol=0, atol=1e-12)
    truncated = warp.top_p(logits, 0.6)
    expected = (probs * (truncated > -torch.inf)).sum(-1).log()
    assert torch.allclose(warp.log_normaliser(truncated, logits), expected, rtol=0, atol=1e-12)
