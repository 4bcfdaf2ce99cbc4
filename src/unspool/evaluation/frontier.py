"""How far a set of model texts is from a set of human ones: divergence frontiers, as in MAUVE.

Both sets become histograms over clusters of text features, and the histograms are compared by the curve of the two
kinds of error: ``KL(Q | R)`` (the model writes what people do not) against ``KL(P | R)`` (people write what the model
does not) for mixtures ``R = t P + (1 - t) Q``.

Papers: Pillutla et al., MAUVE: Measuring the Gap Between Neural Text and Human Text, 2021; Liu et al., Divergence
Frontiers for Generative Models, 2021 (the frontier integral); Pillutla et al., MAUVE Scores for Generative Models:
Theory and Practice, 2023 (smoothing).

What is estimated here, and how it differs from the published numbers: features are the hidden state of the last token
under *the model at hand* (the papers: GPT-2 large), reduced to the principal components that hold 90% of the variance
and scaled to length one; k-means with ``max(2, n / 10)`` clusters, ``n`` being the size of the smaller set;
Krichevsky-Trofimov smoothing (half an observation added to every cluster). So numbers compare arms of one run, with one
model for the features and equal sizes of the sets; they do not compare with numbers in papers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unspool.core.errors import InvalidInput

Array = NDArray[np.float64]

_SCALE = 5.0
_POINTS = 200


@dataclass(frozen=True)
class Frontier:
    """The two numbers of a divergence frontier.

    Args:
        mauve: area under the curve of ``exp(-5 KL)``: 1 for equal histograms, towards 0 for disjoint ones.
        integral: frontier integral: 0 for equal histograms, 1 for disjoint ones.
    """

    mauve: float
    integral: float


def compare(human: Array, model: Array, *, seed: int = 0, restarts: int = 5) -> Frontier:
    """The frontier between two sets of features.

    Args:
        human, model: ``[n, d]`` and ``[m, d]`` features.
        seed: of the clustering.
        restarts: of k-means; the clustering with the smallest distances counts.

    Raises:
        InvalidInput: if a set has fewer than 2 rows.
    """
    clusters = quantise(human, model, seed=seed, restarts=restarts)
    p, q = histograms(clusters[: len(human)], clusters[len(human) :])
    return Frontier(mauve(p, q), frontier_integral(p, q))


def quantise(human: Array, model: Array, *, seed: int = 0, restarts: int = 5) -> NDArray[np.int64]:
    """``[n + m]`` cluster of every text: principal components, length one, k-means over both sets together."""
    if len(human) < 2 or len(model) < 2:
        raise InvalidInput(
            f"a divergence frontier needs two texts on either side at least; got {len(human)} and {len(model)}"
        )
    features = reduced(np.concatenate([human, model]).astype(np.float64))
    count = max(2, round(min(len(human), len(model)) / 10))
    return kmeans(features, count, seed=seed, restarts=restarts)


def reduced(features: Array, variance: float = 0.9) -> Array:
    """The principal components that hold ``variance`` of the variance, every row scaled to length one."""
    centred = features - features.mean(0)
    _, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    held = np.cumsum(sizes**2) / max(float((sizes**2).sum()), 1e-300)
    kept = int(np.searchsorted(held, variance)) + 1
    shrunk = centred @ directions[:kept].T
    return np.asarray(shrunk / np.maximum(np.linalg.norm(shrunk, axis=1, keepdims=True), 1e-12))


def kmeans(points: Array, count: int, *, seed: int = 0, restarts: int = 5, rounds: int = 100) -> NDArray[np.int64]:
    """``[n]`` cluster of every row: Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii, 2007)."""
    rng = np.random.default_rng(seed)
    best: tuple[float, NDArray[np.int64]] | None = None
    for _ in range(restarts):
        centres = _seeds(points, count, rng)
        labels = np.full(len(points), -1)
        for _ in range(rounds):
            distances = _squared(points, centres)
            fresh = distances.argmin(1)
            if (fresh == labels).all():
                break
            labels = fresh
            for cluster in range(count):
                if (inside := labels == cluster).any():
                    centres[cluster] = points[inside].mean(0)
        cost = float(_squared(points, centres).min(1).sum())
        if best is None or cost < best[0]:
            best = cost, labels
    assert best is not None
    return best[1]


def _seeds(points: Array, count: int, rng: np.random.Generator) -> Array:
    centres = points[[rng.integers(len(points))]]
    while len(centres) < count:
        nearest = _squared(points, centres).min(1)
        total = nearest.sum()
        chances = nearest / total if total > 0 else np.full(len(points), 1 / len(points))
        centres = np.concatenate([centres, points[[rng.choice(len(points), p=chances)]]])
    return centres


def _squared(points: Array, centres: Array) -> Array:
    """``[n, k]`` squared distances."""
    products = points @ centres.T
    return np.maximum((points**2).sum(1)[:, None] - 2 * products + (centres**2).sum(1)[None, :], 0.0)


def histograms(human: NDArray[np.int64], model: NDArray[np.int64]) -> tuple[Array, Array]:
    """Shares of the clusters in either set, half an observation added to each (Krichevsky and Trofimov, 1981)."""
    count = int(max(human.max(), model.max())) + 1
    p, q = (np.bincount(labels, minlength=count) + 0.5 for labels in (human, model))
    return p / p.sum(), q / q.sum()


def kl(p: Array, q: Array) -> float:
    """``KL(p | q)`` in nats; clusters that ``p`` lacks add nothing."""
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


def mauve(p: Array, q: Array) -> float:
    """Area under the curve of ``(exp(-c KL(q|r)), exp(-c KL(p|r)))`` over mixtures r, ``c = 5`` (Pillutla, 2021)."""
    x, y = [0.0], [1.0]
    for share in np.linspace(1, 0, _POINTS + 2)[1:-1]:
        mixture = share * p + (1 - share) * q
        x.append(float(np.exp(-_SCALE * kl(q, mixture))))
        y.append(float(np.exp(-_SCALE * kl(p, mixture))))
    x.append(1.0)
    y.append(0.0)
    order = np.lexsort((-np.asarray(y), np.asarray(x)))
    return float(np.trapezoid(np.asarray(y)[order], np.asarray(x)[order]))


def frontier_integral(p: Array, q: Array) -> float:
    """``2 ∫ t KL(p | r_t) + (1 - t) KL(q | r_t) dt`` over mixtures ``r_t = t p + (1 - t) q``: 0 to 1 (Liu, 2021).

    Of every cluster it adds ``(p + q) / 2 - p q / (p - q) log(p / q)``, 0 where the shares are equal.
    """
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a == b:
            continue
        mixed = 0.0 if a == 0 or b == 0 else a * b / (a - b) * np.log(a / b)
        total += (a + b) / 2 - mixed
    return float(total)
