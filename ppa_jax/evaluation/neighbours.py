"""Nearest neighbours by cosine: exact, in blocks, so that a million vectors fit in memory.

Equal vectors need not have equal cosines: a matrix product may round a column differently in another place. Where the
same text stands twice, search among the `distinct` ones; which of several equals is found is then the caller's choice.

Axes: N queries or sources, M targets, D width, k neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 4096  # queries, and targets, whose products are held at once


class Neighbours(NamedTuple):
    """The k nearest vectors of the other side, nearest first."""

    cosines: Any  # [N, k] float32
    indices: Any  # [N, k]


def distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The texts, each once and in order of appearance; where each stands first, and how often it stands (int64)."""
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(text, i)
    count = Counter(texts)  # in the same order
    return list(first), np.array(list(first.values()), np.int64), np.array(list(count.values()), np.int64)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [N, D] of length 1, float32; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def nearest(
    queries: np.ndarray, targets: np.ndarray, penalty: np.ndarray | None = None, *, block: int = BLOCK
) -> np.ndarray:
    """Index [N] of the best target for each query; of equal cosines the first, but see above. Memory: block squared.

    Args:
      queries: [N, D] of any length; a vector of zeros has cosine 0 with everything.
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


def knn(sources: np.ndarray, targets: np.ndarray, k: int, *, block: int = BLOCK) -> tuple[Neighbours, Neighbours]:
    """The k nearest targets of every source, and the k nearest sources of every target: exact, by cosine.

    Every product is computed once, on the default device, in float32. Beside the vectors and the result this holds
    a few products of two blocks, 200 MB in all, and no more for a million sentences on either side.

    Args:
      sources: [N, D] of any length; a vector of zeros has cosine 0 with everything.
      targets: [M, D].
      k: cut to M for the sources, to N for the targets. Of equally near ones at its border any may be taken.

    Returns:
      Cosines [N, k] float32 and indices [N, k] int64 of the sources, and [M, k] of the targets.
    """
    if not (len(sources) and len(targets)):
        raise ValueError("no neighbours: a side is empty")
    ahead = []
    back = [_none(targets[t : t + block], min(k, len(sources))) for t in range(0, len(targets), block)]
    for s in range(0, len(sources), block):
        source = jnp.asarray(sources[s : s + block], np.float32)
        here = _none(source, min(k, len(targets)))
        for i, t in enumerate(range(0, len(targets), block)):
            target = np.asarray(targets[t : t + block], np.float32)
            here, back[i] = _nearer(source, target, here, back[i], s, t)
        ahead.append(jax.device_get(here))  # waits: no block is sent long before its turn
    return _joined(ahead), _joined(jax.device_get(back))


def _none(vectors: Any, k: int) -> Neighbours:
    return Neighbours(np.full((len(vectors), k), -np.inf, np.float32), np.zeros((len(vectors), k), np.int32))


def _joined(blocks: Sequence[Neighbours]) -> Neighbours:
    cosines, indices = map(np.concatenate, zip(*blocks, strict=True))
    return Neighbours(cosines, indices.astype(np.int64))


@jax.jit
def _nearer(
    source: Any, target: Any, ahead: Neighbours, back: Neighbours, s: Any, t: Any
) -> tuple[Neighbours, Neighbours]:
    """The neighbours so far of a block of sources and one of targets, which begin at s and t, and of each other."""
    source, target = (x / jnp.maximum(jnp.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (source, target))
    cosines = jnp.matmul(source, target.T, precision=jax.lax.Precision.HIGHEST)  # else accelerators round to 10 bits

    def merged(kept: Neighbours, cosines: Any, start: Any) -> Neighbours:
        k = kept.cosines.shape[1]
        near, where = jax.lax.top_k(cosines, min(k, cosines.shape[1]))
        near, order = jax.lax.top_k(jnp.concatenate([kept.cosines, near], axis=1), k)
        return Neighbours(near, jnp.take_along_axis(jnp.concatenate([kept.indices, where + start], axis=1), order, 1))

    return merged(ahead, cosines, t), merged(back, cosines.T, s)
