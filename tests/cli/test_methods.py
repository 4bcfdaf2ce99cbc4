"""``unspool methods``."""

import json
from typing import Any

import pytest

from unspool.cli.methods import table
from unspool.core.cards import setting_fields
from unspool.core.registry import registry

KEYS = {"slug", "name", "room", "paper", "lossless", "needs", "kind", "summary", "claim"}


def test_json_is_the_registry(run: Any) -> None:
    rows = json.loads(run("methods", "--json").stdout)
    assert [row["slug"] for row in rows] == [method.card.slug for method in registry]
    assert all(set(row) == KEYS for row in rows)


def test_list_shows_every_method_in_its_room(run: Any) -> None:
    text = run("methods").stdout
    for method in registry:
        assert method.card.slug in text
        assert method.room in text
    assert f"{len(list(registry))} methods" in text


def test_one_method_with_its_settings(run: Any) -> None:
    method = registry["token-recycling"]
    text = run("methods", "token-recycling").stdout
    data = json.loads(run("methods", "token-recycling", "--json").stdout)
    assert method.card.paper.split(",")[0] in " ".join(text.split())
    assert [s["name"] for s in data["settings"]] == [f.name for f in setting_fields(method.settings)]
    for field in setting_fields(method.settings):
        assert field.name in text
        assert repr(field.default) in text
    assert "no settings" in run("methods", "plain").stdout


@pytest.mark.parametrize(
    ("option", "value"),
    [("--kind", "verifier"), ("--room", "speculation"), ("--room", "speculation/drafting"), ("--kind", "Drafter")],
)
def test_filters(run: Any, option: str, value: str) -> None:
    rows = json.loads(run("methods", option, value, "--json").stdout)
    key = option.removeprefix("--")
    assert rows
    assert all(row[key].startswith(value.lower()) for row in rows)
    assert len(rows) == sum(
        value.lower() in ([m.card.kind.value] if key == "kind" else [m.room, m.room.split("/")[0]]) for m in registry
    )


@pytest.mark.parametrize("arguments", [["--kind", "engine"], ["--room", "kitchen"]])
def test_unknown_filters_name_what_there_is(run: Any, arguments: list[str]) -> None:
    told = run("methods", *arguments, code=2).stderr
    assert "drafter" in told or "sampling" in told


def test_unknown_slug_has_suggestions(run: Any) -> None:
    assert "token-recycling" in run("methods", "token-recykling", code=2).stderr


def test_markdown(run: Any) -> None:
    lines = run("methods", "--markdown").stdout.strip().splitlines()
    assert lines == table(list(registry)).splitlines()
    assert len(lines) == 2 + len(list(registry))
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
