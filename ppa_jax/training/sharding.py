"""The mesh of devices, how parameters are placed on it, and what a shard of the batch gathers and sums.

The mesh has two axes, `data` and `fsdp`. Both split the batch and the queue. With the rules "fsdp", devices along
`fsdp` also hold a part of each matrix, and devices along `data` hold copies. A rule is (pattern, PartitionSpec); the
first pattern found in a parameter's path applies. The optimizer's moments contain their parameter's path, so the same
rule applies to them.

A step runs in `jax.shard_map`: `own_copy` gathers all parameters for a shard, `sum_over_shards` sums the gradients.
"""

from __future__ import annotations

import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.errors import UserError, reason

BATCH_AXES = ("data", "fsdp")  # they split the batch over mesh.data devices in all

Rules = tuple[tuple[str, P], ...]

RULES: dict[str, Rules] = {
    # Every device holds all parameters; gradients are summed over all devices.
    "replicated": ((r".*", P()),),
    # Parameters, moments and key parameters are split over `fsdp` and gathered for the step (ZeRO 3).
    "fsdp": (
        (r"word_embeddings/embedding$", P(None, "fsdp")),
        (r"kernel$", P("fsdp", None)),
        (r".*", P()),
    ),
}

KERNELS = r"(encoder|mlm_head)/.*kernel$"  # used only in matrix products, in the type of these
WORD_EMBEDDINGS = r"word_embeddings/embedding$"


def check_platform() -> None:
    """Raises UserError if JAX finds no device of the platform in JAX_PLATFORMS."""
    try:
        jax.devices()
    except Exception as error:  # its type depends on the platform and on what is installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such device ({reason(error)}); install jax[cuda12], say, or unset it"
        ) from error


def make_mesh(data: int = -1, fsdp: int = -1, devices: list[Any] | None = None) -> Mesh:
    """A mesh of `data` devices, -1 for all, in groups of `fsdp` neighbours (-1: one group) that split parameters.

    Raises:
      UserError: when these numbers do not fit the devices, naming the setting.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) if data == -1 else data
    if not 1 <= data <= len(devices):
        raise UserError(f"config.mesh.data={data}: must be between 1 and the number of devices, {len(devices)}, or -1")
    fsdp = data if fsdp == -1 else fsdp
    if fsdp < 1 or data % fsdp:
        raise UserError(f"config.mesh.fsdp={fsdp}: must divide mesh.data={data}, or be -1 for all of it")
    wired = jax.make_mesh((data,), ("data",), devices=devices[:data]).devices
    return Mesh(wired.reshape(-1, fsdp), BATCH_AXES, (AxisType.Auto,) * 2)


def path_name(path: tuple[Any, ...]) -> str:
    """`encoder/layer_0/attention/query/kernel` of a key path of jax.tree_util."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec_for(name: str, shape: tuple[int, ...], rules: Rules, mesh: Mesh) -> P:
    """The first matching rule, or P() where the array's sizes do not divide (or it has too few axes)."""
    spec = next(spec for pattern, spec in rules if re.search(pattern, name))
    if len(spec) > len(shape):
        return P()
    for size, axis in zip(shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            logging.info("%s %s stays whole: %d does not divide by %s=%d", name, shape, size, axis, mesh.shape[axis])
            return P()
    return spec


def tree_shardings(tree: Any, rules: Rules, mesh: Mesh) -> Any:
    """NamedSharding for every leaf of a tree of arrays or shapes, by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, spec_for(path_name(path), tuple(leaf.shape), rules, mesh)), tree
    )


def specs_of(shardings: Any) -> Any:
    """The PartitionSpec of every leaf: what `jax.shard_map` wants of a tree of NamedShardings."""
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def own_copy(params: Any, specs: Any, dtype: Any) -> Any:
    """All parameters for one shard, inside `shard_map`; those split along `fsdp` are gathered.

    Kernels are converted to `dtype`, the type of the products. Word embeddings are sent in `dtype` but stay float32,
    because the gradients of look-ups and predictions are summed in them. The gradient with respect to the copy is the
    shard's own: JAX sums nothing over the shards; `sum_over_shards` does, once per step.
    """

    def one(path: Any, x: jax.Array, spec: P) -> jax.Array:
        name, stored = path_name(path), x.dtype
        is_split = "fsdp" in spec
        if re.search(KERNELS, name) or (is_split and re.search(WORD_EMBEDDINGS, name)):
            x = x.astype(dtype)
        if is_split:
            x = jax.lax.all_gather(x, "fsdp", axis=spec.index("fsdp"), tiled=True)
        return as_varying(x if re.search(KERNELS, name) else x.astype(stored))

    return jax.tree_util.tree_map_with_path(one, params, specs)


def sum_over_shards(gradients: Any, specs: Any, dtype: Any) -> Any:
    """The gradients of all shards, summed, in float32 and split as `specs` say; inside `shard_map`.

    The gradients of kernels and word embeddings, which are nearly all, are sent and added in `dtype`: half the bytes in
    bfloat16. (The projection head stays in float32.)
    """
    rounded = jax.lax.axis_size(BATCH_AXES) > 1

    def one(path: Any, x: jax.Array, spec: P) -> jax.Array:
        if rounded and re.search(f"{KERNELS}|{WORD_EMBEDDINGS}", path_name(path)):
            x = x.astype(dtype)
        if "fsdp" in spec:
            x = jax.lax.psum_scatter(x, "fsdp", scatter_dimension=spec.index("fsdp"), tiled=True)
            x = jax.lax.psum(x, "data")
        else:
            x = jax.lax.psum(x, BATCH_AXES)
        return x.astype(jnp.float32)

    return jax.tree_util.tree_map_with_path(one, gradients, specs)


def as_varying(x: jax.Array) -> jax.Array:
    """`x`, marked inside `shard_map` as an array that may differ between shards."""
    missing = tuple(axis for axis in BATCH_AXES if axis not in jax.typeof(x).mat.varying)
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a host batch [A, own shards, ...] on the mesh, split over its second axis; does not wait."""
    sharding = NamedSharding(mesh, P(None, BATCH_AXES))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole(tree: Any, mesh: Mesh, spec: P = P()) -> Any:  # noqa: B008 - it is immutable
    """Puts host arrays, whole on every process, on the mesh, split as in `spec`; does not wait."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def own_shards(mesh: Mesh) -> list[int]:
    """The shards of the batch for which this process has a device.

    They need not be adjacent: on a torus the mesh follows the links, not the hosts.

    Raises UserError for a process without any device in the mesh.
    """
    me = jax.process_index()
    own = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == me]
    if not own:
        raise UserError(
            f"config.mesh.data={mesh.size} leaves process {me} without a device; take all devices (mesh.data=-1), or "
            "start fewer processes"
        )
    return own


def to_host(tree: Any) -> Any:
    """NumPy copies of a tree of arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)
