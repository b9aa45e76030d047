"""Floating-point operations of an alignment step, counted from its batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppa_jax.data.batches import Batch, PairBatches
from ppa_jax.jobs.align.network import rtl_head_config
from ppa_jax.jobs.align.settings import Method
from ppa_jax.model.families import EncoderConfig


def flops(method: Method, config: EncoderConfig, batches: PairBatches, steps: int = 4) -> float:
    """Floating-point operations of a step on real tokens, without padding: forward, and twice that backward.

    The mean of the first `steps` batches. What the step does not compute is not counted: blocks above the keys' layer,
    in the last block the states that no loss reads, and the gradients of frozen parameters. (In the backward pass, a
    frozen block above trained ones counts once, although its attention would count twice.)
    """
    return sum(batch_flops(method, config, batches.make(t)) for t in range(steps)) / steps


def batch_flops(method: Method, config: EncoderConfig, batch: Batch) -> float:
    """`flops` of one batch."""

    def lengths_of(rows: Any) -> np.ndarray:
        """Of every sequence."""
        shards = rows.segments.reshape(-1, rows.segments.shape[-1])
        return np.concatenate([np.bincount(shard)[1:] for shard in shards])

    def trained(rows: Any, layers: int, read: int | None) -> float:
        """Of all blocks, forward and backward; the last finishes the `read` tokens alone, None being all."""
        lengths = lengths_of(rows)
        blocks = np.diff([config.flops(lengths, i, read if i == layers else None) for i in range(layers + 1)])
        learns = np.array([x not in method.frozen for x in ("embeddings", *(f"layer_{i}" for i in range(layers)))])
        reached = np.cumsum(learns)[1:] > 0  # by gradients
        total = np.sum(blocks * (1.0 + reached + learns[1:]))
        if not learns[0] and reached.any():  # nothing asks for the gradient of the first trained block's input
            total -= 6 * config.hidden_size**2 * np.sum(lengths)
        return float(total)

    def vectors(rows: Any, sentences: Any) -> float:
        """Of sentences whose vectors are computed without a gradient."""
        return config.flops(lengths_of(rows), method.layer, sentences.start.size if method.pooling == "cls" else None)

    masked = 0 if batch.slots is None else int((batch.slots.rank >= 0).sum())
    pooled = batch.query.start.size if method.pools_last(config) else 0
    total = trained(batch.rows, method.blocks(config), None if method.reads_all(config) else masked + pooled)
    if batch.key_rows is not None:
        total += vectors(batch.key_rows, batch.key)
    elif method.contrastive_weight and len(batch.rows.ids) > 1:  # ranking in parts
        total += vectors(batch.rows, batch.query)
    if batch.translation is not None:
        targets = int(batch.translation.used.sum())
        total += 3 * rtl_head_config(config).flops(lengths_of(batch.translation.rows), read=targets)
        masked += targets
    if "embeddings" in method.frozen:  # no gradient of the decoder's table
        total -= 2 * masked * config.hidden_size * config.vocab_size
    prediction = 2 * config.hidden_size * (config.hidden_size + config.vocab_size)  # the transform and the vocabulary
    return total + 3 * masked * prediction
