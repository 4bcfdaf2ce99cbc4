"""Pre^3: its edges against the LR(1) driver, absorbed laps, conditions of tokens, and batches."""

from __future__ import annotations

import random

import pytest
import torch
from tests.constraints.grammars import ARITHMETIC, JSON
from tests.constraints.languages import letters, random_language

from unspool.constraints._canonical import canonical
from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._pda import PushdownParser
from unspool.constraints._rules import trimmed, without_empty
from unspool.constraints._stack import Parser
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.pre3_dpda import Pre3Grammar

STOP = 0

BRACKETS = 'start: group*\ngroup: "(" start ")" | "[" start "]" | "{" start "}"\n'
RIGHT = 'start: "[" list "]"\nlist: ITEM "," list | ITEM\nITEM: "a" | "b"\n'
PREFIXES = 'start: "-" start | "!" start | NUMBER\nNUMBER: /[0-9]/\n'
NESTED = 'start: "(" list ")"\nlist: item ";" list | item\nitem: "x" | "(" list ")" | "~" item\n'
COUNTED = 'start: "a" start "b" | "c"\n'
# Its lap holds a choice that is only made at the end: nothing may be absorbed.
MIRROR = 'start: "a" start "x" | "b" start "y" | "c"\n'
GRAMMARS = {
    "json": JSON,
    "arithmetic": ARITHMETIC,
    "brackets": BRACKETS,
    "right": RIGHT,
    "prefixes": PREFIXES,
    "nested": NESTED,
    "counted": COUNTED,
    "mirror": MIRROR,
}


def parsers(text: str, absorb: bool = True) -> tuple[Parser, PushdownParser]:
    table = canonical(*without_empty(trimmed(read_lark(text))))
    return Parser(table), PushdownParser(table, absorb)


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("absorb", [True, False])
def test_edges_accept_what_the_driver_accepts(name: str, absorb: bool) -> None:
    """Random strings, most of them nearly valid; and never does more than one edge fit."""
    driver, automaton = parsers(GRAMMARS[name], absorb)
    assert automaton.edges.deterministic()
    rng = random.Random(name)
    count = len(driver.table.grammar.rules.terminals)
    agreed = {True: 0, False: 0}
    for _ in range(1500):
        a, b = driver.start(), automaton.start()
        for _ in range(rng.randint(1, 30)):
            following = [t for t in range(count) if driver.shift(a, t) is not None]
            terminal = rng.choice(following) if following and rng.random() < 0.95 else rng.randrange(count)
            left, right = driver.shift(a, terminal), automaton.shift(b, terminal)
            assert (left is None) == (right is None)
            agreed[left is not None] += 1
            edges = automaton.edges.of.get((b.state, terminal), ())
            fitting = [edge for edge in edges if tuple(b.states(len(edge.pop))) == edge.pop]
            assert len(fitting) <= 1
            if left is None or right is None:
                break
            a, b = left, right
            assert driver.ends(a) == automaton.ends(b)
    assert agreed[True] > 1000
    assert agreed[False] > 30


def depth(text: str, terminals: list[int], absorb: bool) -> int:
    _, automaton = parsers(text, absorb)
    stack = automaton.follow(automaton.start(), terminals)
    assert stack is not None
    return stack.depth


def numbers(text: str, names: list[str]) -> list[int]:
    terminals = [terminal.name for terminal in read_lark(text).terminals]
    return [terminals.index(name) for name in names]


def test_right_recursion_leaves_the_stack_flat() -> None:
    """A list of 1,000 elements: with absorbing edges its depth is that of two, without it grows with every element."""
    opening, item, comma = numbers(RIGHT, ['"["', "ITEM", '","'])
    few, many = ([opening, *[item, comma] * count] for count in (2, 1000))
    assert depth(RIGHT, few, True) == depth(RIGHT, many, True) <= 6
    assert depth(RIGHT, many, False) - depth(RIGHT, few, False) == 2 * 998


def test_laps_that_say_something_are_not_absorbed() -> None:
    opening, middle = numbers(COUNTED, ['"a"', '"c"'])
    closing = numbers(COUNTED, ['"b"'])[0]
    _, automaton = parsers(COUNTED)
    assert not automaton.absorber.laps
    for opened in range(6):
        for closed in range(6):
            terminals = [*[opening] * opened, middle, *[closing] * closed]
            stack = automaton.follow(automaton.start(), terminals)
            assert (stack is not None and automaton.ends(stack)) == (opened == closed)
    assert parsers(PREFIXES)[1].absorber.laps


def test_without_absorbing_reductions_are_made_one_by_one() -> None:
    """The end of a right-recursive list has conditions without end then; the answer is the same."""
    _, with_laps = parsers(RIGHT)
    _, without = parsers(RIGHT, absorb=False)
    assert not with_laps.edges.single
    assert without.edges.single
    assert all(len(edge.pop) <= 8 for edges in with_laps.edges.of.values() for edge in edges)


