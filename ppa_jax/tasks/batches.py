"""Batches of features for fine-tuning and prediction: which rows make up batch t, padded to one of a few lengths.

The plan is a pure function of (seed, step). Every epoch visits all features once, in a new order. Within windows of
that order, rows are batched by length to save padding, and the batches are shuffled again.

Axes: N features, B rows of a batch, L tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from ppa_jax.tasks.task import IGNORE, Feature

WINDOW = 32  # batches whose rows are sorted by length together
LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # of rows; one program is compiled for each that occurs


def padded_length(longest: int) -> int:
    """The row length for features of at most `longest` tokens: one of LENGTHS, or beyond them a multiple of 128."""
    return next((length for length in LENGTHS if length >= longest), -(-longest // 128) * 128)


def stack(features: Sequence[Feature], pad_id: int, limit: int) -> dict[str, np.ndarray]:
    """One batch: ids, types, mask and the features' arrays [B, L], the features' values [B]; int32.

    `limit` is the number of positions of the model; no feature may be longer.
    """
    L = min(padded_length(max(len(feature.ids) for feature in features)), limit)
    shape = len(features), L
    batch = {"ids": np.full(shape, pad_id, np.int32)} | {x: np.zeros(shape, np.int32) for x in ("types", "mask")}
    batch |= {name: np.full(shape, IGNORE, np.int32) for name in features[0].arrays}
    for i, feature in enumerate(features):
        n = len(feature.ids)
        batch["ids"][i, :n], batch["types"][i, :n], batch["mask"][i, :n] = feature.ids, feature.types, 1
        for name, values in feature.arrays.items():
            batch[name][i, :n] = values
    for name in features[0].values:
        batch[name] = np.array([feature.values[name] for feature in features], np.int32)
    return batch


class FeatureBatches:
    """The batches of a training run."""

    def __init__(self, features: Sequence[Feature], batch_size: int, seed: int, pad_id: int, limit: int) -> None:
        """`features`: at least one; if they are fewer than a batch, they repeat within it. `limit`: see `stack`."""
        self.features, self.batch_size, self.seed, self.pad_id, self.limit = features, batch_size, seed, pad_id, limit
        self._lengths = np.array([len(feature.ids) for feature in features])

    def rows(self, step: int) -> np.ndarray:
        """The indices of a batch's features, [B]: the next B of the endless sequence of epochs."""
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(positions, len(self.features))
        return np.concatenate([self._epoch(epoch)[within[epochs == epoch]] for epoch in np.unique(epochs).tolist()])

    @functools.lru_cache(maxsize=4)  # noqa: B019 - lives as long as the run
    def _epoch(self, epoch: int) -> np.ndarray:
        """Every feature once, [N]: those that complete the last batch of the previous epoch, whole batches, a rest."""
        N, B = len(self.features), self.batch_size
        random = np.random.default_rng((self.seed, 0, epoch))
        order = random.permutation(N)
        begin = min(-epoch * N % B, N)
        whole = (N - begin) // B * B
        parts = [order[:begin]]
        for start in range(begin, begin + whole, WINDOW * B):
            window = order[start : min(start + WINDOW * B, begin + whole)]
            blocks = window[np.argsort(self._lengths[window], kind="stable")].reshape(-1, B)
            parts.append(random.permutation(blocks).reshape(-1))
        return np.concatenate([*parts, order[begin + whole :]])

    def iterate(self, start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches `start` to `stop` - 1."""
        for step in range(start, stop):
            yield stack([self.features[row] for row in self.rows(step)], self.pad_id, self.limit)


def in_order_of_length(
    features: Sequence[Feature], batch_size: int, pad_id: int, limit: int
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """(indices of the features, their batch), each feature once; the last row of an incomplete batch repeats."""
    order = sorted(range(len(features)), key=lambda i: len(features[i].ids))
    for begin in range(0, len(order), batch_size):
        rows = order[begin : begin + batch_size]
        filled = rows + rows[-1:] * (batch_size - len(rows))
        yield rows, stack([features[i] for i in filled], pad_id, limit)
