"""Which shards of the data a process has, wherever the mesh puts its devices."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ppa_jax.errors import UserError
from ppa_jax.training.sharding import (
    BATCH_AXES,
    RULES,
    make_mesh,
    own_copy,
    own_shards,
    specs_of,
    sum_over_shards,
    tree_shardings,
)


def shards(hosts: list[int], process: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of a mesh whose devices belong to these processes."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    mesh: Any = SimpleNamespace(
        devices=np.array([SimpleNamespace(process_index=host) for host in hosts]), size=len(hosts)
    )
    return own_shards(mesh)


def test_the_mesh_and_what_does_not_fit_it():
    mesh = make_mesh(4, 2)
    assert mesh.devices.shape == (2, 2) and mesh.size == 4
    assert make_mesh().devices.shape == (1, 8)
    for (data, fsdp), says in {
        (16, -1): "config.mesh.data=16: must be between 1 and the number of devices, 8",
        (4, 3): "config.mesh.fsdp=3: must divide mesh.data=4",
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            make_mesh(data, fsdp)


def test_hosts_that_are_no_neighbours(monkeypatch):
    """4 x 4 chips along a snake, hosts of 2 x 2: the first has the first two and the last two."""
    snake = [0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 2, 0, 0]
    assert shards(snake, 0, monkeypatch) == [0, 1, 14, 15] and shards(snake, 2, monkeypatch) == [10, 11, 12, 13]


def test_a_process_without_a_device_is_told(monkeypatch):
    with pytest.raises(UserError, match=r"mesh\.data=2 leaves process 2 without a device"):
        shards([0, 1], 2, monkeypatch)


KERNEL, TABLE, HEAD, BIAS = (
    "encoder/layer_0/attention/query/kernel",
    "encoder/embeddings/word_embeddings/embedding",
    "projection/hidden/kernel",
    "mlm_head/bias",
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("data, fsdp", [(1, 1), (4, 1), (4, 4), (4, 2)])
def test_copies_and_sums_of_shards(data, fsdp, dtype):
    """Kernels and word embeddings travel in the type of the products, all else and what does not travel in float32."""
    rng, mesh = np.random.default_rng(0), make_mesh(data, fsdp)
    shapes = {KERNEL: (8, 3), TABLE: (5, 8), HEAD: (8, 3), BIAS: (5,)}
    params = {name: rng.normal(size=shape).astype("f") for name, shape in shapes.items()}
    gradients = {name: rng.normal(size=(data, *shape)).astype("f") for name, shape in shapes.items()}
    specs = specs_of(tree_shardings(params, RULES["fsdp" if fsdp > 1 else "replicated"], mesh))
    each = P(BATCH_AXES)

    def on_shard(params, own):
        copy = own_copy(params, specs, dtype)
        own = jax.tree.map(lambda x: x[0], own)
        return jax.tree.map(lambda x: x[None], copy), sum_over_shards(own, specs, dtype)

    copies, sums = jax.jit(jax.shard_map(on_shard, mesh=mesh, in_specs=(specs, each), out_specs=(each, specs)))(
        params, gradients
    )
    for name, x in params.items():
        sent = dtype if name == KERNEL or (name == TABLE and fsdp > 1) else "float32"
        assert copies[name].dtype == (dtype if name == KERNEL else "float32")
        np.testing.assert_array_equal(copies[name].astype("f"), np.broadcast_to(x.astype(sent), (data, *x.shape)))
        assert sums[name].dtype == "float32"
        error = np.abs(sums[name] - gradients[name].sum(axis=0, dtype="d")).max()
        rounded = dtype == "bfloat16" and data > 1 and name in (KERNEL, TABLE)
        assert 1e-3 < error < 0.1 if rounded else error < 1e-6, name
