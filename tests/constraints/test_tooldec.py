# ruff: noqa: E501 - tables of schemas and scripts are read line by line
"""ToolDec: modes, names, arguments, calls that are made, and no call that is only guessed."""

import datetime
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tests.constraints.scripted import STOP, ScriptedModel

from unspool.constraints import GrammarError
from unspool.constraints._arguments import integers_between
from unspool.constraints._schema.spelling import pattern_of
from unspool.constraints._tools import Tool, openapi_tools, read_tools
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.tooldec import ToolDec
from unspool.core.compose import compose
from unspool.core.errors import Incompatible
from unspool.core.events import Finished, Stepped
from unspool.core.statistics import Statistics
from unspool.core.texts import Stop

MADE: list[tuple[str, Any]] = []


def add(a: int, b: int) -> int:
    MADE.append(("add", (a, b)))
    return a + b


def add_days(day: datetime.date, days: int = 1) -> str:
    return str(day + datetime.timedelta(days))


def shout(text: str, *, times: Literal[1, 2] = 1, loud: bool = True) -> str:
    return text.upper() * times


def fail(reason: str) -> None:
    raise ValueError(reason)


TOOLS = [add, add_days, shout, fail]
LONGER = [b"<call>", b"</call>", b"add(", b"add", b"(a=", b'"hi', b'")', b"=1", b", b", b"</", b"call", b">x", b" 12"]


@pytest.fixture(autouse=True)
def fresh() -> None:
    MADE.clear()


def answer(
    script: str, tools: Any = TOOLS, method: str = "plain", limit: int = 200, **more: Any
) -> tuple[str, Any, Statistics]:
    """The text of a model that wants to write ``script``, as far as it may."""
    model = ScriptedModel(
        lambda text: script[len(text) - 1 :] if script.startswith(text[1:]) else "", LONGER, noise=0.1
    )
    part = ToolDec.of(tools, **more)
    composition = compose(model, [method, part] if method else [part])
    statistics, finished = Statistics(), None
    for event in composition.decode([model.tokenizer.encode("?")], stop=Stop(limit)):
        statistics.update(event, 0.0)
        finished = event if isinstance(event, Finished) else finished
    assert isinstance(finished, Finished)
    return model.tokenizer.decode([t for t in finished.tokens if t != STOP]), part, statistics


def test_free_text_a_call_its_result_and_text_again() -> None:
    script = "The sum is <call>add(a=12, b=30)</call> 42 , that is all."
    text, part, statistics = answer(script)
    assert text == script
    assert MADE == [("add", (12, 30))]
    (call,) = part.calls_in(text)
    assert (call.tool, call.arguments, call.result) == ("add", {"a": 12, "b": 30}, 42)
    # The rest of a name, the names of arguments, the end and the result are not asked for.
    assert statistics.forced >= 4
    assert statistics.forwards + statistics.forced <= statistics.tokens + 1, statistics


@pytest.mark.parametrize("method", ["prompt-lookup", "token-recycling", "auto"])
@pytest.mark.parametrize("jump", ["off", "token", "text"])
def test_speculation_writes_the_same_and_makes_every_call_once(method: str, jump: str) -> None:
    script = 'a <call>add(a=1, b=1)</call> 2  b <call>add(a=1, b=1)</call> 2  c <call>shout(text="hi")</call> HI .'
    plain, _, _ = answer(script, jump=jump)
    before = list(MADE)
    MADE.clear()
    assert answer(script, method=method, jump=jump)[0] == plain
    assert MADE == before == [("add", (1, 1))] * 2


