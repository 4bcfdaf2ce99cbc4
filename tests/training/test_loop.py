"""The training loop."""

from __future__ import annotations

import math

import pytest
import torch
from tests.training.small import VOCABULARY, counting, network

from unspool.core.errors import InvalidInput
from unspool.training import quality
from unspool.training.loop import Optimisation, rate, train
from unspool.training.objectives import Batch, Distillation, NextToken


def test_loss_falls_and_is_learned() -> None:
    model = network()
    windows = counting(9)(0, 0.0).tokens
    before = quality.loss(model, windows)
    report = train(model, counting(), NextToken(), Optimisation(steps=120, learning_rate=1e-2), every=20)
    assert before > 0.8 * math.log(VOCABULARY)
    assert quality.loss(model, windows) < 0.3
    assert report.losses[0][1] > report.losses[-1][1]
    assert (report.steps, report.tokens, report.cut) == (120, 120 * 8 * 12, False)
    assert not model.training


def test_equal_seeds_give_equal_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = network(seed=3)
        train(model, counting(seed), NextToken(), Optimisation(steps=5))
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_global_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    train(network(), counting(), NextToken(), Optimisation(steps=2))
    assert torch.equal(before, torch.get_rng_state())


def test_a_limit_of_time_ends_it() -> None:
    report = train(network(), counting(), NextToken(), Optimisation(steps=10**6, seconds=0.3))
    assert report.cut
    assert 0 < report.steps < 10**6


def test_weights_without_gradients_stay() -> None:
    model = network()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = model.model.embed_tokens.weight.clone()
    train(model, counting(), NextToken(), Optimisation(steps=3))
    assert torch.equal(before, model.model.embed_tokens.weight)


def test_the_rate_rises_falls_and_ends() -> None:
    rates = [rate(step / 100, 0.1, 0.05) for step in range(101)]
    assert rates[0] == 0
    assert max(rates) == rates[10] == 1
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.05)


def test_a_loss_that_is_no_number_is_told() -> None:
    def broken(model: object, batch: Batch, share: float) -> torch.Tensor:
        return torch.tensor(math.nan, requires_grad=True)

    with pytest.raises(InvalidInput, match=r"step 0.*learning rate below"):
        train(network(), counting(), broken, Optimisation(steps=3))  # type: ignore[arg-type]


def test_what_is_watched_sees_the_model_in_evaluation_mode() -> None:
    model, seen = network(), []
    train(model, counting(), NextToken(), Optimisation(steps=8), watch=lambda: str(seen.append(model.training)))
    assert seen == [False] * 8


def test_a_student_comes_to_agree_with_its_teacher() -> None:
    teacher, student = network(seed=1), network(layers=1, seed=2)
    train(teacher, counting(), NextToken(), Optimisation(steps=120, learning_rate=1e-2))
    windows = counting(9)(0, 0.0).tokens
    before = quality.agreement(student, teacher, windows)
    objective = Distillation(lambda tokens: quality.logits_of(teacher, tokens))
    train(student, counting(5), objective, Optimisation(steps=120, learning_rate=1e-2))
    after = quality.agreement(student, teacher, windows)
    assert after["greedy"] > 0.95 > before["greedy"]
    assert after["sampled"] > 0.8 > before["sampled"]
    assert quality.agreement(teacher, teacher, windows) == {"greedy": 1.0, "sampled": pytest.approx(1.0, abs=1e-4)}
