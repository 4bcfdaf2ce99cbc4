"""Losses, against transformers' own forward pass and the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from tests.training.small import counting, network
from torch.nn import functional

from unspool.training import quality
from unspool.training.loop import Optimisation, train
from unspool.training.objectives import Batch, LayerSkip, NextToken, divergence, layer_states, readout


def batch() -> Batch:
    return Batch(torch.randint(16, (4, 9), generator=torch.Generator().manual_seed(0)))


def test_layer_by_layer_is_the_network_itself() -> None:
    model, data = network(layers=3), batch()
    with torch.no_grad():
        theirs = model(input_ids=data.inputs, output_hidden_states=True)
        ours = layer_states(model, data.inputs)
    assert len(ours) == 3
    torch.testing.assert_close(ours[0], theirs.hidden_states[1])
    torch.testing.assert_close(readout(model, ours[-1]), theirs.logits)


def test_next_token_is_the_mean_cross_entropy() -> None:
    model, data = network(), batch()
    expected = functional.cross_entropy(model(input_ids=data.inputs).logits.flatten(0, 1), data.targets.flatten())
    torch.testing.assert_close(NextToken()(model, data, 0.0), expected)


def test_weighted_predictions_alone_count() -> None:
    model, data = network(), batch()
    weights = torch.zeros(4, 8)
    weights[1, 3], weights[2, 5] = 1, 3
    each = functional.cross_entropy(model(input_ids=data.inputs).logits.transpose(1, 2), data.targets, reduction="none")
    expected = (each[1, 3] + 3 * each[2, 5]) / 4
    torch.testing.assert_close(NextToken()(model, Batch(data.tokens, weights), 0.0), expected)


def test_rows_that_skip_a_layer_go_around_it() -> None:
    model, data = network(layers=3), batch()
    with torch.no_grad():
        whole = layer_states(model, data.inputs)
        some = layer_states(model, data.inputs, [None, torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)])
    torch.testing.assert_close(some[0], whole[0])
    torch.testing.assert_close(some[1][[0, 2]], whole[1][[0, 2]])
    torch.testing.assert_close(some[1][[1, 3]], whole[0][[1, 3]])
    torch.testing.assert_close(some[2], some[1])


def test_rates_of_layer_dropout() -> None:
    rates = LayerSkip.rates(12, 0.2)
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.2 * (math.exp(5 * math.log(2) / 11) - 1))
    assert rates == sorted(rates)


def test_layers_are_dropped_at_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    from unspool.training import objectives

    model, kept_rows = network(layers=4), [0] * 4
    original = objectives.layer_states

    def counted(model, tokens, kept=(), upto=None):  # type: ignore[no-untyped-def]
        for layer, rows in enumerate(kept):
            kept_rows[layer] += len(tokens) if rows is None else len(rows)
        return original(model, tokens, kept, upto)

    monkeypatch.setattr(objectives, "layer_states", counted)
    objective = LayerSkip(0.5, 2, 1.0, torch.Generator().manual_seed(0))
    steps = 150
    for _ in range(steps):
        objective(model, batch(), 0.0)
    for layer, rate in enumerate(LayerSkip.rates(4, 0.5)):
        # four rows a step; five standard deviations
        spread = 5 * math.sqrt(max(rate * (1 - rate), 1e-9) / (4 * steps))
        assert kept_rows[layer] / (4 * steps) == pytest.approx(1 - rate, abs=spread + 1e-9)


def test_exits_rotate_and_the_last_layer_always_counts() -> None:
    objective = LayerSkip(0.0, 3, 1.0, torch.Generator())
    turns = [objective.exits(8, step) for step in range(3)]
    assert turns == [[0, 3, 6, 7], [1, 4, 7], [2, 5, 7]]


def test_the_loss_is_the_weighted_sum_of_the_exits() -> None:
    model, data = network(layers=4), batch()
    objective = LayerSkip(0.0, 2, 0.5, torch.Generator())
    assert objective.weights(4, 0.5) == [0, 0.5, 1.5, 3 + 1.5]
    with torch.no_grad():
        losses = [
            functional.cross_entropy(readout(model, state).flatten(0, 1), data.targets.flatten())
            for state in layer_states(model, data.inputs)
        ]
        expected = (0 * losses[0] + 1.5 * losses[2] + 4.5 * losses[3]) / 6  # the first step: layers 0, 2 and the last
        torch.testing.assert_close(objective(model, data, 0.0), expected)
        expected = (0.5 * losses[1] + 4.5 * losses[3]) / 5
        torch.testing.assert_close(objective(model, data, 0.0), expected)


def test_early_layers_learn_to_speak() -> None:
    def early(objective: object) -> float:
        model = network(layers=4)
        train(model, counting(), objective, Optimisation(steps=100, learning_rate=1e-2))  # type: ignore[arg-type]
        return quality.layer_agreement(model, counting(9)(0, 0.0).tokens)[1]

    assert early(LayerSkip(0.1, 2, 1.0, torch.Generator().manual_seed(0))) > 0.9 > early(NextToken())


def test_divergence_is_zero_for_equals_and_counts_what_it_should() -> None:
    p = torch.log_softmax(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)), -1)
    q = torch.log_softmax(torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1)), -1)
    assert float(divergence(p, p)) == pytest.approx(0, abs=1e-6)
    by_hand = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(divergence(p, q), by_hand.mean())
    weights = torch.tensor([[1.0, 0, 0], [0, 2, 0]])
    torch.testing.assert_close(divergence(p, q, weights), (by_hand[0, 0] + 2 * by_hand[1, 1]) / 3)
