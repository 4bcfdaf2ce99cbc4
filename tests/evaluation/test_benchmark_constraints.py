"""The benchmark of constraints: texts that are made for schemas, verdicts, tables, and what its processes answer."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests.evaluation.small import small_engine

FOLDER = Path(__file__).parents[2] / "benchmarks"

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "mail": {"$ref": "#/definitions/mail"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "uniqueItems": True, "maxItems": 3},
        "size": {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
    },
    "required": ["name", "code"],
    "additionalProperties": False,
    "definitions": {"mail": {"type": "string", "format": "email"}},
}


@pytest.fixture(scope="module", autouse=True)
def beside() -> Iterator[None]:
    """Parts are imported from the folder of the program, as they are when it is run."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def part(name: str) -> ModuleType:
    return import_module(name)


# -- texts --------------------------------------------------------------------------------------------------------


def test_instances_are_what_jsonschema_says() -> None:
    import jsonschema

    made = part("constrained.instances")
    valid, invalid = made.instances(PERSON, 8, 0)
    assert len(valid) == len(invalid) == 8
    assert (valid, invalid) == made.instances(PERSON, 8, 0)
    checker = jsonschema.Draft202012Validator(PERSON)
    assert all(checker.is_valid(json.loads(text)) for text in valid)
    assert not any(checker.is_valid(json.loads(text)) for text in invalid)
    assert {"mail", "tags", "size"} <= {key for text in valid for key in json.loads(text)}
    order = list(PERSON["properties"])
    assert all(sorted(json.loads(text), key=order.index) == list(json.loads(text)) for text in valid)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2},
        {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 7}], "minItems": 2},
        {"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "additionalProperties": False},
        {"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "number", "multipleOf": 0.5}}}]},
        {"type": "string", "pattern": "^(a|b)+$", "maxLength": 20},
        {"type": "integer", "exclusiveMinimum": 3, "exclusiveMaximum": 5},
        {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {"t": {"$ref": "#/$defs/tree"}}}}},
        True,
    ],
)
def test_schemas_that_values_are_made_for(schema: Any) -> None:
    assert part("constrained.instances").instances(schema, 2, 0)[0]


@pytest.mark.parametrize("schema", [False, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "(?P<"}, {"enum": 3}])
def test_schemas_that_no_value_is_made_for(schema: Any) -> None:
    assert part("constrained.instances").instances(schema, 2, 0) == ([], [])


def test_changes_leave_the_value_as_it_was() -> None:
    made = part("constrained.instances")
    value = {"a": [1, 2], "b": "x"}
    changed = [made._changed(value, random.Random(seed)) for seed in range(40)]
    assert value == {"a": [1, 2], "b": "x"}
    assert sum(one != value for one in changed) > 35


# -- sides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["unspool", "unspool greatgramma", "unspool pre3-dpda", "unspool xgrammar", "xgrammar"]
)
def test_sides_judge_texts(name: str) -> None:
    engines, process = part("constrained.engines"), part("constrained.process")
    if engines.absent(name):
        pytest.skip(f"{name} is not installed")
    model = small_engine().model
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    texts = [list(model.tokenizer.encode(text)) for text in ('{"a": "x"}', '{"a": "z"}', '{"a": "x"')]
    told = process._checked(engines.side(name, model), schema, [texts[0]], texts[:1], texts[1:])
    assert told["valid"] == [True]
    assert told["invalid"] == [False, False]
    assert len(told["masks"]) == len(texts[0])
    assert 0 < told["compile"] <= told["first_mask"]


def test_what_a_side_does_not_take() -> None:
    engines = part("constrained.engines")
    with pytest.raises(engines.Refused, match="#"):
        engines.side("unspool", small_engine().model)({"type": "object", "properties": {"a": {"type": "nonsense"}}})


@pytest.mark.parametrize(
    "way", ["unconstrained", "unspool token by token", "unspool jumping", "unspool", "outlines-core"]
)
def test_ways_of_writing(way: str) -> None:
    engines, writing = part("constrained.engines"), part("constrained.writing")
    if engines.absent(way):
        pytest.skip(f"{way} is not installed")
    engine = small_engine()
    schema = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "y"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    written = writing.Native(engine.model).way(way)(schema, [65, 66, 67], 40)
    assert len(written.tokens) <= 40
    assert 0 < written.first_seconds <= written.seconds
    if way == "unconstrained":
        assert written.compile_seconds == 0
        return
    assert written.finished
    assert json.loads(engine.model.tokenizer.decode(written.tokens)) in ({"a": "x"}, {"a": "y"})
    assert (written.forced > 0) == (way in ("unspool jumping", "unspool"))


