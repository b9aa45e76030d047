"""Re-initialises whole blocks of an encoder; all else is unchanged (First Align, then Predict; Muller et al. 2021)."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ppa_jax.model.families import EncoderConfig, make_encoder


def reinitialise(
    params: Any, config: EncoderConfig, blocks: Iterable[int], seed: int, *, keep_layer_norm: bool = False
) -> Any:
    """The encoder's parameters with `blocks` as their family begins; BERT: N(0, 0.02), biases 0, LayerNorm 1 and 0.

    A block's new values depend only on the seed and its number, not on which other blocks are re-initialised.

    Args:
      params: of the encoder; not changed.
      config: its sizes; `initializer_range` is the standard deviation.
      blocks: numbers from 1, the block next to the embeddings, to the depth.
      seed: of the draw.
      keep_layer_norm: leave the LayerNorms of a block as they are.

    Raises:
      ValueError: a block that the encoder does not have.
    """
    changed = dict(params)
    for block in sorted(set(blocks)):
        if not 1 <= block <= config.num_layers:
            raise ValueError(f"block {block}: this encoder has blocks 1 to {config.num_layers}")
        name = f"layer_{block - 1}"
        fresh = jax.device_get(_draw(config, name, jax.random.key(seed)))
        if keep_layer_norm:
            fresh = {
                part: tree | {key: value for key, value in params[name][part].items() if key == "layer_norm"}
                for part, tree in fresh.items()
            }
        changed[name] = fresh
    return changed


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(config: EncoderConfig, name: str, key: jax.Array) -> Any:
    """The block from an initialisation of the whole encoder; the compiler removes the rest."""
    token = jnp.zeros((1, 1), jnp.int32)
    return make_encoder(config).init(key, token, token, token)["params"][name]


def relative_distance(before: Any, after: Any) -> float:
    """The norm of the difference of two parameter trees, relative to the norm of the first."""
    moved, norm = (
        sum(float(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree))
        for tree in (jax.tree.map(jnp.subtract, after, before), before)
    )
    return (moved / norm) ** 0.5