def test_random_grammars_have_deterministic_edges() -> None:
    taken = absorbed = 0
    for seed in range(250):
        language = random_language(seed, ignoring=False)
        try:
            table = canonical(*without_empty(trimmed(language.rules)))
        except GrammarError:
            continue
        automaton, driver = PushdownParser(table), Parser(table)
        taken += 1
        absorbed += bool(automaton.absorber.laps)
        assert automaton.edges.deterministic()
        rng = random.Random(seed)
        for _ in range(40):
            a, b = driver.start(), automaton.start()
            for _ in range(25):
                following = [t for t in range(len(language.words)) if driver.shift(a, t) is not None]
                assert following == [t for t in range(len(language.words)) if automaton.shift(b, t) is not None]
                assert driver.ends(a) == automaton.ends(b)
                if not following:
                    break
                terminal = rng.choice(following)
                a, b = driver.shift(a, terminal), automaton.shift(b, terminal)  # type: ignore[assignment]
    assert taken > 60
    assert absorbed > 5


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    strings = [bytes([byte]) for byte in range(256)]
    strings += [b'","', b'":', b'"}', b"}]", b"]]", b"}}", b"}],", b'{"', b"[[", b", ", b"]}]", b"}}}}", b'"]}']
    return Vocabulary([None, *strings], frozenset({STOP}))


@pytest.fixture(scope="module")
def made(words: Vocabulary) -> Pre3Grammar:
    return Pre3Grammar(words, Grammar.lark(JSON))


def test_a_batch_is_compared_at_once(made: Pre3Grammar) -> None:
    rng = random.Random(4)
    matchers = []
    for _ in range(24):
        matcher = made.matcher()
        for _ in range(rng.randint(0, 25)):
            possible = [token for token in matcher.mask().nonzero().flatten().tolist() if token != STOP]
            if not possible:
                break
            matcher.consume(rng.choice(possible))
        matchers.append(matcher)
    masks = made.masks(matchers)
    assert masks.shape == (24, made.vocabulary.size)
    for mask, matcher in zip(masks, matchers, strict=True):
        assert torch.equal(mask, matcher.mask())


def test_single_reductions_give_the_same_masks(words: Vocabulary) -> None:
    """With and without absorbing: what has no conditions is run on the real stack."""
    flat, deep = (Pre3Grammar(words, Grammar.lark(NESTED), absorb) for absorb in (True, False))
    assert deep.describe()["pairs with single reductions"] > 0
    assert flat.describe()["pairs with single reductions"] == 0
    rng = random.Random(2)
    for _ in range(20):
        a, b = flat.matcher(), deep.matcher()
        for _ in range(40):
            mask = a.mask()
            assert torch.equal(mask, b.mask())
            assert torch.equal(mask, deep.masks([b])[0])
            possible = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
            if not possible:
                break
            token = rng.choice(possible)
            assert a.consume(token)
            assert b.consume(token)


def test_tops_are_composed_when_they_are_met(words: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.constraints._conditions.MOST_AHEAD", 0)
    late = Pre3Grammar(words, Grammar.lark(JSON))
    assert late.describe()["tops composed"] == 0
    mask = late.matcher().mask()
    assert late.describe()["tops composed"] == 1
    monkeypatch.undo()
    assert torch.equal(mask, Pre3Grammar(words, Grammar.lark(JSON)).matcher().mask())


def test_many_conditions_are_run_on_the_stack(words: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Pre3Grammar(words, Grammar.lark(JSON))
    monkeypatch.setattr("unspool.constraints._conditions.MOST_CONDITIONS", 1)
    none = Pre3Grammar(words, Grammar.lark(JSON))
    assert none.describe()["rows run on the stack"] > few.describe()["rows run on the stack"]
    a, b = few.matcher(), none.matcher()
    for byte in b'[{"a":[1,{"b":[]}]}':
        assert torch.equal(a.mask(), b.mask())
        assert a.consume(byte + 1)
        assert b.consume(byte + 1)


def test_lr1_grammars_are_taken_that_are_not_lalr() -> None:
    text = 'start: "a" x "d" | "b" y "d" | "a" y "e" | "b" x "e"\nx: "c"\ny: "c"\n'
    vocabulary = Vocabulary([None, b"a", b"b", b"c", b"d", b"e", b"ac", b"cd"], frozenset({STOP}))
    matcher = Pre3Grammar(vocabulary, Grammar.lark(text)).matcher()
    assert matcher.consume(6)
    assert matcher.mask().tolist() == [False, False, False, False, True, True, False, False]
    assert letters(1).size > 4
