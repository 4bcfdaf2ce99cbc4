# ruff: noqa: E501 - tables of schemas and scripts are read line by line
"""JSON schemas: what is enforced is what the schema says, judged by the jsonschema library; what cannot be is refused."""

import contextlib
import itertools
import json
import random
import re
import time
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from unspool.constraints import GrammarError
from unspool.constraints._schema import prepare
from unspool.constraints._schema.expressions import NOTHING, classes, derivative, literal
from unspool.constraints._schema.formats import FORMATS
from unspool.constraints._schema.patterns import Unreadable, found_in
from unspool.constraints._schema.spelling import pattern_of

TOKENIZER = LLTokenizer("byte")


def accepts(schema: Any, value: Any, text: str | None = None) -> bool:
    """Whether the default engine's library takes a value's text under the prepared schema."""
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_json_schema(prepare(schema).text), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    written = TOKENIZER.tokenize_str(json.dumps(value) if text is None else text)
    return matcher.try_consume_tokens(written) == len(written) and matcher.is_accepting()


def takes(schema: Any, value: Any) -> bool:
    """The same with the properties in some order: engines keep to one."""
    if not isinstance(value, dict):
        return accepts(schema, value)
    return any(accepts(schema, dict(pairs)) for pairs in itertools.permutations(value.items()))


def valid(schema: Any, value: Any) -> bool:
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return bool(kind(schema, format_checker=kind.FORMAT_CHECKER).is_valid(value))


VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 5, 6, -1, 2.5, "", "a", "ab", "abc", "b", "x1", "abcdefghij", "2024-02-29", "2023-02-29"),
    *([], [1], [1, 2], ["a"], ["a", "b"], ["a", "a"], [1, "a"], [[1]], [None], [1, 2, 3], ["b", "a"]),
    *({}, {"a": 1}, {"a": "x"}, {"b": 1}, {"a": 1, "b": 2}, {"a": "x", "b": "y"}, {"c": 1}, {"a": 1, "c": 1}),
    *({"a": 1, "b": 2, "c": 3}, {"b": "y", "c": 1}, {"x": None}, {"ab": "q"}, {"a": {"a": 1}}, {"a": {"b": 1}}),
]  # fmt: skip

