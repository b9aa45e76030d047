"""A workdir in a bucket: what is copied, when it counts, and checkpoints there."""

import errno
import json
import os
from pathlib import Path

import fake_storage
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppa_jax.errors import UserError
from ppa_jax.training import bucket
from ppa_jax.training.checkpoint import Checkpoints, holds_params, load_params, remove, save_params
from ppa_jax.training.workdir import check_identity, write_identity

ADDRESS = f"gs://{fake_storage.BUCKET}/runs/x"
STATE = {"a": jnp.arange(1000.0), "key": jax.random.key(7)}


def read(storage, name):
    return storage.objects[f"runs/x/{name}"][0]


def test_files_come_back_on_another_machine(home, storage, monkeypatch):
    with bucket.local(ADDRESS) as directory:
        path = Path(directory)
        (path / "deep/er").mkdir(parents=True)
        (path / "deep/er/a.bin").write_bytes(bytes(range(256)) * 2000)
        (path / "empty").write_text("")
        (path / "metrics").write_text("1")
        bucket.push()
        assert storage.names("runs/x/") == ["deep/er/a.bin", "empty", "files.json", "metrics"]
        written = storage.objects["runs/x/deep/er/a.bin"]
        (path / "metrics").write_text("12")
        (path / "deep").rename(path / "deeper")
        bucket.push()
        assert read(storage, "metrics") == b"12" and read(storage, "deeper/er/a.bin") == written[0]
        (path / "last").write_text("said at the end")
    assert not path.exists(), "the local copy is no longer of use"
    monkeypatch.setenv("HOME", str(home / "another"))
    before = dict(storage.objects)
    with bucket.local(ADDRESS) as directory:
        found = {p.relative_to(directory).as_posix(): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}
    assert found == {"deeper/er/a.bin": written[0], "empty": b"", "metrics": b"12", "last": b"said at the end"}
    assert storage.objects == before, "nothing changed, and nothing was copied"


def test_what_came_in_part_is_not_there(home, storage, monkeypatch):
    """A machine that is lost while it copies: the list of before counts."""
    with bucket.local(ADDRESS) as directory:
        (Path(directory) / "whole").write_text("1")
        bucket.push()
    copy = bucket.LocalCopy(ADDRESS, home / "lost")
    copy.pull()
    (home / "lost/export").mkdir()
    for name in ("export/config.json", "export/weights", "whole"):
        (home / "lost" / name).write_text("2")
    send = copy._send

    def lost():
        raise ConnectionError("the machine is gone")

    monkeypatch.setattr(copy, "_send", lambda name: send(name) if name != "export/weights" else lost())
    with pytest.raises(RuntimeError, match=r"not reached .the machine is gone"):
        copy.push()
    assert read(storage, "export/config.json") == b"2"
    with bucket.local(ADDRESS) as directory:
        assert os.listdir(directory) == ["whole"] and (Path(directory) / "whole").read_text() == "2", "as on a disk"


def test_what_was_not_copied_is_gone_on_the_same_machine(home, storage):
    """A directory whose files the bucket never had, too: an empty export/ would count as one that is made."""
    with pytest.raises(KeyboardInterrupt), bucket.local(ADDRESS) as directory:  # no push: as by kill -9
        (Path(directory) / "export").mkdir()
        (Path(directory) / "export/weights").write_text("1")
        raise KeyboardInterrupt
    assert (Path(directory) / "export/weights").exists()
    with bucket.local(ADDRESS) as again:
        assert again == directory and not os.listdir(again)


def test_another_process_sees_what_the_first_one_wrote(home, storage):
    first, other = (bucket.LocalCopy(ADDRESS, home / name) for name in ("first", "other"))
    first.pull(), other.pull()
    for moment in ("1", "22"):
        (home / "first" / moment).write_text(moment)
        (home / "first/scores").write_text(moment)
        first.push(), other.pull()
        assert sorted(os.listdir(home / "other")) == sorted(os.listdir(home / "first"))
        assert (home / "other/scores").read_text() == moment
    (home / "first/1").unlink()
    first.push(), other.pull()
    assert sorted(os.listdir(home / "other")) == ["22", "scores"]
    before = dict(storage.objects)
    other.push()
    assert storage.objects == before


def test_what_a_user_deletes_is_gone(home, storage, caplog):
    with bucket.local(ADDRESS) as directory:
        (Path(directory) / "kept").write_text("1")
        (Path(directory) / "tensorboard").write_text("1")
        bucket.push()
    del storage.objects["runs/x/tensorboard"]
    with bucket.local(ADDRESS) as directory:
        assert os.listdir(directory) == ["kept"] and "gs://bucket/runs/x/tensorboard: was deleted" in caplog.text
        bucket.push()
    assert list(json.loads(read(storage, "files.json"))) == ["kept"]


def test_a_file_renamed_while_it_is_sent(home, storage, monkeypatch):
    """It is not listed under the name that it had: no start would find it."""
    copy = bucket.LocalCopy(ADDRESS, home / "copy")
    copy.pull()
    (home / "copy/scores.tmp").write_text("1")
    found = copy._found()
    (home / "copy/scores.tmp").rename(home / "copy/scores")
    monkeypatch.setattr(copy, "_found", lambda: dict(found))
    copy.push()
    assert json.loads(read(storage, "files.json")) == {}
    monkeypatch.undo()
    copy.push()
    assert list(json.loads(read(storage, "files.json"))) == ["scores"]


def test_a_directory_that_no_run_has_made(home, storage):
    storage.put("runs/x/", b"")  # as a folder that was made by hand
    with bucket.local(ADDRESS):
        pass
    storage.objects.clear()
    storage.put("runs/x/checkpoints/3/checksums.json", b"{}")
    with pytest.raises(UserError, match=r"has no files.json, but checkpoints; give"), bucket.local(ADDRESS):
        pass
    assert storage.names("runs/x/") == ["checkpoints/3/checksums.json"]


