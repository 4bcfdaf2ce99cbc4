"""Scores of answers against what is known of them."""

import itertools
import math

import pytest
import sacrebleu

from unspool.core.errors import InvalidInput
from unspool.evaluation import scoring


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 0, 2), (4, 4, 2), (10, 3, 10)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert scoring.pass_at_k(n, c, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    exact = 1 - math.comb(1990, 100) / math.comb(2000, 100)
    assert scoring.pass_at_k(2000, 10, 100) == pytest.approx(exact)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, 1, 4), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(InvalidInput, match="pass@k"):
        scoring.pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
        ("so 12 apples and 30 pears, 42 in all.", "42"),
        ("the answer is $1,234.50", "1234.5"),
        ("#### 1,000\nThat is 3 more.", "1000"),
        ("it fell to -3", "-3"),
        ("about 18.0.", "18"),
        ("-0", "0"),
        (".5", "0.5"),
        ("no idea", None),
        ("", None),
    ],
)
def test_final_number(text: str, number: str | None) -> None:
    assert scoring.final_number(text) == number


def test_same_number() -> None:
    assert scoring.same_number("so it is 1,000.0 dollars", "7 ... #### 1000") == 1
    assert scoring.same_number("so it is 100", "#### 1000") == 0
    assert scoring.same_number("", "#### 0") == 0


def test_answers_of_questions() -> None:
    assert scoring.exact_match("The Beatles!", ["beatles"]) == 1
    assert scoring.exact_match("It was the Beatles", ["beatles"]) == 0
    assert scoring.contains_answer("It was The Beatles, in 1964.", ["the beatles"]) == 1
    assert scoring.contains_answer("It was in 1964.", ["19"]) == 0  # whole words only
    assert scoring.token_f1("george harrison sang", ["George Harrison", "Ringo"]) == pytest.approx(0.8)
    assert scoring.token_f1("nobody", ["George Harrison"]) == 0


def test_rouge_and_the_corpus_measures() -> None:
    same = scoring.rouge("the cat sat", ["a dog ran", "the cat sat"])
    assert same == {"rouge1": 1.0, "rouge2": 1.0, "rougeL": 1.0}
    half = scoring.rouge("the cat", ["the cat sat down"])
    assert half["rouge1"] == pytest.approx(2 / 3)
    texts = ["the cat sat on the mat today", "a dog ran over the hill"]
    assert scoring.corpus_bleu(texts, [[text] for text in texts])([0, 1]) == pytest.approx(100)
    references = [[texts[0], "something else"], ["a dog went over that hill", "it ran"]]
    theirs = sacrebleu.corpus_bleu(texts, [[one[place] for one in references] for place in (0, 1)]).score
    ours = scoring.corpus_bleu([*texts, "no reference"], [*references, []])
    assert 0 < theirs < 100
    assert ours([0, 1]) == ours([0, 1, 2]) == pytest.approx(theirs)
    assert ours.without() == pytest.approx([ours([1, 2]), ours([0, 2]), theirs])
    assert ours([2]) == 0
    assert scoring.sentence_chrf("abc", ["abc"]) == pytest.approx(100)


def test_self_bleu_is_high_for_a_set_that_says_the_same() -> None:
    same = scoring.self_bleu(["the cat sat on the mat"] * 3)
    assert same == pytest.approx([100, 100, 100])
    different = scoring.self_bleu(
        ["the cat sat on the mat", "rain fell over green hills all night", "buy two, get one"]
    )
    assert max(different) < 20
    assert scoring.self_bleu(["alone"]) == []


SCHEMA = {
    "type": "object",
    "properties": {"day": {"type": "string", "format": "date"}, "n": {"type": "integer"}},
    "required": ["n"],
}


@pytest.mark.parametrize(
    ("text", "valid", "parses"),
    [
        ('{"n": 3, "day": "2024-02-29"}', 1, 1),
        ('Here it is:\n```json\n{"n": 3}\n```\nDone.', 1, 1),
        ('{"n": "three"}', 0, 1),
        ('{"n": 3, "day": "2023-02-29"}', 0, 1),
        ('{"n": 3', 0, 0),
        ("", 0, 0),
        ("[" * 100000, 0, 0),
    ],
)
def test_json_validity(text: str, valid: float, parses: float) -> None:
    assert scoring.json_validity(text, SCHEMA) == {"valid": valid, "json": parses}


def test_a_schema_that_is_none_or_points_elsewhere() -> None:
    with pytest.raises(scoring.InvalidSchema):
        scoring.json_validity("{}", {"type": "nothing"})
    with pytest.raises(scoring.InvalidSchema):
        scoring.json_validity("{}", {"$ref": "https://example.org/other.json"})


def test_a_library_that_is_missing_is_named_with_its_install_line() -> None:
    with pytest.raises(InvalidInput, match=r"no-such-thing.*unspool\[eval\]"):
        scoring.optional("no_such_thing", "no-such-thing", "this measure")
