"""The search that draws without local normalisation, through the loop, against exact probabilities."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from scipy import stats
from tests.sampling.helpers import RandomTrees, run
from tests.toys import TableModel
from torch import Tensor

from unspool.core.branch import Branch
from unspool.core.cards import Card, Kind
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Finished, Scored
from unspool.core.sockets import Constraint, Sampler
from unspool.core.texts import Stop
from unspool.sampling import warp
from unspool.sampling.distortion import Warp
from unspool.sampling.enumeration import Enumeration, enumerate_strings
from unspool.sampling.local_normalization_distortion import DistortionSettings, LocalNormalizationDistortion
from unspool.sampling.look_back_decoding import LookBackDecoding
from unspool.sampling.standard import SamplingSettings, StandardSampler

PROMPT = [1]
STOP = frozenset({2})
RUNS = 800


@pytest.fixture(scope="module")
def model() -> TableModel:
    made = TableModel(3, seed=264, scale=1.0)
    made.table[:, ::2] *= 4.0
    made.table[:, 1::2] *= 0.3
    return made


def top_2() -> StandardSampler:
    return StandardSampler(SamplingSettings(temperature=1.0, top_k=2))


def cold() -> StandardSampler:
    return StandardSampler(SamplingSettings(temperature=0.5))


WARPS: dict[Any, tuple[Warp, float]] = {
    top_2: (partial(warp.top_k, k=2), 1.0),
    cold: (partial(warp.temperature, value=0.5), 0.5),
}


def answers(
    model: TableModel,
    algorithm: Any,
    particles: int,
    runs: int,
    length: int,
    sampler: Sampler,
    seed: int = 0,
    **parts: Any,
) -> tuple[list[tuple[int, ...]], LocalNormalizationDistortion]:
    """``runs`` independent answers in one batch."""
    # At this threshold nearly every step resamples, particles that have ended included.
    made = DistortionSettings(algorithm=algorithm, particles=particles, resample_below=0.98)
    search = LocalNormalizationDistortion(made)
    ran = run(model, [PROMPT] * runs, sampler, length, seed=seed, stop_tokens=STOP, search=search, **parts)
    return [tuple(tokens) for tokens in ran.tokens], search


def pooled(rows: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The last dimension of both with the strings put together that are expected less than five times."""
    rare = expected / expected.sum() * RUNS < 5
    if not bool(rare.any()):
        return rows, expected
    rows = torch.cat([rows[..., ~rare], rows[..., rare].sum(-1, keepdim=True)], -1)
    return rows, torch.cat([expected[~rare], expected[rare].sum()[None]])


def worst_z(rows: Tensor, expected: Tensor) -> float:
    """Largest distance of the columns' means (``[R, S]``) from ``expected`` (``[S]``) in standard errors."""
    rows, expected = pooled(rows, expected)
    error = rows.std(0) / math.sqrt(len(rows))
    return float(((rows.mean(0) - expected).abs() / error.clamp_min(1e-4)).max())


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Of Pearson's chi-square test of ``counts`` against probabilities (both ``[S]``)."""
    counts, expected = pooled(counts, expected)
    return float(stats.chisquare(counts, expected * counts.sum()).pvalue)


def one_hot(strings: list[tuple[int, ...]], among: Enumeration) -> Tensor:
    place = {string: i for i, string in enumerate(among.strings)}
    rows = torch.zeros(len(strings), len(place), dtype=torch.float64)
    rows[torch.arange(len(strings)), torch.tensor([place[string] for string in strings])] = 1
    return rows