SCHEMAS: dict[str, Any] = {
    "oneOf of types": {"oneOf": [{"type": "string"}, {"type": "integer"}]},
    "oneOf of required": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    "oneOf that overlap": {"oneOf": [{"type": "string", "minLength": 2}, {"type": "string", "maxLength": 2}]},
    "oneOf of enums": {"oneOf": [{"enum": ["a", "b", 1]}, {"enum": ["b", "ab", 2]}]},
    "oneOf of closed objects": {
        "type": "object",
        "oneOf": [
            {"properties": {"a": {"type": "integer"}}, "additionalProperties": False},
            {"properties": {"b": {"type": "integer"}}, "additionalProperties": False},
        ],
    },
    "oneOf of ranges": {"type": "integer", "oneOf": [{"maximum": 2}, {"maximum": 5}]},
    "oneOf of patterns": {"type": "string", "oneOf": [{"pattern": "a"}, {"pattern": "b"}]},
    "not a type": {"not": {"type": "object"}},
    "not an enum": {"type": "string", "not": {"enum": ["a", "abc"]}},
    "not a number": {"type": "integer", "not": {"enum": [1, 2]}},
    "not a pattern": {"type": "string", "not": {"pattern": "^a"}},
    "not required together": {"type": "object", "not": {"required": ["a", "b"]}},
    "not a property's type": {"type": "object", "not": {"properties": {"a": {"type": "string"}}, "required": ["a"]}},
    "if, then, else": {
        "type": "object",
        "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
        "then": {"required": ["b"]},
        "else": {"required": ["c"]},
    },
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependencies": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "dependencies": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {"properties": {"b": {"type": "string"}}}}},
    "allOf": {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"required": ["a"]}, {"properties": {"b": False}}]},
    "patternProperties": {"type": "object", "patternProperties": {"^a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
    "two patternProperties": {"type": "object", "patternProperties": {"^a": {"type": "string"}, "b$": {"minLength": 2}}},
    "pattern and name": {"type": "object", "properties": {"a": {}}, "patternProperties": {"a": {"type": "integer"}}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^[ab]+$"}},
    "propertyNames enum": {"type": "object", "propertyNames": {"enum": ["a", "c"]}},
    "minProperties of names": {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "additionalProperties": False, "minProperties": 2},
    "minProperties": {"type": "object", "properties": {"a": {}}, "minProperties": 1},
    "maxProperties": {"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 1},
    "contains": {"type": "array", "contains": {"type": "string"}, "maxItems": 3},
    "uniqueItems": {"type": "array", "items": {"enum": ["a", "b", 1]}, "uniqueItems": True},
    "items and prefix": {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
    "draft 4 items": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "array", "items": [{"type": "integer"}], "additionalItems": False},
    "draft 4 bounds": {"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1, "exclusiveMinimum": True},
    "references": {"$defs": {"n": {"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "integer"}]}}, "additionalProperties": False}}, "$ref": "#/$defs/n"},
    "recursion with oneOf": {"oneOf": [{"type": "integer"}, {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}]},
    "an anchor": {"$ref": "#x", "$defs": {"n": {"$anchor": "x", "type": "string", "maxLength": 1}}},
    "const": {"const": {"a": 1}},
    "enum and type": {"enum": [1, "a", None], "type": ["string", "null"]},
    "a date": {"format": "date"},
    "an unknown format": {"type": "string", "format": "colour-of-the-sea"},
    "a lookahead": {"type": "string", "pattern": "^(?!ab)[a-z]+$"},
    "a negated object": {"not": {"const": {"a": 1}}},
    "unevaluatedProperties": {"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_enforced_is_what_the_schema_says(name: str) -> None:
    schema = SCHEMAS[name]
    assert prepare(schema).narrowed == ()
    judged = [valid(schema, value) for value in VALUES]
    assert not [value for value, right in zip(VALUES, judged, strict=True) if takes(schema, value) != right]
    assert len(set(judged)) == 2 or name == "an unknown format", "a schema that tells nothing apart tests nothing"


leaves = st.sampled_from(
    [
        {"type": "string"}, {"type": "integer"}, {"type": "null"}, {"type": "array"}, {"enum": ["a", 1]}, {"minLength": 2},
        {"required": ["a"]}, {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": False}}, {"maxItems": 1},
        {"type": "object", "additionalProperties": False, "properties": {"a": {}, "c": {}}}, {"pattern": "b"}, {"minimum": 2},
        {"items": {"type": "integer"}}, {"type": ["object", "string"]}, {"const": "ab"}, {"maxProperties": 1},
    ]
)  # fmt: skip
compound = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda a, b: {"allOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"anyOf": [a, b]}, inner, inner),
        st.builds(lambda a, b: {"oneOf": [a, b]}, inner, inner),
        st.builds(lambda a: {"not": a}, inner),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        st.builds(lambda a, b: {"type": "object", "properties": {"a": a, "b": b}}, inner, inner),
    ),
    max_leaves=5,
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(compound)
def test_any_combination_is_exact_or_says_that_it_is_not(schema: Any) -> None:
    try:
        prepared = prepare(schema)
    except GrammarError:
        # Refused: then at least nothing is promised. That no schema with values is called empty is tested here.
        with pytest.raises(GrammarError) as refusal:
            prepare(schema)
        assert "no value" not in str(refusal.value) or not any(valid(schema, value) for value in VALUES)
        return
    for value in random.Random(0).sample(VALUES, 24):
        taken, right = takes(schema, value), valid(schema, value)
        assert taken <= right, (schema, value, prepared.text)
        assert prepared.narrowed or taken == right, (schema, value, prepared.text)


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"properties": {"a": {"$ref": "http://else.where/x.json"}}}, "#/properties/a/$ref"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "#/properties/a/$ref"),
        ({"type": "strng"}, "#/type"),
        ({"properties": {"a": {"minLength": "3"}}}, "#/properties/a/minLength"),
        ({"properties": {"a": {"pattern": "(["}}, "required": ["a"]}, "#/properties/a/pattern"),
        ({"type": "string", "pattern": r"(a)\1"}, "#/pattern"),
        ({"$ref": "#"}, "#"),
        ({"type": "object", "minProperties": 2}, "#/minProperties"),
        ({"not": {"type": "number", "multipleOf": 3}, "type": "number"}, "#/not/multipleOf"),
        ({"allOf": 3}, "#/allOf"),
        ({"type": "array", "contains": {}, "minContains": 2}, "#/minContains"),
        ({"properties": [1]}, "#/properties"),
        ({"required": "a"}, "#/required"),
        ({"additionalProperties": 3}, "#/additionalProperties"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_place(schema: Any, where: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        prepare(schema)
    assert str(refusal.value).startswith(where + ":"), refusal.value


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"type": "string", "allOf": [{"pattern": "^a"}, {"pattern": "^b"}]},
        {"type": "object", "required": ["a"], "properties": {"a": False}},
        {"type": "object", "required": ["a", "b"], "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {"type": "array", "minItems": 2, "maxItems": 1},
        {"enum": []},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "not": {"type": "object"}},
    ],
)
def test_a_schema_that_no_value_satisfies_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="no value satisfies"):
        prepare(schema)


def test_what_is_narrowed_is_told_and_can_be_refused() -> None:
    schema = {"type": "object", "not": {"properties": {"a": {"type": "integer"}}}}
    prepared = prepare(schema)
    assert prepared.narrowed
    assert "#/not/properties/a/type" in prepared.narrowed[0]
    assert accepts(schema, {"a": "x"})
    assert not accepts(schema, {"a": 1})
    with pytest.raises(GrammarError, match="integers"):
        prepare(schema, strict=True)


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"required": [f"p{i}"], "properties": {f"q{i}": {"type": "string"}}} for i in range(40)]},
        {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(40)], "not": {}},
        {"type": "object", "properties": {f"p{i}": {} for i in range(60)}, "minProperties": 30},
        {
            "type": "string",
            "allOf": [{"pattern": f"^(a|b)*a(a|b){{{n}}}$"} for n in (11, 13, 17)],
            "not": {"pattern": "x"},
        },
    ],
)
def test_hostile_schemas_end(schema: Any) -> None:
    began = time.perf_counter()
    with contextlib.suppress(GrammarError):
        prepare(schema)
    assert time.perf_counter() - began < 60


