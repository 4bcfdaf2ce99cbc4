"""Regular expressions as automata over bytes, and the lexer made of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unspool.constraints._automaton import DEAD, Automaton, automaton, encodings, in_json
from unspool.constraints._grammar import GrammarError
from unspool.constraints._lark_reader import read_lark
from unspool.constraints._lexing import scan
from unspool.constraints._regex import read_regex
from unspool.constraints._schema.expressions import ANY, EVERY, both, literal, sequence


def matches(made: Automaton, text: bytes, number: int = 0) -> bool:
    state = 0
    for byte in text:
        state = int(made.delta[state, byte])
        if state == DEAD:
            return False
    return number in made.finals[state]


PATTERNS = [
    "a|bc*",
    "(ab?)+c{2,3}",
    "[^ab]é*",
    r"\d+(\.\d+)?",
    r"[\w-]{1,3}",
    "(?i:aé)b",
    "x(?:a|b|)*y",
    r"\s\S",
    ".",
    "(?s:.)a",
    "^ab$|^c",
    r"[a-c\]é-ü]\x41?",
    "(?x: a b # comment\n c)",
    "a{,2}b{0}",
    "",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@given(text=st.text("abcxyzé\u00fcAÉ \n01.-]\u0661", max_size=5))
@settings(max_examples=60, deadline=None)
def test_expressions_match_what_python_matches(pattern: str, text: str) -> None:
    made = automaton([read_regex(pattern)])
    assert matches(made, text.encode()) == (re.fullmatch(pattern, text) is not None)


@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
@settings(max_examples=300, deadline=None)
def test_encodings_are_those_of_the_characters(a: int, b: int, point: int) -> None:
    low, high = sorted((a, b))
    runs = list(encodings(low, high))
    for at in (point, low, high):
        if 0xD800 <= at <= 0xDFFF:
            continue
        written = chr(at).encode()
        within = [
            run
            for run in runs
            if len(run) == len(written) and all(x <= c <= y for c, (x, y) in zip(written, run, strict=True))
        ]
        assert len(within) == (low <= at <= high)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(?=b)", "no set of strings"),
        (r"\bword", "word boundary"),
        (r"(a)\1", "back reference"),
        ("a*?b", "lazy"),
        ("[b-a]", "backwards"),
        ("a{3,1}", "counts down"),
        ("(a", "not closed"),
        ("a)", "without an opening"),
        ("*a", "nothing to repeat"),
        ("a$b", "behind the anchor"),
        ("a^b", "start"),
        ("[[:alpha:]]", "POSIX"),
        (r"\p{L}", "ranges"),
        ("(?L:a)", "flag 'L'"),
        ("a{99999}", "20000 repeats"),
        ("(" * 300 + ")" * 300, "nested"),
        ("a++", "possessive"),
        (r"\q", "no meaning"),
    ],
)
def test_what_is_no_set_of_strings_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        read_regex(pattern)


def test_automata_are_bounded() -> None:
    with pytest.raises(GrammarError, match="states"):
        automaton([read_regex("(a|b)*a(a|b){18}")])
    with pytest.raises(GrammarError, match="states"):
        automaton([read_regex("((a{100}){100}){100}")])


def test_bytes_that_cannot_be_written_are_taken_out() -> None:
    spelled = np.ones(256, dtype=bool)
    spelled[ord("b")] = False
    made = automaton([read_regex("ab|ac")], spelled)
    assert matches(made, b"ac")
    assert not (made.delta[:, ord("b")] >= 0).any()
    assert len(made.delta) == 3, "and with them what led there alone"


def test_strings_within_json() -> None:
    made = automaton([in_json(ANY), in_json(both([literal('a"\n\x01é'), EVERY | ANY]))])
    for text in (b"", b"abc", b'\\"', b"\\n", b"\\u000A", b"\\u001f", "é".encode(), b"\\\\", b"\\u007f"):
        assert matches(made, text), text
    for text in (b'"', b"\n", b"\\", b"\\u0041", b"\\/", b"\x7f", b"\xff", b"\\x"):
        assert not matches(made, text), text
    assert matches(made, 'a\\"\\n\\u0001é'.encode(), 1)
    assert matches(made, 'a\\"\\u000a\\u0001é'.encode(), 1)
    assert not matches(made, b'a\\"\\n\\u0001e', 1)


def test_the_start_is_never_entered_again() -> None:
    made = automaton([read_regex("(ab)*")])
    assert not (made.delta == 0).any()
    assert made.finals[0] == {0}
    assert matches(made, b"abab")


LEXER = 'start: (NAME | "if" | "=" | "==" | NUMBER)+\nNAME: /[a-z]+/\nNUMBER: /[0-9]+/\nGAP: / +/\n%ignore GAP\n'


def lexed(text: bytes) -> list[str] | None:
    """Terminals of a text, by the scanner's steps."""
    language = scan(read_lark(LEXER))
    scanner, names = language.scanner, [terminal.name for terminal in language.rules.terminals]
    state, found = 0, []
    for byte in text:
        emitted = int(scanner.emits[state, byte])
        state = int(scanner.step[state, byte])
        if state < 0:
            return None
        if emitted >= 0:
            found.append(names[emitted])
    return [*found, names[scanner.labels[state]]] if scanner.labels[state] >= 0 else None


def test_the_longest_match_with_one_byte_of_lookahead() -> None:
    assert lexed(b"if") == ['"if"']
    assert lexed(b"ifs") == ["NAME"]
    assert lexed(b"if i==12=3") == ['"if"', "GAP", "NAME", '"=="', "NUMBER", '"="', "NUMBER"]
    assert lexed(b"===") == ['"=="', '"="']
    assert lexed(b"a!") is None


def test_which_lexemes_can_follow() -> None:
    scanner = scan(read_lark(LEXER)).scanner
    of_state, begins = scanner.classes
    state = int(scanner.delta[0, ord("7")])
    assert begins[of_state[state]] == frozenset(b"abcdefghijklmnopqrstuvwxyz= ")
    assert begins[0] == frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789= ")
    word = int(scanner.delta[0, ord("i")])
    assert len(scanner.reach[word]) == 2, "an i can become 'if' or a name"


def test_overlapping_lexemes_that_are_ignored() -> None:
    with pytest.raises(GrammarError, match=r"never comes|match nothing"):
        scan(read_lark('start: A\nA: "x"\nB.3: "x"\n%ignore B\n'))


def test_an_expression_without_its_anchors() -> None:
    assert read_regex("^abc$") == sequence((literal("abc"),))
