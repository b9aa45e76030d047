"""The speed of a run's input pipeline, with a step that does nothing: the fastest step that does not wait for data.

    python -m benchmarks.input --steps=300 --config=configs/ppa.py --config.init=DIR --config.data.pairs=en-de=train

Opens a run like the main job, with the same arguments, takes batches from its pipeline (reading, tokenising, packing,
prefetching) and copies them to the device. Prints one JSON line: pairs and real tokens per second from the tenth batch
on, and milliseconds per batch, median and maximum. `--own_shards=N` makes only N shards of each batch, like one host of
several; specify the pod with `--config.plan=v5e:16x16`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from ppa_jax.jobs.align import run as align_run
from ppa_jax.jobs.align import setup as align_setup
from ppa_jax.log_lines import answer
from ppa_jax.main import parse

FIRST = 10  # batches that only fill the pipeline


def main() -> int:
    """Prints the JSON line; returns the exit status."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--own_shards", type=int, default=0, help="of the batch; 0: all of this process")
    a, rest = p.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        config, _ = parse([*rest, f"--workdir={directory}"])
        run = align_setup.open_run(config, align_setup.validate(config), Path(directory))
        batches = run.batches
        if a.own_shards:
            batches.own_shards = range(a.own_shards)
        seconds, tokens = [], 0
        begun = time.perf_counter()
        made = batches.iterate(0, FIRST + a.steps, workers=config.data.workers)
        for i, batch in enumerate(made):
            jax.block_until_ready(jax.device_put(batch))
            seconds.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            tokens += align_run.count_tokens(batch)[0] if i >= FIRST else 0
        getattr(made, "close", lambda: None)()  # ends the processes
    seconds = np.array(seconds[FIRST:])
    pairs = config.train.batch_size * len(batches.own_shards) / batches.shards
    print(json.dumps({
        "pairs_per_s": round(pairs / seconds.mean(), 1),
        "tokens_per_s": round(tokens / seconds.sum(), 1),
        "ms_median": round(1e3 * float(np.median(seconds)), 2),
        "ms_longest": round(1e3 * float(seconds.max()), 2),
        "batch": config.train.batch_size,
        "shards": batches.shards,
        "own_shards": len(batches.own_shards),
        "workers": config.data.workers,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(answer(main))
