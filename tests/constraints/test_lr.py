"""LALR(1) and LR(1) tables against brute force, and what they say about grammars that they cannot take."""

from __future__ import annotations

import itertools

import pytest
from tests.constraints.languages import Language, finite, random_language

from unspool.constraints._canonical import canonical
from unspool.constraints._grammar import GrammarError
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._lr import Table, lalr
from unspool.constraints._rules import Rules, trimmed, without_empty
from unspool.constraints._stack import Parser


def accepts(parser: Parser, terminals: tuple[int, ...]) -> bool:
    stack = parser.follow(parser.start(), terminals)
    return stack is not None and parser.ends(stack)


def usable(seed: int) -> tuple[Language, Rules] | None:
    language = random_language(seed, ignoring=False)
    try:
        return language, trimmed(language.rules)
    except GrammarError:
        return None


@pytest.mark.parametrize("kind", ["lalr", "canonical"])
def test_tables_accept_what_the_grammar_derives(kind: str) -> None:
    taken = 0
    for seed in range(250):
        case = usable(seed)
        if case is None:
            continue
        language, rules = case
        try:
            if kind == "lalr":
                table = lalr(rules)
            else:
                table = canonical(*without_empty(rules))
        except GrammarError:
            continue
        taken += 1
        parser, oracle = Parser(table), language.oracle
        for length in range(5):
            for terminals in itertools.product(range(len(language.words)), repeat=length):
                state = oracle.read(oracle.start, bytes(terminals))
                derived = state is not None and oracle.complete(state)
                assert accepts(parser, terminals) == derived, (language, terminals)
    assert taken > 60


def test_every_prefix_that_parses_can_be_completed() -> None:
    """A terminal is shifted only if the text can still become a whole one."""
    for seed in range(120):
        case = usable(seed)
        if case is None:
            continue
        language, rules = case
        try:
            parser = Parser(lalr(rules))
        except GrammarError:
            continue
        oracle = language.oracle
        for length in range(5):
            for terminals in itertools.product(range(len(language.words)), repeat=length):
                parsed = parser.follow(parser.start(), terminals) is not None
                assert parsed == (oracle.read(oracle.start, bytes(terminals)) is not None), (language, terminals)


def table_of(text: str, make: str = "lalr") -> Table:
    rules = trimmed(read_lark(text))
    return lalr(rules) if make == "lalr" else canonical(*without_empty(rules))


def test_a_grammar_that_is_lr_but_not_lalr() -> None:
    """From Aho, Lam, Sethi and Ullman, Compilers, 2006, example 4.58: merging lookaheads makes a conflict."""
    text = 'start: "a" x "d" | "b" y "d" | "a" y "e" | "b" x "e"\nx: "c"\ny: "c"\n'
    with pytest.raises(GrammarError, match=r"not LALR\(1\).*after \"[ab]\" \"c\", before \"[de]\""):
        table_of(text)
    assert len(table_of(text, "canonical")) > 10


def test_conflicts_name_rules_and_place() -> None:
    with pytest.raises(GrammarError) as dangling:
        table_of('start: "if" start | "if" start "else" start | "x"\n')
    message = str(dangling.value)
    assert 'reading on with "else"' in message
    assert "ending 'start: \"if\" start •'" in message
    assert 'after "if" start, before "else"' in message.replace('"if" "if"', '"if"')


def test_left_recursion_keeps_the_stack_flat_and_right_recursion_does_not() -> None:
    for text, grows in (('start: start "a" | "a"', False), ('start: "a" start | "a"', True)):
        parser = Parser(table_of(text))
        stack = parser.follow(parser.start(), [0] * 50)
        assert stack is not None
        assert (stack.depth > 40) == grows


def test_empty_rules_are_taken_out() -> None:
    rules = trimmed(read_lark('start: x "b" x\nx: "a"? y\ny: | "c" y\n'))
    bare, empty = without_empty(rules)
    assert not empty
    assert all(right for _, right in bare.productions)
    nothing, empty = without_empty(trimmed(read_lark('start: "a"*\n')))
    assert empty
    assert Parser(canonical(nothing, empty)).ends(Parser(canonical(nothing, empty)).start())
    assert finite(bare.productions)
