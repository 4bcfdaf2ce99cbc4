"""Estimates and their intervals."""

import numpy as np
import pytest
from scipy import stats

from unspool.core.errors import InvalidInput
from unspool.evaluation import statistics


def test_the_mean_and_its_interval_agree_with_scipy() -> None:
    x = np.random.default_rng(1).normal(3, 2, 60)
    found = statistics.mean(x, seed=4)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=9999, method="percentile", rng=0).confidence_interval
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(theirs.low, abs=0.1)
    assert found.high == pytest.approx(theirs.high, abs=0.1)
    assert found.n == 60


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = statistics.mean(rng.exponential(1.0, 80))
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 1 <= found.high
    assert 0.88 <= hits / 200 <= 0.985


def test_a_ratio_is_one_of_sums() -> None:
    found = statistics.ratio([10, 90], [1, 3])
    assert found.value == 25  # not the mean of 10 and 30
    assert found.low == 10
    assert found.high == 30


def test_pairs_take_away_what_items_share() -> None:
    """Two arms whose items differ greatly, and each item by the same factor."""
    rng = np.random.default_rng(2)
    tokens, seconds = rng.integers(50, 500, 40).astype(float), rng.uniform(1, 50, 40)
    paired = statistics.paired_ratio(tokens, seconds / 2, tokens, seconds)
    alone = statistics.ratio(tokens, seconds / 2)
    assert paired.value == pytest.approx(2)
    assert paired.low == pytest.approx(2)
    assert paired.high == pytest.approx(2)
    assert alone.high - alone.low > 1  # type: ignore[operator]
    difference = statistics.paired_difference(seconds + 1, seconds)
    assert (difference.value, difference.low, difference.high) == pytest.approx((1, 1, 1))


def test_a_seed_gives_the_same_interval_again() -> None:
    x = np.arange(30.0)
    assert statistics.mean(x, seed=1) == statistics.mean(x, seed=1)
    assert statistics.mean(x, seed=1) != statistics.mean(x, seed=2)


def test_many_items_are_drawn_in_blocks() -> None:
    x = np.ones(9000)
    found = statistics.mean(x)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_too_few_items_have_no_interval() -> None:
    assert statistics.mean([3.0]) == statistics.Estimate(3.0, None, None, 1)
    assert statistics.jackknife(lambda chosen: float(len(chosen)), 2) == statistics.Estimate(2.0, None, None, 2)
    # a draw that takes the item with nothing below the line twice
    assert statistics.ratio([1.0, 1.0], [0.0, 2.0]).low is None


@pytest.mark.parametrize(
    "call",
    [
        lambda: statistics.mean([]),
        lambda: statistics.ratio([1.0], [0.0]),
        lambda: statistics.ratio([1.0, 2.0], [1.0]),
        lambda: statistics.paired_difference([1.0], [1.0, 2.0]),
        lambda: statistics.paired_ratio([1.0], [1.0], [0.0], [1.0]),
        lambda: statistics.jackknife(lambda chosen: 0.0, 0),
        lambda: statistics.median([[1.0]]),
    ],
)
def test_what_cannot_be_estimated(call: object) -> None:
    with pytest.raises(InvalidInput):
        call()  # type: ignore[operator]


def test_the_jackknife_of_a_mean_is_the_standard_error() -> None:
    x = np.random.default_rng(3).normal(size=50)
    found = statistics.jackknife(lambda chosen: float(x[list(chosen)].mean()), 50)
    error = x.std(ddof=1) / np.sqrt(50)
    assert found.high - found.value == pytest.approx(1.959964 * error)  # type: ignore[operator]
    assert found.value - found.low == pytest.approx(1.959964 * error)  # type: ignore[operator]


def test_an_interval_is_cut_where_its_number_ends() -> None:
    found = statistics.jackknife(lambda chosen: len({0, 1, 2} & set(chosen)) / 3, 4, lowest=0, highest=1)
    assert (found.value, found.high) == (1, 1)
    assert 0 <= found.low < 1  # type: ignore[operator]


def test_the_median() -> None:
    found = statistics.median([1.0, 2.0, 100.0])
    assert found.value == 2
    assert found.low == 1
    assert found.high == 100
