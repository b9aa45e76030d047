"""The cache of prepared corpora: what several processes want at once is written by one, while the others wait.

Where the file system has no locks all of them write, and the first copy stays.
"""

import contextlib
import errno
import mmap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax.errors import UserError
from ppa_jax.training.workdir import atomic, locked


def publish(directory: Path, fill: Callable[[Path], None]) -> None:
    """Makes `directory` appear at once, with what `fill` writes into the empty folder it is given, or not at all."""
    with disk_errors(directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory, wait=True):
        if directory.is_dir():
            return
        with atomic(directory) as work, disk_errors(directory.parent):
            work.mkdir()
            fill(work)


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
    with locked(path, wait=True):
        if path.is_file():
            return
        with atomic(path) as work, disk_errors(path.parent), work.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for block in rows:
                file.write(np.ascontiguousarray(block, dtype).tobytes())
                written += len(block)
            if written != shape[0]:
                raise RuntimeError(f"{path}: {written} rows instead of {shape[0]}")


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
