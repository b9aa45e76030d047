"""Compiles the alignment step for v5e slices with the TPU compiler, on a machine without a TPU.

    make tpu-compile        # or: python -m benchmarks.tpu_compile --slices=2x4,16x16 --rules=replicated,fsdp

Prints for each slice and rule the memory of one chip, the bytes that a step sends between chips, and a lower bound of
its time on a v5e, or that it does not fit; fails if a quarter of the queue or more is sent in anything but a sum. Batch
4,096, queue 65,536, bfloat16, packed rows of 256 tokens. With two numbers of layers it compiles at both depths and
extrapolates linearly to the whole model, which shows the memory per layer without the compiler's own rematerialisation.
Requires libtpu: installed, or libtpu.so in TPU_LIBRARY_PATH (`make tpu-compile` installs it).
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
import time

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault(
    "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
)  # no chip is opened, so another program may compile at the same time
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.align_step import RandomPairs
from ppa_jax.data.batches import PairBatches
from ppa_jax.data.schedule import Schedule
from ppa_jax.evaluation.report import markdown
from ppa_jax.jobs.align.collectives import KINDS, collectives
from ppa_jax.jobs.align.flops import flops
from ppa_jax.jobs.align.method import make_step
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.state import init_state, state_shardings
from ppa_jax.model.bert import Encoder, EncoderConfig
from ppa_jax.model.heads import MaskedLMHead
from ppa_jax.training import optimizer, sharding

BATCH, QUEUE = 4096, 65_536
MODELS = {
    "mbert": EncoderConfig(),
    "xlmr-large": EncoderConfig(
        model_type="xlm-roberta", vocab_size=250_002, hidden_size=1024, num_layers=24, num_heads=16,
        intermediate_size=4096, max_positions=514, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
        position_offset=2,
    ),
}  # fmt: skip
# Of a v5e chip: bfloat16 operations a second, and bytes a second of a link in one direction (Austin et al. 2025, How to
# Scale Your Model). A chip has four links, but the axes of a small slice do not wrap around: a corner has two.
PEAK, LINK = 197e12, 45e9


def links(slice_shape: str) -> int:
    """That every chip of the slice has: two for an axis of 16, which wraps around, else one."""
    return sum(2 if int(n) >= 16 else 1 for n in slice_shape.split("x"))


def measure(config: EncoderConfig, slice_shape: str, rules: str, a: argparse.Namespace) -> dict[str, float]:
    """Compiles one step; MiB a chip of each kind, operations of a chip, and seconds of compiling."""
    topology = topologies.get_topology_desc(f"v5e:{slice_shape}", "tpu")
    chips = len(topology.devices)
    mesh = sharding.make_mesh(fsdp=a.fsdp if rules == "fsdp" else -1, devices=list(topology.devices))
    lengths = np.clip(np.random.default_rng(1).lognormal(3.3, 0.45, (200_000, 2)), 10, 64).astype(int)
    pairs = RandomPairs(lengths, config.vocab_size)
    batches = PairBatches(
        [pairs], Schedule([lengths], BATCH, 0), pairs, max_length=128, row_length=256, mask_rate=0.15,
        shards=mesh.size, accumulate=a.accumulate,
    )  # fmt: skip
    method = Method(
        queue_size=QUEUE,
        layer=config.num_layers,
        max_tlm_length=131,
        remat=a.remat,
        scan=a.scan,
        dtype=jnp.dtype(jnp.bfloat16),
    )
    adamw = optimizer.adamw(optimizer.schedule(3e-5, 0.1, 1000), weight_decay=0.01, clip=1.0)

    def init():
        token = jnp.zeros((1, 1), jnp.int32)
        words = jnp.zeros((config.vocab_size, config.hidden_size))
        params = {
            "encoder": Encoder(config).init(jax.random.key(0), token, token, token)["params"],
            "mlm_head": MaskedLMHead(config).init(jax.random.key(1), words[:1])["params"],
        }
        return init_state(params, method, config, adamw, batch_size=BATCH, seed=0)

    shapes = jax.eval_shape(init)
    shardings = state_shardings(shapes, sharding.RULES[rules], mesh)
    rows = NamedSharding(mesh, P(None, sharding.BATCH_AXES))

    def abstract(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map(abstract, shapes, shardings)
    batch = jax.tree.map(lambda x: abstract(x, rows), batches.make(0))
    start = time.perf_counter()
    compiled = make_step(method, config, adamw, mesh, shardings).lower(state, batch).compile()
    took = time.perf_counter() - start
    memory, moved, mib = compiled.memory_analysis(), collectives(compiled.as_text()), 2**20
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "state and batch": held / mib,
        "temporary": memory.temp_size_in_bytes / mib,
        "peak": memory.peak_memory_in_bytes / mib,
        **{kind: sum(x.bytes * x.turns for x in moved if x.kind == kind) / mib for kind in KINDS},
        "sent": sum(x.sent for x in moved) / mib,
        "largest of no gradient": max((x.bytes for x in moved if "reduce" not in x.kind), default=0) / mib,
        "TFLOP": flops(method, config, batches, steps=1) / chips / 1e12,
        "compiled, s": took,
    }


def whole(config: EncoderConfig, slice_shape: str, rules: str, a: argparse.Namespace) -> dict[str, float]:
    """`measure` of all layers, or the line through two depths at the model's own."""
    depths = [int(n) for n in a.layers.split(",")] if a.layers else [config.num_layers]
    found = [measure(dataclasses.replace(config, num_layers=n), slice_shape, rules, a) for n in depths]
    if len(found) == 1:
        return found[0]
    steps = (config.num_layers - depths[0]) / (depths[1] - depths[0])
    line = {name: x + steps * (found[1][name] - x) for name, x in found[0].items()}
    return line | {"compiled, s": sum(x["compiled, s"] for x in found)}


