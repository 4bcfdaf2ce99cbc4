"""The benchmark script on a tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.evaluation.small import small_engine

from unspool.core.errors import InvalidInput

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "decoding.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_decoding", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up while they are made.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_methods_and_settings(script: ModuleType) -> None:
    assert script.parse_method("plain") == ("plain", {})
    assert script.parse_method(" token-recycling:nodes=16:update=all") == (
        "token-recycling",
        {"nodes": 16, "update": "all"},
    )
    with pytest.raises(InvalidInput, match="'nodes' is no setting"):
        script.parse_method("token-recycling:nodes")


def test_measuring(script: ModuleType) -> None:
    prompts = [[1, 2, 3], [4, 5, 4, 5, 4], [7, 7, 7]]
    methods = ["plain", "prompt-lookup", "token-recycling:nodes=8"]
    results = script.measure(small_engine(), prompts, methods, 6)
    assert [result.method for result in results] == methods
    assert results[0].ratio == results[0].decoding_ratio == results[0].forwards_per_token == 1
    assert all(result.agreement.startswith("2 of 2 texts equal") for result in results), (
        "the first prompt is not counted"
    )
    assert all(0 < result.forwards_per_token <= 1 and result.tokens_per_second > 0 for result in results)


def test_costs(script: ModuleType) -> None:
    table = script.costs(small_engine().model, [1, 3], 2, 10)
    assert table.widths == (1, 3)
    assert all(taken > 0 for taken in table.seconds)


def test_mistakes_are_told(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--prompts", "0"]) == 2
    assert "--prompts" in capsys.readouterr().err
