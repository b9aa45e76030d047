"""Floating-point operations of an alignment step, counted from its batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppa_jax.data.batches import Batch, PairBatches
from ppa_jax.jobs.align.method import Method
from ppa_jax.model.families import EncoderConfig


def flops(method: Method, config: EncoderConfig, batches: PairBatches, steps: int = 4) -> float:
    """Floating-point operations of a step on real tokens, padding left out: forward, and twice that backward.

    The mean of the first `steps` batches. What the step does not compute is not counted: blocks above the keys' layer,
    and in the last block what only states that nobody reads would need.
    """
    return sum(batch_flops(method, config, batches.make(t)) for t in range(steps)) / steps


def batch_flops(method: Method, config: EncoderConfig, batch: Batch) -> float:
    """`flops` of one batch."""

    def forward(rows: Any, layers: int, read: int | None) -> float:
        """Of all blocks; the last projects and feeds forward the `read` tokens alone, None being all."""
        shards = rows.segments.reshape(-1, rows.segments.shape[-1])
        lengths = np.concatenate([np.bincount(shard)[1:] for shard in shards])  # of every sequence
        return config.flops(lengths, layers, read)

    masked = 0 if batch.slots is None else int((batch.slots.rank >= 0).sum())
    pooled = batch.query.start.size if method.pools_last(config) else 0
    total = 3 * forward(
        batch.rows, method.blocks(config), None if pooled and method.pooling != "cls" else masked + pooled
    )
    if batch.key_rows is not None:
        total += forward(batch.key_rows, method.layer, batch.key.start.size if method.pooling == "cls" else None)
    return total + 3 * masked * config.flops_per_prediction()