def test_an_address_that_is_none(home, storage):
    with (
        pytest.raises(UserError, match="--workdir=gs://bucket/: give something in a bucket"),
        bucket.local("gs://bucket/"),
    ):
        pass
    assert not storage.objects and not os.listdir(home)


def test_a_run_is_the_same_on_every_machine(home, storage, monkeypatch):
    """Paths of the workdir in its settings are kept as addresses: each process and each home has others."""
    for place in ("one", "two"):
        monkeypatch.setenv("HOME", str(home / place))
        with bucket._directory(ADDRESS) as first, bucket.local(f"{ADDRESS}/") as directory:
            assert str(first) != directory and first.name == Path(directory).name == "x"
            config = {"init": f"{directory}/new_model", "seed": 1}
            assert check_identity(directory, config) == (place == "two")
            write_identity(directory, config)
            bucket.push()
    assert json.loads(read(storage, "config.json"))["init"] == f"{ADDRESS}/new_model"


def test_checkpoints_of_the_workdir_are_in_the_bucket(home, storage, caplog):
    """Written, kept, restored; an unfinished one is passed over and replaced, a damaged one found."""
    with bucket.local(ADDRESS) as directory:
        checkpoints = Checkpoints(f"{directory}/checkpoints", every=1, keep=2)
        assert checkpoints.restore(STATE) is None
        for step in (1, 2, 3):
            (Path(directory) / "metrics").write_text(str(step))
            checkpoints.save(step, STATE | {"a": step * STATE["a"]})
            checkpoints.wait()
            assert read(storage, "metrics") == str(step).encode(), "metrics came later than their checkpoint"
        checkpoints.close()
        assert os.listdir(directory) == ["metrics"]
        del storage.objects["runs/x/checkpoints/3/checksums.json"]
        checkpoints = Checkpoints(f"{directory}/checkpoints", every=1, keep=1)
        step, state = checkpoints.restore(STATE)
        assert step == 2 and "checkpoint gs://bucket/runs/x/checkpoints/3: not finished" in caplog.text
        np.testing.assert_array_equal(state["a"], 2 * STATE["a"])
        assert (jax.random.key_data(state["key"]) == jax.random.key_data(STATE["key"])).all()
        checkpoints.save(3, STATE)
        checkpoints.close()
        assert {name.split("/")[0] for name in storage.names("runs/x/checkpoints/")} == {"3"}
        name = max(storage.objects, key=lambda name: len(storage.objects[name][0]))
        content = bytearray(storage.objects[name][0])
        content[len(content) // 2] ^= 1
        storage.put(name, content)
        with pytest.raises(UserError, match="every checkpoint is damaged"):
            Checkpoints(f"{directory}/checkpoints", every=1, keep=1).restore(STATE)


def test_parameters_of_the_workdir_are_in_the_bucket(home, storage):
    with bucket.local(ADDRESS) as directory:
        trained = f"{directory}/seed-0/trained"
        assert not holds_params(trained)
        for factor in (1, 2):  # the second replaces the first
            save_params(trained, {"a": factor * STATE["a"]})
        assert holds_params(trained) and not os.listdir(directory)
        np.testing.assert_array_equal(load_params(trained)["a"], 2 * STATE["a"])
        remove(trained)
        assert not holds_params(trained) and not storage.names("runs/x/seed-0/")
        remove(trained)


def test_a_bucket_that_takes_nothing(home, storage):
    with (
        pytest.raises(UserError, match="gs://other/x: the bucket is not there"),
        bucket.local("gs://other/x"),
    ):
        pass
    storage.refuses = 403
    try:
        with (
            pytest.raises(UserError, match=r"may not be read and written .Forbidden"),
            bucket.local(ADDRESS),
        ):
            pass
    finally:
        storage.refuses = 0


def test_what_is_made_of_checkpoints_is_there_when_they_go(home, storage):
    with bucket.local(ADDRESS) as directory:
        save_params(f"{directory}/trained", {"a": STATE["a"]})
        (Path(directory) / "scores").write_text("1")
        remove(f"{directory}/trained")
        assert storage.names("runs/x/") == ["files.json", "scores"]


def test_a_network_that_fails_damages_nothing(home, storage, monkeypatch):
    """The save is told to have failed; the checkpoint is whole but for its sums, and the one before it stays."""

    def unreachable(*args, **kwargs):
        raise ConnectionError(errno.ENETUNREACH, "Network is unreachable")

    with bucket.local(ADDRESS) as directory:
        checkpoints = Checkpoints(f"{directory}/checkpoints", every=1, keep=1)
        checkpoints.save(1, STATE)
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(bucket.LocalCopy, "_found", unreachable)
            checkpoints.save(2, STATE)
            with pytest.raises(RuntimeError, match=r"was not reached .*Network is unreachable.; start again"):
                checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(bucket, "facts", unreachable)
            with pytest.raises(RuntimeError, match="was not reached"):
                checkpoints.restore(STATE)
        assert checkpoints.restore(STATE)[0] == 1
        checkpoints.save(2, STATE, force=True)
        checkpoints.close()
        assert checkpoints.latest_step() == 2


def test_what_a_run_that_fails_has_said_is_kept(home, storage):
    with pytest.raises(ValueError, match="the loss"), bucket.local(ADDRESS) as directory:
        bucket.push()
        (Path(directory) / "metrics").write_text("1")
        raise ValueError("the loss")
    assert read(storage, "metrics") == b"1"
