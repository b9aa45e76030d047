"""Dropout whose bits depend on the step, the sequence and the place in it: on nothing else.

A mask drawn by position in an array changes when the batch is packed, sharded or accumulated in another way. Here every
element's bits are a hash of (seed, sequence, place in it, site, feature), so one device and eight, one pass and four
accumulated ones, padded rows and packed rows all drop the same elements. The hash is the 32-bit finaliser of Wang's and
Mueller's family (two multiplications, three shifts): it fuses into the multiplication that uses it, and measured 30 to
40 times faster than threefry on a CPU. It is no cryptographic generator and need not be.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads consecutive counters over the whole range


def mix(x: UInt[Array, "*shape"]) -> UInt[Array, "*shape"]:
    """A bijection of 32-bit words in which every input bit flips about half of the output bits."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def token_seeds(
    seed: UInt[Array, ""],
    positions: Int[Array, "*N"],
    segments: Int[Array, "*N"],
    token_types: Int[Array, "*N"] | None = None,
) -> UInt[Array, "*N"]:
    """One word per token from the step's `seed`, the sequence it belongs to and its place there.

    `segments` must number the sequences uniquely over the global batch for two sequences not to share their masks. The
    place is the position id together with the token type: XLM's positions restart in the second sentence of a pair, and
    only the types, its languages, tell the two sentences apart.
    """
    place = positions if token_types is None else positions + (token_types << 16)
    sequence = mix(segments.astype(jnp.uint32) * jnp.uint32(_GOLDEN) + seed)
    return mix(sequence + place.astype(jnp.uint32) * jnp.uint32(_GOLDEN))


def at_site(seeds: UInt[Array, "*N"], site: int | Array) -> UInt[Array, "*N"]:
    """Independent seeds for each place in the network (`site`) that drops something."""
    return mix(seeds ^ (jnp.uint32(site + 1) * jnp.uint32(_GOLDEN)))


def block_site(layer: Any) -> Any:
    """The first of the three sites of a block, counted from 0; site 0 is the embeddings'."""
    return 1 + 3 * layer


def _drop(x: Array, bits: UInt[Array, "*shape"], rate: float) -> Array:
    # `rate` of all words lie below the threshold; exact to 2**-32.
    threshold = jnp.uint32(min(int(rate * 2**32), 2**32 - 1))
    return jnp.where(bits >= threshold, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def drop_features(x: Float[Array, "*N D"], seeds: UInt[Array, "*N"], rate: float) -> Float[Array, "*N D"]:
    """Inverted dropout of hidden states: an element is zeroed with probability `rate`, or scaled by 1/(1-rate)."""
    features = jax.lax.iota(jnp.uint32, x.shape[-1]) * jnp.uint32(_GOLDEN)
    return _drop(x, mix(seeds[..., None] + features), rate)


def drop_attention(
    probs: Float[Array, "B H L S"], seeds: UInt[Array, "B L"], rate: float, key_seeds: UInt[Array, "B S"] | None = None
) -> Float[Array, "B H L S"]:
    """Inverted dropout of attention probabilities [B, H, queries, keys], by the pair of tokens and the head.

    `seeds` are the queries', and the keys' as well unless `key_seeds` are given.
    """
    heads = jax.lax.iota(jnp.uint32, probs.shape[1]) * jnp.uint32(_GOLDEN)
    queries = mix(seeds[:, None, :] + heads[None, :, None])  # [B, H, L]
    keys = seeds if key_seeds is None else key_seeds
    keys = keys ^ jnp.uint32(0x5851F42D)  # a token as key is not the same word as that token as query
    return _drop(probs, mix(queries[:, :, :, None] + keys[:, None, None, :]), rate)
