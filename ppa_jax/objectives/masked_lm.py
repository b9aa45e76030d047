"""Cross-entropy over the vocabulary, in float32, on the masked positions alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def cross_entropy(logits: Float[Array, "*M V"], labels: Int[Array, "*M"]) -> Float[Array, "*M"]:
    """Negative log-likelihood of each label.

    The backward pass keeps the logits and one number a position, not the probabilities: with 119,547 word pieces those
    would be the largest array of the step.
    """
    return _forward(logits, labels)[0]


def _hit(logits: Array, labels: Array) -> Array:
    # A comparison instead of a gather: it fuses with what uses it, and needs no scatter backward.
    return jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]


def _forward(logits: Array, labels: Array):
    log_total = jax.nn.logsumexp(logits, axis=-1)
    label_logit = jnp.sum(jnp.where(_hit(logits, labels), logits, 0.0), axis=-1)
    return log_total - label_logit, (logits, labels, log_total)


def _backward(residuals, cotangent: Array):
    logits, labels, log_total = residuals
    probability = jnp.exp(logits - log_total[..., None])
    return (probability - _hit(logits, labels)) * cotangent[..., None], None


cross_entropy.defvjp(_forward, _backward)
