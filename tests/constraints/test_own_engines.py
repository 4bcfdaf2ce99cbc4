"""The engines of our own on random grammars: nothing that is allowed is a dead end, and nothing possible is lost."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from tests.constraints.languages import STOP, Language, letters, random_language, texts

from unspool.constraints._grammar import Grammar, GrammarError
from unspool.constraints._rules import Rules
from unspool.constraints._scanned import ScannedGrammar, ScannedMatcher
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGrammaGrammar
from unspool.constraints.pre3_dpda import Pre3Grammar

Made = Callable[[Vocabulary, Rules], ScannedGrammar]
ENGINES: dict[str, Made] = {"greatgramma": GreatGrammaGrammar, "pre3-dpda": Pre3Grammar}
LENGTH = 6


def check(language: Language, made: ScannedGrammar, words: Vocabulary, depth: int) -> None:
    """Every place that is reached by at most ``depth`` tokens."""
    oracle = language.oracle
    whole = {text for text in texts(LENGTH) if language.holds(oracle, text)}
    begun = {text[:end] for text in whole for end in range(len(text) + 1)}
    shortest = {text: min(len(full) for full in whole if full.startswith(text)) for text in begun}

    def visit(matcher: ScannedMatcher, path: bytes, left: int) -> None:
        mask = matcher.mask()
        assert matcher.accepting == bool(mask[STOP])
        assert matcher.accepting == language.holds(oracle, path), path
        end = matcher.shortest_end()
        assert end is not None, path
        # no_dead_end: what stands can be completed, and by this text
        assert language.holds(oracle, path + end), (path, end)
        if path in shortest:
            assert len(path) + len(end) <= shortest[path], (path, end)
        forced = matcher.forced()
        for text in whole:
            if text.startswith(path):
                assert text.startswith(path + forced), (path, forced)
        for token, string in enumerate(words.tokens):
            if string is None:
                continue
            # no_loss: whatever is the beginning of a text is allowed
            assert mask[token] or path + string not in begun, (path, string)
            stands = matcher.consume(token)
            assert stands == bool(mask[token]), (path, string)
            if stands:
                if left > 1:
                    visit(matcher, path + string, left - 1)
                else:
                    finish = matcher.shortest_end()
                    assert finish is not None
                    assert language.holds(oracle, path + string + finish), (path, string, finish)
                matcher.rollback(1)

    visit(made.matcher(), b"", depth)  # type: ignore[arg-type]


@pytest.mark.parametrize("slug", ENGINES)
@pytest.mark.parametrize("ignoring", [False, True])
def test_no_dead_end_and_no_loss(slug: str, ignoring: bool) -> None:
    taken = hindered = 0
    for seed in range(220):
        language = random_language(seed, ignoring)
        words = letters(seed)
        try:
            made = ENGINES[slug](words, language.rules)
        except GrammarError as error:
            if "holds no text" in str(error):
                oracle = language.oracle
                assert not any(language.holds(oracle, text) for text in texts(5)), language
            continue
        taken += 1
        hindered += not made.unhindered
        check(language, made, words, 2)
    assert taken > 40
    assert hindered > 10 or ignoring, "grammars whose lexemes cannot follow one another have to be among them"


def test_engines_agree_along_texts() -> None:
    """Longer walks, where the stack is deep: both engines, place by place."""
    walked = 0
    for seed in range(300, 420):
        language, words = random_language(seed), letters(seed)
        try:
            pair = [made(words, language.rules) for made in ENGINES.values()]
        except GrammarError:
            continue
        rng = random.Random(seed)
        a, b = (made.matcher() for made in pair)
        for _ in range(30):
            mask = a.mask()
            assert torch.equal(mask, b.mask()), language
            assert a.accepting == b.accepting
            assert a.forced() == b.forced()
            ends = a.shortest_end(), b.shortest_end()
            assert ends[0] is not None
            assert ends[1] is not None
            assert len(ends[0]) == len(ends[1])
            possible = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
            if not possible:
                break
            token = rng.choice(possible)
            assert a.consume(token)
            assert b.consume(token)
            walked += 1
    assert walked > 500


@pytest.mark.parametrize("slug", ENGINES)
def test_places_are_functions_of_the_text(slug: str) -> None:
    """Rolling back, forking, and asking in another order change no answer."""
    grammar = Grammar.lark('start: "(" start ")" start | "a"*\n')
    words = Vocabulary([None, b"(", b")", b"a", b"()", b"a)", b")(", b"((a"], frozenset({STOP}))
    made = ENGINES[slug](words, grammar)  # type: ignore[arg-type]
    rng = random.Random(3)
    matcher, path = made.matcher(), []
    seen: dict[tuple[int, ...], torch.Tensor] = {}
    for _ in range(400):
        mask = matcher.mask()
        key = tuple(path)
        assert torch.equal(seen.setdefault(key, mask.clone()), mask)
        possible = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
        if path and rng.random() < 0.45:
            count = rng.randint(1, len(path))
            matcher.rollback(count)
            del path[-count:]
            continue
        twin = matcher.fork()
        token = rng.choice(possible)
        assert twin.consume(token)
        assert matcher.consume(token)
        assert torch.equal(twin.mask(), matcher.mask())
        path.append(token)
    with pytest.raises(ValueError, match="fewer"):
        matcher.rollback(len(path) + 1)


@pytest.mark.parametrize("slug", ENGINES)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('start: "a" start', "never comes to an end"),
        ("start: start", "never comes to an end|ambiguous"),
        ('start: x | y\nx: "a"\ny: "a"', "cannot decide between"),
        ('start: start "+" start | "1"', "ambiguous"),
        ("start: A A\nA: /a+/", "holds no text"),
        ('start: "if" NAME\nNAME: /[a-z]+/', "holds no text"),
        ("start: A\nA: /(?=a)a/", "no set of strings"),
        ("start: A\nA: /a{1,20}/ B\nB: /[a-z]{15000}/", "states"),
        ("start: " + " ".join(f'["{letter}"]' for letter in "abcdefghijklmnop"), "unfolds into 65536 alternatives"),
        ("start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(30)) + '\nA30: "a"', "characters"),
        ('start: x~100000\nx: "a"', "repeated 100000 times"),
        ("%import .secret.KEY\nstart: KEY", "only lark's own libraries"),
        ("start: a\n", "not defined|defined nowhere"),
    ],
)
def test_what_cannot_be_used_is_said(slug: str, text: str, message: str) -> None:
    words = Vocabulary([None, *(bytes([byte]) for byte in range(256))], frozenset({STOP}))
    with pytest.raises(GrammarError, match=message):
        ENGINES[slug](words, Grammar.lark(text))  # type: ignore[arg-type]


def test_gbnf_is_refused_with_what_takes_it() -> None:
    with pytest.raises(GrammarError, match="llguidance and xgrammar"):
        GreatGrammaGrammar(letters(0), Grammar.gbnf('root ::= "a"'))


@pytest.mark.parametrize("slug", ENGINES)
def test_keywords_go_before_patterns_and_priorities_before_both(slug: str) -> None:
    words = Vocabulary([None, *(bytes([byte]) for byte in range(128))], frozenset({STOP}))

    def takes(grammar: str, text: bytes) -> bool:
        matcher = ENGINES[slug](words, Grammar.lark(grammar)).matcher()  # type: ignore[arg-type]
        return all(matcher.consume(byte + 1) for byte in text) and matcher.accepting

    keyword = 'start: "let" NAME "=" NAME\nNAME: /[a-z]+/\n%ignore " "\n'
    assert takes(keyword, b"let lets = lett")
    assert not takes(keyword, b"let let = x")
    assert takes(keyword.replace("NAME:", "NAME.2:").replace('"let" NAME', "NAME NAME"), b"let let = x")


@pytest.mark.parametrize("slug", ENGINES)
def test_bytes_that_no_token_writes_are_no_way_out(slug: str) -> None:
    """Without a token for 'c' the alternative that needs it does not exist."""
    words = Vocabulary([None, b"a", b"b"], frozenset({STOP}))
    matcher = ENGINES[slug](words, Grammar.lark('start: "a" "c" | "b"')).matcher()  # type: ignore[arg-type]
    assert matcher.mask().tolist() == [False, False, True]


@pytest.mark.parametrize("slug", ENGINES)
def test_long_completions_are_not_written_out(slug: str) -> None:
    """The shortest text of this grammar has 2 to the power of 24 letters."""
    grammar = "start: a0\n" + "\n".join(f"a{i}: a{i + 1} a{i + 1}" for i in range(24)) + '\na24: "a"\n'
    matcher = ENGINES[slug](letters(0), Grammar.lark(grammar)).matcher()  # type: ignore[arg-type]
    assert matcher.shortest_end() is None
    assert matcher.mask()[1:4].tolist() == [True, False, False]
    assert matcher.forced() == b"a" * 512
