"""JSON schemas in our own engines: masks as llguidance has them, valid texts, refusals with a path."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest
import torch

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._schema_rules import read_schema
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGrammaGrammar
from unspool.constraints.llguidance import LLGuidanceGrammar
from unspool.constraints.pre3_dpda import Pre3Grammar

STOP = 0
TREE = {
    "$ref": "#/$defs/t",
    "$defs": {
        "t": {
            "type": "object",
            "properties": {"v": {"type": "integer"}, "l": {"anyOf": [{"$ref": "#/$defs/t"}, {"type": "null"}]}},
            "required": ["v", "l"],
            "additionalProperties": False,
        }
    },
}
SCHEMAS: dict[str, Any] = {
    "anything": {},
    "any object": {"type": "object"},
    "some properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": ["number", "null"]}},
        "required": ["b"],
    },
    "closed": {
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "items": {"enum": ["x", "y", "a", 3, None, True]}, "minItems": 1, "maxItems": 3},
        },
        "additionalProperties": False,
    },
    "overlapping alternatives": {
        "anyOf": [{"type": "string"}, {"enum": ["a", "b"]}, {"type": "integer"}, {"type": "number"}, {"const": 12}]
    },
    "a tree": TREE,
    "by place": {"type": "array", "prefixItems": [{"type": "string"}, {"const": 5}], "items": {"type": "boolean"}},
    "lengths": {"type": "string", "minLength": 2, "maxLength": 4},
    "a pattern": {"type": "string", "pattern": '^[a-c]+"?$'},
    "a pattern within": {"type": "string", "pattern": "b\\d"},
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x": {"type": "integer"}},
        "properties": {"k": {"type": "boolean"}},
        "additionalProperties": False,
    },
    "constants": {"const": {"b": 1, "a": [True, None, "\u00e9\n"]}},
    "kinds": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"k": {"const": kind}, name: {"type": of}},
                "required": ["k", name],
                "additionalProperties": False,
            }
            for kind, name, of in (("a", "x", "integer"), ("b", "y", "string"))
        ]
    },
    "numbers": {"enum": [1.5, -2, 2000.0, 0.25, 'q"\\']},
}


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    strings = [bytes([byte]) for byte in range(256)]
    strings += [b'"a', b'":', b'"}', b'","', b"}]", b"null", b"tru", b" ", b"\n  ", b"12", b'{"', b'["', b'x"', b'a":']
    strings += ["é".encode(), "日本".encode(), b"\\u00", b'\\"', b"1.", b"e+", b"]}", b"}}", b'{"v":', b', "', b"[]"]
    return Vocabulary([None, *strings], frozenset({STOP}))


@pytest.mark.parametrize("name", SCHEMAS)
def test_masks_equal_those_of_llguidance_and_texts_are_valid(name: str, words: Vocabulary) -> None:
    schema = SCHEMAS[name]
    grammar = Grammar.json_schema(schema)
    made = [engine(words, grammar) for engine in (GreatGrammaGrammar, Pre3Grammar, LLGuidanceGrammar)]
    rng = random.Random(name)
    finished = 0
    for _ in range(12):
        matchers = [each.matcher() for each in made]
        text = b""
        for _ in range(50):
            masks = [matcher.mask() for matcher in matchers]
            for mask in masks[1:]:
                wrong = (masks[0] != mask).nonzero().flatten().tolist()
                assert torch.equal(masks[0], mask), (text, [words.tokens[token] for token in wrong])
            possible = masks[0].nonzero().flatten().tolist()
            token = rng.choice(possible)
            if token == STOP:
                break
            text += words.tokens[token] or b""
            assert all(matcher.consume(token) for matcher in matchers)
        ends = [matcher.shortest_end() for matcher in matchers[:2]]
        for end in ends:
            assert end is not None
            jsonschema.validate(json.loads(text + end), schema)
            finished += 1
    assert finished == 24


def test_large_objects_stay_small() -> None:
    """Sixty optional properties: rules grow with their number, not with that of their subsets."""
    schema = {"type": "object", "properties": {f"name{i}": {"type": "string"} for i in range(60)}}
    rules = read_schema(json.dumps(schema | {"additionalProperties": False}))
    assert len(rules.productions) < 400


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "integer", "minimum": 3}, "#/minimum"),
        (
            {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "number", "multipleOf": 2}}}},
            "#/properties/a/items/multipleOf",
        ),
        ({"type": "array", "maxItems": 5000}, "#/maxItems: 5000 elements"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "a"),
    ],
)
def test_what_is_not_taken_is_refused_with_its_path(schema: dict[str, Any], message: str, words: Vocabulary) -> None:
    with pytest.raises(GrammarError, match=message):
        GreatGrammaGrammar(words, Grammar.json_schema(schema))


def test_deep_schemas_are_refused_not_followed(words: Vocabulary) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(3000):
        schema = {"type": "array", "items": schema}
    with pytest.raises(GrammarError, match="recursion depth"):
        GreatGrammaGrammar(words, Grammar.json_schema(schema))
