"""The options that say what a text has to be: every one, with others, and every way to hold them wrong."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import unspool.constraints
from unspool.cli import _constraints
from unspool.constraints import DEFAULT_ENGINE
from unspool.core.cards import Kind, setting_fields
from unspool.core.registry import registry

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(
        "def add(a: int, b: int) -> int:\n    return a + b\n\ndef greet(name: str = 'you') -> str:\n    return name\n"
    )
    return path


@pytest.mark.parametrize("method", ["plain", "token-recycling", "auto"])
def test_json_schema(answer: Any, schema: Path, method: str) -> None:
    data = answer("the quick", "--json-schema", schema, "-n", 80, "--method", method)
    assert data["complete"] is True
    jsonschema.validate(data["object"], SCHEMA)
    assert json.loads(data["text"]) == data["object"]
    assert data["statistics"]["forced_tokens"] > 0
    assert data["method"] == f"{method}+llguidance"


def test_a_schema_may_stand_on_the_command_line(answer: Any) -> None:
    assert answer("hi", "--json-schema", '{"enum": ["a", "b"]}')["object"] in ("a", "b")


def test_white_space(answer: Any, schema: Path) -> None:
    assert re.match(r'\{"name": "', answer("hi", "--json-schema", schema, "-n", 80)["text"])
    assert answer("hi", "--json-schema", schema, "-n", 80, "--whitespace", "any")["complete"] is True


def test_grammars(answer: Any, tmp_path: Path) -> None:
    (tmp_path / "g.lark").write_text('start: "x" ("a" | "b") "y"')
    (tmp_path / "g.gbnf").write_text('root ::= "x" ("a" | "b") "y"')
    (tmp_path / "g.ebnf").write_text('root ::= "x" [ab] "y"\n')
    for name in ("g.lark", "g.gbnf", "g.ebnf"):
        assert answer("hi", "--grammar", tmp_path / name)["text"] in ("xay", "xby")


def test_regex_and_choices(answer: Any, tmp_path: Path) -> None:
    assert re.fullmatch("[0-9]{3}-[a-f]+", answer("hi", "--regex", "[0-9]{3}-[a-f]+", "-n", 12)["text"])
    assert answer("hi", "--choices", "yes, no,maybe")["text"] in ("yes", "no", "maybe")
    (tmp_path / "c.txt").write_text("one thing\nanother, thing\n")
    assert answer("hi", "--choices", tmp_path / "c.txt")["text"] in ("one thing", "another, thing")


def test_engines_and_languages_are_those_of_the_room() -> None:
    settings = {"jump", "close", "grammar"}
    steered = {"itergen"}  # masks by an engine
    found = {
        method.card.slug
        for method in registry
        if method.card.kind is Kind.CONSTRAINT and settings <= {field.name for field in setting_fields(method.settings)}
    }
    assert set(_constraints.ENGINES) == found - steered
    assert _constraints.DEFAULT_ENGINE == DEFAULT_ENGINE
    folder = Path(unspool.constraints.__file__).parent / "languages"
    assert set(_constraints.LANGUAGES) == {path.stem for path in folder.glob("*.lark")}


@pytest.mark.parametrize("language", _constraints.LANGUAGES)
def test_languages(answer: Any, language: str) -> None:
    data = answer("hi", "--language", language, "-n", 40)
    assert data["complete"] is True
    assert ("object" in data) == (language == "json")


@pytest.mark.parametrize("engine", ["llguidance", "xgrammar", "greatgramma", "pre3-dpda"])
def test_engines_write_the_same(answer: Any, engine: str) -> None:
    if engine == "xgrammar":
        pytest.importorskip("xgrammar")
    data = answer("hi", "--regex", "(ab|cd)e*f", "--engine", engine, "-n", 30)
    assert data["method"] == f"auto+{engine}"
    assert data["text"] == answer("hi", "--regex", "(ab|cd)e*f", "-n", 30)["text"]


def test_closing(answer: Any) -> None:
    closed = answer("hi", "--regex", "a{30,60}b", "-n", 40)
    assert closed["complete"] is True
    assert closed["text"].endswith("b")
    cut = answer("hi", "--regex", "(a|c){30}[ac]*b", "-n", 20, "--no-close")
    assert (cut["complete"], cut["finish_reason"]) == (False, "length")


def test_what_is_cut_is_told(run: Any, model: str) -> None:
    result = run("generate", "hi", "--model", model, "--regex", "(a|c){30}", "-n", 10, "--no-close")
    assert "not complete" in result.stderr


def test_tools_are_called(answer: Any, tools: Path) -> None:
    data = answer("hi", "--tools", f"{tools}:add", "-n", 120)
    (call,) = data["calls"]
    assert call["tool"] == "add"
    assert call["result"] == str(sum(call["arguments"].values()))
    # The maximum ends the numbers, and leaves no room for the result.
    assert data["text"].endswith("</call>")


def test_tools_in_json(answer: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(
        json.dumps(
            [
                {
                    "name": "look",
                    "parameters": {"type": "object", "properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"]},
                }
            ]
        )
    )
    data = answer("hi", "--tools", path, "-n", 60)
    assert data["calls"][0]["arguments"]["at"] in ("a", "b")


def test_what_is_left_out_is_told(answer: Any) -> None:
    schema = {"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "null"}]}
    data = answer("hi", "--json-schema", json.dumps(schema))
    assert data["object"] is None
    assert "integers" in data["left_out"][0]


def test_chat(run: Any, model: str) -> None:
    result = run("chat", "--model", model, "--json", "-n", 30, "--choices", "yes,no", input="hello\nand now?\n")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["text"] in ("yes", "no") for one in told] == [True, True]
    assert all(one["complete"] for one in told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--regex", "a", "--choices", "a,b"], "take one of them"),
        (["--json-schema", "gone.json"], "cannot be read"),
        (["--json-schema", "{"], "no JSON"),
        (["--json-schema", '{"type": "strng"}'], "#/type"),
        (["--json-schema", "false"], "no value satisfies"),
        (["--json-schema", '{"type": "array", "uniqueItems": true}'], "#/uniqueItems"),
        (["--grammar", "gone.lark"], "cannot be read"),
        (["--grammar", "x.docx"], "notation"),
        (["--regex", "(["], "regex"),
        (["--regex", ""], "empty"),
        (["--choices", ","], "no text"),
        (["--choices", "gone.txt"], "no such file"),
        (["--language", "klingon"], "klingon"),
        (["--tools", "gone.py:f"], "cannot be read"),
        (["--engine", "magic", "--regex", "a"], "magic"),
        (["--engine", "xgrammar"], "for a grammar"),
        (["--engine", "llguidance", "--tools", "x.py"], "own machine"),
        (["--whitespace", "any"], "--json-schema"),
        (["--whitespace", "none", "--json-schema", "{}"], "fixed or any"),
        (["--method", "tooldec"], "no tools"),
        (["--method", "llguidance"], "no grammar"),
        (["--method", "plain+llguidance", "--regex", "a"], "llguidance"),
    ],
)
def test_wrong_options(run: Any, model: str, arguments: list[str], told: str) -> None:
    result = run("generate", "hi", "--model", model, "--json", *arguments, code=2)
    message = json.loads(result.stdout)["error"]["message"]
    assert told in message, message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loop.lark", 'start: a\na: a "x"'),
        ("empty.lark", "start: a\na: a"),
        ("undefined.lark", "start: nothing"),
        ("broken.lark", "start: ((("),
        ("none.lark", " "),
        ("broken.gbnf", "root ::= ("),
        ("plain.ebnf", "root = 'a';"),
        ("binary.lark", b"\xff\xfe\x00"),
    ],
)
@pytest.mark.timeout(60)
def test_grammars_that_cannot_be_used(run: Any, model: str, tmp_path: Path, name: str, text: str | bytes) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = run("generate", "hi", "--model", model, "--json", "--grammar", path, "-n", 5, code=2)
    assert json.loads(result.stdout)["error"]["type"] == "GrammarError"


def test_help_names_them(run: Any) -> None:
    text = run("generate", "--help").stdout
    for option in (
        "--json-schema",
        "--grammar",
        "--regex",
        "--choices",
        "--tools",
        "--language",
        "--engine",
        "--no-close",
    ):
        assert option in text
