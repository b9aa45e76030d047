"""Nearest neighbours by cosine: exact, in blocks, so that a million vectors fit in memory.

Equal vectors need not have equal cosines: a matrix product may round differently at different positions. If texts
repeat, search only the `distinct` ones and choose among the equal texts afterwards.

Axes: N queries or sources, M targets, D width, k neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # queries, and targets, in one matrix product


class Neighbours(NamedTuple):
    """The k nearest vectors of the other side, nearest first."""

    cosines: Any  # [N, k] float32
    indices: Any  # [N, k]


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The distinct texts in order of first appearance, and the first index and the count of each (int64)."""
    count = Counter(texts)
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    return list(count), np.array([first[text] for text in count], np.int64), np.array(list(count.values()), np.int64)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] scaled to length 1, float32; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
    queries: np.ndarray, targets: np.ndarray, penalty: np.ndarray | None = None, *, block: int = BLOCK
) -> np.ndarray:
    """Index [N] of the best target for each query; the first of equal cosines (but see above). Memory: block squared.

    Args:
      queries: [N, D] of any norm; a zero vector has cosine 0 with everything.
      targets: [M, D], M at least 1.
      penalty: [M], subtracted from the cosine with each target; none by default.
      block: queries, and targets, in one matrix product.
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


def knn(sources: np.ndarray, targets: np.ndarray, k: int, *, block: int = BLOCK) -> tuple[Neighbours, Neighbours]:
    """The k nearest targets of every source, and the k nearest sources of every target: exact, by cosine.

    Every product is computed once, in float32 on the default device. Besides the vectors and the result, a few products
    of two blocks are in memory: 200 MB, even for a million sentences on either side.

    Args:
      sources: [N, D] of any norm; a zero vector has cosine 0 with everything.
      targets: [M, D].
      k: at most M neighbours of a source and N of a target are found. Ties for the k-th are broken arbitrarily.
      block: sources, and targets, in one matrix product.

    Returns:
      Cosines [N, k] float32 and indices [N, k] int64 of the sources, and [M, k] of the targets.
    """
    if not (len(sources) and len(targets)):
        raise ValueError("no neighbours: a side is empty")
    forward = []
    backward = [_none(targets[t : t + block], min(k, len(sources))) for t in range(0, len(targets), block)]
    for s in range(0, len(sources), block):
        source = jnp.asarray(sources[s : s + block], np.float32)
        found = _none(source, min(k, len(targets)))
        for i, t in enumerate(range(0, len(targets), block)):
            target = np.asarray(targets[t : t + block], np.float32)
            found, backward[i] = _merge(source, target, found, backward[i], s, t)
        forward.append(jax.device_get(found))  # waits, so that only a few blocks are on the device at once
    return _concatenate(forward), _concatenate(jax.device_get(backward))


def _none(vectors: Any, k: int) -> Neighbours:
    return Neighbours(np.full((len(vectors), k), -np.inf, np.float32), np.zeros((len(vectors), k), np.int32))


def _concatenate(blocks: Sequence[Neighbours]) -> Neighbours:
    cosines, indices = map(np.concatenate, zip(*blocks, strict=True))
    return Neighbours(cosines, indices.astype(np.int64))


@jax.jit
def _merge(
    source: Any, target: Any, forward: Neighbours, backward: Neighbours, s: Any, t: Any
) -> tuple[Neighbours, Neighbours]:
    """Updates both sides' neighbours with a block of sources, from index s, and a block of targets, from index t."""
    source, target = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (source, target))
    cosines = jnp.matmul(source, target.T, precision=jax.lax.Precision.HIGHEST)  # the default rounds to 10 bits or less

    def best(known: Neighbours, cosines: Any, start: Any) -> Neighbours:
        k = known.cosines.shape[1]
        near, index = jax.lax.top_k(cosines, min(k, cosines.shape[1]))
        near, order = jax.lax.top_k(jnp.concatenate([known.cosines, near], axis=1), k)
        return Neighbours(near, jnp.take_along_axis(jnp.concatenate([known.indices, index + start], axis=1), order, 1))

    return best(forward, cosines, t), best(backward, cosines.T, s)
