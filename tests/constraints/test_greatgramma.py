"""GreatGramma: its table, its precheck, tables on the disk, and masks equal to llguidance's on a real vocabulary."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.constraints.grammars import ARITHMETIC, JSON

import unspool
from unspool.constraints import _tables
from unspool.constraints._grammar import Grammar
from unspool.constraints._scanned import ScannedGrammar
from unspool.constraints._vocabulary import Vocabulary
from unspool.constraints.greatgramma import GreatGrammaGrammar
from unspool.constraints.llguidance import LLGuidanceGrammar
from unspool.constraints.pre3_dpda import Pre3Grammar

STOP = 0


def bytes_and(*strings: str) -> Vocabulary:
    every = [bytes([byte]) for byte in range(256)]
    return Vocabulary([None, *every, *(string.encode() for string in strings)], frozenset({STOP}))


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return bytes_and(
        '","', '":', '"}', "true", '{"', "[[", "]]", " ", "  ", "12", "e5", "null,", '"a', "}]", '"],"', "\n "
    )


@pytest.fixture(scope="module")
def made(words: Vocabulary) -> GreatGrammaGrammar:
    return GreatGrammaGrammar(words, Grammar.lark(JSON))


def names(made: ScannedGrammar, sequence: int) -> list[str]:
    """The terminals of a sequence."""
    found: list[str] = []
    while sequence:
        found.insert(0, made.language.rules.terminals[made.spanner.terminals[sequence]].name)
        sequence = made.spanner.parents[sequence]
    return found


def test_what_tokens_complete(made: GreatGrammaGrammar, words: Vocabulary) -> None:
    """Within a string, '","' ends it and begins another one behind a comma."""
    within = made.after(0, made.parser.start(), b'["a')
    assert within is not None
    tokens, rows = made.spanner.entries(within[0])
    row = dict(zip(tokens.tolist(), rows.tolist(), strict=True))
    sequence = made.spanner.row_sequence[row[words.by_bytes[b'","']]]
    assert names(made, int(sequence)) == ["STRING", '","']
    assert words.by_bytes[b"\n "] not in row, "the lexer refuses it"
    assert made.spanner.row_sequence[row[words.by_bytes[b"true"]]] == 0, "nothing is completed"


def test_rows_are_few(made: GreatGrammaGrammar, words: Vocabulary) -> None:
    assert len(made.spanner.row_sequence) < 0.1 * words.size * len(made.scanner.delta)


def test_what_depends_on_the_stack(made: GreatGrammaGrammar, words: Vocabulary) -> None:
    """'}]' closes an object within an array; what the top alone decides is decided without the stack."""
    token = words.by_bytes[b"}]"]
    for text, allowed in ((b'[{"a":1', True), (b'{"a":1', False), (b'{"b":{"a":1', False), (b'[[{"a":1', True)):
        place = made.after(0, made.parser.start(), text)
        assert place is not None
        tokens, rows = made.spanner.entries(place[0])
        row = rows[tokens == token]
        top = made.precheck.place[place[1].state]
        assert row in made.precheck.open_rows(place[0], top)
        assert bool(made.mask(*place)[token]) == allowed
        assert made.spanner.rows.dtype == np.int32


def test_masks_are_kept_by_what_they_depend_on(made: GreatGrammaGrammar) -> None:
    """In strings of an object the mask is one, however deep the object lies; arrays around it are not looked at."""
    places = [made.after(0, made.parser.start(), text) for text in (b'[[{"a":"x', b'[[[[{"abc":"yy', b'[1,{"q":"')]
    masks = [made.mask(*place) for place in places if place is not None]
    assert masks[0] is masks[1]
    assert masks[0] is masks[2]


def test_masks_that_are_kept_are_bounded(words: Vocabulary) -> None:
    made = GreatGrammaGrammar(words, Grammar.lark(JSON))
    made.store.room = 3 * words.size
    matcher = made.matcher()
    for byte in b'{"a":[1,{"b":null}],"c":"d"}':
        mask = matcher.mask()
        assert made.store.held <= made.store.room
        assert mask[byte + 1]
        assert matcher.consume(byte + 1)
    assert matcher.accepting


def test_one_grammar_serves_several_threads(words: Vocabulary) -> None:
    made = GreatGrammaGrammar(words, Grammar.lark(JSON))
    alone = GreatGrammaGrammar(words, Grammar.lark(JSON))
    wrong: list[str] = []

    def walk(seed: int) -> None:
        rng = random.Random(seed)
        a, b = made.matcher(), alone.matcher()
        for _ in range(150):
            mask = a.mask()
            with lock:
                if not torch.equal(mask, b.mask()):
                    wrong.append(f"seed {seed}")
            possible = [token for token in mask.nonzero().flatten().tolist() if token != STOP]
            if not possible:
                break
            token = rng.choice(possible)
            a.consume(token)
            b.consume(token)

    lock = threading.Lock()
    threads = [threading.Thread(target=walk, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tables_on_the_disk(words: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path))
    monkeypatch.setattr("unspool.constraints.greatgramma.WORTH_KEEPING", 0.0)
    grammar = Grammar.lark(ARITHMETIC)
    first = GreatGrammaGrammar(words, grammar, keep=True)
    path = _tables.place("greatgramma", grammar, words)
    assert path.is_file()
    monkeypatch.setattr("unspool.constraints.greatgramma.span", None)
    again = GreatGrammaGrammar(words, grammar, keep=True)
    for text in (b"", b"(", b"1", b"(1+2", b"1*(", b"(1)"):
        a, b = (made.after(0, made.parser.start(), text) for made in (first, again))
        assert a is not None
        assert b is not None
        assert torch.equal(first.mask(*a), again.mask(*b))
    assert _tables.place("greatgramma", grammar, bytes_and("x")) != path, "another vocabulary, another file"
    monkeypatch.undo()
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    third = GreatGrammaGrammar(words, grammar, keep=True)
    assert torch.equal(third.matcher().mask(), first.matcher().mask())


def test_only_the_latest_tables_stay(words: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path))
    monkeypatch.setattr(_tables, "MOST_FILES", 2)
    monkeypatch.setattr("unspool.constraints.greatgramma.WORTH_KEEPING", 0.0)
    for number in range(4):
        GreatGrammaGrammar(words, Grammar.regex(f"a{{{number + 1}}}"), keep=True)
    assert len(list((tmp_path / "grammars").iterdir())) == 2


# -- a real vocabulary ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Vocabulary:
    return Vocabulary.of(unspool.load("smollm2-135m").model)


def walk_together(made: list[ScannedGrammar | LLGuidanceGrammar], words: Vocabulary, seed: int, length: int) -> int:
    """Walk at random through what all allow; places where masks differ."""
    rng = random.Random(seed)
    matchers = [each.matcher() for each in made]
    different = 0
    for _ in range(length):
        masks = [matcher.mask() for matcher in matchers]
        different += any(not torch.equal(masks[0], mask) for mask in masks[1:])
        possible = masks[0].nonzero().flatten().tolist()
        # Short tokens more often, so that structure changes often.
        short = [token for token in possible if len(words.tokens[token] or b"") in (1, 2)]
        token = rng.choice(short if short and rng.random() < 0.8 else possible)
        if token in words.stop:
            break
        assert all(matcher.consume(token) for matcher in matchers)
    return different


@pytest.mark.model
@pytest.mark.parametrize("text", [JSON, ARITHMETIC], ids=["json", "arithmetic"])
def test_masks_equal_those_of_llguidance(smollm2: Vocabulary, text: str) -> None:
    grammar = Grammar.lark(text)
    made = [engine(smollm2, grammar) for engine in (GreatGrammaGrammar, Pre3Grammar, LLGuidanceGrammar)]
    assert sum(walk_together(made, smollm2, seed, 60) for seed in range(12)) == 0


@pytest.mark.model
def test_tables_of_a_real_vocabulary_are_small(smollm2: Vocabulary) -> None:
    """A bit for every token, lexer state and parser state would be 8 MB for JSON; the table is a tenth of that."""
    made = GreatGrammaGrammar(smollm2, Grammar.lark(JSON))
    naive = len(made.scanner.delta) * len(made.parser.table.tops) * smollm2.size / 8
    assert made.nbytes < naive / 3
    assert len(made.spanner.row_sequence) < 0.02 * smollm2.size * len(made.scanner.delta)
