"""Every grammar engine of the registry against brute force, on vocabularies small enough for it.

A mask is right if it holds exactly the tokens with which the text can still be completed, so all engines agree on it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.constraints.oracle import Oracle, Rules, State, one_of, text

from unspool.constraints._constraint import GrammarSettings, MatcherConstraint
from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._matcher import CompiledGrammar, Matcher
from unspool.constraints._vocabulary import Vocabulary
from unspool.core.registry import Method, registry

ENGINES = [
    method
    for method in registry
    if issubclass(method.cls, MatcherConstraint)
    and issubclass(method.settings, GrammarSettings)
    and method.cls.grammar is MatcherConstraint.grammar  # type: ignore[attr-defined]
]
STOP = 0


@dataclass(frozen=True)
class Case:
    """One language: by rules for the oracle, and in the notations of engines."""

    name: str
    rules: Rules
    written: dict[str, Any]
    extra: tuple[bytes, ...] = ()
    exempt: dict[str, str] = field(default_factory=dict)


DIGITS = "0123456789"
CASES = [
    Case(
        "arithmetic",
        {
            "start": [["term"], ["start", one_of("+-"), "term"]],
            "term": [["factor"], ["term", one_of("*/"), "factor"]],
            "factor": [["number"], [*text("("), "start", *text(")")]],
            "number": [[one_of(DIGITS)], ["number", one_of(DIGITS)]],
        },
        {
            "lark": 'start: term (("+" | "-") term)*\nterm: factor (("*" | "/") factor)*\n'
            'factor: NUMBER | "(" start ")"\nNUMBER: /[0-9]+/\n',
            "gbnf": 'root ::= term (("+" | "-") term)*\nterm ::= factor (("*" | "/") factor)*\n'
            'factor ::= [0-9]+ | "(" root ")"\n',
        },
        (b"1+", b"(1", b"))", b"+(", b"12*", b"((", b")*(", b")+1", b"9)"),
    ),
    Case(
        "lists",
        {
            "start": [text("[]"), [*text("["), "items", *text("]")]],
            "items": [["item"], ["items", *text(","), "item"]],
            "item": [["start"], text("nil"), text("nine")],
        },
        {
            "lark": 'start: "[" (item ("," item)*)? "]"\nitem: start | "nil" | "nine"\n',
            "gbnf": 'root ::= "[" (item ("," item)*)? "]"\nitem ::= root | "nil" | "nine"\n',
        },
        (b"[[", b"]]", b"],[", b"ni", b"[n", b"il", b"il]", b"ne,", b"nil,nine", b"[]"),
    ),
    Case(
        "shared beginnings",
        {"start": [text("ab"), text("abc"), [*text("b"), "cs"]], "cs": [[], ["cs", *text("c")]]},
        {
            "regex": "ab|abc|bc*",
            "lark": 'start: "ab" | "abc" | "b" /c+/?\n',
            "gbnf": 'root ::= "ab" | "abc" | "b" "c"*\n',
        },
        (b"bc", b"ca", b"ccc", b"cb"),
    ),
    Case(
        "characters of several bytes",
        {
            "start": [text("é"), [*text("日"), "more"], text("ê!")],
            "more": [[], ["more", *text("本")], ["more", *text("é")]],
        },
        {"regex": "é|ê!|日[本é]*", "gbnf": 'root ::= "é" | "ê!" | "日" [本é]*\n'},
        ("é".encode(), "日".encode()[:2], "日".encode()[2:], "本é".encode(), "日本".encode()[:4], b"\xaa!"),
    ),
    Case(
        "choices",
        {"start": [text("yes"), text("yesterday"), text("no"), text('say "hi"\n')]},
        {"choices": ["yes", "yesterday", "no", 'say "hi"\n'], "regex": '(?:yes|yesterday|no|say "hi"\n)'},
        (b"ye", b"yes", b"sterday", b"day", b'"hi', b'y "'),
    ),
    Case(
        "counted",
        {
            "start": [["two", *text("-"), "three"]],
            "two": [[one_of(DIGITS), one_of(DIGITS)]],
            "three": [["two"], ["two", one_of(DIGITS)]],
        },
        {
            "regex": "[0-9]{2}-[0-9]{2,3}",
            "gbnf": 'root ::= [0-9]{2} "-" [0-9]{2,3}\n',
            "lark": "start: /[0-9]{2}-[0-9]{2,3}/\n",
        },
        (b"12", b"2-", b"-3", b"123", b"1-12"),
    ),
    Case(
        "objects",
        {
            "start": [
                [*text('{"a":'), "value", *text(',"b":'), "truth", *text("}")],
                [*text('{"a":'), "value", *text("}")],
            ],
            "value": [text("1"), text("null")],
            "truth": [text("true"), text("false")],
        },
        {
            "json-schema": {
                "type": "object",
                "properties": {"a": {"enum": [1, None]}, "b": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": False,
                "x-guidance": {"item_separator": ",", "key_separator": ":", "whitespace_flexible": False},
            }
        },
        (b'{"', b'":', b'{"a":1', b',"b', b"true}", b"null,", b"ll", b'"a'),
    ),
]


def written(case: Case, kind: str) -> Grammar:
    made = case.written[kind]
    match kind:
        case "json-schema":
            return Grammar.json_schema(made)
        case "choices":
            return Grammar.choices(made)
        case _:
            return Grammar(kind, made)


def vocabulary(case: Case, seed: int) -> Vocabulary:
    """A stop token, all bytes, the case's own strings, and random ones; some of them twice."""
    rng = random.Random(seed)
    alphabet = sorted({byte for string in case.extra for byte in string} | set(b"a1 "))
    strings = [bytes(rng.choices(alphabet, k=rng.randint(2, 4))) for _ in range(60)]
    strings = [bytes([byte]) for byte in range(256)] + list(case.extra) + strings + list(case.extra[:2])
    return Vocabulary([None, *strings, None], frozenset({STOP}))


