"""``unspool reproduce``, over experiments that take no time."""

import json
from pathlib import Path
from typing import Any

import pytest

from unspool.core.errors import InvalidInput
from unspool.evaluation import reproductions
from unspool.evaluation.reproductions import Check, Reproduction, Row


def outcome(slug: str, *, met: bool = True, direction: bool = True) -> Reproduction:
    return Reproduction(
        slug,
        "twice as fast",
        {"model": "tiny", "prompts": 3},
        [Row("forwards per token", 1.0, 0.5), Row("pairs | of things", None, 3)],
        [Check("at most 0.55 forwards", "0.5", met, direction)],
        ["a note"],
    )


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def run(slug: str, **options: Any) -> Reproduction:
        calls.append({"slug": slug, **options})
        if slug == "broken":
            raise InvalidInput("there is no data for it")
        return outcome(slug, met=slug == "good", direction=slug != "bad")

    monkeypatch.setattr(reproductions, "run", run)
    monkeypatch.setattr(reproductions, "available", lambda: ["good", "so-so", "bad", "broken"])
    return calls


@pytest.mark.parametrize(
    ("slug", "verdict", "code"), [("good", "holds", 0), ("so-so", "direction holds", 0), ("bad", "fails", 1)]
)
def test_verdicts_and_exit_codes(run: Any, asked: Any, slug: str, verdict: str, code: int) -> None:
    data = json.loads(run("reproduce", slug, "--json", code=code).stdout)
    assert {"slug", "claim", "setup", "measured", "verdict"} <= set(data)
    assert data["verdict"] == verdict
    assert data["measured"][0] == {"metric": "forwards per token", "baseline": 1.0, "method": 0.5, "ratio": 0.5}
    text = run("reproduce", slug, code=code).stdout
    assert f"verdict {verdict}" in text
    assert "at most 0.55 forwards" in text


def test_options(run: Any, asked: Any, tmp_path: Path) -> None:
    run("reproduce", "good", "--quick", "--model", "m", "--data", tmp_path, "--threads", 1, "--json")
    assert asked == [{"slug": "good", "quick": True, "model": "m", "data": tmp_path, "progress": False}]


def test_all(run: Any, asked: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    results = json.loads(run("reproduce", "--all", "--json", "--table", path, code=1).stdout)
    assert [result["slug"] for result in results] == ["good", "so-so", "bad", "broken"]
    assert results[3]["error"] == {"type": "InvalidInput", "message": "there is no data for it"}
    heading, _, rows = path.read_text().partition("\n\n|")
    assert "Printed by `unspool reproduce --all --table FILE`" in heading
    assert "|" + rows == reproductions.table(
        [outcome("good"), outcome("so-so", met=False), outcome("bad", met=False, direction=False)]
    )
    assert "there is no data for it" in run("reproduce", "--all", code=1).stdout


def test_all_that_hold(run: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproductions, "available", lambda: ["good", "so-so"])
    run("reproduce", "--all")


def test_list(run: Any, asked: Any) -> None:
    assert run("reproduce").stdout.split() == ["good", "so-so", "bad", "broken"]
    assert json.loads(run("reproduce", "--json").stdout) == ["good", "so-so", "bad", "broken"]


def test_an_error_of_one_experiment(run: Any, asked: Any) -> None:
    assert "no data" in run("reproduce", "broken", code=2).stderr


def test_wrong_input(run: Any) -> None:
    assert "token-recycling" in run("reproduce", "token-recyclin", code=2).stderr
    assert "not both" in run("reproduce", "token-recycling", "--all", code=2).stderr
    assert "/nowhere" in run("reproduce", "token-recycling", "--table", "/nowhere/t.md", code=2).stderr
