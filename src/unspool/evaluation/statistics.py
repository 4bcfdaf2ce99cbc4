"""Estimates with intervals: the bootstrap over items, paired comparisons, and the jackknife for numbers of whole sets.

Items (prompts) are drawn, not answers or tokens: two samples of one prompt tell less than two prompts. All drawing is
seeded. An interval from one item is not given; one from few items is too narrow, as every bootstrap's is.

Papers: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979 (percentile intervals); Koehn, Statistical
Significance Tests for Machine Translation Evaluation, 2004 (paired: both arms with the same drawn items); Tukey, 1958
(the jackknife's variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unspool.core.errors import InvalidInput

Array = NDArray[np.float64]

RESAMPLES = 2000
LEVEL = 0.95
_BLOCK = 2**22
"""Numbers held at once while drawing."""


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Args:
        value: over all items.
        low, high: of the interval; ``None`` if there are too few items, or a draw has no such number.
        n: items.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@runtime_checkable
class LeavesOut(Protocol):
    """A number of a set that knows a fast way to itself without each of the items."""

    def without(self) -> Sequence[float]:
        """``[n]`` the number without the first item, without the second, and so on."""
        ...


class OfSums:
    """A number of a set that depends on sums over its items alone: a corpus' BLEU, a perplexity.

    Args:
        columns: ``[n, k]`` what each item adds.
        of: the number from ``[k]`` sums.
    """

    def __init__(self, columns: ArrayLike, of: Callable[[Array], float]) -> None:
        self._columns = np.asarray(columns, dtype=np.float64)
        self._of = of

    def __call__(self, chosen: Sequence[int]) -> float:
        return self._of(self._columns[list(chosen)].sum(0))

    def without(self) -> list[float]:
        total = self._columns.sum(0)
        return [self._of(total - one) for one in self._columns]


def mean(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean over items, ``[n]``, with the bootstrap's interval.

    Raises:
        InvalidInput: if there are no values.
    """
    x = _column(values)
    return _estimate(float(x.mean()), _weighted(x, seed=seed)[:, 0] / len(x), len(x))


def ratio(above: ArrayLike, below: ArrayLike, *, seed: int = 0) -> Estimate:
    """Ratio of sums over items, ``sum(above) / sum(below)``, both ``[n]``: tokens over seconds, say.

    Raises:
        InvalidInput: if there are no items, or the sum below is 0.
    """
    columns = _columns(above, below)
    if not columns[:, 1].sum():
        raise InvalidInput("a ratio needs something to divide by; the sum below the line is 0")
    sums = _weighted(columns, seed=seed)
    return _estimate(float(columns[:, 0].sum() / columns[:, 1].sum()), _divided(sums[:, 0], sums[:, 1]), len(columns))


def median(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Median over items, ``[n]``.

    Raises:
        InvalidInput: if there are no values.
    """
    x = _column(values)
    rng = np.random.default_rng(seed)
    draws = np.median(x[rng.integers(len(x), size=(RESAMPLES, len(x)))], axis=1)
    return _estimate(float(np.median(x)), draws, len(x))


def paired_difference(ours: ArrayLike, theirs: ArrayLike, *, seed: int = 0) -> Estimate:
    """Mean of ``ours - theirs`` over the items that both answered, ``[n]`` each, in the same order.

    Raises:
        InvalidInput: if there are none, or they differ in number.
    """
    columns = _columns(ours, theirs)
    return mean(columns[:, 0] - columns[:, 1], seed=seed)


def paired_ratio(
    our_above: ArrayLike, our_below: ArrayLike, their_above: ArrayLike, their_below: ArrayLike, *, seed: int = 0
) -> Estimate:
    """``(sum(our_above) / sum(our_below)) / (sum(their_above) / sum(their_below))``, both arms with the drawn items.

    Raises:
        InvalidInput: if there are no items, they differ in number, or a sum is 0 where one divides.
    """
    columns = _columns(our_above, our_below, their_above, their_below)
    whole = columns.sum(0)
    if not (whole[1] and whole[2] and whole[3]):
        raise InvalidInput("a ratio of rates needs something to divide by; a sum is 0")
    sums = _weighted(columns, seed=seed)
    draws = _divided(sums[:, 0] * sums[:, 3], sums[:, 1] * sums[:, 2])
    return _estimate(float(whole[0] / whole[1] / (whole[2] / whole[3])), draws, len(columns))


def jackknife(
    measure: Callable[[Sequence[int]], float], n: int, *, lowest: float = -math.inf, highest: float = math.inf
) -> Estimate:
    """A number of a whole set, with the normal interval of the jackknife's standard error.

    For numbers that drawing with replacement would bias: a set in which items occur twice is less varied than it is.

    Args:
        measure: of the items at these places; one that :class:`LeavesOut` is asked for all the sets at once.
        n: items.
        lowest, highest: what the number can be; a normal interval knows no such bounds and is cut there.

    Raises:
        InvalidInput: if there are no items.
    """
    if n < 1:
        raise InvalidInput("an estimate needs one item at least")
    value = measure(range(n))
    if n < 3:
        return Estimate(value, None, None, n)
    asked: object = measure
    if isinstance(asked, LeavesOut):
        without = np.asarray(asked.without(), dtype=np.float64)
    else:
        without = np.array([measure([*range(place), *range(place + 1, n)]) for place in range(n)])
    error = math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2) * error
    return Estimate(value, max(value - reach, lowest), min(value + reach, highest), n)


def _column(values: ArrayLike) -> Array:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise InvalidInput(f"an estimate needs a list of numbers, one an item at least; got the shape {x.shape}")
    return x


def _columns(*values: ArrayLike) -> Array:
    columns = [_column(one) for one in values]
    if len({len(column) for column in columns}) > 1:
        raise InvalidInput(f"paired numbers must be of the same items; got {[len(column) for column in columns]}")
    return np.stack(columns, axis=1)


def _weighted(columns: Array, *, seed: int) -> Array:
    """``[RESAMPLES, k]`` sums of drawn items from ``[n]`` or ``[n, k]`` columns: how often each is drawn, times it."""
    table = columns if columns.ndim == 2 else columns[:, None]
    counts = _drawn(len(table), seed)
    block = max(1, _BLOCK // len(table))
    return np.concatenate([counts[begin : begin + block] @ table for begin in range(0, RESAMPLES, block)])


@lru_cache(maxsize=8)
def _drawn(n: int, seed: int) -> NDArray[np.uint16]:
    """``[RESAMPLES, n]`` how often each item is drawn: the same for every number of a run, so made once."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.uint16)


def _divided(above: Array, below: Array) -> Array:
    """Quotients; NaN where a draw has nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below != 0, above / below, np.nan)


def _estimate(value: float, draws: Array, n: int) -> Estimate:
    if n < 2 or np.isnan(draws).any():
        return Estimate(value, None, None, n)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high), n)
