"""Word embeddings drawn together by a dictionary: the auxiliary loss of ALIGN-MLM (Tang et al. 2022, arXiv 2211.08547).

The mean cosine of the embeddings of words that translate each other, over the whole dictionary in every step, without
negatives; trained is `- weight * mean`. A word of several pieces is the mean of their embeddings (the paper's words are
single pieces). It costs one gather of U x P rows of the table a step, and one scatter of as many for the gradient:
20,000 words of up to 4 pieces at width 768 are 250 MB each way, and no matrix product.

Axes: U distinct words, P pieces of the longest, N pairs, V vocabulary, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def mean_cosine(
    embeddings: Float[Array, "V D"], pieces: Int[Array, "U P"], pairs: Int[Array, "N 2"]
) -> Float[Array, ""]:
    """The mean over the pairs of the cosine of their words' vectors, in float32. `pieces` has -1 behind a word."""
    there = (pieces >= 0)[..., None]
    vectors = jnp.sum(jnp.where(there, embeddings[jnp.maximum(pieces, 0)].astype(jnp.float32), 0), axis=1)
    # The mean of the pieces and their sum have one direction.
    unit = vectors * jax.lax.rsqrt(jnp.sum(vectors**2, axis=1, keepdims=True) + 1e-24)  # a gradient for zero, too
    return jnp.mean(jnp.sum(unit[pairs[:, 0]] * unit[pairs[:, 1]], axis=1))
