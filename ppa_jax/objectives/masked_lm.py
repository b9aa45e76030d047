"""Masked-LM cross-entropy over the whole vocabulary, from the states of the masked positions to one loss each.

The decoder and the loss are one function with a gradient of its own. With 119,547 word pieces the logits are the
largest array of a training step, and autodiff passes over it several times, for the labels, the bias and the softmax.
Here each direction makes one pass besides its matrix products. Where memory is short they are not kept (`remat`).

Axes: M masked positions, D width, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppa_jax.model.heads import decode

CHUNK = 1024  # positions whose logits are computed together where they are not kept


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def cross_entropy(
    states: Float[Array, "*M D"],
    bias: Float[Array, "V"],
    words: Float[Array, "V D"],
    labels: Int[Array, "*M"],
    remat: bool = False,
) -> Float[Array, "*M"]:
    """-log softmax(decode(states))[label], in float32.

    The gradient for the table comes with the dtype of the table, and is summed in float32.

    Args:
      states, bias, words: what `decode` takes.
      labels: the piece that each position should predict.
      remat: keep no logits for the backward pass: both passes go through the positions in chunks, and the backward one
        computes their logits again. A third more operations, and never more than CHUNK x V logits.
    """
    return _forward(states, bias, words, labels, remat)[0]


def _losses(states: Array, bias: Array, words: Array, labels: Array) -> tuple[Array, Array, Array]:
    """(loss, logits, log of the sum of their exponentials) of each position."""
    logits = decode(states, bias, words)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # Rounded as the decoder rounds, then multiplied exactly: or the difference below could fall below zero.
    own = words[labels].astype(states.dtype).astype(jnp.float32)
    label_logit = jnp.sum(states.astype(jnp.float32) * own, axis=-1) + bias[labels]
    return log_total - label_logit, logits, log_total


def _gradients(
    states: Array, words: Array, labels: Array, logits: Array, log_total: Array, cotangent: Array
) -> tuple[Array, Array, Array]:
    """Of the states [M, D], and of the table [V, D] and the bias [V] in float32."""
    # A comparison for the one-hot labels: unlike a scatter it is part of the same pass, and of the same device.
    hit = jax.lax.broadcasted_iota(labels.dtype, logits.shape, 1) == labels[:, None]
    pull = ((jnp.exp(logits - log_total[:, None]) - hit) * cotangent[:, None]).astype(states.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    d_states = product("mv,vd->md", pull, words.astype(states.dtype))
    d_words = product("mv,md->vd", pull, states)
    # A product with ones: as a sum over the first axis it took longer than either of the large products.
    d_bias = product("m,mv->v", jnp.ones_like(pull[:, 0]), pull)
    return d_states, d_words, d_bias


def _chunks(x_MxX: Array) -> Array:
    """[M, ...] -> [chunks, m, ...], zeros at the end."""
    M = len(x_MxX)
    count = -(-M // CHUNK)
    size = -(-M // count)
    padded = jnp.pad(x_MxX, [(0, count * size - M), *[(0, 0)] * (x_MxX.ndim - 1)])
    return padded.reshape(count, size, *x_MxX.shape[1:])


def _forward(states: Array, bias: Array, words: Array, labels: Array, remat: bool) -> tuple[Array, Any]:
    shape = labels.shape
    states, labels = states.reshape(-1, states.shape[-1]), labels.reshape(-1)
    if not remat:
        loss, logits, log_total = _losses(states, bias, words, labels)
        return loss.reshape(shape), (states, bias, words, labels, logits, log_total)

    def one(chunk):
        loss, _, log_total = _losses(chunk[0], bias, words, chunk[1])
        return loss, log_total

    loss, log_total = (x.reshape(-1)[: len(labels)] for x in jax.lax.map(one, (_chunks(states), _chunks(labels))))
    return loss.reshape(shape), (states, bias, words, labels, None, log_total)


def _backward(remat: bool, residuals: Any, cotangent: Array) -> tuple[Array, Array, Array, None]:
    states, bias, words, labels, logits, log_total = residuals
    flat = cotangent.reshape(-1)
    if not remat:
        d_states, d_words, d_bias = _gradients(states, words, labels, logits, log_total, flat)
    else:

        def one(total, chunk):
            states, labels, log_total, cotangent = chunk
            logits = decode(states, bias, words)
            d_states, *more = _gradients(states, words, labels, logits, log_total, cotangent)
            return [a + b for a, b in zip(total, more, strict=True)], d_states

        zeros = [jnp.zeros(words.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32)]
        parts = tuple(_chunks(x) for x in (states, labels, log_total, flat))  # what is padded pulls with 0
        (d_words, d_bias), d_states = jax.lax.scan(one, zeros, parts)
        d_states = d_states.reshape(-1, states.shape[-1])[: len(states)]
    d_states = d_states.reshape(*cotangent.shape, -1).astype(states.dtype)
    return d_states, d_bias, d_words.astype(words.dtype), None


cross_entropy.defvjp(_forward, _backward)