@pytest.mark.parametrize(
    ("script", "written"),
    [
        ("<call>sub(a=1)", "<call>"),  # there is no such tool
        ("<call>add(a=x", "<call>add(a="),
        ("<call>add(a=1.5", "<call>add(a=1"),
        ("<call>add(b=1", "<call>add(a="),
        ("<call>shout(text='hi'", "<call>shout(text="),
        ('<call>shout(text="hi", times=3', '<call>shout(text="hi", times='),
        ('<call>add_days(day="2023-02-29"', '<call>add_days(day="2023-02-2'),
    ],
)
def test_what_is_no_call_is_not_written(script: str, written: str) -> None:
    text, part, _ = answer(script, calls=1, limit=150, close=True)
    assert text.startswith(written)
    assert not text.startswith(script)
    assert len(part.calls_in(text)) == 1


def test_optional_arguments_may_be_left_out() -> None:
    for script in (
        '<call>shout(text="a")</call>',
        '<call>shout(text="a", loud=false)</call>',
        '<call>shout(text="a", times=2)</call>',
    ):
        text, part, _ = answer(script, calls=1)
        assert text.startswith(script)
        assert part.calls_in(text)[0].result in ("A", "AA")


def test_a_call_at_once_and_one_only() -> None:
    text, part, statistics = answer("add(a=3, b=4)</call> 7  and more", when="now", calls=1)
    assert text.startswith("<call>")
    assert len(part.calls_in(text)) == 1
    assert statistics.finish_reasons == {"stop-token": 1}


def test_an_error_of_a_function_is_the_result() -> None:
    text, part, _ = answer('<call>fail(reason="no")</call>', calls=1)
    assert text == '<call>fail(reason="no")</call> error: ValueError: no '
    assert part.calls_in(text)[0].failed


def test_without_functions_nothing_is_called() -> None:
    described = {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    }
    text, part, _ = answer("<call>add(a=5)</call> ok", [described])
    assert text == "<call>add(a=5)</call> ok"
    assert part.calls_in(text)[0].result is None


def test_json_style() -> None:
    text, part, _ = answer('<call>add({"a": 1, "b": 2})</call>', style="json", calls=1)
    assert text.startswith('<call>add({"a": 1, "b": 2})</call> 3')
    assert part.calls_in(text)[0].arguments == {"a": 1, "b": 2}


def test_masks_are_what_stepping_token_by_token_gives() -> None:
    model = ScriptedModel(lambda text: "", LONGER)
    part = ToolDec.of(TOOLS, calls=2)
    compose(model, part)
    vocabulary, rng = Vocabulary.of(model), random.Random(0)
    for _ in range(25):
        matcher = part.matcher()
        for _ in range(60):
            mask = matcher.mask()
            tried = torch.zeros_like(mask)
            for token in range(vocabulary.size):
                if token in vocabulary.stop:
                    tried[token] = matcher.accepting
                elif matcher.consume(token):
                    tried[token] = True
                    matcher.rollback(1)
            assert torch.equal(mask, tried)
            forced = matcher.forced()
            ways = [t for t in mask.nonzero().flatten().tolist() if t not in vocabulary.stop]
            if forced:
                assert all(
                    forced.startswith(vocabulary.tokens[t]) or vocabulary.tokens[t].startswith(forced) for t in ways
                )
            if not ways:
                break
            wanted = [t for t in ways if len(vocabulary.tokens[t]) > 1 or chr(t - 1) in '<cal>0123adsh"(=,)/']
            matcher.consume(rng.choice(wanted or ways))


def test_hundreds_of_tools_cost_little_beforehand() -> None:
    tools = [
        {"name": f"tool_{place}_of_many", "parameters": {"type": "object", "properties": {"q": {"type": "string", "maxLength": 200}}, "required": ["q"]}}
        for place in range(400)
    ]  # fmt: skip
    text, part, _ = answer('<call>tool_377_of_many(q="x")</call>', tools, calls=1)
    assert text == '<call>tool_377_of_many(q="x")</call>'
    assert len(part.compiled._entries) >= 390


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (3, 3), (0, 9), (5, 123), (-7, 45), (-120, -9), (99, 1000), (-1, 1), (10, 10_005)]
)
def test_ranges_of_integers(low: int, high: int) -> None:
    pattern = re.compile(pattern_of(integers_between(low, high)))
    for value in range(low - 130, high + 130):
        assert (pattern.fullmatch(str(value)) is not None) == (low <= value <= high)
    assert not pattern.fullmatch("007")


