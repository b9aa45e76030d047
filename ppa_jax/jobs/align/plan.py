"""The resources of a run: `--config.plan=true` for the local devices, or `v5e:4x4` for a TPU slice.

Compiles the step for the given settings and data, and reads memory and traffic from the compiled program. Nothing is
trained or written. For TPUs it works on any machine with libtpu, installed or in TPU_LIBRARY_PATH.
"""

from __future__ import annotations

import os
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.data.batches import Batch, PairBatches
from ppa_jax.errors import UserError, reason
from ppa_jax.evaluation.report import markdown
from ppa_jax.jobs.align.collectives import KINDS, collectives
from ppa_jax.jobs.align.flops import flops
from ppa_jax.jobs.align.settings import Method
from ppa_jax.jobs.align.state import State
from ppa_jax.model.families import EncoderConfig
from ppa_jax.training.freezing import split
from ppa_jax.training.loop import count_parameters
from ppa_jax.training.sharding import BATCH_AXES

HERE = "true"


def devices(plan: str) -> list[Any] | None:
    """The devices of the plan: None for those of this machine, else those of a topology, which can only compile.

    Raises UserError for a name that the TPU compiler does not know, or without the TPU compiler.
    """
    if plan == HERE:
        return None
    if ":" not in plan:
        raise UserError(f"config.plan={plan}: write true (the devices that are here), or a slice of TPUs as v5e:4x4")
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no query of the cloud's metadata server
    os.environ.setdefault(
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
    )  # no chip is opened, so another program may compile at the same time
    try:
        return list(topologies.get_topology_desc(plan, "tpu").devices)
    except Exception as error:  # the compiler raises many types
        raise UserError(
            f"config.plan={plan}: the TPU compiler does not take it ({reason(error)}); it needs a slice such as "
            "v5e:4x4, and libtpu, installed (pip install libtpu) or in TPU_LIBRARY_PATH"
        ) from error


def describe(
    step: Any,
    shapes: State,
    shardings: State,
    batches: PairBatches,
    config: EncoderConfig,
    method: Method,
) -> str:
    """Compiles the step and tabulates parameters, memory of a device, operations and bytes of a step."""
    step_sharding: Any = shardings.step
    mesh = step_sharding.mesh
    rows = NamedSharding(mesh, P(None, BATCH_AXES))
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    first: Batch = batches.make(0)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), first)
    compiled = step.lower(state, batch).compile()
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    mib, operations = 2**20, flops(method, config, batches)
    table: list[tuple[str, Any]] = [
        ("devices", f"{mesh.size} x {mesh.devices.flat[0].device_kind}"),
        ("parameters trained", f"{count_parameters(split(shapes.params, method.frozen)[0]):,}"),
        ("parameters of the key encoder", f"{count_parameters(shapes.key_params):,}"),
        ("memory of a device: state and batch", f"{held / mib:,.0f} MiB"),
        ("memory of a device: temporary", f"{memory.temp_size_in_bytes / mib:,.0f} MiB"),
        ("operations of a step, real tokens", f"{operations / 1e12:,.3f} TFLOP"),
        ("the same for each device", f"{operations / 1e12 / mesh.size:,.3f} TFLOP"),
    ]
    if mesh.devices.flat[0].platform != "cpu":  # the CPU compiler does not count temporary memory
        table.insert(5, ("memory of a device, at the peak", f"{memory.peak_memory_in_bytes / mib:,.0f} MiB"))
    moved = collectives(compiled.as_text()) if mesh.size > 1 else []
    for kind in KINDS:
        found = [x for x in moved if x.kind == kind]
        if found:
            size, count = sum(x.turns * x.bytes for x in found), sum(x.turns for x in found)
            table.append((f"{kind}, a device and step", f"{size / mib:,.1f} MiB in {count}"))
    sent = f"{sum(x.sent for x in moved) / mib:,.1f} MiB, by ring algorithms" if moved else "nothing"
    table.append(("sent by a device in a step", sent))
    return markdown.table(("plan", ""), table)
