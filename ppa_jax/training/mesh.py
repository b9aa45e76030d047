"""The mesh of devices, and the table that says where parameters live on it.

Three axes: `replicas` and `fsdp`, which split the batch and the queue together, and `model`, which splits matrices. A
rule is (pattern, PartitionSpec); the first pattern found in a parameter's path decides. The optimizer's moments carry
their parameter's path, so they follow it.
"""

from __future__ import annotations

import os
import re
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ppa_jax.errors import UserError, reason

DATA = ("replicas", "fsdp")  # what splits the batch: mesh.data devices

Rules = tuple[tuple[str, P], ...]

RULES: dict[str, Rules] = {
    # Every device holds everything; gradients are summed over all. Right for mBERT on any current accelerator.
    "replicated": ((r".*", P()),),
    # Parameters, moments and the key tree are split over `fsdp` and gathered layer by layer (ZeRO 3).
    "fsdp": (
        (r"word_embeddings/embedding$", P(None, "fsdp")),
        (r"kernel$", P("fsdp", None)),
        (r".*", P()),
    ),
    # Megatron: heads and feed-forward columns split over `model`, one sum after attention and one after feed-forward.
    # The word embeddings are stored by columns; look-ups and predictions split them anew (jobs/align.py).
    "tensor": (
        (r"word_embeddings/embedding$", P(None, "model")),
        (r"(query|key|value|intermediate)/kernel$", P(None, "model")),
        (r"(query|key|value|intermediate)/bias$", P("model")),
        (r"layer_\d+/(attention|feed_forward)/output/kernel$", P("model", None)),
        (r".*", P()),
    ),
}


def check_platform() -> None:
    """Raises UserError where JAX finds no device of the platform in JAX_PLATFORMS."""
    try:
        jax.devices()
    except Exception as error:  # of several kinds, by the platform and by what of it is installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX_PLATFORMS={asked}: JAX finds no such device ({reason(error)}); install jax[cuda12], say, or unset it"
        ) from error


def make_mesh(data: int, model: int, devices: list[Any] | None = None, *, fsdp: int = -1) -> Mesh:
    """A mesh of data x model devices; -1 for `data` takes all that are there.

    Of the devices along `data`, `fsdp` neighbours split what the fsdp rules split (-1: all); the others repeat it.

    Raises:
      UserError: when the product is not the number of devices, with the values that would fit.
    """
    devices = jax.devices() if devices is None else devices
    if model < 1 or len(devices) % model:
        raise UserError(f"mesh.model={model} does not divide the {len(devices)} devices")
    data = len(devices) // model if data == -1 else data
    if data < 1 or data * model > len(devices):
        raise UserError(f"mesh.data={data} x mesh.model={model} wants more than the {len(devices)} devices there are")
    fsdp = data if fsdp == -1 else fsdp
    if fsdp < 1 or data % fsdp:
        raise UserError(f"mesh.fsdp={fsdp}: must divide mesh.data={data}, or be -1, for all of it")
    wired = jax.make_mesh((data, model), ("data", "model"), devices=devices[: data * model]).devices
    return Mesh(wired.reshape(-1, fsdp, model), (*DATA, "model"), (AxisType.Auto,) * 3)


def data_shards(mesh: Mesh) -> int:
    """Into how many parts the batch is split."""
    return mesh.shape["replicas"] * mesh.shape["fsdp"]


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


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a host batch [A, own shards, ...] on the mesh, its second axis split; does not wait."""
    sharding = NamedSharding(mesh, P(None, DATA))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_whole(tree: Any, mesh: Mesh, spec: P = P()) -> Any:  # noqa: B008 - it is immutable
    """Puts host arrays, of which every process has the whole, on the mesh, split as `spec` says; does not wait."""
    sharding = NamedSharding(mesh, spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), tree)


def own_shards(mesh: Mesh) -> list[int]:
    """The parts of the batch for which this process has a device.

    They need not be neighbours: on a torus the mesh follows the wires, not the hosts. With an axis `model` wider than a
    host, several processes have the same ones, and each makes their batches.

    Raises UserError for a process without any device in the mesh.
    """
    me = jax.process_index()
    shards = mesh.devices.reshape(data_shards(mesh), -1)
    rows = [i for i, row in enumerate(shards) if any(device.process_index == me for device in row)]
    if not rows:
        raise UserError(
            f"mesh.data={data_shards(mesh)} x mesh.model={mesh.shape['model']} leaves process {me} without a device; "
            "take all devices (mesh.data=-1), or start fewer processes"
        )
    return rows


def to_host(tree: Any) -> Any:
    """NumPy copies of a tree of arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    from jax.experimental import multihost_utils

    return jax.tree.map(lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)