def test_deep_nesting_is_refused() -> None:
    schema: Any = {"type": "string"}
    for _ in range(5000):
        schema = {"not": schema}
    with pytest.raises(GrammarError, match="deep"):
        prepare(schema)


def test_white_space_is_a_choice() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a", "b"],
    }
    texts = ['{"a": 1, "b": 2}', '{"a":1,"b":2}', '{\n  "a": 1,\n  "b": 2\n}']
    fixed = prepare(schema, "fixed").text
    assert [accepts(schema, None, text) for text in texts] == [True, True, True]
    assert [accepts(fixed, None, text) for text in texts] == [True, False, False]


PATTERNS = [
    *("abc", "^abc$", "^a|b$", "(^a|b)c", "[a-c]+\\d{2,3}", "^(?!ab)[a-c]*$", "a(?=b)", "^a{0,3}b?$", "^$", "", "x*"),
    *("^(a|b)*c$", "[^a]", ".", "a.c", "^(?=.*\\d)(?=.*[a-z]).{3,5}$", "\\.a", "^-?\\d+(\\.\\d+)?$", "^(?:a$|b)c?$"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_and_their_opposites(pattern: str) -> None:
    rng = random.Random(0)
    texts = ["", *("".join(rng.choice("abc1.x\n-2") for _ in range(rng.randint(1, 6))) for _ in range(500))]
    there = found_in(pattern)
    written, opposite = re.compile(pattern_of(there)), re.compile(pattern_of(~there))
    for text in texts:
        found = re.search(pattern.replace("$", "\\Z"), text) is not None
        assert there.matches(text) == found, text
        assert (written.fullmatch(text) is not None) == found, (text, written.pattern)
        assert (opposite.fullmatch(text) is None) == found, (text, opposite.pattern)


@pytest.mark.parametrize("pattern", ["(", "a)", "[a", "*a", "a{3,2}", "(?<=a)b", "\\1", "\\bword"])
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(Unreadable):
        found_in(pattern)


def test_sets_of_strings() -> None:
    assert (found_in("^a") & found_in("^b")).is_empty
    assert not (found_in("a") & found_in("b")).is_empty
    assert (literal("abc") & ~found_in("b")).is_empty


@pytest.mark.parametrize("name", sorted(set(FORMATS) & set(jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers)))
def test_every_string_of_a_format_has_it(name: str) -> None:
    rng, checker = random.Random(1), jsonschema.Draft202012Validator.FORMAT_CHECKER
    drawn = 0
    for _ in range(60):
        at, text = found_in(FORMATS[name]), ""
        for _ in range(150):
            ways = [piece for piece in classes(at) if derivative(at, piece[0][0]) != NOTHING]
            if at.nullable and (not ways or rng.random() < (0.05 if len(text) < 40 else 0.6)):
                # The library reads "202#" as no relative pointer; the specification does.
                known = name == "relative-json-pointer" and text.endswith("#")
                assert checker.conforms(text, name) or known, text
                drawn += 1
                break
            if not ways:
                break
            low, high = rng.choice(rng.choice(ways))
            point = rng.randint(low, min(high, 0xD7FF) if low <= 0xD7FF else high)
            text, at = text + chr(point), derivative(at, point)
    assert drawn >= 20
