"""Checkpoints: bit for bit onto any devices, never a half one, damage found, errors in one line."""

import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from orbax.checkpoint import v1 as ocp

from ppa_jax.errors import UserError
from ppa_jax.training import checkpoint, hosts
from ppa_jax.training.checkpoint import (
    CHECKSUMS,
    Checkpoints,
    holds_params,
    load_latest_params,
    load_params,
    remove,
    save_params,
)


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    key_params: dict
    queue: jax.Array
    opt_state: optax.OptState
    key: jax.Array


def make_state(devices: int, step: int = 0, slots: int = 4) -> State:
    """Parameters sharded by rows, the queue over its second axis, the rest replicated; values depend on `step`."""
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])

    def put(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, P(*spec)))

    params = {"encoder": {"kernel": jnp.arange(64.0 * 33).reshape(64, 33) + step}, "head": {"bias": jnp.ones(3) / 3}}
    opt_state = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    queue = jax.random.normal(jax.random.key(step), (slots, 16, 8))
    return State(
        step=put(jnp.int32(step)),
        params={"encoder": {"kernel": put(params["encoder"]["kernel"], "data")}, "head": put(params["head"])},
        key_params=put(jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)),
        queue=put(queue, None, "data"),
        opt_state=put(opt_state),
        key=put(jax.random.key(step + 1)),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def raw(tree):
    """Leaves as bytes, random keys included."""
    keys = jax.dtypes.prng_key
    return [
        np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, keys) else x).tobytes()
        for x in jax.tree.leaves(tree)
    ]


def saved(directory, *steps, keep=5, devices=8) -> Checkpoints:
    checkpoints = Checkpoints(directory, every=0, keep=keep)
    for step in steps:
        assert checkpoints.save(step, make_state(devices, step), force=True)
    checkpoints.wait()
    return checkpoints


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def largest_file(directory: Path) -> Path:
    """A data file: the largest that Orbax wrote."""
    files = (p for p in directory.rglob("*") if p.is_file() and p.name != CHECKSUMS)
    return max(files, key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_saved_on_8_devices_restores_bit_for_bit_on_fewer(tmp_path, devices):
    saved(tmp_path / "c", 7).close()
    target = make_state(devices, 0)
    restored = Checkpoints(tmp_path / "c", every=0, keep=1).restore(abstract(target))
    assert restored is not None
    step, state = restored
    assert step == 7
    assert jax.tree.structure(state) == jax.tree.structure(target)
    assert raw(state) == raw(make_state(8, 7)) != raw(target)
    assert jax.tree.all(jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), state, target))
    assert len(state.queue.sharding.device_set) == devices


def test_donating_the_state_right_after_save_does_not_reach_the_checkpoint(tmp_path):
    sharding = make_state(8).queue.sharding
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1.0, t), donate_argnums=0)
    state = {str(i): jax.device_put(jnp.zeros((4, 16, 8192)), sharding) for i in range(8)}
    checkpoints = Checkpoints(tmp_path, every=1, keep=1)
    for count in range(1, 4):
        state = step(state)
        checkpoints.save(count, state)
        for _ in range(5):
            state = step(state)
        checkpoints.wait()
        restored = checkpoints.restore(abstract(state))
        assert restored is not None and restored[0] == count
        assert {float(v) for x in jax.tree.leaves(restored[1]) for v in np.unique(x)} == {count + 5.0 * (count - 1)}


def test_due_forced_and_repeated_saves(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=3, keep=2)
    assert [s for s in range(10) if checkpoints.due(s)] == [3, 6, 9]
    assert not checkpoints.save(2, make_state(1, 2)) and checkpoints.restore(make_state(1)) is None
    assert checkpoints.save(3, make_state(1, 3)) and not checkpoints.save(3, make_state(1, 3), force=True)
    assert checkpoints.save(4, make_state(1, 4), force=True)
    checkpoints.close()
    assert checkpoints.steps()[-1] == 4
    assert not any(Checkpoints(tmp_path, every=0, keep=2).due(s) for s in range(10))


