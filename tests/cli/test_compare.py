"""``unspool compare``."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.made_results import SPEEDS, made

from unspool.evaluation import results


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    before, after = tmp_path / "a.json", tmp_path / "b.json"
    slower = made({**SPEEDS, "auto": 0.9 * SPEEDS["auto"]}, seed=2)
    slower["machine"]["cpu"] = "Another Processor"
    before.write_text(results.dumps(made(seed=1)), encoding="utf-8")
    after.write_text(results.dumps(slower), encoding="utf-8")
    return before, after


def test_it_tells_what_changed_and_what_else_differs(run: Any, files: tuple[Path, Path]) -> None:
    said = run("compare", *files).stdout
    assert said.index("Another Processor") < said.index("auto")
    assert "worse" in said
    assert "speed relative to plain" in said
    assert "token-recycling" not in said
    assert "token-recycling" in run("compare", *files, "--all").stdout


def test_as_data_and_exit_codes(run: Any, files: tuple[Path, Path]) -> None:
    told = json.loads(run("compare", *files, "--json", "--fail-on-regression", code=1).stdout)
    assert told["regressions"] == 2
    assert {change["arm"] for change in told["changes"] if change["verdict"] == "worse"} == {"auto"}
    assert told["differences"] == [{"what": "machine: cpu", "a": "Made Processor", "b": "Another Processor"}]
    run("compare", files[0], files[0], "--fail-on-regression")


def test_wrong_files(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"some": "thing"}', encoding="utf-8")
    for wrong, told in ((other, "no results file"), (tmp_path / "missing.json", "cannot be read")):
        result = run("compare", files[0], wrong, "--json", code=2)
        assert told in json.loads(result.stdout)["error"]["message"]
