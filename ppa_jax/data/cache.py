"""Files that several processes need at the same time: one process writes them while the others wait.

If the file system has no locks, all of them write, and the first result is kept.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax.errors import disk_errors
from ppa_jax.training.workdir import atomic, locked

WAY_OUT = "choose another cache directory"


def publish(directory: Path, fill: Callable[[Path], None]) -> None:
    """Creates `directory` atomically, with what `fill` writes to the empty directory that it is given.

    Raises UserError if the disk is full or the directory cannot be written.
    """
    with disk_errors(directory.parent, way_out=WAY_OUT):
        directory.parent.mkdir(parents=True, exist_ok=True)
    with locked(directory, wait=True):
        if directory.is_dir():
            return
        with atomic(directory) as work, disk_errors(directory.parent, way_out=WAY_OUT):
            work.mkdir()
            fill(work)


def write_array(path: Path, rows: Iterable[np.ndarray], dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Writes blocks of rows as one .npy file, atomically. Raises UserError like `publish`.

    Written sequentially, not through a memory map: on a full disk a write raises an error, but a map kills the process.
    """
    written = 0
    with locked(path, wait=True):
        if path.is_file():
            return
        with atomic(path) as work, disk_errors(path.parent, way_out=WAY_OUT), work.open("wb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(file, header)
            for block in rows:
                file.write(np.ascontiguousarray(block, dtype).tobytes())
                written += len(block)
            if written != shape[0]:
                raise RuntimeError(f"{path}: {written} rows instead of {shape[0]}")


def pickled_form(array: np.ndarray) -> Any:
    """What to pickle for another process: the file name of an array that np.load has mapped, else the array.

    A slice of a mapped array is pickled like any other array.
    """
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
        return str(array.filename)
    return array


def unpickled(form: Any) -> np.ndarray:
    """The array from its `pickled_form`."""
    return np.load(form, mmap_mode="r") if isinstance(form, str) else form
