"""The effect of rounding the word embeddings' gradient to bfloat16 at each addition of a ring all-reduce.

    python -m benchmarks.rounding --init=runs/demo/new_model/run/export --workdir=runs/rounding --seeds=0,1

Aligns the model that `make demo` has pretrained in bfloat16 on 16 simulated devices: once with that gradient summed
over the devices in float32, once in bfloat16. XLA for CPUs adds bfloat16 in float32 and rounds only the sum, so the
additions of a TPU's ring, each of which rounds, are simulated one by one. Prints retrieval after each alignment, as in
the run's report.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp

from ppa_jax.jobs.align import method as align
from ppa_jax.main import main as run


def in_float32(gradients: jax.Array, _: Any) -> jax.Array:
    """[S, V, D] -> [V, D]: the sum over the shards."""
    return jnp.sum(gradients, axis=0)


def rounded_at_each_hop(gradients: jax.Array, _: Any) -> jax.Array:
    """[S, V, D] -> [V, D]: one shard added after the other, and each sum rounded to bfloat16."""
    bits: Any = {"exponent_bits": 8, "mantissa_bits": 7}  # astype would be widened again by XLA for CPUs
    rounded = jax.lax.reduce_precision(gradients, **bits)
    total = rounded[0]
    for shard in rounded[1:]:
        total = jax.lax.reduce_precision(total + shard, **bits)
    return total


SUMS = {"float32": in_float32, "bfloat16": rounded_at_each_hop}


def main() -> int:
    """The command line; returns the first exit status that is not 0."""
    about, usage = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(
        description=about, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--init", required=True, help="Hugging Face directory of the model to align")
    parser.add_argument("--workdir", required=True, help="a directory for the runs")
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    a = parser.parse_args()
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={a.devices}"  # read when JAX makes its devices
    for seed in a.seeds.split(","):
        for dtype, sum_over_shards in SUMS.items():
            print(f"\nseed {seed}, summed in {dtype}:", flush=True)
            align.sum_over_shards = sum_over_shards
            fields = {
                "init": a.init,
                "seed": seed,
                "dtype": "bfloat16",
                "train.steps": a.steps,
                "log.tensorboard": False,
            }
            arguments = [f"--config.{name}={value}" for name, value in fields.items()]
            workdir = f"{a.workdir}/{dtype}-{seed}"
            if status := run(["--config=configs/ppa.py:demo", f"--workdir={workdir}", *arguments]):
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
