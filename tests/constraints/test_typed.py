"""Types as grammars: classes, dataclasses, functions; and the objects that come back."""

import datetime
import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import pytest
from llguidance import LLMatcher, LLTokenizer
from typing_extensions import TypedDict

from unspool.constraints import Call, Grammar, GrammarError, Typed
from unspool.constraints._schema import prepare

TOKENIZER = LLTokenizer("byte")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class City(pydantic.BaseModel):
    name: Annotated[str, pydantic.Field(min_length=1, max_length=20)]
    country: Literal["France", "Spain"]
    founded: datetime.date | None = None
    tags: set[str] = set()


class Tree(pydantic.BaseModel):
    value: int
    children: list["Tree"] = []


@dataclass
class Point:
    x: float
    y: float = 0.0


class Row(TypedDict):
    colour: Colour
    counts: dict[str, int]


def ship(order: int, to: City, *, express: bool = False, copy: str = "no") -> str:
    return f"{order} to {to.name}{' fast' if express else ''} {copy}"


def accepts(grammar: Grammar, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(prepare(grammar.text).text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    written = TOKENIZER.tokenize_str(text)
    return matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("given", "text", "made"),
    [
        (City, {"name": "Paris", "country": "France"}, City(name="Paris", country="France")),
        (
            City,
            {"name": "P", "country": "Spain", "founded": "0250-01-01", "tags": ["a", "a"]},
            City(name="P", country="Spain", founded=datetime.date(250, 1, 1), tags={"a"}),
        ),
        (Tree, {"value": 1, "children": [{"value": 2, "children": []}]}, Tree(value=1, children=[Tree(value=2)])),
        (Point, {"x": 1.5, "y": -2}, Point(1.5, -2)),
        (Row, {"colour": "red", "counts": {"a": 1}}, {"colour": Colour.RED, "counts": {"a": 1}}),
        (list[int], [1, 2], [1, 2]),
        (Literal["yes", "no"], "yes", "yes"),
        (int | None, None, None),
        (tuple[int, str], [1, "a"], (1, "a")),
    ],
)
def test_the_text_of_a_value_is_in_the_grammar_and_gives_the_value(given: Any, text: Any, made: Any) -> None:
    typed = Typed.of(given)
    assert accepts(typed.grammar, json.dumps(text))
    assert typed.read(json.dumps(text)) == made
    assert Grammar.of(given) == typed.grammar


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (City, {"name": "Paris", "country": "Italy"}),
        (City, {"name": "", "country": "France"}),
        (City, {"name": "Paris", "country": "France", "mayor": "?"}),
        (City, {"country": "France"}),
        (Point, {"x": "1"}),
        (Row, {"colour": "green", "counts": {}}),
        (ship, {"order": 1}),
        (ship, {"order": 1, "to": {"name": "P", "country": "Spain"}, "speed": 3}),
    ],
)
def test_other_texts_are_not(given: Any, text: Any) -> None:
    assert not accepts(Grammar.of(given), json.dumps(text))


def test_a_function_can_be_called_with_what_was_read() -> None:
    call = Typed.of(ship).read(
        '{"order": 3, "to": {"name": "Nice", "country": "France"}, "express": true, "copy": "yes"}'
    )
    assert isinstance(call, Call)
    assert call.arguments["to"] == City(name="Nice", country="France")
    assert call() == "3 to Nice fast yes"
    assert "order=3" in str(call)


def positional(a: int, /) -> None: ...
def several(*numbers: int) -> None: ...
def strange(a: Callable[[], int]) -> None: ...
def unknown(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("given", [positional, several, strange, unknown, Callable[[], int], object()])
def test_what_has_no_json_is_refused(given: Any) -> None:
    with pytest.raises(GrammarError):
        Typed.of(given)


class Even(pydantic.BaseModel):
    number: int

    @pydantic.field_validator("number")
    @classmethod
    def is_even(cls, value: int) -> int:
        if value % 2:
            raise ValueError("it is odd")
        return value


def test_what_a_schema_cannot_say_is_told_when_it_is_read() -> None:
    assert Typed.of(Even).read('{"number": 4}') == Even(number=4)
    with pytest.raises(GrammarError, match=r"number: .*odd"):
        Typed.of(Even).read('{"number": 3}')
    with pytest.raises(GrammarError, match="not complete JSON"):
        Typed.of(Even).read('{"number": ')


def test_layouts() -> None:
    assert not accepts(Typed.of(Point).grammar, '{"x":1}')
    assert accepts(Typed.of(Point).laid_out("any"), '{"x":1}')
