"""A workdir belongs to one run."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import filelock
import pytest

import ppa_jax
from ppa_jax.errors import UserError
from ppa_jax.training.workdir import atomic, check_identity, check_job, file_digest, locked, write_identity

CONFIG = {"seed": 0, "data": {"pairs": ["en-de=x"], "max_length": 64}, "eval": {"every": 0}, "evaluate": {"k": 1}}


def changed(**fields):
    config = json.loads(json.dumps(CONFIG))
    for field, value in fields.items():
        *groups, name = field.split("__")
        at = config
        for group in groups:
            at = at[group]
        at[name] = value
    return config


def test_the_same_run_is_let_in_and_an_empty_workdir_is_free(tmp_path):
    assert not check_identity(tmp_path / "new", CONFIG)
    write_identity(tmp_path / "new", CONFIG | {"data": {"pairs": ("en-de=x",), "max_length": 64}})
    assert check_identity(tmp_path / "new", CONFIG)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["config.json"]


def test_another_run_is_refused_with_its_fields(tmp_path):
    write_identity(tmp_path, CONFIG)
    with pytest.raises(UserError) as error:
        check_identity(tmp_path, changed(seed=1, data__max_length=128, data__new=True), may_change=("eval",))
    assert str(error.value) == (
        f"workdir: {tmp_path} holds a different run "
        "(data.max_length: 64 -> 128; data.new: (absent) -> True; seed: 0 -> 1); "
        "give another --workdir, or the settings this run began with"
    )


def test_what_may_change_is_a_group_not_a_prefix_of_letters(tmp_path):
    write_identity(tmp_path, CONFIG)
    assert check_identity(tmp_path, changed(eval__every=5), may_change=("eval",))
    assert check_identity(tmp_path, changed(eval__every=5), may_change=("eval.every",))
    with pytest.raises(UserError, match=r"evaluate\.k: 1 -> 2"):
        check_identity(tmp_path, changed(evaluate__k=2), may_change=("eval",))


def test_a_file_is_hashed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    path, hashed, digest = tmp_path / "weights", [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *args: hashed.append(args) or digest(*args))
    for content, times in ((b"abc", 1), (b"abd", 2)):
        path.write_bytes(content)
        os.utime(path, ns=(times, times))
        assert file_digest(path) == file_digest(path) == hashlib.sha256(content).hexdigest()
        assert len(hashed) == times


@pytest.mark.parametrize("content", ["{", "[1]", ""])
def test_a_config_that_is_none(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json: not a configuration"):
        check_identity(tmp_path, CONFIG)


def test_a_workdir_is_of_one_job(tmp_path):
    assert check_job(tmp_path, "align") is None
    (tmp_path / "log").touch()  # whatever else lies there is no run's
    assert check_job(tmp_path, "align") is None
    write_identity(tmp_path, {"job": "align", "seed": 0})
    held = check_job(tmp_path, "align")
    assert held["made_with"]["ppa_jax"].startswith(ppa_jax.__version__) and " x " in held.pop("made_with")["processor"]
    assert held == {"job": "align", "seed": 0}
    written = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(written.replace(ppa_jax.__version__, "0.0.9"))
    assert check_identity(tmp_path, {"job": "align", "seed": 0}), "another version may continue the run"
    with pytest.raises(UserError, match=r"holds a run of the job align, and this is evaluate; give another --workdir$"):
        check_job(tmp_path, "evaluate")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')  # a Hugging Face model's directory
    with pytest.raises(UserError, match=r"holds a config.json that is not a run's; give another --workdir$"):
        check_job(tmp_path, "evaluate")


@pytest.mark.parametrize("name", ["checkpoints", "export", "scores.json", "report.md"])
def test_what_a_run_left_is_not_written_over_without_its_config(tmp_path, name):
    (tmp_path / name).mkdir()
    for check in (lambda: check_job(tmp_path, "align"), lambda: check_identity(tmp_path, CONFIG)):
        with pytest.raises(UserError, match=rf"has {name} but no config.json; give another --workdir$"):
            check()


# ---- atomic writes and locks ----


def test_a_file_appears_whole_or_stays_as_it_was(tmp_path):
    path = tmp_path / "new/file[1]"
    for text in ("first", "second"):
        with atomic(path) as unfinished:
            unfinished.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    with pytest.raises(ZeroDivisionError), atomic(path) as unfinished:
        unfinished.write_text("third")
        _ = 1 / 0
    assert path.read_text() == "second" and list(path.parent.iterdir()) == [path]


def test_a_directory_appears_whole_and_the_first_one_stays(tmp_path):
    for text in ("first", "second"):
        with atomic(tmp_path / "it") as unfinished:
            unfinished.mkdir()
            (unfinished / "text").write_text(text)
    assert (tmp_path / "it/text").read_text() == "first"
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "other") as unfinished:
        unfinished.mkdir()
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == [tmp_path / "it"]


KILLED = """
import os, sys
from pathlib import Path
from ppa_jax.training.workdir import atomic, locked
path = Path(sys.argv[1])
with locked(path, wait=False), atomic(path) as unfinished:
    unfinished.write_text("half of it")
    os._exit(9)
"""


def test_a_kill_leaves_no_lock_and_its_file_is_removed_by_the_next(tmp_path):
    path = tmp_path / "file[1]"
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode == 9
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == [".unfinished"]
    with locked(path, wait=False), atomic(path) as unfinished, atomic(path) as of_this_process:
        unfinished.write_text("whole")
        of_this_process.write_text("first")
    assert path.read_text() == "whole" and sorted(p.name for p in tmp_path.iterdir()) == [".file[1].lock", "file[1]"]


def test_what_the_system_refuses_is_one_line(tmp_path):
    with pytest.raises(UserError, match="/it: cannot be written: Read-only file system"), atomic(tmp_path / "it"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_lock_is_held_by_one_thread_at_a_time(tmp_path):
    def hold(wait):
        with locked(tmp_path / "it", wait=wait), locked(tmp_path / "it", wait=wait):
            return "held twice"

    with ThreadPoolExecutor(1) as other:
        with locked(tmp_path / "it", wait=False):
            with pytest.raises(filelock.Timeout):
                other.submit(hold, wait=False).result(timeout=10)
            waiting = other.submit(hold, wait=True)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=10) == "held twice"
