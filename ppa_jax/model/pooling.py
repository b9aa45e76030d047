"""Pools the states of tokens to one vector per sentence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

POOLINGS = ("cls", "mean", "mean_without_special")


def pool(hidden: jax.Array, start: jax.Array, length: jax.Array, pooling: str) -> jax.Array:
    """One vector per sentence, [..., n, D] float32, from the states [..., T, D] of packed tokens.

    `cls` is the state of the first token; `mean` the mean over all tokens, including [CLS] and [SEP], as in XTREME and
    SentenceTransformer; `mean_without_special` excludes these two (and is zero for an empty sentence).

    Args:
      hidden: states of T tokens, which hold n sentences.
      start: [..., n], the position of each sentence's first token.
      length: [..., n], its tokens including special tokens; 0: no sentence, and an undefined vector.
      pooling: one of POOLINGS.
    """
    if pooling == "cls":
        return jnp.take_along_axis(hidden, start[..., None], axis=-2).astype(jnp.float32)
    if pooling == "mean_without_special":
        start, length = start + 1, jnp.maximum(length - 2, 0)
    token = jnp.arange(hidden.shape[-2])
    inside = (token >= start[..., None]) & (token < (start + length)[..., None])  # [..., n, T]
    # A product with zeros and ones: unlike a gather, it does not copy the states of each sentence.
    total = jnp.matmul(inside.astype(jnp.float32), hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(length, 1)[..., None]


def dense(params: Any, vectors: jax.Array, activation: str) -> jax.Array:
    """Applies a SentenceTransformer's Dense module to pooled vectors: [..., D] -> [..., E], float32.

    Args:
      params: {"kernel": [D, E], "bias": [E]}.
      vectors: of sentences.
      activation: "tanh" or "identity".
    """
    product = jnp.matmul(vectors.astype(jnp.float32), params["kernel"], precision="highest") + params["bias"]
    return jnp.tanh(product) if activation == "tanh" else product
