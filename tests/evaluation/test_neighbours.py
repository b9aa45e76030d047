"""Neighbours by hand and against scikit-learn."""

import numpy as np
import pytest

from ppa_jax.evaluation.neighbours import distinct, knn, nearest

ENGLISH = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])  # 0, 37, 90 degrees
GERMAN = np.array([[0.6, 0.8], [2.0, 0.0], [0.1, 5.0]])  # 53, 0, 89 degrees, of any length


def test_cosine_by_hand_in_both_directions():
    # 0 -> 0 (number 1), 37 -> 53 (number 0), 90 -> 89 (number 2)
    assert nearest(ENGLISH, GERMAN).tolist() == [1, 0, 2]
    # 53 -> 37 (number 1), 0 -> 0 (number 0), 89 -> 90 (number 2)
    assert nearest(GERMAN, ENGLISH).tolist() == [1, 0, 2]


def test_length_does_not_count_and_the_first_of_equals_wins():
    targets = np.array([[0.0, 9.0], [3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    queries = np.array([[1.0, 0.1], [0.1, 1.0], [0.0, 0.0]])
    for block in (1, 2, 4096):
        assert nearest(queries, targets, block=block).tolist() == [1, 0, 0]


@pytest.mark.parametrize("block", [1, 7, 64, 4096])
def test_agrees_with_an_independent_search(block):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    queries, targets = rng.normal(size=(150, 24)), rng.normal(size=(90, 24)) * rng.uniform(0.1, 9, (90, 1))
    search = neighbors.NearestNeighbors(n_neighbors=1, metric="cosine").fit(targets)
    expected = search.kneighbors(queries, return_distance=False)[:, 0]
    assert np.array_equal(nearest(queries, targets, block=block), expected)


def test_a_penalty_is_taken_from_the_cosine():
    queries, targets = np.array([[1.0, 0.0]]), np.array([[5.0, 0.0], [1.0, 1.0]])
    assert nearest(queries, targets, np.array([0.28, 0.0])).tolist() == [0]  # 1 - 0.28 > 0.707
    assert nearest(queries, targets, np.array([0.30, 0.0])).tolist() == [1]
    with pytest.raises(ValueError, match="targets is empty"):
        nearest(queries, targets[:0])


@pytest.mark.parametrize("block", [1, 3, 50, 4096])
def test_neighbours_of_both_sides_agree_with_an_independent_search(block):
    neighbors = pytest.importorskip("sklearn.neighbors")
    rng = np.random.default_rng(0)
    sources, targets = rng.normal(size=(70, 12)), rng.normal(size=(60, 12)) * rng.uniform(0.1, 9, (60, 1))
    for found, queries, others in zip(
        knn(sources, targets, 4, block=block), (sources, targets), (targets, sources), strict=True
    ):
        search = neighbors.NearestNeighbors(n_neighbors=4, metric="cosine").fit(others)
        distance, expected = search.kneighbors(queries)
        assert np.array_equal(found.indices, expected)
        np.testing.assert_allclose(found.cosines, 1 - distance, atol=1e-6)  # a few roundings of float32, 6e-8 each


def test_no_more_neighbours_than_there_are():
    of_sources, of_targets = knn(np.eye(2), np.array([[5.0, 0.0], [0.0, 0.0], [3.0, 3.0]]), 8)
    assert of_sources.indices.tolist() == [[0, 2, 1], [2, 0, 1]]
    np.testing.assert_allclose(of_sources.cosines, [[1, 0.5**0.5, 0], [0.5**0.5, 0, 0]], atol=1e-6)
    assert of_targets.indices.tolist()[:2] == [[0, 1], [0, 1]]
    np.testing.assert_allclose(of_targets.cosines, [[1, 0], [0, 0], [0.5**0.5, 0.5**0.5]], atol=1e-6)
    for sides in ((np.zeros((0, 2)), np.eye(2)), (np.eye(2), np.zeros((0, 2)))):
        with pytest.raises(ValueError, match="a side is empty"):
            knn(*sides, 1)


def test_distinct_texts_in_order_of_appearance():
    texts, first, count = distinct(["b", "a", "b", "c", "a", "b"])
    assert (texts, first.tolist(), count.tolist()) == (["b", "a", "c"], [0, 1, 3], [3, 2, 1])
