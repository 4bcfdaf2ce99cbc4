"""What experiments with grammars and tools are made of: exploring automata, random sentences, and judged calls."""

from __future__ import annotations

import inspect
import math
import random

import pytest

from unspool.constraints._canonical import canonical
from unspool.constraints._grammar import Grammar
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._rules import trimmed, without_empty
from unspool.constraints._stack import Parser
from unspool.constraints._tools import tools_of
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGrammaGrammar
from unspool.evaluation.reproductions import greatgramma, pre3_dpda, tooldec
from unspool.evaluation.reproductions._languages import LANGUAGES
from unspool.evaluation.reproductions._nondeterministic import Explorer, Writer
from unspool.evaluation.reproductions._tool_suite import SUITE, Request, requests

STOP = 0
TOOLS = {tool.name: tool for tool in tools_of([asked.function for asked in SUITE])}


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    strings = [bytes([byte]) for byte in range(256)]
    return Vocabulary([None, *strings, b"}]", b'","', b'"},', b"]]", b" = ", b"SELECT"], frozenset({STOP}))


# -- grammars -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["JSON", "brackets", "list"])
def test_exploring_all_stacks_is_what_the_driver_does(name: str) -> None:
    table = canonical(*without_empty(trimmed(read_lark(pre3_dpda.GRAMMARS[name]))))
    driver, rules = Parser(table), table.grammar.rules
    explorer, writer, rng = Explorer(rules), Writer(rules), random.Random(2)
    wrong = 0
    for number in range(60):
        string = writer.sentence(rng, 6)[:60]
        if number % 2:
            string[rng.randrange(len(string))] = rng.randrange(len(rules.terminals))
        stack, stacks = driver.start(), explorer.start()
        for terminal in string:
            after = driver.shift(stack, terminal)
            stacks = explorer.shift(stacks, terminal)
            assert (after is None) == (not stacks)
            if after is None:
                wrong += 1
                break
            stack = after
        else:
            assert driver.ends(stack) == explorer.ends(stacks)
    assert wrong > 5


def test_random_sentences_are_sentences_and_bounded() -> None:
    driver, _ = pre3_dpda.parsers(pre3_dpda.LEXEMES)
    writer, rng = Writer(driver.table.grammar.rules), random.Random(0)
    lengths = set()
    for _ in range(200):
        string = writer.sentence(rng, rng.randint(0, 12))
        stack = driver.follow(driver.start(), string)
        assert stack is not None
        assert driver.ends(stack)
        lengths.add(len(string))
    assert len(lengths) > 5


def test_acceptance_sees_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pre3_dpda.GRAMMARS["brackets"]
    right = pre3_dpda.acceptance(text, 200)
    assert right.unequal == right.several == 0
    assert 0 < right.valid < right.strings == 200
    monkeypatch.setattr(pre3_dpda.PushdownParser, "shift", lambda self, frame, terminal: None)
    assert pre3_dpda.acceptance(text, 200).unequal > 100


def test_absorbing_keeps_the_stack_flat() -> None:
    assert pre3_dpda.depth(True, 2) == pre3_dpda.depth(True, 300)
    assert pre3_dpda.depth(False, 300) > 300


@pytest.mark.parametrize("name", LANGUAGES)
def test_texts_belong_to_their_language(name: str, words: Vocabulary) -> None:
    made = GreatGrammaGrammar(words, Grammar.lark(LANGUAGES[name].grammar))
    rng = random.Random(3)
    for _ in range(15):
        matcher = made.matcher()
        assert all(matcher.consume(token) for token in words.spell(LANGUAGES[name].write(rng).encode()))
        assert matcher.accepting


def test_two_terminals_allow_more_than_can_stand(words: Vocabulary) -> None:
    """Behind '[{"a":1' the token '}]' is right, and behind '{"a":1' it is wrong, which two terminals cannot tell."""
    made = GreatGrammaGrammar(words, Grammar.lark(LANGUAGES["JSON"].grammar))
    three = words.by_bytes[b'"},']
    for text, right in ((b'[{"a":"x', True), (b'{"a":"x', False)):
        matcher = made.matcher()
        assert all(matcher.consume(token) for token in words.spell(text))
        exact = greatgramma.every_token(made, matcher)
        assert (exact == matcher.mask().numpy()).all()
        loose = greatgramma.two_terminals(made, matcher)
        assert bool(exact[three]) == right
        assert loose[three]
        assert not (exact & ~loose).any()


# -- tools --------------------------------------------------------------------------------------------------------


def test_the_suite_of_tools() -> None:
    assert len(SUITE) == 40
    assert sum(asked.held_out for asked in SUITE) == 15
    for asked in SUITE:
        assert list(inspect.signature(asked.function).parameters) != []
        made = asked.request(random.Random(1))
        call = TOOLS[asked.name].call(made.arguments)
        assert call is not None
        assert call() is not None
    assert TOOLS["to_roman_numeral"].function is not None
    assert TOOLS["to_roman_numeral"].function(1994) == "MCMXCIV"


def test_requests_are_half_about_held_out_tools() -> None:
    made = requests(60)
    assert made == requests(60)
    assert sum(one.held_out for one in made) == 30
    assert len({one.tool for one in made if one.held_out}) == 15


def test_prompts_do_not_name_what_is_held_out() -> None:
    for request in requests(30):
        if request.held_out:
            text = tooldec.prompt(request)
            assert request.tool not in text.splitlines()[0].split(", ")
            assert f"{request.tool}(" not in text


ADD = Request("What is 1 plus 2?", "add", {"a": 1, "b": 2}, False)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("add(a=1, b=2)</call> and more", "right"),
        ("add(1, 2)</call>", "right"),
        ("add(a=1.0, b=2)</call>", "right"),
        ("add(a=2, b=1)</call>", "wrong arguments"),
        ("subtract(a=1, b=2)</call>", "wrong tool"),
        ("divide(a=1, b=0)</call>", "wrong tool"),
        ('add(a="one", b=2)</call>', "bad arguments"),
        ("add(a=1)</call>", "bad arguments"),
        ("add(a=1, b=2, c=3)</call>", "bad arguments"),
        ("plus(a=1, b=2)</call>", "unknown tool"),
        ("add(a=1, b=2", "unreadable"),
        ("add(a=1, b=2))</call>", "unreadable"),
        ("add(a=1, b=x)</call>", "unreadable"),
        ("1 + 2</call>", "unreadable"),
        ("add(1, 2, 3)</call>", "unreadable"),
    ],
)
def test_calls_are_judged(text: str, verdict: str) -> None:
    assert tooldec.judge(text, ADD, TOOLS) == verdict


def test_passes_for_a_right_call() -> None:
    judged = [tooldec.Judged("right", 10), tooldec.Judged("wrong tool", 6)]
    assert tooldec._per_right(judged) == 16
    assert math.isinf(tooldec._per_right(judged[1:]))
