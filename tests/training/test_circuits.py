"""The recipe of circuits: its problems, its batches, and a training of a few steps."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from unspool.architectures._circuit_network import CircuitNetwork, Shape
from unspool.architectures.circuits import CircuitModel
from unspool.circuits.cutoff import place_of
from unspool.circuits.sequence import AND, EOS, NAND, circuit_of, task_of
from unspool.core.errors import InvalidInput
from unspool.models import artefacts
from unspool.training import recipes
from unspool.training.circuit_problems import held_out, ordered, pairs, relabelled, strayed
from unspool.training.recipes.circuits_6 import decoded, judged, make_batch, masked_loss


@pytest.mark.parametrize("inputs", [3, 4, 5, 6])
def test_pairs_do_the_same_and_are_split_by_function(inputs: int) -> None:
    some = list(islice(pairs(seed=0, inputs=(inputs,)), 15))
    assert some == list(islice(pairs(seed=0, inputs=(inputs,)), 15))
    others = list(islice(pairs(seed=0, split="train", inputs=(inputs,)), 15))
    for pair in some + others:
        made = circuit_of(pair.target, inputs).circuit
        assert made.output_tables() == pair.circuit.output_tables()
        assert circuit_of(pair.source, inputs).circuit.output_tables() == pair.circuit.output_tables()
        assert pair.target[-1] == EOS
        assert len(made.gates) == pair.best_size
    assert all(held_out(pair.circuit) for pair in some)
    assert not any(held_out(pair.circuit) for pair in others)
    assert sum(pair.best_size for pair in some) < sum(pair.circuit.size for pair in some)


@pytest.mark.parametrize("inputs", [3, 4, 6])
def test_detours_end_where_they_should(inputs: int) -> None:
    rng, gone = random.Random(0), 0
    for pair in islice(pairs(seed=1, inputs=(inputs,)), 25):
        detour = strayed(pair, rng)
        named = relabelled(detour, rng)
        for one in (detour, named):
            read = circuit_of(one.target, inputs)
            assert not read.open
            assert read.circuit.output_tables() == one.circuit.output_tables()
            place = place_of(task_of([*one.source, EOS])[1], one.target)
            assert place.fits
            assert not place.stray
        gone += detour.astray[1] > 0
        assert detour.target[: detour.astray[0]] == pair.target[: detour.astray[0]]
    assert gone > 10


def test_the_order_of_operands() -> None:
    assert ordered([AND, NAND, 4, 2, 2, 5]) == (AND, 2, NAND, 2, 4, 5)


def test_targets_are_never_masked_and_detours_are_not_learned() -> None:
    rng = random.Random(1)
    some = [strayed(pair, rng) for pair in islice(pairs(seed=2, inputs=(4,)), 24)]
    batch = make_batch(some, 4)
    kept = batch.weights > 0
    assert bool(batch.allowed.gather(2, batch.targets[..., None])[kept].all())
    for row, pair in enumerate(some):
        assert int(kept[row].sum()) == len(pair.target) - (pair.astray[1] - pair.astray[0])
        finished = batch.allowed[row, len(pair.target) - 1]
        assert finished.nonzero().flatten().tolist() == [EOS]
        assert bool(batch.allowed[row, 0, AND])
        assert bool(batch.allowed[row, 0, NAND])


def test_the_loss_falls() -> None:
    network = CircuitNetwork(Shape(4, 1, 32, 64), 0)
    batch = make_batch(list(islice(pairs(seed=3, split="train", inputs=(4,)), 16)), 4)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = masked_loss(network, batch, 0.0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_judging() -> None:
    some = list(islice(pairs(seed=4, inputs=(3,), outputs=(1,)), 4))
    texts = [list(pair.target[:-1]) for pair in some]
    assert judged(some, texts)["equivalent"] == judged(some, texts)["finished"] == 1
    assert judged(some, texts)["gates_per_gate_of_the_target"] == 1
    wrong = [[NAND, *texts[0]], [3, 3], [2], texts[3]]
    told = judged(some, wrong)
    assert told["finished"] == 0.5
    assert told["equivalent"] <= 0.5
    model = CircuitModel(CircuitNetwork(Shape(3, 1, 32, 32)))
    assert judged(some, decoded(model, some))["equivalent"] in (0, 1)


def test_the_recipe_makes_a_model(tmp_path: Path) -> None:
    small = {"hidden": 32, "layers": 1, "mlp": 32, "small": 40, "large": 16, "batch": 4, "steps": 3, "measured": 4}
    made = recipes.make("circuits-6", small, into=tmp_path)
    told = made.card["quality"]
    assert set(told["by_inputs"]) == {"3", "4", "5", "6"}
    assert all(one["equivalent"] in (0, 1) for one in told["by_inputs"].values())
    assert (made.folder / "model.safetensors").is_file()
    with pytest.raises(InvalidInput, match="inputs=9"):
        recipes.make("circuits-6", {"inputs": 9}, into=tmp_path)


@pytest.mark.skipif(artefacts.zoo_dir() is None, reason="the zoo is in a checkout only")
def test_the_committed_network_finishes_most_circuits() -> None:
    from unspool.models.load import load_model

    model = load_model("circuits-6")
    some = list(islice(pairs(seed=9, inputs=(4,), from_tables=0.0), 32))
    told = judged(some, decoded(model, some))
    assert told["equivalent"] == 1
    assert told["finished"] >= 0.85
    assert told["gates_per_gate_given"] < 0.9
