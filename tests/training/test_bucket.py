"""A workdir in a bucket: what is copied, when it counts, and checkpoints there."""

import json
import os
from pathlib import Path

import fake_storage
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from ppa_jax.errors import NotYet, UserError
from ppa_jax.training import bucket
from ppa_jax.training.checkpoint import Checkpoints, holds_params, load_params, remove, save_params

ADDRESS = f"gs://{fake_storage.BUCKET}/runs/x"
STATE = {"a": jnp.arange(1000.0), "key": jax.random.key(7)}


@pytest.fixture
def home(monkeypatch, tmp_path, storage):
    """A machine that has seen no run, and an empty bucket."""
    storage.objects.clear()
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def read(storage, name):
    return storage.objects[f"runs/x/{name}"][0]


def test_files_come_back_on_another_machine(home, storage, monkeypatch):
    with bucket.local_copy(ADDRESS) as directory:
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
    with bucket.local_copy(ADDRESS) as directory:
        found = {p.relative_to(directory).as_posix(): p.read_bytes() for p in Path(directory).rglob("*") if p.is_file()}
    assert found == {"deeper/er/a.bin": written[0], "empty": b"", "metrics": b"12", "last": b"said at the end"}
    assert storage.objects == before, "nothing changed, and nothing was copied"


def test_what_came_in_part_is_not_there(home, storage, monkeypatch):
    """A machine that is lost while it copies: the list of before counts."""
    with bucket.local_copy(ADDRESS) as directory:
        (Path(directory) / "whole").write_text("1")
    copy = bucket.LocalCopy(ADDRESS, home / "lost")
    copy.pull()
    (home / "lost/export").mkdir()
    for name in ("export/config.json", "export/weights", "whole"):
        (home / "lost" / name).write_text("2")
    send = copy._send

    def lost():
        raise ConnectionError("the machine is gone")

    monkeypatch.setattr(copy, "_send", lambda name: send(name) if name != "export/weights" else lost())
    with pytest.raises(NotYet, match=r"not reached .the machine is gone"):
        copy.push()
    assert read(storage, "export/config.json") == b"2"
    with bucket.local_copy(ADDRESS) as directory:
        assert os.listdir(directory) == ["whole"]


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


def test_processes_of_one_machine_have_copies_of_their_own(home):
    with bucket.local_copy(ADDRESS) as one, bucket._directory(ADDRESS) as other:
        assert one != str(other) and other.name == "x"
    with bucket.local_copy(ADDRESS) as again:
        assert again == one, "paths of the workdir in a run's settings stay what they were"


def test_checkpoints_of_the_workdir_are_in_the_bucket(home, storage, caplog):
    """Written, kept, restored; an unfinished one is passed over and replaced, a damaged one found."""
    with bucket.local_copy(ADDRESS) as directory:
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
    with bucket.local_copy(ADDRESS) as directory:
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
        pytest.raises(UserError, match="--workdir=gs://other/x: the bucket is not there") as refused,
        bucket.local_copy("gs://other/x"),
    ):
        pass
    assert refused.value.status == 2
    storage.refuses = 403
    try:
        with (
            pytest.raises(UserError, match=r"may not be read and written .Forbidden") as refused,
            bucket.local_copy(ADDRESS),
        ):
            pass
    finally:
        storage.refuses = 0
    assert refused.value.status == 2


ERRORS = [
    (ImportError("No module named 'gcsfs'"), UserError, "No module named 'gcsfs'.*pip install .* gcsfs"),
    (ConnectionError(), NotYet, "was not reached .ConnectionError.; start again"),
    (ZeroDivisionError("a bug"), ZeroDivisionError, "a bug"),
    (OSError(28, "No space left on device"), OSError, "No space left"),  # of the local copy: main.py has words for it
]


@pytest.mark.parametrize(("error", "kind", "says"), ERRORS)
def test_what_the_way_to_a_bucket_may_say(error, kind, says):
    with pytest.raises(kind, match=says) as told, bucket._one_line(epath.Path(ADDRESS)):
        raise error
    assert type(told.value) is kind


def test_the_list_is_readable(home, storage):
    with bucket.local_copy(ADDRESS) as directory:
        (Path(directory) / "a").write_text("abc")
    assert json.loads(read(storage, "files.json"))["a"][0] == 3
