"""Whether a difference is more than noise: tests that assume nothing of its shape, and a correction for many of them.

All of them shuffle what was measured, so that nothing but exchangeability is assumed: of the two sides of a pair, or of
all measurements of two groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

_EXACT = 14
"""Up to this many pairs all signs are tried."""

_DRAWS = 20_000
_BLOCK = 1000
"""Draws that are made at once."""


def sign_flip(differences: Sequence[float], *, seed: int = 0) -> float:
    """Chance of a mean at least this far from zero if the sides of every pair were exchangeable (two-sided).

    Fisher's randomisation test: signs are flipped in all ways for few pairs, in random ways for many; then the
    measured one counts among the draws, so that no chance is told as zero (Phipson and Smyth, 2010).

    Args:
        differences: one for each pair; logarithms of ratios where ratios are compared.
        seed: of the draws.

    Returns:
        1 if nothing differs, or there are no pairs.
    """
    values = np.asarray(differences, dtype=np.float64)
    if not values.any():
        return 1.0
    measured = abs(values.sum())
    slack = 1e-9 * np.abs(values).sum()
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= measured - slack).mean())
    signs = np.random.default_rng(seed).choice((1.0, -1.0), size=(_DRAWS, len(values)))
    return float(1 + (np.abs(signs @ values) >= measured - slack).sum()) / (1 + _DRAWS)


def label_swap(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> float:
    """Chance of means at least this far apart if all measurements of both groups were exchangeable (two-sided).

    Returns:
        1 if a group is empty or nothing differs.
    """
    if not len(a) or not len(b):
        return 1.0
    every = np.concatenate([np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)])
    count, total = len(a), every.sum()

    def apart(sums: np.ndarray) -> np.ndarray:
        return np.abs(sums / count - (total - sums) / len(b))

    measured = float(apart(every[:count].sum()[None])[0])
    if measured <= 1e-12 * max(1e-300, float(np.abs(every).max())):
        return 1.0
    slack = 1e-9 * measured
    ways = math.comb(len(every), count)
    if ways <= _DRAWS:
        chosen = np.array(list(itertools.combinations(range(len(every)), count)))
        return float((apart(every[chosen].sum(1)) >= measured - slack).mean())
    rng = np.random.default_rng(seed)
    drawn = (rng.permuted(np.broadcast_to(every, (_BLOCK, len(every))), axis=1) for _ in range(_DRAWS // _BLOCK))
    sums = np.concatenate([block[:, :count].sum(1) for block in drawn])
    return float(1 + (apart(sums) >= measured - slack).sum()) / (1 + _DRAWS)


def holm(chances: Sequence[float]) -> list[float]:
    """Chances corrected for their number, in their order: the chance of even one false alarm stays at what is claimed.

    Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    corrected = [1.0] * len(chances)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(chances)), key=lambda at: chances[at])):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = highest
    return corrected
