"""Compiles the real alignment step with the TPU compiler for v5e slices, on a machine without a TPU.

    make tpu-compile        # or: python -m benchmarks.tpu_compile --slices=2x4,16x16 --rules=replicated

Prints for each slice the memory of one chip and the bytes of every kind of collective, and fails if anything as large
as one chip's share of the queue crosses the network but the gradients. mBERT, batch 4,096, queue 65,536, bfloat16.
Needs libtpu: installed, or its libtpu.so in TPU_LIBRARY_PATH (`make tpu-compile` sees to it).
"""

from __future__ import annotations

import argparse
import os
import sys
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no chip is opened: another program may compile as well
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.align_step import RandomPairs
from ppa_jax.data.pairs import PairBatches
from ppa_jax.data.plan import Plan
from ppa_jax.jobs import align
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.training import mesh as meshes
from ppa_jax.training import optimizer
from ppa_jax.training.collectives import KINDS, collective_bytes

BATCH, QUEUE = 4096, 65_536


def lower(slice_shape: str, rules: str, model: int, remat: bool):
    """The lowered step for a slice such as `2x4`, the shapes of its state, and the number of chips."""
    topology = topologies.get_topology_desc(f"v5e:{slice_shape}", "tpu")
    chips = len(topology.devices)
    mesh = jax.sharding.Mesh(
        np.array(topology.devices).reshape(chips // model, model), ("data", "model"), axis_types=(AxisType.Auto,) * 2
    )
    config = EncoderConfig()
    lengths = np.clip(np.random.default_rng(1).lognormal(3.3, 0.45, (200_000, 2)), 10, 64).astype(int)
    pairs = RandomPairs(lengths, config.vocab_size)
    batches = PairBatches(
        [pairs], Plan([lengths], BATCH, 0), pairs, max_length=128, row_length=256, mask_rate=0.15,
        shards=mesh.shape["data"],
    )  # fmt: skip
    method = align.Method(queue_size=QUEUE, max_tlm_length=131, remat=remat, dtype=jnp.bfloat16)
    adamw = optimizer.adamw(optimizer.schedule(3e-5, 0.1, 1000), weight_decay=0.01, clip=1.0)

    def init():
        token = jnp.zeros((1, 1), jnp.int32)
        words = jnp.zeros((config.vocab_size, config.hidden_size))
        params = {
            "encoder": Encoder(config).init(jax.random.key(0), token, token, token)["params"],
            "mlm_head": MaskedLMHead(config).init(jax.random.key(1), words[:1])["params"],
        }
        return align.init_state(params, method, config, adamw, batch_size=BATCH, seed=0)

    shapes = jax.eval_shape(init)
    shardings = align.state_shardings(shapes, meshes.RULES[rules], mesh)
    rows = NamedSharding(mesh, P(None, "data"))

    def abstract(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(abstract, shapes, shardings)
    batch = jax.tree.map(lambda x: abstract(x, rows), batches.make(0))
    step = align.make_step(method, config, adamw, mesh, shardings)
    return step.lower(state, batch), shapes, mesh


def main() -> int:
    """Prints the table; 1 if the queue, or something as large, is moved."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--slices", default="2x4,16x16")
    p.add_argument("--rules", default="replicated", choices=meshes.RULES)
    p.add_argument("--model", type=int, default=1)
    p.add_argument("--remat", action="store_true", help="as config.train.remat")
    a = p.parse_args()
    status = 0
    for slice_shape in a.slices.split(","):
        start = time.perf_counter()
        lowered, shapes, mesh = lower(slice_shape, a.rules, a.model, a.remat)
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
        chips, share = mesh.size, mesh.shape["data"]
        took = time.perf_counter() - start
        print(f"v5e {slice_shape}, {chips} chips, {a.rules}{', remat' * a.remat}, compiled in {took:.0f} s")
        for name in ("argument", "output", "temp", "alias"):
            print(f"  {name + ' memory':18} {getattr(memory, f'{name}_size_in_bytes') / 2**20:10.1f} MiB a chip")
        total = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
        print(f"  {'in all':18} {(total - memory.alias_size_in_bytes) / 2**20:10.1f} MiB a chip")
        found = collective_bytes(compiled.as_text())
        for kind in KINDS:
            sizes = found.get(kind, [])
            largest = f", largest {sizes[0] / 2**20:.1f}" if sizes else ""
            print(f"  {kind:18} {sum(sizes) / 2**20:10.1f} MiB in {len(sizes)}{largest}")
        queue = int(np.prod(shapes.queue.keys.shape)) * 4
        moved = max((size for kind in KINDS if kind != "all-reduce" for size in found.get(kind, [])), default=0)
        print(
            f"  the queue: {queue / 2**20:.1f} MiB, {queue / share / 2**20:.1f} MiB a chip; moved: {moved / 2**20:.1f}"
        )
        if a.rules == "replicated" and moved > queue / 4:
            print("  FAILED: something of the queue's size is gathered", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
