"""What stands on the encoder: the masked-LM head and the projection head of the contrastive loss.

Axes: B sentences, M masked positions, D width, V vocabulary, P projection.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppa_jax.model.bert import EncoderConfig


class MaskedLMHead(nn.Module):
    """BERT's masked-LM head: dense, GELU, LayerNorm; `decode` follows, whose bias is kept here."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "*M D"]) -> tuple[Float[Array, "*M D"], Float[Array, "V"]]:
        """The states, transformed, and the bias: what `decode` takes with the word embeddings.

        Give it only the positions whose prediction is wanted.
        """
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        dense = nn.Dense(c.hidden_size, dtype=self.dtype, kernel_init=init, name="transform")
        x = dense(hidden)
        x = jax.nn.gelu(x, approximate=False)
        x = nn.LayerNorm(epsilon=c.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, name="layer_norm")(x)
        return x.astype(self.dtype), self.param("bias", nn.initializers.zeros, (c.vocab_size,))


def decode(states: Float[Array, "*M D"], bias: Float[Array, "V"], words: Float[Array, "V D"]) -> Float[Array, "*M V"]:
    """Logits in float32, the word embeddings being the decoder. The product is computed in the dtype of `states`."""
    logits = jnp.einsum("...d,vd->...v", states, words.astype(states.dtype), preferred_element_type=jnp.float32)
    return logits + bias


class ProjectionHead(nn.Module):
    """Two layers with ReLU, then L2 normalisation: [B, D] -> [B, P] of length 1, in float32 (PPA; sizes recalled)."""

    hidden_size: int
    output_size: int

    @nn.compact
    def __call__(self, pooled: Float[Array, "*B D"]) -> Float[Array, "*B P"]:
        x = nn.relu(nn.Dense(self.hidden_size, name="hidden")(pooled.astype(jnp.float32)))
        x = nn.Dense(self.output_size, name="output")(x)
        # The epsilon keeps the gradient finite for a vector of zeros.
        return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)
