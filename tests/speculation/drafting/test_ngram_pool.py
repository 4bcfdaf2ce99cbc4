from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from unspool.core.errors import Incompatible, InvalidInput, WeightsError
from unspool.speculation.drafting._ngram_pool import NgramPool


def test_the_newest_comes_first_and_the_oldest_goes() -> None:
    pool = NgramPool(capacity=2)
    pool.insert(1, (2, 3))
    pool.insert(1, (4,))
    assert pool.get(1) == [(4,), (2, 3)]
    pool.insert(1, (2, 3))
    assert pool.get(1) == [(2, 3), (4,)], "inserted again: newest again"
    pool.insert(1, (5, 6))
    assert pool.get(1) == [(5, 6), (2, 3)]
    assert len(pool) == 2
    assert pool.get(9) == []


def test_keys_are_bounded() -> None:
    pool = NgramPool(keys=2)
    for key in (1, 2, 1, 3):
        pool.insert(key, (key, key))
    assert pool.keys == [1, 3], "2 was inserted to longest ago"
    assert len(pool) == 2


def test_what_is_held_is_counted() -> None:
    rng = random.Random(0)
    pool = NgramPool(capacity=3, keys=10)
    empty = pool.nbytes
    for _ in range(500):
        pool.insert(rng.randrange(20), tuple(rng.randrange(4) for _ in range(rng.randrange(4))))
        entries = [continuation for key in pool.keys for continuation in pool.get(key)]
        assert len(pool) == len(entries)
        assert pool._tokens == sum(map(len, entries))
    largest = 10 * (330 + 3 * (120 + 3 * 40))
    assert empty == 0 < pool.nbytes <= largest
    pool.clear()
    assert (pool.nbytes, len(pool), pool.keys) == (0, 0, [])


@pytest.mark.parametrize("context", [1, 2])
def test_a_text_is_cut_into_its_ngrams(context: int) -> None:
    text = [random.Random(3).randrange(5) for _ in range(60)]
    whole, grown, expected = (NgramPool(4, context=context) for _ in range(3))
    whole.insert_text(text, 3)
    for at in range(0, 60, 7):
        grown.insert_text(text[: at + 7], 3, start=at)
    for at in range(context, 58):
        key = text[at - 1] if context == 1 else (text[at - 2], text[at - 1])
        expected.insert(key, tuple(text[at : at + 3]))
    for pool in (whole, grown):
        assert {key: pool.get(key) for key in pool.keys} == {key: expected.get(key) for key in expected.keys}
    assert whole.key_of(text) == (text[-1] if context == 1 else (text[-2], text[-1]))
    assert whole.key_of([]) is None


@pytest.mark.parametrize("context", [1, 3])
def test_it_is_kept_in_a_file(context: int, tmp_path: Path) -> None:
    pool = NgramPool(capacity=3, keys=5, context=context)
    pool.bind(10, "a model")
    pool.insert_text([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9, 1, 2, 3, 0], 2)
    pool.insert(pool.key_of([1, 2, 3]) or 0, (8,))
    pool.save(tmp_path / "pool")
    again = NgramPool(capacity=3, keys=5, context=context)
    again.bind(10, "a model")
    again.load(tmp_path / "pool")
    assert [(key, again.get(key)) for key in again.keys] == [(key, pool.get(key)) for key in pool.keys]
    small = NgramPool(capacity=1, keys=1, context=context)
    small.load(tmp_path / "pool")
    assert small.keys == pool.keys[-1:]
    assert small.get(small.keys[0]) == pool.get(pool.keys[-1])[:1], "the newest fits"


def test_an_empty_pool_is_kept(tmp_path: Path) -> None:
    NgramPool().save(tmp_path / "pool")
    pool = NgramPool()
    pool.insert(1, (2,))
    pool.load(tmp_path / "pool")
    assert len(pool) == 0


def test_other_files_are_refused(tmp_path: Path) -> None:
    pool = NgramPool(context=2)
    pool.bind(10, "a model")
    pool.insert((1, 2), (9,))
    pool.save(tmp_path / "pool")
    with pytest.raises(WeightsError, match="have 1 tokens"):
        NgramPool().load(tmp_path / "pool")
    other = NgramPool(context=2)
    other.bind(9, "another model")
    with pytest.raises(Incompatible, match="9"):
        other.load(tmp_path / "pool")
    good = pool.arrays()
    for name, wrong in (
        ("tokens", torch.tensor([10], dtype=torch.int32)),
        ("tokens", torch.tensor([9], dtype=torch.int64)),
        ("tokens", torch.tensor([9, 9], dtype=torch.int32)),
        ("lengths", torch.tensor([0], dtype=torch.int32)),
        ("keys", torch.tensor([[-1, 2]], dtype=torch.int32)),
    ):
        with pytest.raises(WeightsError):
            pool.restore(good | {name: wrong})
        assert pool.get((1, 2)) == [(9,)], "nothing is changed"
    with pytest.raises(WeightsError, match="keys"):
        pool.restore({"lengths": good["lengths"]})


@pytest.mark.parametrize("bounds", [{"capacity": 0}, {"keys": 0}, {"context": 0}])
def test_a_pool_of_nothing_is_refused(bounds: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="at least 1"):
        NgramPool(**bounds)
