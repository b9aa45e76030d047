"""Floating-point operations of an alignment step, counted from its batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppa_jax.data.pairs import Batch, PairBatches
from ppa_jax.model.bert import EncoderConfig


def flops(config: EncoderConfig, batches: PairBatches, layer: int, steps: int = 4) -> float:
    """Floating-point operations of a step on real tokens, padding left out: forward, and twice that backward.

    The mean of the first `steps` batches. Keys, and without TLM queries, need the blocks up to `layer` alone.
    """
    return sum(batch_flops(config, batches.make(t), layer) for t in range(steps)) / steps


def batch_flops(config: EncoderConfig, batch: Batch, layer: int) -> float:
    """`flops` of one batch."""

    def forward(rows: Any, layers: int) -> float:
        shards = rows.segments.reshape(-1, rows.segments.shape[-1])
        lengths = np.concatenate([np.bincount(shard)[1:] for shard in shards])  # of every sequence
        attention = 4 * config.hidden_size * np.sum(lengths.astype(float) ** 2)
        return layers * float(lengths.sum() * config.flops_per_token(0) / config.num_layers + attention)

    total = 3 * forward(batch.rows, layer if batch.slots is None else config.num_layers)
    if batch.key_rows is not None:
        total += forward(batch.key_rows, layer)
    if batch.slots is not None:
        total += 3 * int((batch.slots.rank >= 0).sum()) * config.flops_per_prediction()
    return total
