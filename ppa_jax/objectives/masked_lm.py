"""Masked-LM cross-entropy over the whole vocabulary, from the states of the masked positions to one loss each.

The decoder and the loss are one function with a gradient of its own. With 119,547 word pieces the logits are the
largest array of a training step, and autodiff passes over it several times, for the labels, the bias and the softmax.
Here each direction makes one pass besides its matrix products. `in_chunks` keeps no logits for the backward pass.

Axes: M masked positions, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppa_jax.model.heads import decode

CHUNK = 1024  # positions whose logits are there together, `in_chunks`


@jax.custom_vjp
def cross_entropy(
    states: Float[Array, "*M D"], bias: Float[Array, "V"], words: Float[Array, "V D"], labels: Int[Array, "*M"]
) -> Float[Array, "*M"]:
    """-log softmax(decode(states))[label], in float32.

    The gradient for the table comes with the dtype of the table, and is summed in float32.
    """
    return _forward(states, bias, words, labels)[0]


def _forward(states: Array, bias: Array, words: Array, labels: Array) -> tuple[Array, Any]:
    logits = decode(states, bias, words)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # Rounded as the decoder rounds, then multiplied exactly: or the difference below could fall below zero.
    own = words[labels].astype(states.dtype).astype(jnp.float32)
    label_logit = jnp.sum(states.astype(jnp.float32) * own, axis=-1) + bias[labels]
    return log_total - label_logit, (states, words, labels, logits, log_total)


def _backward(residuals: Any, cotangent: Array) -> tuple[Array, Array, Array, None]:
    states, words, labels, logits, log_total = residuals
    # A comparison for the one-hot labels: unlike a scatter it is part of the same pass, and of the same device.
    hit = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
    pull = (jnp.exp(logits - log_total[..., None]) - hit) * cotangent[..., None]
    pull = pull.reshape(-1, len(words)).astype(states.dtype)
    flat = states.reshape(len(pull), -1)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_states = product("mv,vd->md", pull, words.astype(states.dtype)).reshape(states.shape)
    d_words = product("mv,md->vd", pull, flat)
    # A product with ones: as a sum over the first axis it took longer than either of the large products.
    d_bias = product("m,mv->v", jnp.ones_like(pull[:, 0]), pull)
    return d_states.astype(states.dtype), d_bias, d_words.astype(words.dtype), None


cross_entropy.defvjp(_forward, _backward)


def in_chunks(
    states: Float[Array, "M D"], bias: Float[Array, "V"], words: Float[Array, "V D"], labels: Int[Array, "M"]
) -> Float[Array, "M"]:
    """`cross_entropy` of CHUNK positions at a time; the backward pass computes their logits again.

    A third more operations, and CHUNK x V logits instead of M x V.
    """
    M = len(labels)
    count = -(-M // CHUNK)
    size = -(-M // count)

    def split(x: Array) -> Array:
        return jnp.pad(x, [(0, count * size - M), *[(0, 0)] * (x.ndim - 1)]).reshape(count, size, *x.shape[1:])

    one = jax.checkpoint(lambda chunk: cross_entropy(chunk[0], bias, words, chunk[1]))
    return jax.lax.map(one, (split(states), split(labels))).reshape(-1)[:M]
