"""Which shards of the data a process has, wherever the mesh puts its devices."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.training.mesh import own_shards


def shards(hosts: list[list[int]], process: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of a mesh whose devices, data x model, belong to these processes."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    devices = np.array([[SimpleNamespace(process_index=host) for host in row] for row in hosts])
    mesh: Any = SimpleNamespace(devices=devices, shape={"data": len(hosts), "model": len(hosts[0])})
    return own_shards(mesh)


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
