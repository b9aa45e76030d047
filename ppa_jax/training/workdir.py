"""The files of a run: atomic writes, locks, and `config.json`, which ties a workdir to one run.

A workdir may be in a bucket, which has neither locks nor renames: two runs in one workdir are not detected there.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import jax
from absl import logging
from etils import epath

from ppa_jax import storage
from ppa_jax.config import fields as flatten
from ppa_jax.errors import UserError, disk_errors
from ppa_jax.training.provenance import made_with

CONFIG = "config.json"
MADE_WITH = "made_with"  # in config.json, no part of a run's identity
_LEFT_BEHIND = ("checkpoints", "export", "scores.json", "report.md")  # what runs write, after config.json
_ABSENT = "(absent)"
_SHOWN = 8


# ---- atomic writes and locks ----


@contextlib.contextmanager
def atomic(path: str | os.PathLike, size: int = 0) -> Iterator[Path]:
    """Gives a local path for writing a file or directory, which is moved to `path` at the end of the block.

    If the block raises, nothing appears. Leftovers of killed processes of this machine are removed. An existing file is
    replaced; an existing directory stays, because another process was faster. In a bucket the files of a directory
    appear one by one, config.json last.

    Args:
      path: its parents are created.
      size: in bytes, for the message about a full disk.

    Raises:
      UserError: the disk is full, or `path` cannot be written.
    """
    with disk_errors(path, size=size):
        if storage.in_bucket(path):
            with tempfile.TemporaryDirectory(prefix="ppa_jax-") as folder:
                unfinished = Path(folder, Path(path).name)
                yield unfinished
                storage.upload(unfinished, path)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = _unfinished(path)
        try:
            yield unfinished
            if unfinished.is_dir():
                _rename_directory(unfinished, path)
            else:
                with unfinished.open("rb") as file:
                    os.fsync(file.fileno())  # else a crash of the machine could leave an empty file at `path`
                unfinished.replace(path)
        finally:
            _remove(unfinished)


def _rename_directory(unfinished: Path, path: Path) -> None:
    try:
        unfinished.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        logging.info("%s was written by another process meanwhile", path)


def _unfinished(path: Path) -> Path:
    """A new name beside `path`, with host and process id; removes the files of killed processes."""
    prefix = f".{path.name}.{socket.gethostname()}"
    for left in path.parent.glob(f"{glob.escape(prefix)}-*-*.unfinished"):
        try:
            os.kill(int(left.name.split("-")[-2]), 0)
        except ProcessLookupError:
            _remove(left)
        except (ValueError, PermissionError):
            continue  # not of this form, or a running process of another user
    return path.with_name(f"{prefix}-{os.getpid()}-{uuid.uuid4().hex[:8]}.unfinished")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Holds the lock file of `path`, `.NAME.lock` beside it; the system releases it when the process is killed.

    A thread may hold it several times. If the file system has no locks, or the lock file belongs to another user, the
    block runs without one.

    Raises:
      filelock.Timeout: it is held elsewhere, and `wait` is False.
    """
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), is_singleton=True, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(blocking=False))
        except filelock.Timeout:
            if not wait:
                raise
            logging.info("another process is writing %s; waiting for it", path)
            stack.enter_context(lock.acquire())
        except OSError as error:
            logging.info("no lock on %s (%s)", path, error)
        yield


# ---- which run a workdir belongs to ----


def claim(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    may_change: tuple[str, ...] = (),
    advice: Mapping[str, str] | None = None,
) -> None:
    """Claims a free workdir for the run that `config` describes; raises like `check_identity` if it holds another.

    Call it when all other checks have passed: once corrected, the settings describe a different run.
    """
    if not check_identity(workdir, config, may_change=may_change, advice=advice):
        write_identity(workdir, config)


def write_identity(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes `config` (nested dicts of JSON values) to workdir/config.json, and what it is made with; on process 0."""
    if jax.process_index() != 0:
        return
    config = {**config, MADE_WITH: made_with()}
    with atomic(epath.Path(workdir) / CONFIG) as unfinished:
        unfinished.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def check_identity(
    workdir: str | os.PathLike,
    config: Mapping[str, Any],
    *,
    may_change: tuple[str, ...] = (),
    advice: Mapping[str, str] | None = None,
) -> bool:
    """Whether workdir already holds a run, which must be the one that `config` describes.

    `may_change` names fields, or groups by their dotted prefix (`eval`, `checkpoint.every`), that may differ.
    `advice` has, for some fields, what to do instead of changing them.

    Raises:
      UserError: another field differs (all of them are listed, old -> new); the reasons of `check_job`.
    """
    held = check_job(workdir, config.get("job"))
    if held is None:
        return False
    old = flatten({name: value for name, value in held.items() if name != MADE_WITH})
    new = flatten(json.loads(json.dumps(config)))  # tuples become lists, as in the file
    differ = [
        f"{field}: {old.get(field, _ABSENT)} -> {new.get(field, _ABSENT)}"
        for field in sorted({*old, *new})
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
        and not any(field == prefix or field.startswith(f"{prefix}.") for prefix in may_change)
    ]
    if differ:
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        fields = [line.partition(":")[0] for line in differ]
        instead = dict.fromkeys(text for field, text in (advice or {}).items() if field in fields)
        raise UserError(
            f"workdir: {workdir} holds a different run ({'; '.join(differ[:_SHOWN])}{more}); "
            + "; ".join(["give another --workdir, or the settings this run began with", *instead])
        )
    return True


def check_job(workdir: str | os.PathLike, job: str | None) -> dict[str, Any] | None:
    """The content of workdir/config.json, which must be of this job; None if the workdir is free.

    Raises:
      UserError: it is of another job, not of a run, or cannot be read; or a run's files are there without it.
    """
    directory = epath.Path(workdir)
    path = directory / CONFIG
    with storage.one_line(path):
        # Checked before config.json, because another process may be writing that now and the other files after it.
        left = [name for name in _LEFT_BEHIND if (directory / name).exists()]
        is_there = path.exists()
    if not is_there:
        if left:
            raise UserError(f"workdir: {workdir} has {left[0]} but no {CONFIG}; give another --workdir")
        return None
    try:
        with storage.one_line(path):
            held = json.loads(path.read_text())
        other = held.get("job")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a configuration ({error}); give another --workdir or delete this one") from error
    if other != job:
        whose = f"a run of the job {other}, and this is {job}" if other else f"a {CONFIG} that is not a run's"
        raise UserError(f"workdir: {workdir} holds {whose}; give another --workdir")
    return held


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; cached in the process until its size or modification time changes."""
    facts = path.stat()
    return _file_digest(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.cache
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
