"""The arithmetic of local normalisation, on a model small enough to write every string down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.toys import TableModel
from torch import Tensor

from unspool.sampling import warp
from unspool.sampling.distortion import effective_sample_size, measure, objective, systematic_resampling
from unspool.sampling.enumeration import Chain, enumerate_strings

PROMPT = [1]
EXACT = 1e-12


def tempered_top_2(logits: Tensor) -> Tensor:
    return warp.top_k(logits / 0.7, 2)


# (warp, its temperature)
SAMPLERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "top-k": (partial(warp.top_k, k=2), 1.0),
    "nucleus": (partial(warp.top_p, p=0.8), 1.0),
    "min-p": (partial(warp.min_p, share=0.3), 1.0),
    "temperature": (partial(warp.temperature, value=0.6), 0.6),
    "hot": (partial(warp.temperature, value=1.5), 1.5),
    "both": (tempered_top_2, 0.7),
}


@pytest.fixture(scope="module")
def model() -> TableModel:
    """Four tokens; some steps are flat and some are peaked, which is what local normalisation trips over."""
    made = TableModel(4, seed=53, scale=1.0)
    made.table[:, ::2] *= 3.0
    made.table[:, 1::2] *= 0.2
    return made


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("stop", [(), (3,)])
def test_identities(model: TableModel, name: str, stop: tuple[int, ...]) -> None:
    sampler, tau = SAMPLERS[name]
    all_strings = enumerate_strings(model.next_logits, PROMPT, 5, sampler, tau, stop)
    log_p, q, pi, distortion = all_strings.log_p, all_strings.q, all_strings.pi, -all_strings.log_omega
    assert len(set(all_strings.strings)) == len(all_strings.strings)
    if not stop and name in ("temperature", "hot"):
        assert len(all_strings.strings) == 1024
        assert float(log_p.exp().sum()) == pytest.approx(1, abs=EXACT)
    assert float(q.sum()) == pytest.approx(1, abs=EXACT)
    if tau == 1:
        assert bool((distortion >= -EXACT).all()), "a truncation only boosts"

    # q(w) = p(w)^(1/tau) exp(D(w)), so that q alone maximises H + E[log p]/tau + E[D], with the value 0.
    log_r = log_p / tau + distortion
    assert torch.allclose(all_strings.log_q, log_r, rtol=0, atol=EXACT)
    assert objective(q, log_r) == pytest.approx(0, abs=EXACT)
    # Without D the maximiser is pi, in proportion to p^(1/tau) over the allowed strings.
    assert torch.allclose(pi, torch.softmax(log_p / tau, 0), rtol=0, atol=EXACT)
    assert objective(pi, log_p / tau) == pytest.approx(all_strings.log_total, abs=EXACT)
    rng = torch.Generator().manual_seed(0)
    others = torch.rand(20, len(q), generator=rng, dtype=torch.float64) ** 3
    for mu in [*(others / others.sum(-1, keepdim=True)), q]:
        assert objective(mu, log_r) <= EXACT
        assert objective(mu, log_p / tau) <= all_strings.log_total + EXACT
    assert float((q - pi).abs().sum()) / 2 > 0.05, "otherwise there is nothing to correct"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_text_measured_is_the_string_enumerated(model: TableModel, name: str) -> None:
    sampler, tau = SAMPLERS[name]
    all_strings = enumerate_strings(model.next_logits, PROMPT, 5, sampler, tau)
    for at in range(0, len(all_strings.strings), 29):
        string = all_strings.strings[at]
        logits = torch.stack([model.next_logits([*PROMPT, *string[:t]]) for t in range(5)])
        measured = measure(logits, torch.tensor(string), sampler, tau)
        assert measured.distortion == pytest.approx(-float(all_strings.log_omega[at]), abs=EXACT)
        assert float(measured.log_p.sum()) == pytest.approx(float(all_strings.log_p[at]), abs=EXACT)
        assert float(measured.log_q.sum()) == pytest.approx(float(all_strings.log_q[at]), abs=EXACT)
        assert measured.outside == 0
        if tau == 1:
            assert measured.log_likelihood_ratio == pytest.approx(measured.distortion, abs=EXACT)


def test_entropies_add_up(model: TableModel) -> None:
    """``H(q)`` is the expected sum of the steps' entropies (chain rule)."""
    sampler, tau = SAMPLERS["both"]
    all_strings = enumerate_strings(model.next_logits, PROMPT, 4, sampler, tau)
    total = 0.0
    for string, chance in zip(all_strings.strings, all_strings.q.tolist(), strict=True):
        logits = torch.stack([model.next_logits([*PROMPT, *string[:t]]) for t in range(4)])
        total += chance * float(measure(logits, torch.tensor(string), sampler, tau).entropy.sum())
    assert total == pytest.approx(float(torch.special.entr(all_strings.q).sum()), abs=1e-11)