def main() -> int:
    """Prints the table; 1 if the queue, or something as large, is moved."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--models", default="mbert", help=f"of {', '.join(MODELS)}")
    p.add_argument("--slices", default="2x4,16x16")
    p.add_argument("--rules", default="replicated", help=f"of {', '.join(sharding.RULES)}")
    p.add_argument("--fsdp", type=int, default=-1, help="chips that split the parameters by the fsdp rules; -1: all")
    p.add_argument("--layers", default="", help="all; or fewer; or two numbers, for a line through both")
    p.add_argument("--accumulate", type=int, default=1)
    p.add_argument("--remat", action="store_true", help="as config.train.remat")
    p.add_argument("--scan", action="store_true", help="as config.train.scan")
    a = p.parse_args()
    for name, known in (("models", MODELS), ("rules", sharding.RULES)):
        if unknown := set(getattr(a, name).split(",")) - set(known):
            p.error(f"--{name}: {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    rows, status = [], 0
    cells = [(m, s, r) for m in a.models.split(",") for s in a.slices.split(",") for r in a.rules.split(",")]
    for model, slice_shape, rules in cells:
        try:
            x = whole(MODELS[model], slice_shape, rules, a)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            wanted = re.search(r"[\d.]+[MG]\w*", str(error).split("required", 1)[-1])
            rows.append([model, f"{slice_shape}, {rules}", f"does not fit: {wanted[0] if wanted else error}"])
            print("; ".join(rows[-1]), file=sys.stderr, flush=True)
            continue
        rows.append([
            model,
            f"{slice_shape}, {rules}" + (f" over {a.fsdp}" if rules == "fsdp" and a.fsdp > 0 else ""),
            f"{x['state and batch']:,.0f}",
            f"{x['temporary']:,.0f}",
            f"{x['state and batch'] + x['temporary']:,.0f}",
            f"{x['peak']:,.0f}",
            *(f"{x[kind]:,.1f}" for kind in KINDS),
            f"{x['sent']:,.0f}",
            f"{1e3 * x['sent'] * 2**20 / LINK / links(slice_shape):,.1f}",
            f"{1e15 * x['TFLOP'] / PEAK:,.1f}",
            f"{x['compiled, s']:.0f}",
        ])  # fmt: skip
        print("; ".join(rows[-1]), file=sys.stderr, flush=True)
        share = QUEUE * 300 * 4 / 2**20 / 4  # a quarter of the queue
        if rules == "replicated" and x["largest of no gradient"] > share:
            print("  FAILED: something of the queue's size is gathered", file=sys.stderr)
            status = 1
    counts = (
        "MiB: state and batch",
        "temporary",
        "in all",
        "peak",
        *KINDS,
        "sent",
        "ms: links",
        "ms: products",
        "s: compiling",
    )
    print(markdown.table(("", "slice, rules", *counts), [row + [""] * (2 + len(counts) - len(row)) for row in rows]))
    return status


if __name__ == "__main__":
    sys.exit(main())