def compiled(method: Method, grammar: Grammar, words: Vocabulary) -> CompiledGrammar:
    if method.card.slug == "xgrammar" and importlib.util.find_spec("xgrammar") is None:
        pytest.skip("xgrammar is not installed")
    return method.cls(method.settings(grammar=grammar)).compile(words)  # type: ignore[no-any-return, attr-defined]


def expected(oracle: Oracle, state: State, words: Vocabulary) -> torch.Tensor:
    mask = torch.zeros(words.size, dtype=torch.bool)
    for token, string in enumerate(words.tokens):
        mask[token] = string is not None and oracle.read(state, string) is not None
    mask[STOP] = oracle.complete(state)
    return mask


def differences(words: Vocabulary, mask: torch.Tensor, right: torch.Tensor) -> dict[str, list[bytes | None]]:
    wrong = (mask != right).nonzero().flatten().tolist()
    return {
        "too many": [words.tokens[token] for token in wrong if mask[token]],
        "missing": [words.tokens[token] for token in wrong if right[token]],
    }


def walks() -> list[Any]:
    return [
        pytest.param(method, case, kind, id=f"{method.card.slug}-{case.name}-{kind}")
        for method in ENGINES
        for case in CASES
        for kind in case.written
    ]


def usable(method: Method, case: Case, kind: str, words: Vocabulary) -> CompiledGrammar:
    try:
        return compiled(method, written(case, kind), words)
    except GrammarError as error:
        assert method.card.slug != "llguidance", "the default engine takes every notation"
        pytest.skip(f"{method.card.slug}: {error}")


def test_there_are_engines() -> None:
    assert {"llguidance", "xgrammar"} <= {method.card.slug for method in ENGINES}


