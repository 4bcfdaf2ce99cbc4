"""Decision models: examples are balanced, the network learns, and what is written is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.contracts.exact import FastTable

from unspool.core.errors import InvalidInput
from unspool.speculation.drafting._decision import DecisionModel
from unspool.training.recipes.mcsd_decision import McsdDecisionSettings, area_under_curve, balanced, learn, record

CHOSEN = McsdDecisionSettings(prompts=8, new_tokens=12, width=2, depth=3, epochs=8, batch=20)


def test_area_under_the_curve() -> None:
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert area_under_curve(torch.tensor([0.1, 0.4, 0.35, 0.8]), labels) == 0.75
    assert area_under_curve(torch.tensor([0.1, 0.2, 0.3, 0.4]), labels) == 1.0
    assert torch.isnan(torch.tensor(area_under_curve(torch.tensor([0.1, 0.2]), labels[:2])))


def test_examples_are_balanced() -> None:
    labels = (torch.arange(100) % 5 == 0).float()
    features = torch.arange(100.0)[:, None]
    for most, count in ((1000, 40), (10, 10)):
        read, kept = balanced(features, labels, most, seed=1)
        assert len(kept) == count
        assert float(kept.mean()) == 0.5
        assert torch.equal(labels[read[:, 0].long()], kept)
        assert len(set(read[:, 0].tolist())) == count
    with pytest.raises(InvalidInput, match="100% were accepted"):
        balanced(features, torch.ones(100), 10, seed=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_network_learns_from_what_a_run_records(temperature: float, tmp_path: Path) -> None:
    # Where the draft model is sure, it is right; elsewhere it knows nothing.
    target = FastTable(20, seed=1, scale=3.0)
    draft = FastTable(20, seed=2, scale=0.3)
    sure = torch.rand(21, 21, generator=torch.Generator().manual_seed(3)) < 0.5
    draft.table[sure] = target.table[sure] * 2
    chosen = McsdDecisionSettings(**{**CHOSEN.__dict__, "temperature": temperature})
    prompts = [[a, b] for a in range(6) for b in range(6)]
    train = record(target, draft, prompts[:28], chosen, "q")
    valid = record(target, draft, prompts[28:], chosen, "q")
    assert train[0].shape == (len(train[1]), 11)
    assert bool(((train[1] == 0) | (train[1] == 1)).all()) == (temperature == 0)
    assert 0.1 < float(train[1].mean()) < 0.9
    layers, loss = learn(balanced(*train, 2000, seed=0), valid, (16,), chosen)
    model = DecisionModel("q", layers)
    chances = model(valid[0])
    assert area_under_curve(chances, valid[1]) > 0.7
    # What is kept is the network of the least validation loss, and its first layer takes features as they are.
    by_hand = torch.nn.functional.binary_cross_entropy(chances, valid[1])
    assert float(by_hand) == pytest.approx(loss, abs=1e-4)
    model.save(tmp_path / "q.safetensors")
    assert torch.equal(DecisionModel.load(tmp_path / "q.safetensors")(valid[0]), chances)
    again, _ = learn(balanced(*train, 2000, seed=0), valid, (16,), chosen)
    assert all(
        torch.equal(a, b) for one, other in zip(layers, again, strict=True) for a, b in zip(one, other, strict=True)
    )
