from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.models.shapes import SHAPES, backend
from tests.toys import TableModel

from unspool.models import costs
from unspool.models.costs import PassCosts, measure, pass_costs


def test_between_and_beyond_what_was_measured() -> None:
    table = PassCosts((1, 2, 4, 8), (2.0, 2.0, 3.0, 5.0))
    assert [table.of(n) for n in (1, 2, 3, 4, 6, 8)] == [2.0, 2.0, 2.5, 3.0, 4.0, 5.0]
    assert table.of(16) == pytest.approx(9.0)
    assert table.ratio(8) == 2.5
    assert PassCosts((1,), (2.0,)).of(3) == 6.0


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model_is_measured(shape: str) -> None:
    model = backend(shape)
    before = model.forwards
    table = measure(model, widths=(1, 2, 4), rounds=1)
    assert table.widths == (1, 2, 4)
    assert all(seconds > 0 for seconds in table.seconds)
    assert list(table.seconds) == sorted(table.seconds)
    assert model.forwards == before, "measuring is not counted"


def test_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_WORTH_KEEPING", 0.0)
    model = TableModel(6)
    first = pass_costs(model)
    assert pass_costs(model) is first
    (kept,) = (tmp_path / "costs").iterdir()
    # Another process, another object: the file is found.
    calls: list[int] = []
    monkeypatch.setattr(costs, "measure", lambda model: calls.append(1) or first)
    assert pass_costs(TableModel(6)) == first
    assert not calls
    # A damaged file is measured again, and mended.
    for damage in ("{", json.dumps({"widths": [2], "seconds": [1.0]}), json.dumps({"widths": [1], "seconds": [0.0]})):
        kept.write_text(damage)
        assert pass_costs(TableModel(6)) == first
        assert json.loads(kept.read_text())["widths"] == list(first.widths)
    assert len(calls) == 3


def test_a_cache_that_cannot_be_written_to_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(costs, "_WORTH_KEEPING", 0.0)
    assert pass_costs(TableModel(6)).seconds[0] > 0