@pytest.mark.parametrize(("method", "case", "kind"), walks())
def test_masks_are_those_of_brute_force(method: Method, case: Case, kind: str) -> None:
    oracle = Oracle(case.rules)
    for seed in range(3):
        words = vocabulary(case, seed)
        made = usable(method, case, kind, words)
        rng = random.Random(seed)
        for _ in range(4):
            matcher, state, path = made.matcher(), oracle.start, b""
            for _ in range(25):
                right = expected(oracle, state, words)
                mask = matcher.mask()
                assert torch.equal(mask, right), (path, differences(words, mask, right))
                assert matcher.accepting == bool(right[STOP]), path
                assert not right.any() or matcher.exhausted == (right.nonzero().flatten().tolist() == [STOP]), path
                check_forced(matcher, oracle, state, path)
                check_end(matcher, oracle, state, path)
                refused = rng.choice((~right).nonzero().flatten().tolist())
                assert refused == STOP or not matcher.consume(refused), (path, words.tokens[refused])
                possible = [token for token in right.nonzero().flatten().tolist() if token != STOP]
                if not possible:
                    break
                token = rng.choice(possible)
                assert matcher.consume(token), (path, words.tokens[token])
                string = words.tokens[token]
                assert string is not None
                path += string
                state = oracle.read(state, string)
                assert state is not None


def check_forced(matcher: Matcher, oracle: Oracle, state: State, path: bytes) -> None:
    """What is said to be forced is; nothing is said where the text may end or go on in two ways."""
    at: State | None = state
    for byte in matcher.forced():
        assert at is not None
        assert not oracle.complete(at), (path, matcher.forced())
        assert oracle.next_bytes(at) == {byte}, (path, matcher.forced())
        at = oracle.push(at, byte)


def check_end(matcher: Matcher, oracle: Oracle, state: State, path: bytes) -> None:
    end = matcher.shortest_end()
    assert end is not None, path
    final = oracle.read(state, end)
    assert final is not None, (path, end)
    assert oracle.complete(final), (path, end)
    assert len(end) <= 40


@pytest.mark.parametrize(("method", "case", "kind"), walks())
def test_moving_back_and_forking_change_nothing(method: Method, case: Case, kind: str) -> None:
    words = vocabulary(case, 5)
    made = usable(method, case, kind, words)
    rng = random.Random(6)
    matcher = made.matcher()
    path: list[int] = []
    for _ in range(60):
        here = matcher.mask().clone()
        fresh = made.matcher()
        assert all(fresh.consume(token) for token in path)
        assert torch.equal(fresh.mask(), here)
        possible = [token for token in here.nonzero().flatten().tolist() if token != STOP]
        if path and (not possible or rng.random() < 0.35):
            count = rng.randint(1, len(path))
            matcher.rollback(count)
            del path[len(path) - count :]
            continue
        if not possible:
            break
        twin = matcher.fork()
        assert twin.consume(rng.choice(possible))
        assert torch.equal(matcher.mask(), here), "what a fork does is its own business"
        token = rng.choice(possible)
        assert matcher.consume(token)
        path.append(token)


@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.card.slug)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_choices(method: Method, data: st.DataObject) -> None:
    """Lists of texts over few letters, with vocabularies that split them in all ways."""
    letters = st.text("ab\u00e9", min_size=1, max_size=4)
    choices = data.draw(st.lists(letters, min_size=1, max_size=5, unique=True))
    pieces = data.draw(st.lists(st.text("ab\u00e9", min_size=2, max_size=3), max_size=6))
    strings = [bytes([byte]) for byte in "ab\u00e9".encode()] + [piece.encode() for piece in pieces]
    words = Vocabulary([None, *strings], frozenset({STOP}))
    made = compiled(method, Grammar.choices(choices), words)
    oracle = Oracle({"start": [text(choice) for choice in choices]})

    def visit(matcher: Matcher, state: State) -> None:
        right = expected(oracle, state, words)
        assert torch.equal(matcher.mask(), right), differences(words, matcher.mask(), right)
        for token in right.nonzero().flatten().tolist():
            if token != STOP:
                assert matcher.consume(token)
                below = oracle.read(state, words.tokens[token] or b"")
                assert below is not None
                visit(matcher, below)
                matcher.rollback(1)

    visit(made.matcher(), oracle.start)


# -- what cannot be used --------------------------------------------------------------------------------------------

