"""``unspool calibrate``, and the partial programs of ``unspool generate`` that it is for."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(wrong: bool) -> dict[str, Any]:
    """An output, a token a character, that is unsure of its last argument where that is wrong."""
    text = "f(a, b)"
    values = [math.log(0.2 if wrong and char == "b" else 0.99) for char in text]
    return {"tokens": list(text), "logprobs": values, "reference": "f(a, x)" if wrong else text}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", *(row(number % 4 == 0) for number in range(60)))


def test_outputs_that_are_there(run: Any, data: Path, tmp_path: Path) -> None:
    target = tmp_path / "c.json"
    told = run("calibrate", "pac-code-sets", "--data", data, "-o", target).stdout
    assert "60 pairs" in told
    assert "partial programs contain the right one with probability 0.8, confidence 0.99" in told
    as_json = json.loads(run("calibrate", "pac-code-sets", "--data", data, "-o", target, "--json").stdout)
    assert as_json["path"] == str(target)
    kept = json.loads(target.read_text())
    assert {**kept, "path": str(target)} == as_json
    assert (kept["pairs"], kept["language"], kept["holes"], kept["optimiser"]) == (60, "python", 3, "knapsack")
    assert kept["missed"] <= kept["allowed"]
    assert 0 < kept["tau"] < 1
    assert run("calibrate", "pac-code-sets", "--data", data, "-o", target, "--quiet").stdout == ""
    highs = run(
        "calibrate", "pac-code-sets", "--data", data, "-o", target, "--json", "--optimiser", "milp", "--points", 20
    )
    assert json.loads(highs.stdout)["optimiser"] == "milp"


def test_what_does_not_parse_is_counted(run: Any, tmp_path: Path) -> None:
    rows = [row(False)] * 60 + [{**row(False), "reference": "not a program"}] * 3
    path = write(tmp_path / "pairs.jsonl", *rows, {"tokens": ["a", " b"], "logprobs": [-1, -1], "reference": "a"})
    told = run("calibrate", "pac-code-sets", "--data", path, "-o", tmp_path / "c.json").stdout
    assert "61 pairs; 3 left out, as their reference does not parse; the output of 1 does not parse" in told


def test_a_model_that_is_always_wrong_gets_a_single_hole(run: Any, tmp_path: Path) -> None:
    rows = [{**row(False), "reference": "g(a)"}] * 30
    for one in rows:
        one["logprobs"] = [-1e-9] * 7
    target = tmp_path / "c.json"
    told = run("calibrate", "pac-code-sets", "--data", write(tmp_path / "p.jsonl", *rows), "-o", target).stdout
    assert "the prediction is a single hole, which is always right" in told
    assert json.loads(target.read_text())["place"] is None


def test_a_model_answers_and_is_read(run: Any, answer: Any, model: str, tmp_path: Path) -> None:
    """The tiny model writes no programs: everything is a hole, and the promise holds."""
    rows = [{"prompt": f"number {number}", "reference": "a"} for number in range(24)]
    path, target = write(tmp_path / "pairs.jsonl", *rows), tmp_path / "c.json"
    made = run("calibrate", "pac-code-sets", "--data", path, "-o", target, "-m", model, "-n", 6, "--json")
    told = json.loads(made.stdout)
    assert (told["pairs"], told["model"]) == (24, model)
    found = answer("hello", "--method", "pac-code-sets", "--set", f"calibration={target}")
    assert found["tokens"] == answer("hello")["tokens"]
    assert found["lossless"] is True
    assert len(found["log_probs"]) == len(found["tokens"])
    assert all(value <= 0 for value in found["log_probs"])
    assert set(found["reading"]) == {
        *("partial_program", "kept", "holes", "nodes", "kept_nodes", "tau"),
        *("coverage", "confidence", "guarantee", "note"),
    }
    assert found["reading"]["guarantee"] is True
    assert (found["reading"]["coverage"], found["reading"]["confidence"]) == (0.8, 0.99)
    assert "does not parse" in found["reading"]["note"]
    shown = run("generate", "hello", "-m", model, "-n", 8, "-M", "pac-code-sets", "-s", "mark=<hole>", "--quiet").stdout
    assert "\n<hole>\n" in shown
    assert "no guarantee: the threshold 0.5 is not calibrated" in shown


def test_a_constraint_beside_it(answer: Any) -> None:
    found = answer("hello", "--method", "pac-code-sets", "--choices", "f(a),f(b)", "--set", "tau=1e-5")
    assert found["text"] in ("f(a)", "f(b)")
    assert found["complete"] is True
    assert found["reading"]["nodes"] >= 3
    assert len(found["log_probs"]) == len(found["tokens"])
    assert sum(found["log_probs"]) < -5, "the model's own, not those of what is allowed"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epsilon", "0.01"], "60 calibration pairs are too few for epsilon 0.01 and delta 0.01: at least 459"),
        (["--epsilon", "1.5"], "both must lie between 0 and 1"),
        (["--language", "cobol"], "--language is 'cobol'; it is python or sql"),
        (["--optimiser", "best"], "--optimiser is 'best'"),
    ],
)
def test_wrong_options(run: Any, data: Path, tmp_path: Path, more: list[str], message: str) -> None:
    result = run("calibrate", "pac-code-sets", "--data", data, "-o", tmp_path / "c.json", *more, code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "c.json").exists()


def test_wrong_files(run: Any, data: Path, tmp_path: Path, model: str) -> None:
    def told(*arguments: object) -> str:
        return " ".join(run("calibrate", *arguments, code=2).stderr.split())

    assert "'token-recycling' cannot be calibrated" in told("token-recycling", "--data", data, "-o", tmp_path / "c")
    assert "cannot be read" in told("pac-code-sets", "--data", tmp_path / "none", "-o", tmp_path / "c")
    assert "is a folder; name a file" in told("pac-code-sets", "--data", data, "-o", tmp_path)
    bad = write(tmp_path / "bad.jsonl", {"prompt": "a", "reference": "a"}, {"prompt": "b"})
    assert "line 2 has no text" in told("pac-code-sets", "--data", bad, "-o", tmp_path / "c")
    few = write(tmp_path / "few.jsonl", *[{**row(False), "reference": "("}] * 30)
    assert "0 calibration pairs are too few" in told("pac-code-sets", "--data", few, "-o", tmp_path / "c")
    found = run("generate", "a", "-m", model, "-M", "pac-code-sets", "-s", f"calibration={bad}", code=2)
    assert "is not JSON" in found.stderr
