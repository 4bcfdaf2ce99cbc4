"""``unspool demo``."""

import json
from pathlib import Path
from typing import Any

import pytest

from unspool.cli import demo


def test_json(run: Any, model: str) -> None:
    data = json.loads(run("demo", "aa bb aa bb", "--model", model, "-n", 32, "--json").stdout)
    assert set(data) == {"model", "method", "prompt", "text", "identical", "speed_ratio", "statistics"}
    mine, plain = data["statistics"]["method"], data["statistics"]["plain"]
    assert data["identical"] is True
    assert mine["tokens"] == plain["tokens"] == 32
    assert plain["forwards_per_token"] == 1 >= mine["forwards_per_token"]
    assert data["speed_ratio"] == pytest.approx(mine["tokens_per_second"] / plain["tokens_per_second"])


def test_text(run: Any, model: str) -> None:
    result = run("demo", "--model", model, "-n", 12, "--method", "prompt-lookup", "--set", "tokens=3")
    assert "forwards/token" in result.stdout
    assert "times as fast as plain decoding" in result.stdout
    assert "after a warm-up" in result.stdout
    assert "identical" in result.stdout


def test_what_was_learned_from_the_warm_up_is_forgotten(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forwards() -> int:
        data = json.loads(run("demo", "aa bb", "--model", model, "-n", 32, "--json", "-M", "token-recycling").stdout)
        count: int = data["statistics"]["method"]["target_forwards"]
        return count

    once = forwards()
    monkeypatch.setattr(demo, "WARM_UP", "aa bb")
    assert forwards() == once


def test_answers_that_differ_are_an_error(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = demo._run

    def altered(engine: Any, prompt: str, method: str, *more: Any, **options: Any) -> Any:
        result = original(engine, prompt, method, *more, **options)
        if method == "plain":
            result.tokens[3] += 1
        return result

    monkeypatch.setattr(demo, "_run", altered)
    result = run("demo", "aa bb", "--model", model, "-n", 8, code=1)
    assert "differ from token 3" in " ".join(result.stdout.split())


def test_trace(run: Any, model: str, tmp_path: Path) -> None:
    run("demo", "aa", "--model", model, "-n", 8, "--trace", tmp_path / "demo.html")
    assert (tmp_path / "demo.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "momentum-decoding"], "lossless"),
        (["--method", "sampling", "--set", "temperature=1"], "greedy"),
        (["--method", "nope"], "nope"),
        ([""], "prompt is empty"),
        (["--trace", "/nowhere/x.html"], "/nowhere"),
    ],
)
def test_wrong_input(run: Any, model: str, arguments: list[str], words: str) -> None:
    assert words in run("demo", "--model", model, *arguments, code=2).stderr