HOSTILE = {
    "a rule that leads to itself": Grammar.lark('start: a\na: "x" a\n'),
    "a rule that is only itself": Grammar.lark('start: start "a"\n'),
    "an object within itself": Grammar.json_schema(
        {"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    ),
    "a schema that is only itself": Grammar.json_schema({"$ref": "#"}),
    "false": Grammar.json_schema(False),
    "no string is so short": Grammar.json_schema({"type": "string", "minLength": 5, "maxLength": 2}),
    "unknown name": Grammar.lark("start: foo\n"),
    "unfinished literal": Grammar.lark('start: "a\n'),
    "unfinished group": Grammar.regex("(a"),
    "a set without characters": Grammar.regex("[^\\s\\S]"),
    "brackets without end": Grammar.lark("start: " + "(" * 20_000 + '"a"' + ")" * 20_000 + "\n"),
}
WORDS = Vocabulary([None, *[bytes([byte]) for byte in range(256)], b"xx", b'{"', b"aa"], frozenset({STOP}))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.card.slug)
def test_bad_grammars_are_refused_with_a_reason(method: Method, name: str) -> None:
    with pytest.raises(GrammarError) as refusal:
        compiled(method, HOSTILE[name], WORDS)
    assert 10 < len(str(refusal.value)) < 1000


@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.card.slug)
def test_a_way_without_an_end_is_refused_or_not_taken(method: Method) -> None:
    try:
        matcher = compiled(method, Grammar.lark('start: "x" | "y" b\nb: "z" b\n'), WORDS).matcher()
    except GrammarError as error:
        pytest.skip(f"refused: {error}")
    assert matcher.mask().nonzero().flatten().tolist() == [ord("x") + 1]


COSTLY = {
    "left recursion": Grammar.lark('start: start "a" | "a"\n'),
    "every way to split": Grammar.lark('start: s\ns: s s | "a"\n'),
    "a repetition of repetitions": Grammar.regex("((((a{1,60}){1,60}){1,60}){1,60})"),
    "many that may be left out": Grammar.lark("start: " + " ".join('"a"?' for _ in range(400)) + "\n"),
    "places that must be remembered": Grammar.regex("(.*a.{30}){3}b"),
    "a large number": Grammar.regex("a{1,100000000}"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.parametrize("method", ENGINES, ids=lambda method: method.card.slug)
def test_costly_grammars_are_read_or_refused(method: Method, name: str) -> None:
    """Within the test's time, and with an error of ours or none."""
    with contextlib.suppress(GrammarError):
        matcher = compiled(method, COSTLY[name], WORDS).matcher()
        for _ in range(40):
            assert matcher.mask()[98]
            assert matcher.consume(98)


def test_a_schema_says_what_it_refuses_and_where() -> None:
    pytest.importorskip("xgrammar")
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(GrammarError, match=r"#/properties/a.*uniqueItems"):
        compiled(registry["xgrammar"], Grammar.json_schema(schema), WORDS)
    # A property may be called like a keyword.
    compiled(registry["xgrammar"], Grammar.json_schema({"properties": {"not": {"type": "string"}}}), WORDS)


def test_json_of_any_kind_is_json() -> None:
    rng = random.Random(1)
    for method in ENGINES:
        made = compiled(method, Grammar.json_schema({"type": "object"}), WORDS)
        ended = 0
        for _ in range(5):
            matcher, path = made.matcher(), b""
            for _ in range(30):
                mask = matcher.mask()
                open_tokens = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
                if not open_tokens:
                    break
                token = rng.choice(open_tokens)
                assert matcher.consume(token)
                path += WORDS.tokens[token] or b""
            end = matcher.shortest_end()
            if end is None:  # not every engine finds a way out of every text
                continue
            ended += 1
            try:
                json.loads((path + end).decode())
            except UnicodeDecodeError:
                # xgrammar lets the bytes of surrogates through, which are no UTF-8.
                if method.card.slug != "xgrammar":
                    pytest.fail(f"{method.card.slug}: {path + end!r} is no text")
        assert ended >= 3, method.card.slug