def test_the_newest_keep_stay_in_number_order(tmp_path):
    saved(tmp_path, 9, 10, 11, 100, keep=2).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["100", "11"]


def test_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved("runs/x", 1).close()
    monkeypatch.chdir("/")
    assert Checkpoints(tmp_path / "runs/x", every=0, keep=1).steps() == [1]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


DAMAGE = {
    "truncated": (lambda p: os.truncate(p, p.stat().st_size // 2), "does not match its checksum (bytes"),
    "one bit flipped": (flip, "does not match its checksum (crc32"),
    "deleted": (os.remove, "is missing"),
    "garbage": (lambda p: p.write_bytes(b"\0" * p.stat().st_size), "does not match its checksum (crc32"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(tmp_path, warnings, name):
    saved(tmp_path / "good", 5, 6).close()
    harm, reason = DAMAGE[name]
    for file in [p.relative_to(tmp_path / "good") for p in (tmp_path / "good/6").rglob("*") if p.is_file()]:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        target = tmp_path / "bad" / file
        if target.stat().st_size == 0 and name != "deleted":
            continue
        harm(target)
        warnings.clear()
        restored = Checkpoints(tmp_path / "bad", every=0, keep=2).restore(abstract(make_state(2)))
        assert restored is not None and restored[0] == 5, file
        assert raw(restored[1]) == raw(make_state(8, 5))
        assert len(warnings) == 1 and "\n" not in warnings[0] and str(tmp_path / "bad/6") in warnings[0]
        if target.name != CHECKSUMS:
            assert reason in warnings[0] and target.name in warnings[0]


def test_orbax_alone_does_not_notice_a_flipped_bit(tmp_path):
    """Why there is a checksum file at all: should this fail one day, Orbax has learnt it and checksums.json can go."""
    saved(tmp_path, 1).close()
    flip(largest_file(tmp_path / "1"))
    state = ocp.load(tmp_path / "1", abstract(make_state(8)))
    assert raw(state) != raw(make_state(8, 1))


def test_a_damaged_checkpoint_is_neither_counted_nor_kept(tmp_path, warnings):
    saved(tmp_path, 1, 2, 3).close()
    for step in "23":
        os.remove(largest_file(tmp_path / step))
    checkpoints = Checkpoints(tmp_path, every=1, keep=2)
    restored = checkpoints.restore(abstract(make_state(8)))
    assert restored is not None and restored[0] == 1
    assert (tmp_path / "2").exists()  # only once there is something newer may it go
    checkpoints.save(3, make_state(8, 3))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]
    restored = Checkpoints(tmp_path, every=0, keep=2).restore(abstract(make_state(1)))
    assert restored is not None and restored[0] == 3


def test_all_damaged_is_an_error_of_one_line(tmp_path, warnings):
    saved(tmp_path, 1, 2).close()
    for step in "12":
        os.truncate(largest_file(tmp_path / step), 10)
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(steps 1, 2\)") as error:
        Checkpoints(tmp_path, every=0, keep=1).restore(abstract(make_state(1)))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_another_shape_tree_or_type_names_the_leaf(tmp_path):
    saved(tmp_path, 1).close()
    checkpoints = Checkpoints(tmp_path, every=0, keep=1)
    state = make_state(1)
    with pytest.raises(UserError, match=r"queue is float32\[4, 16, 8\] in the checkpoint, float32\[6, 16, 8\] in this"):
        checkpoints.restore(abstract(make_state(1, slots=6)))
    with pytest.raises(UserError, match=r"params/pooler is absent in the checkpoint, float32\[2\] in this run"):
        checkpoints.restore(state.replace(params=state.params | {"pooler": jnp.ones(2)}))
    with pytest.raises(UserError, match=r"params/head/bias is float32\[3\] in the checkpoint, absent in this run"):
        checkpoints.restore(state.replace(params={"encoder": state.params["encoder"]}))
    with pytest.raises(UserError, match=r"queue is float32\[4, 16, 8\] in the checkpoint, bfloat16\[4, 16, 8\]"):
        checkpoints.restore(state.replace(queue=state.queue.astype(jnp.bfloat16)))


TRAIN = """
import sys, jax, jax.numpy as jnp
from ppa_jax.training.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], every=1, keep=2)
state = {str(i): jnp.zeros((64, 1024)) for i in range(4)}
restored = checkpoints.restore(state)
step, state = restored or (0, state)
assert all((leaf == step).all() for leaf in state.values()), step
advance = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
print("started", step, flush=True)
while step < int(sys.argv[2]):
    step, state = step + 1, advance(state)
    checkpoints.save(step, state)
    print("saving", step, flush=True)
checkpoints.close()
print("ended", step, flush=True)
"""


def test_kill_9_at_any_moment_leaves_a_good_checkpoint_no_older_than_the_last_but_one(tmp_path):
    """A run that saves all the time, killed at moments of chance: what it restores is right, and never more than the
    save under way and the one before it are lost."""
    moments, begun = random.Random(0), 0
    for _ in range(4):
        run = subprocess.Popen([sys.executable, "-c", TRAIN, tmp_path, "100000"], stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        started = run.stdout.readline().split()  # empty if the state restored was wrong
        assert started[0] == "started" and begun - 1 <= int(started[1]) <= begun + 1
        time.sleep(moments.uniform(0.1, 0.6))
        os.kill(run.pid, signal.SIGKILL)
        out, _ = run.communicate()
        complete = re.findall(r"saving (\d+)\n", out)  # the last line may be cut off
        begun = int(complete[-1]) if complete else int(started[1])
    ended = subprocess.run(
        [sys.executable, "-c", TRAIN, tmp_path, str(begun + 2)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split()[-2:] == ["ended", str(begun + 2)]
    assert sorted(int(p.name) for p in tmp_path.iterdir()) == [begun + 1, begun + 2]  # and no litter


PROCESS = """
import sys, time, jax, numpy as np
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
from ppa_jax.training import checkpoint, hosts
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ppa_jax.training.checkpoint import Checkpoints
sharding = NamedSharding(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), P("data"))
array = lambda step: jax.make_array_from_callback((8, 64), sharding, lambda at: np.full((8, 64), float(step))[at])
checkpoints = Checkpoints(sys.argv[1], every=1, keep=2)
restored = checkpoints.restore({"x": jax.ShapeDtypeStruct((8, 64), "float32", sharding=sharding)})
first = restored[0] if restored else 0
assert restored is None or all((s.data == first).all() for s in restored[1]["x"].addressable_shards)
for step in (first + 1, first + 2):
    checkpoints.save(step, {"x": array(step)})
checkpoints.close()
atomic, params = checkpoint.atomic, sys.argv[1] + "-params"
checkpoint.atomic = lambda path: time.sleep(0.5) or atomic(path)  # the first process alone writes the checksums
checkpoint.save_params(params, {"x": np.full(8, first)})
assert (checkpoint.load_params(params)["x"] == first).all()  # at once, by both
print("restored", first)
"""


def test_two_processes_write_one_checkpoint_and_agree_on_what_is_damaged(tmp_path, warnings):
    def run() -> list[str]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, tmp_path, address, str(i)], env=env, stdout=subprocess.PIPE
            )
            for i in range(2)
        ]
        try:
            return [process.communicate(timeout=120)[0].decode().splitlines()[-1] for process in processes]
        finally:
            for process in processes:
                process.kill()

    assert run() == ["restored 0"] * 2
    flip(largest_file(tmp_path / "2"))  # of the newest checkpoint
    assert run() == ["restored 1"] * 2
    restored = Checkpoints(tmp_path, every=0, keep=1).restore({"x": jnp.zeros((8, 64))})
    assert restored is not None and restored[0] == 3 and (restored[1]["x"] == 3).all()


def test_a_process_that_does_not_see_the_checkpoint_of_the_first_one_does_not_go_on(tmp_path, monkeypatch):
    """A shared file system may lag: process 0 sees step 2, this one does not yet."""
    checkpoints = saved(tmp_path, 1)
    monkeypatch.setattr(hosts, "broadcast_from_process_0", lambda value: (2, [1, 2]))
    with pytest.raises(RuntimeError, match=r"2: is not there, but process 0 sees it; .* start again in a moment"):
        checkpoints.restore(abstract(make_state(1)))


@pytest.mark.parametrize("stage", ["4.orbax-checkpoint-tmp", "4"])
def test_an_unfinished_checkpoint_is_ignored_and_cleared(tmp_path, warnings, stage):
    saved(tmp_path, 3, 4).close()
    os.remove(tmp_path / "4" / CHECKSUMS)
    (tmp_path / "4").rename(tmp_path / stage)
    (tmp_path / "notes").mkdir()
    checkpoints = Checkpoints(tmp_path, every=1, keep=2)
    restored = checkpoints.restore(abstract(make_state(8)))
    assert restored is not None and restored[0] == 3 and checkpoints.steps() == [3]
    checkpoints.save(5, make_state(8, 5))
    checkpoints.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5", "notes"]


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, UserError, "no space left on the device; make room or give another directory"),
        (errno.ESTALE, RuntimeError, "cannot be written: Stale file handle; start again in a moment"),
    ],
)
def test_a_save_that_fails_is_one_line_and_spares_the_older_ones(tmp_path, monkeypatch, number, kind, says):
    checkpoints = saved(tmp_path, 1, keep=1)

    def fail(path):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic", fail)
        checkpoints.save(2, make_state(8, 2), force=True)
        with pytest.raises(kind, match=rf"^{tmp_path}: {says} [^\n]*$"):
            checkpoints.wait()
    assert checkpoints.steps() == [1]
    assert checkpoints.save(2, make_state(8, 2), force=True)  # once there is room, it goes on
    checkpoints.close()
    assert checkpoints.steps() == [2]


