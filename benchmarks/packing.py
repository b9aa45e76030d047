"""The padding of packed rows and the number of shapes that a run compiles, from the lengths only: nothing is computed.

    python -m benchmarks.packing --lengths=lengths.npy --batch=32 --shards=1

Packs every `--stride`-th batch of `--windows` windows and prints one JSON line: the share of real tokens in the rows
of queries, TLM sequences and keys, the number of shapes, the share of batches in the first shape, its rows, and the
seconds to find it. `lengths.npy` is int [n, 2], word pieces of both sides without special tokens; if they are too few
for a window, they are repeated.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from benchmarks.align_step import RandomPairs
from ppa_jax.data import packing
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.schedule import WINDOW, Schedule


def main() -> None:
    """Prints the JSON line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", required=True)
    p.add_argument("--maxlen", type=int, default=128)
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--shards", type=int, default=1)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--windows", type=int, default=3)
    p.add_argument("--stride", type=int, default=8)
    a = p.parse_args()
    lengths = np.minimum(np.load(a.lengths), a.maxlen - 2)
    lengths = np.tile(lengths, (-(-WINDOW * a.batch // len(lengths)), 1))
    pairs = RandomPairs(lengths, vocab_size=1000)
    start = time.perf_counter()
    batches = PairBatches(
        [pairs],
        Schedule([lengths], a.batch, a.seed),
        pairs,
        max_length=a.maxlen,
        row_length=-(-(int(lengths.sum(axis=1).max()) + 3) // 64) * 64,
        mask_rate=0.15,
        shards=a.shards,
    )
    seconds = time.perf_counter() - start
    real, room, shapes = 0, 0, []
    for step in range(0, a.windows * WINDOW, a.stride):
        plan = batches.schedule.batch(step)
        shape, _ = batches.packed(plan)
        shapes.append(shape)
        first, second = plan.lengths.sum(axis=0)
        real += 2 * int(first + second) + 7 * a.batch  # query, key and TLM sequence have 2, 2 and 3 special tokens
        room += a.shards * (packing.capacity(shape.query) + packing.capacity(shape.key))
    print(json.dumps({
        "real": round(real / room, 4),
        "batches": len(shapes),
        "shapes": len(set(shapes)),
        "base_share": round(shapes.count(batches.ladder.base) / len(shapes), 3),
        "query": batches.ladder.base.query,
        "key": batches.ladder.base.key,
        "seconds": round(seconds, 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
