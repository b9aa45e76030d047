"""Which shards of the data a process has, wherever the mesh puts its devices."""

import re
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.training.mesh import data_shards, make_mesh, own_shards


def shards(hosts: list[list[int]], process: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of a mesh whose devices, data x model, belong to these processes."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    devices = np.array([[SimpleNamespace(process_index=host) for host in row] for row in hosts])
    shape = {"replicas": 1, "fsdp": len(hosts), "model": len(hosts[0])}
    mesh: Any = SimpleNamespace(devices=devices[None], shape=shape)
    return own_shards(mesh)


def test_the_mesh_and_what_does_not_fit_it():
    mesh = make_mesh(4, 2, fsdp=2)
    assert mesh.devices.shape == (2, 2, 2) and data_shards(mesh) == 4
    assert mesh.devices.reshape(4, 2).tolist() == make_mesh(4, 2).devices.reshape(4, 2).tolist()
    assert make_mesh(-1, 1).devices.shape == (1, 8, 1)
    for (data, model, fsdp), says in {
        (-1, 3, -1): "mesh.model=3 does not divide the 8 devices",
        (16, 1, -1): "mesh.data=16 x mesh.model=1 wants more than the 8 devices",
        (4, 2, 3): "mesh.fsdp=3: must divide mesh.data=4",
    }.items():
        with pytest.raises(UserError, match=re.escape(says)):
            make_mesh(data, model, fsdp=fsdp)


def test_hosts_that_are_no_neighbours(monkeypatch):
    """4 x 4 chips along a snake, hosts of 2 x 2: the first has the first two and the last two."""
    snake = [[host] for host in (0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 2, 2, 2, 2, 0, 0)]
    assert shards(snake, 0, monkeypatch) == [0, 1, 14, 15] and shards(snake, 2, monkeypatch) == [10, 11, 12, 13]


def test_a_model_axis_wider_than_a_host(monkeypatch):
    hosts = [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert [shards(hosts, process, monkeypatch) for process in range(4)] == [[0], [0], [1], [1]]


def test_a_process_without_a_device_is_told(monkeypatch):
    with pytest.raises(UserError, match=r"mesh\.data=2 x mesh\.model=1 leaves process 2 without a device"):
        shards([[0], [1]], 2, monkeypatch)
