"""Which checkpoints in a directory are whole: a list of sizes and CRC-32 sums, written last, makes one count.

Orbax by itself notices missing and truncated files and flipped bits in its indexes, but restores flipped bits inside an
array without a word; and it cannot say that a checkpoint is complete in all its files. `checksums.json` says both.
"""

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from ppa_jax.errors import UserError
from ppa_jax.storage import in_bucket
from ppa_jax.training import bucket

CHECKSUMS = "checksums.json"
NONE = -1  # in place of a step
_READ_BYTES = 1 << 22


def entries(directory: epath.Path) -> list[epath.Path]:
    """What is in a directory; nothing where there is none, as a bucket has no empty ones."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def finished_steps(directory: epath.Path) -> list[int]:
    """Steps with a certified checkpoint, ascending."""
    steps = [int(path.name) for path in entries(directory) if path.name.isdigit()]
    return sorted(step for step in steps if (directory / str(step) / CHECKSUMS).exists())


def remove_unfinished(directory: epath.Path) -> None:
    """Removes what a killed or failed save left behind; never a finished checkpoint."""
    for path in entries(directory):
        leftover = re.fullmatch(r"\d+(\.orbax-checkpoint-tmp.*)?", path.name)
        if leftover and path.is_dir() and not (path / CHECKSUMS).exists():
            path.rmtree(missing_ok=True)


def newest_whole(directory: epath.Path, damaged: set[int]) -> int | None:
    """The newest step that passes its checksums; damaged ones met on the way are reported and added to `damaged`.

    The same on all processes.

    Raises:
      UserError: all are damaged.
      RuntimeError: the processes do not see the same steps.
    """
    steps = finished_steps(directory)
    unfinished = [p.name for p in entries(directory) if p.name.isdigit() and int(p.name) not in steps]
    for name in unfinished:
        logging.warning("checkpoint %s: not finished (no %s), ignored", directory / name, CHECKSUMS)
    for step in reversed(steps):
        reason = damage(directory / str(step))
        if reason is None:
            return step
        logging.warning("checkpoint %s: damaged, trying the one before it: %s", directory / str(step), reason)
        damaged.add(step)
    if steps:
        raise UserError(
            f"{directory}: every checkpoint is damaged (steps {', '.join(map(str, steps))}); "
            "put a good copy back, or delete the directory to begin again"
        )
    _damaged_on(NONE, False)  # whoever sees a step asks the others about it
    return None


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from _files(path)
        elif not path.name.startswith(CHECKSUMS):
            yield path


def _crc32(path: epath.Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def _facts(path: epath.Path) -> dict[str, Any]:
    """Size and sum of a file; in a bucket those that the storage itself computed when the file came to it."""
    if in_bucket(path):
        return bucket.facts(path)
    return {"bytes": path.stat().length, "crc32": _crc32(path)}


def write_checksums(path: epath.Path) -> None:
    """Certifies a checkpoint as whole: from here on it counts. Written beside, then renamed: never torn."""
    bucket.push()  # what a run that goes on from it expects beside it: the metrics up to its step
    files = {p.relative_to(path).as_posix(): _facts(p) for p in _files(path)}
    beside = path / f"{CHECKSUMS}.tmp"
    beside.write_text(json.dumps({"files": files}, indent=1))
    beside.replace(path / CHECKSUMS)


def damage(path: epath.Path) -> str | None:
    """What is wrong with a checkpoint, or None; the same verdict on all processes, which share the reading."""
    try:
        files = json.loads((path / CHECKSUMS).read_text())["files"]
        share = sorted(files.items())[jax.process_index() :: jax.process_count()]
        reason = next(filter(None, (_damaged_file(path / name, expected) for name, expected in share)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _must_be_of_the_file(path, error)
        reason = f"{CHECKSUMS} is unreadable ({type(error).__name__})"
    found = _damaged_on(int(path.name) if path.name.isdigit() else 0, reason is not None)  # parameters have no step
    if reason is None and found.any():
        reason = f"found by process {int(found.argmax())}"
    return reason


def _damaged_on(step: int, is_damaged: bool) -> np.ndarray:
    """Which processes found a step damaged, [processes]. Raises RuntimeError if others look at another step."""
    if jax.process_count() == 1:
        return np.array([is_damaged])
    steps, damaged = np.asarray(multihost_utils.process_allgather(np.array([step, is_damaged], np.int32))).T
    if (steps != step).any():
        told = ", ".join("none" if seen == NONE else str(seen) for seen in steps)
        raise RuntimeError(
            f"the processes see different checkpoints in the workdir ({told}): its file system has not shown all of it "
            "to each of them yet; start again in a moment"
        )
    return damaged.astype(bool)


def _must_be_of_the_file(path: epath.Path, error: Exception) -> None:
    """Raises the error of a bucket that was not reached: that does not make a checkpoint a damaged one."""
    if in_bucket(path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        raise error


def _damaged_file(path: epath.Path, expected: Mapping[str, Any]) -> str | None:
    try:
        if (length := path.stat().length) != expected["bytes"]:
            return f"{path.name} has {length} bytes instead of {expected['bytes']}"
        if "crc32" in expected:
            same = _crc32(path) == expected["crc32"]
        else:  # of a bucket; for a copy on a disk, which the copying has checked, its size must do
            same = not in_bucket(path) or bucket.facts(path)["crc32c"] == expected["crc32c"]
        return None if same else f"{path.name} does not match its checksum"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        _must_be_of_the_file(path, error)
        return f"{path.name} cannot be read ({error.strerror or error})"
