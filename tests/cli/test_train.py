"""``unspool train``, with a recipe that writes one file."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.training.small import SmallSettings, small_recipe

from unspool.models import artefacts
from unspool.training.recipes import Bench, Quality, chained_sums


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artefacts, "zoo_dir", lambda: None)
    monkeypatch.setattr(chained_sums, "RECIPE", small_recipe())


def test_list(run: Any) -> None:
    rows = {row["recipe"]: row for row in json.loads(run("train", "--json").stdout)}
    assert list(rows) == artefacts.recipe_names()
    assert rows["chained-sums"]["path"] is None
    assert rows["chained-sums"]["settings"] == {"seed": 0, "text": "text"}
    path = json.loads(run("train", "chained-sums", "--json").stdout)["path"]
    assert {row["recipe"]: row for row in json.loads(run("train", "--json").stdout)}["chained-sums"]["path"] == path
    text = run("train").stdout
    assert all(name in text for name in rows)
    assert path in text.replace("\n", "")


def test_make_and_tell(run: Any) -> None:
    result = run("train", "chained-sums", "--set", "text=words", "-s", "seed=2")
    assert "chained-sums is made" in result.stdout
    assert "length: 5" in result.stdout
    assert "was made before" in run("train", "chained-sums", "--set", "text=words", "-s", "seed=2").stdout
    assert "is made" in run("train", "chained-sums", "--set", "text=words", "-s", "seed=2", "--force").stdout
    assert run("train", "chained-sums", "--force", "--quiet").output == ""


def test_json(run: Any) -> None:
    data = json.loads(run("train", "chained-sums", "--json").stdout)
    assert data["recipe"] == "chained-sums"
    assert data["quality"] == {"length": 4}
    assert data["was_there"] is False
    assert (Path(data["path"]) / "file.txt").read_text() == "text 0"
    assert json.loads(run("train", "chained-sums", "--json").stdout)["was_there"] is True


def test_into_a_folder(run: Any, tmp_path: Path) -> None:
    (tmp_path / "zoo").mkdir()
    run("train", "chained-sums", "--into", tmp_path / "zoo")
    assert (tmp_path / "zoo" / "chained-sums" / "card.json").is_file()
    assert "no such folder" in run("train", "chained-sums", "--into", tmp_path / "other", code=2).stderr


def test_wrong_input(run: Any) -> None:
    result = run("train", "chained-sum", "--json", code=2)
    assert "did you mean chained-sums" in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "InvalidInput"
    assert "no setting 'speed'; it has seed" in run("train", "chained-sums", "--set", "speed=1", code=2).stderr
    assert "KEY=VALUE" in run("train", "chained-sums", "--set", "speed", code=2).stderr
    assert "need the name of a recipe" in run("train", "--force", code=2).stderr


def test_interrupted(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fill(chosen: SmallSettings, bench: Bench) -> Quality:
        (bench.folder / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(chained_sums, "RECIPE", small_recipe(fill))
    assert "interrupted" in run("train", "chained-sums", code=130).stderr
    assert not list((tmp_path / "cache" / "artefacts" / "chained-sums").iterdir())


def test_a_recipe_that_needs_another_says_which(run: Any) -> None:
    assert "unspool train stdlib-pair" in run("train", "stdlib-layerskip", code=1).stderr