OPENAPI = {
    "openapi": "3.0.0",
    "paths": {
        "/pets/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            "get": {"operationId": "getPet", "summary": "One pet."},
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                }
            },
        }
    },
    "components": {
        "schemas": {
            "Pet": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "age": {"type": "integer", "nullable": True}},
            }
        }
    },
}


def test_openapi() -> None:
    tools = openapi_tools(OPENAPI)
    assert [tool.name for tool in tools] == ["getPet", "post_pets_id"]
    assert tools[0].signature == "getPet(id: integer)"
    script = '<call>post_pets_id(id=1, body={"name": "hi", "age": null})</call>'
    text, part, _ = answer(script, tools, calls=1)
    assert text == script
    assert part.calls_in(text)[0].arguments == {"id": 1, "body": {"name": "hi", "age": None}}


def test_files(tmp_path: Path) -> None:
    code = tmp_path / "tools.py"
    code.write_text(
        "from __future__ import annotations\ndef first(a: int) -> int:\n    return a\ndef _hidden(): ...\ndef second(b: str): ...\n"
    )
    assert [tool.name for tool in read_tools(str(code))] == ["first", "second"]
    assert [tool.name for tool in read_tools(f"{code}:second")] == ["second"]
    listed = tmp_path / "tools.json"
    listed.write_text(
        json.dumps(
            [
                {"type": "function", "function": {"name": "x", "parameters": {"type": "object"}}},
                {"name": "y", "inputSchema": {"type": "object"}},
            ]
        )
    )
    assert [tool.name for tool in read_tools(str(listed))] == ["x", "y"]
    document = tmp_path / "api.yaml"
    document.write_text("openapi: 3.0.0\npaths:\n  /a:\n    get:\n      operationId: readA\n")
    assert [tool.name for tool in read_tools(str(document))] == ["readA"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.py", None, "cannot be read"),
        ("bad.py", "def f(:", "SyntaxError"),
        ("exits.py", "raise SystemExit(3)", "SystemExit"),
        ("none.py", "x = 3", "no public function"),
        ("bad.json", "[", "no JSON"),
        ("none.json", "[]", "no tool"),
        ("odd.json", '{"tools": 3}', "a list of tools"),
        ("twice.json", '[{"name": "a"}, {"name": "a"}]', "two tools"),
        ("name.json", '[{"name": "a b"}]', "no name of a tool"),
        (
            "circle.json",
            '{"openapi": "3", "paths": {"/a": {"get": {"parameters": [{"$ref": "#/x"}]}}}, "x": {"$ref": "#/x"}}',
            "circle",
        ),
    ],
)
def test_files_that_cannot_be_read(name: str, content: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(GrammarError, match=told) as refusal:
        read_tools(str(path))
    assert name in str(refusal.value)


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "array"},
        {"type": "object", "minProperties": 1, "properties": {"a": {}}},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
    ],
)
def test_tools_that_cannot_be_called(parameters: Any) -> None:
    with pytest.raises(GrammarError):
        answer("<call>t(", [Tool("t", parameters)], calls=1)


def test_no_tools() -> None:
    with pytest.raises(Incompatible, match="no tools"):
        compose(ScriptedModel(lambda text: ""), "tooldec")


def several(function: Callable[..., Any]) -> None: ...


def test_a_function_without_json_is_refused() -> None:
    with pytest.raises(GrammarError, match="several"):
        ToolDec.of([several])


def test_steps_tell_what_was_forced() -> None:
    model = ScriptedModel(lambda text: "<call>add(a=1, b=2)</call>"[len(text) - 1 :], LONGER)
    composition = compose(model, ToolDec.of([add], calls=1))
    events = [e for e in composition.decode([model.tokenizer.encode("?")], stop=Stop(100)) if isinstance(e, Stepped)]
    assert sum(event.forced for event in events) >= 5
