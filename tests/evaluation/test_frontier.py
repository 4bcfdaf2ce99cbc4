"""Divergence frontiers, against what is known of them."""

import numpy as np
import pytest

from unspool.core.errors import InvalidInput
from unspool.evaluation import frontier


def test_equal_histograms() -> None:
    p = np.array([0.2, 0.3, 0.5])
    assert frontier.mauve(p, p) == pytest.approx(1)
    assert frontier.frontier_integral(p, p) == 0


def test_disjoint_histograms() -> None:
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert frontier.frontier_integral(p, q) == pytest.approx(1)
    assert frontier.mauve(p, q) < 0.02


def test_the_integral_is_that_of_its_definition() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    steps = (np.arange(5000) + 0.5) / 5000
    mixtures = [(t, t * p + (1 - t) * q) for t in steps]
    defined = 2 * np.mean([t * frontier.kl(p, r) + (1 - t) * frontier.kl(q, r) for t, r in mixtures])
    assert frontier.frontier_integral(p, q) == pytest.approx(defined, rel=1e-5)


def test_kmeans_finds_what_is_far_apart() -> None:
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(centre, 0.1, (20, 2)) for centre in (0, 5, 10)])
    labels = frontier.kmeans(points, 3)
    assert len({tuple(sorted(set(labels[i : i + 20]))) for i in (0, 20, 40)}) == 3
    assert all(len(set(labels[i : i + 20])) == 1 for i in (0, 20, 40))
    assert (labels == frontier.kmeans(points, 3)).all()


def test_more_clusters_than_different_points() -> None:
    assert set(frontier.kmeans(np.zeros((4, 2)), 3)) == {0}


def test_sets_of_one_kind_are_nearer_than_sets_of_two() -> None:
    rng = np.random.default_rng(1)
    human, alike, other = (rng.normal(centre, 1.0, (60, 16)) for centre in (0.0, 0.0, 2.0))
    near, far = frontier.compare(human, alike), frontier.compare(human, other)
    assert near.mauve > 0.8 > 0.3 > far.mauve
    assert near.integral < 0.1 < far.integral


def test_two_texts_at_least() -> None:
    with pytest.raises(InvalidInput, match="two texts"):
        frontier.compare(np.zeros((1, 3)), np.zeros((5, 3)))


def test_principal_components_keep_the_variance() -> None:
    rng = np.random.default_rng(2)
    features = np.outer(rng.normal(size=50), rng.normal(size=8)) + 1e-6 * rng.normal(size=(50, 8))
    assert frontier.reduced(features).shape == (50, 1)
    assert np.linalg.norm(frontier.reduced(rng.normal(size=(50, 8))), axis=1) == pytest.approx(1)
