from __future__ import annotations

import pytest
import torch
from scipy import stats

from unspool.core.sockets import Distribution, draw


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_come_as_often_as_they_should(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    probs = torch.tensor([0.0, 0.15, 0.0, 0.5, 0.05, 0.3, 0.0], dtype=dtype)
    found = torch.bincount(torch.tensor([draw(probs, rng) for _ in range(5000)]), minlength=7)
    assert found[[0, 2, 6]].sum() == 0
    kept = probs > 0
    assert stats.chisquare(found[kept], 5000 * probs[kept].double() / probs.double().sum()).pvalue > 1e-3


def test_the_ends_of_the_interval() -> None:
    probs = torch.tensor([0.0, 0.25, 0.75, 0.0])
    for value, token in ((0.0, 1), (0.25, 2), (1.0 - 2**-53, 2), (1.0, 2)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *args, value=value, **more: torch.tensor([value], dtype=torch.float64))
            assert draw(probs, torch.Generator()) == token


def test_a_point_needs_no_chance() -> None:
    rng = torch.Generator().manual_seed(1)
    before = rng.get_state()
    assert Distribution.point(3).draw(rng) == 3
    assert torch.equal(rng.get_state(), before)
