"""Files that appear complete or not at all, and a full disk told in one line.

A folder or array is written under another name and renamed at the end. A process killed meanwhile leaves only that
other name, which the next one to write the same removes. Of several processes that want the same, as those of one
machine at the start of a run, one writes and the others wait for it; where the file system knows no locks all write,
and the first one's stays.
"""

import contextlib
import errno
import fcntl
import mmap
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.errors import UserError


def publish(directory: Path, fill: Callable[[Path], None]) -> None:
    """Makes `directory` appear at once, with what `fill` writes into the empty folder it is given, or not at all."""
    with disk_errors(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(directory):
            if directory.is_dir():
                return
            work = _unfinished(directory)
            work.mkdir()
            try:
                fill(work)
                try:
                    work.rename(directory)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    logging.info("data: %s was prepared by another process meanwhile", directory)
            finally:
                shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Held by one at a time, of threads and of processes that see the file system; it ends with the process."""
    with contextlib.ExitStack() as stack:
        try:
            # It stays: to remove it would let two in.
            file = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logging.info("data: another process makes %s; waiting for it", path)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # the lock of another user, or a file system without locks
            logging.info("data: no lock on %s (%s)", path, error)
        yield


def _unfinished(path: Path) -> Path:
    """A name beside `path` for it while it is written; removes what killed processes of this machine left of it."""
    host = socket.gethostname()
    for left in path.parent.glob(f".{path.name}-{host}-*-*"):
        try:
            os.kill(int(left.name.split("-")[-2]), 0)
        except ProcessLookupError:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        except (ValueError, PermissionError):
            continue  # not of this form, or a living process of another user
    return path.with_name(f".{path.name}-{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def disk_errors(directory: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a UserError that names `directory`."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord's writer reports the system's message in a RuntimeError
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "quota exceeded" in str(error):
            raise UserError(
                f"{directory}: the disk is full while corpora are prepared; free some space or choose another cache "
                "directory (a prepared corpus takes about twice its text)"
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"{directory}: cannot write here ({error}); choose another cache directory") from error
        raise


def write_array(path: Path, rows: Iterable[np.ndarray], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Writes blocks of rows as one .npy file, which appears only when complete.

    Written in order rather than through a memory map: on a full disk a write raises, a map kills the process.
    """
    written = 0
    with disk_errors(path.parent), _alone(path):
        if path.is_file():
            return
        work = _unfinished(path)
        try:
            with work.open("wb") as file:
                header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_2_0(file, header)
                for block in rows:
                    file.write(np.ascontiguousarray(block, dtype).tobytes())
                    written += len(block)
            if written != shape[0]:
                raise RuntimeError(f"{path}: {written} rows instead of {shape[0]}")
            work.replace(path)
        finally:
            work.unlink(missing_ok=True)


def pickled_form(array: np.ndarray) -> Any:
    """What another process needs of an array: the name of the file that np.load has mapped, not its content.

    Any other array, including a part of a mapped one, is returned as it is.
    """
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        return str(array.filename)
    return array


def unpickled(form: Any) -> np.ndarray:
    """The array from its `pickled_form`."""
    return np.load(form, mmap_mode="r") if isinstance(form, str) else form
