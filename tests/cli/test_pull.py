"""``unspool pull``, without a network."""

import json
from pathlib import Path
from typing import Any

import pytest

from unspool.core.errors import DownloadError
from unspool.models import hub
from unspool.models.catalogue import CATALOGUE


def test_list(run: Any) -> None:
    rows = json.loads(run("pull", "--json").stdout)
    assert [row["model"] for row in rows] == list(CATALOGUE)
    assert not any(row["cached"] for row in rows)
    text = run("pull").stdout
    assert all(name in text for name in CATALOGUE)


def test_a_folder_is_ready(run: Any, model: str) -> None:
    data = json.loads(run("pull", model, "--json").stdout)
    assert data["path"] == model
    assert data["bytes"] == sum(file.stat().st_size for file in Path(model).iterdir())
    assert data["was_cached"] is True
    assert model in run("pull", model).stdout
    assert run("pull", model, "--quiet").output == ""


def test_options_reach_the_hub(run: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def resolve(name: str, **options: Any) -> hub.ModelSource:
        asked.update(options, name=name)
        return hub.ModelSource(name, model, "packaged", "here", None)

    monkeypatch.setattr(hub, "resolve", resolve)
    run("pull", "gemma3-270m", "--dtype", "bfloat16", "--yes")
    # Nobody can answer here, so the hub shows the terms itself.
    assert asked == {"name": "gemma3-270m", "dtype": "bfloat16", "progress": False, "accept_terms": None}


def test_no_network(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise DownloadError("smollm2-135m could not be downloaded: the package index cannot be reached")

    monkeypatch.setattr(hub, "resolve", fail)
    result = run("pull", "smollm2-135m", "--json", code=1)
    assert json.loads(result.stdout)["error"]["type"] == "DownloadError"
    assert "cannot be reached" in result.stderr


def test_remove(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not in the cache" in run("pull", "smollm2-135m", "--remove").stdout
    monkeypatch.setattr(hub, "remove", lambda name: 5_000_000)
    assert "5 MB freed" in run("pull", "smollm2-135m", "--remove").stdout
    assert json.loads(run("pull", "smollm2-135m", "--remove", "--json").stdout) == {
        "model": "smollm2-135m",
        "freed_bytes": 5_000_000,
    }


def test_unknown_model(run: Any) -> None:
    assert "smollm2-135m" in run("pull", "smollm", code=2).stderr
    assert "dtype" in run("pull", "smollm2-135m", "--dtype", "int3", code=2).stderr
