"""From the states of tokens to one vector a sentence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

POOLINGS = ("cls", "mean", "mean_without_special")


def pool(hidden: jax.Array, start: jax.Array, length: jax.Array, pooling: str) -> jax.Array:
    """One vector a sentence, [..., n, D] float32, from the states [..., T, D] of packed tokens.

    `cls` is the state of the first token; `mean` that of all tokens, [CLS] and [SEP] included, as XTREME and
    SentenceTransformer have it; `mean_without_special` leaves these two out (and gives zeros for an empty sentence).

    Args:
      hidden: of T tokens in which n sentences lie.
      start: [..., n], the place of each sentence's first token.
      length: [..., n], its tokens with the special ones; 0: no sentence, whose vector means nothing.
      pooling: one of POOLINGS.
    """
    if pooling == "cls":
        return jnp.take_along_axis(hidden, start[..., None], axis=-2).astype(jnp.float32)
    if pooling == "mean_without_special":
        start, length = start + 1, jnp.maximum(length - 2, 0)
    token = jnp.arange(hidden.shape[-2])
    inside = (token >= start[..., None]) & (token < (start + length)[..., None])  # [..., n, T]
    # A product with zeros and ones: unlike a gather it needs no copy of the states for each sentence.
    total = jnp.matmul(inside.astype(jnp.float32), hidden.astype(jnp.float32), precision="highest")
    return total / jnp.maximum(length, 1)[..., None]


def dense(params: Any, vectors: jax.Array, activation: str) -> jax.Array:
    """What a SentenceTransformer's Dense module makes of pooled vectors: [..., D] -> [..., E], float32.

    Args:
      params: {"kernel": [D, E], "bias": [E]}.
      vectors: of sentences.
      activation: "tanh" or "identity".
    """
    product = jnp.matmul(vectors.astype(jnp.float32), params["kernel"], precision="highest") + params["bias"]
    return jnp.tanh(product) if activation == "tanh" else product