def test_a_disk_that_is_really_full(tmp_path, caplog):
    """A file system of 1 MB: the writing threads of Orbax and TensorStore meet the error themselves."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        checkpoints = saved(disk / "c", 1)
        checkpoints.save(2, {"x": jnp.arange(500_000.0)}, force=True)
        with pytest.raises(UserError, match="no space left on the device"):
            checkpoints.close()
        assert not [record for record in caplog.records if record.exc_info]  # no traceback from its threads either
        restored = Checkpoints(disk / "c", every=0, keep=1).restore(abstract(make_state(8)))
        assert restored is not None and raw(restored[1]) == raw(make_state(8, 1))
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_second_start_is_kept_out(tmp_path):
    code = textwrap.dedent("""
        import sys
        from ppa_jax.training.checkpoint import Checkpoints
        Checkpoints(sys.argv[1], every=1, keep=1)
    """)
    second = [sys.executable, "-c", code, tmp_path / "c"]
    first, again = (
        Checkpoints(tmp_path / "c", every=1, keep=1) for _ in range(2)
    )  # a process does not keep itself out
    kept_out = subprocess.run(second, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "UserError" in kept_out.stderr and "c: another process is using this workdir" in kept_out.stderr
    first.close()
    again.close()
    subprocess.run(second, timeout=60, check=True)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/c: cannot be written: Not a directory"):
        Checkpoints(tmp_path / "file" / "c", every=0, keep=1)


def test_latest_params_reads_that_entry_alone(tmp_path, monkeypatch, warnings):
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.close()
    asked = []
    load = checkpoint.ocp.load
    monkeypatch.setattr(checkpoint.ocp, "load", lambda path, tree: asked.append(tree) or load(path, tree))
    step, params = load_latest_params(tmp_path)
    assert step == 2 and list(asked[0]) == ["params"]
    assert jax.tree.structure(params) == jax.tree.structure(make_state(1).params)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    assert raw(params) == raw(make_state(1, 2).params)
    flip(largest_file(tmp_path / "2"))
    assert load_latest_params(tmp_path)[0] == 1 and len(warnings) == 1
    for empty in (tmp_path / "none", tmp_path / "1"):
        with pytest.raises(UserError, match="holds no checkpoint"):
            load_latest_params(empty)


def test_params_round_trip_and_refusals(tmp_path):
    tree = {"encoder": {"layer_0": {"kernel": np.random.default_rng(0).random((5, 3), np.float32)}}, "e": {}}
    save_params(tmp_path / "p", {"a": jnp.ones(2)})
    save_params(tmp_path / "p", tree)  # replaces
    loaded = load_params(tmp_path / "p")
    assert jax.tree.structure(loaded) == jax.tree.structure(tree) and raw(loaded) == raw(tree)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("...")
    with pytest.raises(UserError, match="mine: exists and holds something other"):
        save_params(tmp_path / "mine", tree)
    assert (tmp_path / "mine/thesis.tex").exists()
    with pytest.raises(UserError, match="holds no parameters"):
        load_params(tmp_path / "mine")
    flip(largest_file(tmp_path / "p"))
    with pytest.raises(UserError, match=r"damaged: .* does not match its checksum"):
        load_params(tmp_path / "p")


def test_a_program_that_forgets_to_close_still_ends(tmp_path):
    code = textwrap.dedent("""
        import sys, jax.numpy as jnp
        from ppa_jax.training.checkpoint import Checkpoints
        Checkpoints(sys.argv[1], every=1, keep=1).save(1, {"x": jnp.ones((1000, 1000))})
    """)
    subprocess.run([sys.executable, "-c", code, tmp_path], timeout=60, check=True)


# ---- in a bucket ----

ADDRESS = "gs://bucket/runs/x"


def test_checkpoints_in_a_bucket(home, storage, warnings):
    """Written, kept, restored; an unfinished one is passed over and replaced, a damaged one found."""
    saved(ADDRESS, 1, 2, 3, keep=2).close()
    del storage.objects[f"runs/x/3/{CHECKSUMS}"]
    checkpoints = Checkpoints(ADDRESS, every=1, keep=1)
    step, state = checkpoints.restore(abstract(make_state(2)))
    assert step == 2 and raw(state) == raw(make_state(8, 2))
    checkpoints.save(3, make_state(8, 3))
    checkpoints.close()
    assert {name.split("/")[0] for name in storage.names("runs/x/")} == {"3"}
    name = max(storage.objects, key=lambda name: len(storage.objects[name][0]))
    content = bytearray(storage.objects[name][0])
    content[len(content) // 2] ^= 1
    storage.put(name, content)
    with pytest.raises(UserError, match="every checkpoint is damaged"):
        checkpoints.restore(abstract(make_state(2)))
    assert "does not match its checksum" in warnings[-1]


def test_parameters_in_a_bucket(home, storage):
    assert not holds_params(ADDRESS)
    for factor in (1, 2):  # the second replaces the first
        save_params(ADDRESS, {"a": factor * jnp.arange(3.0)})
    assert holds_params(ADDRESS)
    np.testing.assert_array_equal(load_params(ADDRESS)["a"], [0, 2, 4])
    remove(ADDRESS)
    assert not storage.names("runs/x/")
    remove(ADDRESS)


def test_a_network_that_fails_damages_nothing(home, storage):
    checkpoints = saved(ADDRESS, 1, keep=1)
    storage.refuses = 403  # gcsfs tries again for a minute what may pass, such as 503
    try:
        with pytest.raises(UserError, match="may not be read and written"):
            checkpoints.restore(abstract(make_state(1)))
    finally:
        storage.refuses = 0
    restored = checkpoints.restore(abstract(make_state(1)))
    assert restored is not None and restored[0] == 1