@pytest.mark.parametrize("sampler", [top_2, cold])
@pytest.mark.parametrize(("algorithm", "particles"), [("smc", 4), ("smc", 5), ("importance", 4)])
def test_weighted_answers_are_unbiased(model: TableModel, algorithm: str, particles: int, sampler: Any) -> None:
    """For any number of particles ``E[total * 1(answer = w)] = prod_t u_t(w_t)``, texts that end early included."""
    exact = enumerate_strings(model.next_logits, PROMPT, 4, *WARPS[sampler], stop_tokens=STOP)
    assert len({len(string) for string in exact.strings}) > 2, "texts of several lengths"
    strings, search = answers(model, algorithm, particles, RUNS, 4, sampler())
    totals = torch.tensor([search.reports[r].log_total for r in range(RUNS)], dtype=torch.float64).exp()
    rows = one_hot(strings, exact) * totals[:, None]
    target = (exact.log_q + exact.log_omega).exp()
    assert worst_z(rows, target) < 4
    # The test has power: against the local sampler's probabilities it fails.
    assert worst_z(rows, exact.q * math.exp(exact.log_total)) > 4.5
    reports = list(search.reports.values())
    if algorithm == "smc":
        assert sum(len(report.resampled) for report in reports) > RUNS / 2
        assert all(1 - 1e-9 <= e <= particles + 1e-9 for report in reports for e in report.effective)
    else:
        assert not any(report.resampled for report in reports)


def transitions_independent(exact: Enumeration) -> Tensor:
    """``[S, S]`` of the chain with proposals from ``q``."""
    accept = (exact.log_omega[None, :] - exact.log_omega[:, None]).clamp_max(0).exp()
    return _with_stay(exact.q[None, :] * accept)


def transitions_suffix(exact: Enumeration) -> Tensor:
    """``[S, S]`` of the chain that cuts at a uniform token and writes the rest anew, from the strings alone."""
    size = len(exact.strings)
    moves = torch.zeros(size, size, dtype=torch.float64)
    for i, old in enumerate(exact.strings):
        for cut in range(len(old)):
            sharing = [j for j, new in enumerate(exact.strings) if new[:cut] == old[:cut]]
            mass = float(exact.q[sharing].sum())
            for j in sharing:
                # The weights before the cut are shared, so the ratio of the whole is that of the suffixes.
                ratio = math.exp(float(exact.log_omega[j] - exact.log_omega[i])) * len(old) / len(exact.strings[j])
                moves[i, j] += float(exact.q[j]) / mass * min(1.0, ratio) / len(old)
    return _with_stay(moves)


def _with_stay(moves: Tensor) -> Tensor:
    moves = moves - torch.diag(moves.diagonal())
    return moves + torch.diag(1 - moves.sum(-1))


@pytest.mark.parametrize("sampler", [top_2, cold])
@pytest.mark.parametrize(
    ("algorithm", "law"), [("metropolis", transitions_independent), ("suffix-metropolis", transitions_suffix)]
)
@pytest.mark.parametrize("drafted", [False, True])
def test_chains_follow_their_exact_law(
    model: TableModel, algorithm: str, law: Any, sampler: Any, drafted: bool
) -> None:
    particles = 4
    exact = enumerate_strings(model.next_logits, PROMPT, 3, *WARPS[sampler], stop_tokens=STOP)
    step = law(exact)
    assert torch.allclose(exact.pi @ step, exact.pi, rtol=0, atol=1e-12), "the chain keeps pi"
    expected = exact.q @ torch.linalg.matrix_power(step, particles - 1)
    assert float((exact.q @ torch.linalg.matrix_power(step, 200) - exact.pi).abs().max()) < 1e-6
    drafter = RandomTrees(model) if drafted else None
    strings, search = answers(model, algorithm, particles, RUNS, 3, sampler(), seed=5, drafter=drafter)
    counts = one_hot(strings, exact).sum(0)
    assert p_value(counts, expected) > 1e-3
    assert p_value(counts, exact.q) < 1e-5, "the test has power"
    assert all(report.proposed == particles - 1 for report in search.reports.values())
    assert 0 < sum(report.accepted for report in search.reports.values()) < RUNS * (particles - 1)


class Only(Constraint):
    """Allows two tokens; what that leaves out depends on the text."""

    def allowed(self, branch: Branch, tokens: list[int]) -> Tensor:
        return torch.tensor([True, False, True])


