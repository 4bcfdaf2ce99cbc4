"""Answers side by side: one reading of the prompt, the best first, nothing incomplete counted."""

from __future__ import annotations

import itertools

import pytest
import torch
from tests.models.shapes import backend
from tests.toys import TableModel

from unspool.core import decode as loop
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.texts import Stop
from unspool.evaluation.metrics import log_probs
from unspool.evaluation.samples import Sample, SideBySide, draw_samples, passes
from unspool.sampling.standard import SamplingSettings, StandardSampler

PROMPT = [5, 9, 17, 3, 5, 9, 17, 3, 5]


@pytest.mark.parametrize("method", ["plain", "prompt-lookup+bass"])
def test_samples_are_ranked_by_the_models_own_probability(method: str) -> None:
    lm = backend("llama")
    made = compose(lm, method, sampler=StandardSampler(SamplingSettings(temperature=0.7)))
    samples = draw_samples(made, PROMPT, 4, stop=Stop(12), seed=3)
    assert len({sample.tokens for sample in samples}) == 4
    for sample in samples:
        assert len(sample.tokens) == 12
        assert sample.complete
        assert sample.log_prob == pytest.approx(float(log_probs(lm, PROMPT, sample.tokens).sum()), abs=1e-4)
    means = [sample.mean_log_prob for sample in samples]
    assert means == sorted(means, reverse=True)


def test_the_prompt_is_read_once() -> None:
    lm = backend("llama")
    before = lm.forwards
    draw_samples(compose(lm, "plain"), PROMPT, 5, stop=Stop(3))
    assert lm.forwards - before == 1 + 3


def test_after_the_deadline_nothing_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: float(next(ticks)))
    model = TableModel(6, seed=2)
    # One row ends with its stop token before the time is up.
    made = compose(model, "plain", sampler=StandardSampler(SamplingSettings(temperature=1.0)))
    samples = draw_samples(made, [1, 2], 6, stop=Stop(100, tokens=frozenset({4}), deadline=30.0), seed=1)
    complete = [sample for sample in samples if sample.complete]
    assert 0 < len(complete) < 6
    assert samples[: len(complete)] == complete
    assert all(sample.tokens[-1] == 4 and sample.reason == "stop-token" for sample in complete)
    assert passes(samples, lambda sample: True) == (True, True)
    late = [Sample((1,), 0.0, "deadline")]
    assert passes(late, lambda sample: True) == (False, False)
    assert passes(complete[:1] + late, lambda sample: sample is late[0]) == (False, False)


def test_logits_that_were_carried_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend("llama")
    made = compose(model, "momentum-decoding")
    (sample,) = draw_samples(made, PROMPT, 1, stop=Stop(20))
    assert sample.log_prob == pytest.approx(float(log_probs(model, PROMPT, sample.tokens).sum()), abs=1e-4)


def test_a_second_search_is_refused() -> None:
    made = compose(TableModel(), [SideBySide(2)])
    with pytest.raises(Incompatible, match="search"):
        draw_samples(made, [1], 2)
    assert torch.isfinite(torch.tensor(draw_samples(compose(TableModel()), [1], 2, stop=Stop(3))[0].log_prob))
