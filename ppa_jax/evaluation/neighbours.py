"""Nearest neighbours by cosine: exact, in blocks, so that a million vectors fit in memory.

Axes: N queries, M targets, D width, k neighbours.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4096  # queries, and targets, whose products are held at once


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of length 1, float32; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
    queries: np.ndarray, targets: np.ndarray, penalty: np.ndarray | None = None, *, block: int = BLOCK
) -> np.ndarray:
    """Index [N] of the best target for each query; of equally good ones the first. Memory: block squared.

    Args:
      queries: [N, D] of any length; a vector of zeros is equally far from everything.
      targets: [M, D], M at least 1.
      penalty: [M], subtracted from the cosine with each target; none by default.
    """
    if not len(targets):
        raise ValueError("nothing to choose from: targets is empty")
    penalty = np.zeros(len(targets), np.float32) if penalty is None else np.asarray(penalty, np.float32)
    chosen = np.zeros(len(queries), np.int64)
    for q in range(0, len(queries), block):
        query = unit(queries[q : q + block])
        best = np.full(len(query), -np.inf, np.float32)
        for t in range(0, len(targets), block):
            similarity = query @ unit(targets[t : t + block]).T - penalty[t : t + block]
            index = similarity.argmax(1)
            value = similarity[np.arange(len(query)), index]
            better = value > best  # not >=: the first of equals stays
            chosen[q : q + block][better] = t + index[better]
            best = np.maximum(best, value)
    return chosen


def knn(queries: np.ndarray, targets: np.ndarray, k: int, *, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest targets of every query by cosine, nearest first: exact, in blocks.

    Beside the vectors and the result (N * k * 12 bytes) it holds 16 * block^2 bytes and little more, 300 MB: a million
    sentences on each side, of width 768, need 6.5 GB, nearly all of it their vectors.

    Args:
      queries: [N, D] of any length; a vector of zeros has cosine 0 with everything.
      targets: [M, D].
      k: cut to M. Of equally near targets at its border any may be taken.

    Returns:
      Cosines [N, k] float32 and indices [N, k] int64.
    """
    if not len(targets):
        raise ValueError("no neighbours: targets is empty")
    k = min(k, len(targets))
    cosines, indices = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    for q in range(0, len(queries), block):
        query = unit(queries[q : q + block])
        best = np.empty((len(query), 0), np.float32)
        where = np.empty((len(query), 0), np.int64)
        for t in range(0, len(targets), block):
            similarity = query @ unit(targets[t : t + block]).T
            border = max(0, similarity.shape[1] - k)
            near = np.argpartition(similarity, border, axis=1)[:, border:]
            best = np.concatenate([best, np.take_along_axis(similarity, near, 1)], axis=1)
            where = np.concatenate([where, t + near], axis=1)
            order = np.lexsort((where, -best), axis=1)[:, :k]
            best, where = np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)
        cosines[q : q + block], indices[q : q + block] = best, where
    return cosines, indices
