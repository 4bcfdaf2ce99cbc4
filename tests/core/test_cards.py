from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic
import pytest

from unspool.core.cards import Card, Kind, NoSettings, make_settings, setting_fields, settings
from unspool.core.errors import InvalidInput, UnknownMethod
from unspool.core.registry import Registry, registry


@settings
class Everything:
    count: Annotated[int, pydantic.Field(ge=1, description="how many")] = 3
    share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.5
    mode: Annotated[Literal["a", "b"], pydantic.Field(description="which")] = "a"
    flag: bool = False
    name: str | None = None
    limit: Annotated[int | None, pydantic.Field(ge=0)] = None
    widths: tuple[int, ...] = ()
    bias: dict[int, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"count": "7"}, {"count": 7}),
        ({"count": 7, "share": "0.25"}, {"count": 7, "share": 0.25}),
        ({"flag": "true"}, {"flag": True}),
        ({"flag": "no"}, {"flag": False}),
        ({"name": "none"}, {"name": None}),
        ({"name": "x"}, {"name": "x"}),
        ({"limit": "null"}, {"limit": None}),
        ({"limit": "4"}, {"limit": 4}),
        ({"widths": "4,2, 1"}, {"widths": (4, 2, 1)}),
        ({"widths": "(4,2)"}, {"widths": (4, 2)}),
        ({"widths": ""}, {"widths": ()}),
        ({"widths": (4,)}, {"widths": (4,)}),
        ({"bias": "5:-1.5, 6:2"}, {"bias": {5: -1.5, 6: 2.0}}),
        ({"bias": "{5:1}"}, {"bias": {5: 1.0}}),
        ({"mode": "b"}, {"mode": "b"}),
        ({}, {}),
    ],
)
def test_values_and_strings_become_settings(values: dict[str, Any], expected: dict[str, Any]) -> None:
    made = make_settings(Everything, values, "tester")
    for name, value in expected.items():
        assert getattr(made, name) == value
        assert type(getattr(made, name)) is type(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"coutn": 3}, r"tester has no setting 'coutn'; it has count \(int, default 3\), share \(float"),
        ({"count": 0}, r"count=0: input should be greater than or equal to 1 \(int, default 3\)"),
        ({"count": "many"}, r"count='many': input should be a valid integer"),
        ({"share": 2}, r"share=2: input should be less than or equal to 1"),
        ({"mode": "c"}, r"mode='c': input should be 'a' or 'b' \('a' \| 'b', default 'a'\)"),
        ({"flag": "perhaps"}, r"flag='perhaps': input should be a valid boolean"),
        ({"widths": "1,x"}, r"tester cannot use widths='x'"),
    ],
)
def test_what_cannot_be_used_is_told(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        make_settings(Everything, values, "tester")


def test_nothing_to_set() -> None:
    assert make_settings(NoSettings, {}, "tester") == NoSettings()
    with pytest.raises(InvalidInput, match="tester has no setting 'x'; it has none"):
        make_settings(NoSettings, {"x": 1}, "tester")


def test_settings_are_frozen_and_checked() -> None:
    with pytest.raises(pydantic.ValidationError):
        Everything(count=0)
    with pytest.raises(AttributeError):
        Everything().count = 5  # type: ignore[misc]


def test_fields_for_the_command_line() -> None:
    shown = {f.name: (f.type_name, f.default, f.help) for f in setting_fields(Everything)}
    assert shown["count"] == ("int", 3, "how many")
    assert shown["limit"] == ("int | none", None, "")
    assert shown["widths"] == ("tuple[int, ...]", (), "")
    assert shown["bias"] == ("dict[int, float]", {}, "")
    assert shown["mode"] == ("'a' | 'b'", "a", "which")


# -- the registry -------------------------------------------------------------------------------------------------


def card(slug: str, kind: Kind = Kind.DRAFTER) -> Card:
    return Card(slug=slug, name=slug.title(), kind=kind, summary="A test.", models=("draft",))


def test_registering() -> None:
    mine = Registry("tests.core")

    @mine.register(card("alpha"), Everything)
    class Alpha:
        pass

    method = mine._methods["alpha"]
    assert method.cls is Alpha
    assert Alpha.card.slug == "alpha"  # type: ignore[attr-defined]
    assert Alpha.Settings is Everything  # type: ignore[attr-defined]
    row = method.as_dict()
    assert row["needs"] == ["a draft model"]
    assert {"slug", "name", "room", "paper", "lossless", "needs"} <= row.keys()

    with pytest.raises(ValueError, match="two methods are called 'alpha'"):

        @mine.register(card("alpha"))
        class Beta:
            pass


def test_a_broken_module_does_not_leave_half_a_list(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "halfpackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "broken.py").write_text("raise RuntimeError('cannot be imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = Registry("halfpackage")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot be imported"):
            list(mine)


def test_unknown_methods_get_a_suggestion() -> None:
    with pytest.raises(UnknownMethod, match=r"no method 'promt-lookup'; did you mean prompt-lookup\? Known: .*plain"):
        registry["promt-lookup"]
    with pytest.raises(UnknownMethod, match=r"no method 'zzz'\. Known: "):
        registry["zzz"]
    assert "plain" in registry
    assert "zzz" not in registry


def test_every_card_is_whole() -> None:
    for method in registry:
        card = method.card
        assert card.slug == card.slug.lower().replace("_", "-").replace(" ", "-")
        assert card.summary.endswith(".")
        assert method.cls.__module__.rsplit(".", 1)[-1].replace("_", "-") in (card.slug, "standard"), (
            "named after its slug"
        )
        method.settings()
        for field_ in setting_fields(method.settings):
            assert field_.help, f"{card.slug}.{field_.name} has no description"


def test_kinds_are_asked_for() -> None:
    assert {m.card.slug for m in registry.of_kind(Kind.VERIFIER)} >= {"target-match", "greedy-match"}
    assert all(m.card.kind is Kind.SAMPLER for m in registry.of_kind(Kind.SAMPLER))
