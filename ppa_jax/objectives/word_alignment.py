"""Word embeddings drawn together by a dictionary: the auxiliary loss of ALIGN-MLM (Tang et al. 2022, arXiv 2211.08547).

The mean cosine of the embeddings of words that translate each other, over the whole dictionary in every step, without
negatives; trained is `- weight * mean`. A word of several pieces is the mean of their embeddings (the paper's words are
single pieces). It costs a gather of F rows of the table and of 2 N vectors a step, block by block, and as many
scatters for the gradient, but no matrix product: MUSE's first 5,000 words in seven languages, with capitals, are
256,000 pieces of mBERT's and 247,000 pairs, for which XLA takes 1.8 GB at width 768 (on a CPU).

Axes: U distinct words, F pieces of all of them, N pairs, V vocabulary, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 16_384  # pairs whose vectors are gathered at once


def mean_cosine(
    embeddings: Float[Array, "V D"],
    pieces: Int[np.ndarray, "F"],
    lengths: Int[np.ndarray, "U"],
    pairs: Int[np.ndarray, "N 2"],
) -> Float[Array, ""]:
    """The mean over the pairs of the cosine of their words' vectors, in float32; a word's pieces follow each other.

    The dictionary is NumPy: it is a constant of the program, and XLA takes seconds to fold what NumPy does at once.
    """
    U = len(lengths)
    word = np.repeat(np.arange(U), lengths)
    rows = embeddings[pieces].astype(jnp.float32)
    vectors = jax.ops.segment_sum(rows, word, num_segments=U, indices_are_sorted=True)
    # The mean of the pieces and their sum have one direction.
    unit = vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=1, keepdims=True) + 1e-24)  # a gradient for zero, too

    @jax.checkpoint  # the gathered vectors are not kept for the gradient
    def add(total, block):
        cosines = jnp.sum(unit[block[:, 0]] * unit[block[:, 1]], axis=1)
        return total + jnp.sum(cosines), None

    whole = len(pairs) - len(pairs) % BLOCK
    total, _ = jax.lax.scan(add, jnp.float32(0), pairs[:whole].reshape(-1, BLOCK, 2))
    return add(total, pairs[whole:])[0] / len(pairs)
