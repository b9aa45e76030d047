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
    """BERT's masked-LM head: dense, GELU, LayerNorm, then the word embeddings as decoder with a bias of its own."""

    config: EncoderConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Float[Array, "*M D"], word_embeddings: Float[Array, "V D"]) -> Float[Array, "*M V"]:
        """Logits over the vocabulary in float32. Give it only the positions whose prediction is wanted."""
        c = self.config
        init = nn.initializers.normal(c.initializer_range)
        x = nn.Dense(c.hidden_size, dtype=self.dtype, kernel_init=init, name="transform")(hidden)
        x = jax.nn.gelu(x, approximate=False)
        x = nn.LayerNorm(epsilon=c.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32, name="layer_norm")(x)
        bias = self.param("bias", nn.initializers.zeros, (c.vocab_size,))
        weights = word_embeddings.astype(self.dtype)
        logits = jnp.einsum("...d,vd->...v", x.astype(self.dtype), weights, preferred_element_type=jnp.float32)
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
