from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.speculation.drafting._suffix_array import DEPTH, END, LONGEST, SuffixArray

VOCABULARY = 4


def documents(seed: int, count: int = 12, longest: int = 60) -> list[list[int]]:
    """Few tokens and repeated passages, so that long queries occur too."""
    rng = random.Random(seed)
    passages = [[rng.randrange(VOCABULARY) for _ in range(25)] for _ in range(3)]
    made = []
    for _ in range(count):
        text = [rng.randrange(VOCABULARY) for _ in range(rng.randrange(longest))]
        made.append(text + rng.choice(passages) if rng.random() < 0.6 else text)
    return made


def occurrences(texts: list[list[int]], query: list[int], length: int) -> list[tuple[int, ...]]:
    """What follows every occurrence that is followed by anything, found by looking everywhere."""
    n = len(query)
    return sorted(
        tuple(text[at + n : at + n + length])
        for text in texts
        for at in range(len(text) - n)
        if text[at : at + n] == query
    )


def as_tuples(rows: np.ndarray) -> list[tuple[int, ...]]:
    return sorted(tuple(token for token in row if token != END) for row in rows.tolist())


@pytest.mark.parametrize("seed", range(4))
def test_everything_is_found_as_by_brute_force(seed: int) -> None:
    texts = documents(seed)
    made = SuffixArray.build(texts, VOCABULARY)
    assert len(made) == sum(map(len, texts))
    rng = random.Random(seed)
    hits = 0
    for _ in range(300):
        size = rng.randint(1, LONGEST)
        source = rng.choice([text for text in texts if len(text) >= size])
        at = rng.randrange(len(source) - size + 1)
        query = source[at : at + size]
        if rng.random() < 0.5:
            query = [*query[:-1], rng.randrange(VOCABULARY)]
        rows = made.find(query)
        expected = occurrences(texts, query, 5)
        assert len(rows) == len(expected)
        assert as_tuples(made.continuations(rows, size, 5, 10_000)) == expected
        hits += bool(expected)
    assert 100 < hits < 300, "queries that occur and queries that do not"


@pytest.mark.parametrize("seed", range(4))
def test_the_longest_suffix_is_found(seed: int) -> None:
    texts = documents(seed)
    made = SuffixArray.build(texts, VOCABULARY)
    rng = random.Random(seed + 100)
    lengths = set()
    for _ in range(200):
        source = rng.choice([text for text in texts if text])
        end = rng.randint(1, len(source))
        context = [rng.randrange(VOCABULARY) for _ in range(8)] + source[max(0, end - rng.randint(1, 20)) : end]
        most, least = rng.choice([(16, 1), (8, 2), (5, 3)])
        matched, rows = made.longest(context, most, least)
        occurring = [n for n in range(least, most + 1) if n <= len(context) and occurrences(texts, context[-n:], 0)]
        assert matched == max(occurring, default=0)
        assert len(rows) == (len(occurrences(texts, context[-matched:], 0)) if matched else 0)
        hits = made.retrieve(context, 4, most=most, least=least)
        assert (hits.matched, hits.count) == (matched, len(rows))
        lengths.add(matched)
    assert {0, 16} & lengths
    assert len(lengths) > 5


def test_places_are_sorted_by_the_tokens_from_there() -> None:
    texts = [[0] * 40, [0] * 20 + [1], *documents(9)]
    made = SuffixArray.build(texts, VOCABULARY)
    tokens = made.tokens.tolist()
    keys = [(tokens[place : place + DEPTH], place) for place in made.suffixes.tolist()]
    assert keys == sorted(keys)
    assert sorted(place for _, place in keys) == [at for at, token in enumerate(tokens) if token != END]


def test_documents_do_not_run_into_one_another() -> None:
    made = SuffixArray.build([[1, 2], [3, 0]], VOCABULARY)
    assert not made.find([2, 3])
    assert not made.find([1, 2]), "nothing follows"
    assert made.retrieve([0, 1], 3).rows.tolist() == [[2, END, END]]
    assert made.retrieve([0, 3], 3).rows.tolist() == [[0, END, END]]


def test_of_many_hits_an_even_sample_is_taken() -> None:
    text = [token for token in range(1, 4) for _ in range(100 * token) for token in (0, token)]
    made = SuffixArray.build([text], VOCABULARY)
    hits = made.retrieve([0], 1, limit=60)
    counts = np.bincount(hits.rows[:, 0], minlength=4)
    assert hits.count == 600
    assert counts.tolist() == [0, 10, 20, 30]
    assert hits.weight == 10
    assert np.array_equal(hits.rows, made.retrieve([0], 1, limit=60).rows), "the same sample every time"


def test_an_empty_corpus() -> None:
    for made in (SuffixArray(), SuffixArray.build([], VOCABULARY), SuffixArray.build([[], []], VOCABULARY)):
        assert len(made) == 0
        hits = made.retrieve([1, 2, 3], 4)
        assert (hits.matched, hits.count, hits.rows.shape, hits.weight) == (0, 0, (0, 4), 0.0)
    assert SuffixArray.build([[1, 2]], VOCABULARY).retrieve([], 4).matched == 0


def test_it_is_kept_in_a_file_and_mapped(tmp_path: Path) -> None:
    texts = documents(1)
    made = SuffixArray.build(texts, VOCABULARY)
    made.save(tmp_path / "index")
    again = SuffixArray()
    again.bind(VOCABULARY, "a model")
    again.load(tmp_path / "index")
    for query in ([1, 2], texts[0][:5], [3]):
        assert np.array_equal(again.retrieve(query, 6).rows, made.retrieve(query, 6).rows)
    assert again.nbytes == made.nbytes == (len(made) + len(made.tokens) + VOCABULARY + 1) * 4
    again.clear()
    assert len(again) == 0
    other = SuffixArray()
    other.bind(VOCABULARY + 1, "another model")
    with pytest.raises(Incompatible):
        other.load(tmp_path / "index")


def test_damaged_files_are_refused() -> None:
    made = SuffixArray.build(documents(2), VOCABULARY)
    good = made.arrays()
    for name, wrong in (
        ("tokens", good["tokens"].long()),
        ("tokens", good["tokens"] + 10),
        ("tokens", good["tokens"][:-2]),
        ("suffixes", good["suffixes"] + len(made.tokens)),
        ("suffixes", good["suffixes"] - len(made.tokens)),
        ("starts", good["starts"].flip(0)),
        ("starts", good["starts"] + 1),
        ("starts", torch.empty(0, dtype=torch.int32)),
    ):
        with pytest.raises(WeightsError):
            SuffixArray().restore(good | {name: wrong})
    with pytest.raises(WeightsError, match="starts"):
        SuffixArray().restore({"tokens": good["tokens"]})


def test_what_cannot_be_indexed_or_asked() -> None:
    with pytest.raises(InvalidInput, match="token 4"):
        SuffixArray.build([[4]], VOCABULARY)
    with pytest.raises(InvalidInput, match="token -2"):
        SuffixArray.build([[-2]], VOCABULARY)
    with pytest.raises(InvalidInput, match="17"):
        SuffixArray.build([[1]], VOCABULARY).find([1] * 17)
    assert not SuffixArray.build([[1]], VOCABULARY).find([9])