# -- tables -------------------------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    def row(item: str, arm: str, **told: Any) -> dict[str, Any]:
        return {"item": item, "arm": arm, "sample": 0, **told}

    taken = {"compile": 0.002, "first_mask": 0.003, "masks": [10.0, 30.0], "steps": [12.0, 33.0]}

    def text(seconds: float, **more: Any) -> dict[str, Any]:
        return {
            "tokens": [1] * 10, "compile_seconds": 0.5, "first_seconds": 0.1, "seconds": seconds, "finished": True,
            "forced": 3, "forwards": 7, "valid": 1.0, "json": 1.0, **more,
        }  # fmt: skip

    return [
        row("s1", "engines/unspool", **taken, valid=[True, True], invalid=[False]),
        row("s2", "engines/unspool", **taken, valid=[True, False], invalid=[True]),
        row("s1", "engines/llguidance", **taken, valid=[True], invalid=[False]),
        row("s2", "engines/llguidance", error="time-out"),
        row("s1", "output/unspool", **text(1.0)),
        row("s2", "output/unspool", **text(1.0, finished=False, valid=0.0)),
        row("s1", "speed/unspool", **text(0.5)),
        row("s1", "speed/llguidance", **text(1.5)),
        row("s1", "speed/xgrammar", **text(2.5)),
        row("s2", "speed/unspool", **text(9.0)),
        row("s2", "speed/llguidance", refused="no"),
        row("s1", "speed/pair", token_seconds=[[0.010, 0.0102], [0.010, 0.0101], [0.010, 0.02]], prompt_seconds=0.5),
    ]


def told() -> dict[str, Any]:
    return {
        "rows": rows(), "sections": ["compile", "mask", "instances", "output", "speed"], "schemas": 2, "model": "small",
        "absent": [{"peer": "p", "reason": "not here", "install": "pip install p"}], "versions": {"llguidance": "1"},
    }  # fmt: skip


def test_numbers() -> None:
    found = part("constrained.tables").summary(told())
    ours, other = found["engines"]
    assert (ours["accepted"], other["accepted"], other["timeouts"]) == (2, 1, 1)
    assert ours["compile_ms"][0] == pytest.approx(2)
    assert (ours["over"], ours["under"]) == (0.25, 0.5)
    assert ours["mask_us"][0] == 20
    assert found["outputs"][0]["finished"] == found["outputs"][0]["valid"] == 1
    speed = found["speed"]
    assert speed["best_peer"] == "llguidance"
    assert speed["schemas"] == 1, "schemas that a side refuses are in no one's sum"
    assert speed["token_ratios"] == [pytest.approx(1.02)]
    by_way = {row["way"]: row for row in speed["ways"]}
    assert by_way["llguidance"]["to_ours"] == pytest.approx(2)
    assert by_way["llguidance"]["to_ours_behind_the_prompt"] == pytest.approx(3)
    assert (ours["right"], other["right"]) == (1, 1)
    assert speed["default_ratios"] == [pytest.approx(0.4 / 9 / 0.010)]
    assert [target["met"] for target in found["targets"]] == [True, True, True, True, False, True]


def test_targets_can_be_missed() -> None:
    worse = [
        {**row, "compile_seconds": 5.0} if row["arm"] == "speed/unspool" and row["item"] == "s1" else row
        for row in rows()
    ]
    worse[4] |= {"valid": 0.0}
    found = part("constrained.tables").summary({**told(), "rows": worse})
    assert [target["met"] for target in found["targets"]] == [True, True, False, True, False, False]


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    part("constrained.tables").show(told(), as_json=False)
    shown = capsys.readouterr().out
    assert "| unspool | 2 (100.0%) | 0 | 0, 0 |" in shown
    assert "p took no part: not here: pip install p" in shown
    part("constrained.tables").show(told(), as_json=True)
    assert "rows" not in json.loads(capsys.readouterr().out)


def test_mistakes_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    program = part("constraints")
    assert program.main(["--sections", "nothing"]) == 2
    assert program.main(["--sides", "nobody"]) == 2
    assert program.main(["--limit", "0"]) == 2
    assert program.main(["--table", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("'nothing'", "'nobody'", "--limit", "none.json"))