def test_features_tell_truncated_text(model: TableModel) -> None:
    wide = TableModel(50, seed=1, scale=1.5)
    k10 = partial(warp.top_k, k=10)
    rng = torch.Generator().manual_seed(0)

    def text(sampler: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        tokens = [1]
        rows = []
        for _ in range(60):
            rows.append(wide.next_logits(tokens))
            tokens.append(int(torch.multinomial(torch.softmax(sampler(rows[-1]), -1), 1, generator=rng)))
        return torch.stack(rows), torch.tensor(tokens[1:])

    local = [measure(*text(k10), k10) for _ in range(10)]
    ancestral = [measure(*text(lambda x: x), k10) for _ in range(10)]
    assert all(m.outside == 0 and m.log_likelihood_ratio > 0 for m in local)
    assert all(m.outside > 0 and m.log_likelihood_ratio == -torch.inf for m in ancestral)
    assert all(0 < m.features()["outside"] < 1 for m in ancestral)
    features = local[0].features()
    assert features["distortion"] == pytest.approx(local[0].distortion / 60)
    assert features["distortion_variance"] == pytest.approx(float(local[0].log_z.var(correction=0)))
    empty = measure(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), k10)
    assert empty.features()["distortion"] == 0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0, 1, exclude_max=True))
def test_systematic_resampling(log_weights: list[float], uniform: float) -> None:
    weights = torch.tensor(log_weights, dtype=torch.float64)
    chosen = systematic_resampling(weights, torch.tensor(uniform, dtype=torch.float64))
    assert chosen.shape == weights.shape
    assert bool((chosen.diff() >= 0).all())
    expected = len(log_weights) * torch.softmax(weights, 0)
    counts = torch.bincount(chosen, minlength=len(log_weights)).double()
    assert bool((counts >= (expected - 1e-9).floor()).all())
    assert bool((counts <= (expected + 1e-9).ceil()).all())


def test_systematic_resampling_is_unbiased() -> None:
    weights = torch.tensor([0.1, 2.0, 0.0, -3.0], dtype=torch.float64)
    grid = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    counts = torch.bincount(systematic_resampling(weights.expand(4000, 4), grid).flatten(), minlength=4) / 4000
    assert torch.allclose(counts.double(), 4 * torch.softmax(weights, 0), atol=1e-3)


def test_effective_sample_size() -> None:
    assert float(effective_sample_size(torch.zeros(7))) == pytest.approx(7)
    assert float(effective_sample_size(torch.tensor([0.0, -1e4, -1e4]))) == pytest.approx(1)
    weights = torch.tensor([1.0, 2.0, 5.0])
    assert float(effective_sample_size(weights.log() + 300)) == pytest.approx(64 / 30, rel=1e-4)


DRAWS = 200_000


@pytest.mark.parametrize(
    ("name", "particles"), [("importance", 24), ("metropolis", 20), ("suffix_metropolis", 30), ("smc", 32)]
)
@pytest.mark.parametrize("sampler", ["top-k", "temperature"])
def test_all_four_algorithms_draw_from_pi(model: TableModel, name: str, particles: int, sampler: str) -> None:
    """Total variation within 0.01 of that of as many independent draws, where the local sampler is 0.05 off."""
    chain = Chain.of(model.next_logits, PROMPT, 5, *SAMPLERS[sampler])
    pi = chain.pi
    rng = torch.Generator().manual_seed(1)

    def distance(strings: Tensor) -> float:
        return float((torch.bincount(strings, minlength=len(pi)) / len(strings) - pi).abs().sum()) / 2

    floor = distance(torch.multinomial(pi, DRAWS, replacement=True, generator=rng))
    assert floor < 0.03
    assert float((chain.q - pi).abs().sum()) / 2 > 0.05
    assert abs(distance(chain.local(DRAWS, rng)) - float((chain.q - pi).abs().sum()) / 2) < 0.01
    assert distance(getattr(chain, name)(DRAWS, particles, rng)) < floor + 0.01


def test_tables_and_tree_agree(model: TableModel) -> None:
    for sampler, tau in SAMPLERS.values():
        tree = enumerate_strings(model.next_logits, PROMPT, 4, sampler, tau)
        chain = Chain.of(model.next_logits, PROMPT, 4, sampler, tau)
        numbers = torch.tensor([int("".join(map(str, string)), 4) for string in tree.strings])
        assert torch.allclose(chain.q[numbers], tree.q, rtol=0, atol=EXACT)
        assert torch.allclose(chain.pi[numbers], tree.pi, rtol=0, atol=EXACT)
        assert torch.allclose(chain.log_omega[numbers], tree.log_omega, rtol=0, atol=EXACT)
