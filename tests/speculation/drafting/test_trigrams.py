from __future__ import annotations

import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch

from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.speculation.drafting._trigrams import WIDTH, Row, TrigramTable

VOCABULARY = 30


def documents(seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[int(rng.random() ** 2 * VOCABULARY) for _ in range(rng.randrange(400))] for _ in range(12)]


def counted(texts: list[list[int]]) -> dict[tuple[int, ...], Counter[int]]:
    found: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in texts:
        for at in range(1, len(text)):
            found[text[at - 1],][text[at]] += 1
            if at > 1:
                found[text[at - 2], text[at - 1]][text[at]] += 1
    return found


def best(counts: Counter[int]) -> Row:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:WIDTH]
    return [token for token, _ in ranked], [float(count) for _, count in ranked]


def same(row: Row | None, other: Row) -> bool:
    """Equal counts in order, and equal tokens but for the order of equals."""
    return row is not None and row[1] == other[1] and sorted(zip(*row, strict=True)) == sorted(zip(*other, strict=True))


def test_a_corpus_is_counted_as_by_brute_force() -> None:
    texts = documents()
    table = TrigramTable.build(texts, VOCABULARY)
    expected = counted(texts)
    pairs = backed_off = 0
    for first in range(VOCABULARY):
        for second in range(VOCABULARY):
            known = expected.get((first, second))
            row = table.row(first, second)
            if known is not None:
                assert row == best(known)
                pairs += 1
            elif (second,) in expected:
                assert row == best(expected[second,])
                backed_off += 1
            else:
                assert row is None
    assert min(pairs, backed_off) > 20
    assert len(table) == len(expected)


def test_learning_counts_like_a_corpus() -> None:
    # Rows that are not full are the same however they were counted.
    texts = [[token % 10 for token in text] for text in documents()]
    table = TrigramTable.build(texts[:6], VOCABULARY)
    for text in texts[6:]:
        for at in range(0, len(text), 5):
            table.learn(text[: at + 5], 1.0, start=max(at, 1))
    for pair, counts in counted(texts).items():
        assert same(table.row(*pair) if len(pair) == 2 else table.row(VOCABULARY - 1, pair[0]), best(counts)), pair


def test_a_full_row_lets_new_tokens_in_and_keeps_the_frequent() -> None:
    table = TrigramTable()
    table.vocab_size = VOCABULARY
    for token in range(WIDTH):
        table.add(1, 2, token, 2.0 if token < 5 else 1.0)
    table.add(1, 2, 20, 0.5)
    ids, _ = table.row(1, 2) or ([], [])
    assert 20 not in ids, "less than the least"
    table.add(1, 2, 20, 1.0)
    ids, counts = table.row(1, 2) or ([], [])
    assert (len(ids), counts[ids.index(20)]) == (WIDTH, 1.0), "of equals the new one stays"
    assert set(range(5)) <= set(ids)
    table.add(1, 2, 20, 5.0)
    ids, counts = table.row(1, 2) or ([], [])
    assert (ids[0], counts[0]) == (20, 6.0)
    assert counts == sorted(counts, reverse=True)


def test_it_is_bounded() -> None:
    texts = documents()
    table = TrigramTable.build(texts, VOCABULARY, pairs=10)
    assert len(table) == 10
    totals = sorted((sum(best(counts)[1]) for counts in counted(texts).values()), reverse=True)[:10]
    kept = [sum(table.counts[low:high]) for low, high in zip(table.ends[:-1], table.ends[1:], strict=True)]
    assert sorted(kept, reverse=True)[:5] == totals[:5]
    table = TrigramTable(learned=3)
    table.vocab_size = VOCABULARY
    for first in (1, 2, 3, 1, 4):
        table.add(first, 0, 5, 1.0)
    assert table.row(2, 0) is None, "updated longest ago"
    assert table.row(1, 0) == ([5], [2.0])
    assert table.nbytes <= 3 * 1000 + 4


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    texts = documents()
    table = TrigramTable.build(texts[:6], VOCABULARY)
    for text in texts[6:]:
        table.learn(text, 2.5)
    table.save(tmp_path / "table")
    again = TrigramTable()
    again.bind(VOCABULARY, "a model")
    again.load(tmp_path / "table")
    for first in range(VOCABULARY):
        for second in range(VOCABULARY):
            row = table.row(first, second)
            assert (again.row(first, second) is None) == (row is None)
            assert row is None or same(again.row(first, second), row)
    again.learn([1, 2, 3], 10.0)
    assert (again.row(1, 2) or ([], []))[1] != (table.row(1, 2) or ([], []))[1], "it can go on learning"
    small = TrigramTable(pairs=7)
    small.load(tmp_path / "table")
    assert len(small) == 7
    again.clear()
    assert (len(again), again.row(1, 2)) == (0, None)
    other = TrigramTable()
    other.bind(VOCABULARY + 1, "another model")
    with pytest.raises(Incompatible):
        other.load(tmp_path / "table")


def test_an_empty_table(tmp_path: Path) -> None:
    for table in (TrigramTable(), TrigramTable.build([[], [1]], VOCABULARY)):
        table.save(tmp_path / "table")
        again = TrigramTable()
        again.load(tmp_path / "table")
        assert (len(again), again.row(0, 0)) == (0, None)


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidInput, match="pairs=0"):
        TrigramTable(pairs=0)
    with pytest.raises(InvalidInput, match="vocabulary of 30"):
        TrigramTable.build([[1, 30]], VOCABULARY)
    table = TrigramTable.build(documents(), VOCABULARY)
    good = table.arrays()
    for name, wrong in (
        ("keys", good["keys"].flip(0)),
        ("ends", good["ends"].flip(0)),
        ("ends", good["ends"][:-1]),
        ("ids", good["ids"] - VOCABULARY),
        ("ids", good["ids"].long()),
        ("counts", good["counts"] * float("nan")),
        ("counts", good["counts"][1:]),
    ):
        with pytest.raises(WeightsError):
            TrigramTable().restore(good | {name: wrong})
    with pytest.raises(WeightsError, match="nothing"):
        TrigramTable().restore({})
    assert torch.equal(table.arrays()["ids"], good["ids"])