def test_a_constraint_is_corrected_to_conditioning(model: TableModel) -> None:
    """The target is the model's distribution over texts given that all tokens are allowed."""
    plain = enumerate_strings(model.next_logits, PROMPT, 4, lambda logits: logits, stop_tokens=STOP)
    allowed = [i for i, string in enumerate(plain.strings) if 1 not in string]
    conditioned = torch.softmax(plain.log_p[allowed], 0)
    masked = enumerate_strings(
        model.next_logits,
        PROMPT,
        4,
        lambda logits: logits.masked_fill(torch.tensor([False, True, False]), -math.inf),
        stop_tokens=STOP,
    )
    assert [plain.strings[i] for i in allowed] == masked.strings
    assert torch.allclose(masked.pi, conditioned, rtol=0, atol=1e-12)
    assert float((masked.q - conditioned).abs().sum()) / 2 > 0.05
    sampler = StandardSampler(SamplingSettings(temperature=1.0))
    strings, search = answers(model, "smc", 4, RUNS, 4, sampler, constraint=Only())
    totals = torch.tensor([search.reports[r].log_total for r in range(RUNS)], dtype=torch.float64).exp()
    assert worst_z(one_hot(strings, masked) * totals[:, None], (masked.log_q + masked.log_omega).exp()) < 4


@pytest.mark.parametrize("algorithm", ["importance", "metropolis"])
def test_drafts_change_nothing(model: TableModel, algorithm: str) -> None:
    plain, _ = answers(model, algorithm, 4, 40, 6, top_2())
    drafted, _ = answers(model, algorithm, 4, 40, 6, top_2(), drafter=RandomTrees(model))
    assert drafted == plain


@pytest.mark.parametrize("algorithm", ["smc", "importance", "metropolis", "suffix-metropolis"])
def test_one_particle_is_the_local_sampler(model: TableModel, algorithm: str) -> None:
    strings, _ = answers(model, algorithm, 1, 10, 6, top_2())
    plain = run(model, [PROMPT] * 10, top_2(), 6, stop_tokens=STOP).tokens
    assert strings == [tuple(tokens) for tokens in plain]


def test_particles_share_their_passes() -> None:
    model = TableModel(5, 1)
    made = compose(
        model,
        "local-normalization-distortion+sampling",
        settings={"temperature": 1.0, "top_k": 2, "particles": 8},
    )
    events = list(made.decode([[1, 2]], seed=3))
    forwards = sum(event.forwards for event in events if isinstance(event, Scored))
    assert forwards == 256
    assert [len(event.tokens) for event in events if isinstance(event, Finished)] == [256]


def test_resampling_waits_for_the_threshold() -> None:
    model = TableModel(30, 2)
    model.table[:, ::2] *= 3.0
    model.table[:, 1::2] *= 0.2
    for threshold in (0.0, 0.5, 0.9):
        search = LocalNormalizationDistortion(DistortionSettings(particles=8, resample_below=threshold))
        run(model, [PROMPT], top_2(), 30, search=search)
        report = search.reports[0]
        below = [at + 1 for at, effective in enumerate(report.effective[:-1]) if effective < 8 * threshold]
        assert report.resampled == below
        assert bool(below) == (threshold > 0)


def test_a_deadline_ends_every_algorithm(model: TableModel) -> None:
    for algorithm in ("smc", "importance", "metropolis", "suffix-metropolis"):
        made = compose(
            model,
            "local-normalization-distortion+sampling",
            settings={"temperature": 1.0, "top_k": 2, "particles": 4, "algorithm": algorithm},
        )
        events = list(made.decode([PROMPT], stop=Stop(10_000, tokens=frozenset(), deadline=0.05)))
        assert [event.reason for event in events if isinstance(event, Finished)] == ["deadline"]


def test_what_does_not_fit_is_refused(model: TableModel) -> None:
    with pytest.raises(Incompatible, match="temperature above 0"):
        compose(model, "local-normalization-distortion")
    with pytest.raises(Incompatible, match="temperature above 0"):
        compose(model, "local-normalization-distortion+momentum-decoding")
    search = LocalNormalizationDistortion(DistortionSettings(algorithm="importance", particles=2))
    with pytest.raises(Incompatible, match="does not tell"):
        run(model, [PROMPT], LookBackDecoding(), 5, search=search)
    drafter = RandomTrees(model)
    drafter.card = Card("random-trees", "Random trees", Kind.DRAFTER, "For tests.")  # type: ignore[misc]
    with pytest.raises(Incompatible, match="one token a step"):
        compose(model, ["local-normalization-distortion", drafter], sampler=top_2())
    compose(model, ["local-normalization-distortion", drafter], sampler=top_2(), settings={"algorithm": "metropolis"})
