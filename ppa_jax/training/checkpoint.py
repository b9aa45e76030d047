"""Checkpoints: written asynchronously, verified before use, restored onto any number of devices.

Layout: `<directory>/<step>/` is one checkpoint as Orbax writes it, plus `checksums.json`, which is added last.

Guarantees:

- *Asynchronous, and safe with donated buffers.* `save` returns once every device buffer is on the host; Orbax's threads
  write the files. (On CPU the host view is the buffer itself: JAX then copies instead of donating it.)
- *Atomic.* A checkpoint counts only with its `checksums.json`, which is written after Orbax has committed the rest. A
  run that is killed leaves at most an unfinished directory, which is never restored.
- *Damage is detected.* Orbax detects missing and truncated files and flipped bits in its indexes, but silently restores
  flipped bits inside an array. So each file's size and CRC are checked before anything is restored.
- *Older checkpoints* are deleted only once a newer one is complete: there must be space for keep + 1.
- *Any devices.* Arrays are stored in global coordinates; the shardings are those requested at restore.

Directories may be local or in a bucket (`gs://...`), where the storage computes the checksums. With several processes,
all of them must call every function, and the directory must be shared.
"""

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging
from etils import epath
from orbax.checkpoint import v1 as ocp

from ppa_jax import storage
from ppa_jax.errors import UserError, disk_errors
from ppa_jax.training import hosts
from ppa_jax.training.workdir import atomic, locked

CHECKSUMS = "checksums.json"


class Checkpoints:
    """The checkpoints of one run: `restore` at the start, `save` during training."""

    def __init__(self, directory: str | os.PathLike, *, every: int, keep: int) -> None:
        """Args:
        directory: created if absent.
        every: steps between two checkpoints; 0: only forced ones are written.
        keep: how many of the newest are kept, at least 1.
        """
        self.directory = storage.absolute(directory)
        self.every, self.keep = every, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._current: int | None = None  # the step last saved or restored, which need not be saved again
        self._damaged: set[int] = set()
        self._lock = contextlib.ExitStack()
        with _disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0 and not storage.in_bucket(self.directory):
                try:
                    self._lock.enter_context(locked(Path(self.directory), wait=False))
                except filelock.Timeout:
                    raise UserError(
                        f"{self.directory}: another process is using this workdir; wait for it to finish, or give "
                        "another --workdir"
                    ) from None

    def due(self, step: int) -> bool:
        """Whether `step` is a multiple of `every`."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def save(self, step: int, state: Any, *, force: bool = False) -> bool:
        """Starts writing `state` as checkpoint `step` if it is due or forced; returns whether it did.

        `state` is a tree of jax.Arrays (typed random keys included), possibly sharded over devices and processes. It
        may be donated as soon as this returns. If an earlier save is still running, this waits for it. An existing
        checkpoint of the same step is replaced.

        Raises:
          UserError: the disk is full or not writable. Errors of an earlier save are raised here or in `wait`.
        """
        if not (force or self.due(step)) or step == self._current:
            return False
        self.wait()
        path = self.directory / str(step)
        with _disk_errors(self.directory):
            if jax.process_index() == 0:
                _remove_unfinished(self.directory)
                # Not by Orbax's `overwrite`: there every process checks for an old checkpoint while the first one
                # removes it, and those that no longer find it wait at a different barrier for ever.
                path.rmtree(missing_ok=True)
            with _context():
                response = ocp.save_async(path, state)
        self._current = step
        self._pending = self._thread.submit(self._finish, step, path, response)
        return True

    def _finish(self, step: int, path: epath.Path, response: ocp.AsyncResponse) -> None:
        """In the background: waits for the files, adds the checksums, deletes old checkpoints."""
        response.result()
        if jax.process_index() == 0:
            _write_checksums(path)
            # Damaged checkpoints do not count as kept, and are deleted now that there is a newer one.
            self._damaged.discard(step)
            good = [other for other in self.steps() if other not in self._damaged]
            for old in {*good[: -self.keep], *self._damaged}:
                (self.directory / str(old)).rmtree(missing_ok=True)
            self._damaged.clear()

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The step and the state of the newest undamaged checkpoint; None if there is no checkpoint yet.

        `abstract_state` is a tree of arrays or of jax.ShapeDtypeStruct with shardings, which determine the devices of
        each array. A damaged checkpoint is reported in a warning and the previous one is used; it is deleted once
        another has been saved.

        Raises:
          UserError: all checkpoints are damaged, or the newest good one has arrays of other names, shapes or types.
          RuntimeError: this process does not see the checkpoint that process 0 sees.
        """
        self.wait()
        with storage.one_line(self.directory):
            step = _newest_good(self.directory, self._damaged)
            if step is None:
                return None
            path = self.directory / str(step)
            _check_leaves(path, abstract_state)
            with _context():
                shapes = jax.tree.map(
                    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), abstract_state
                )
                state = ocp.load(path, shapes)
        self._current = step
        return step, state

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, ascending; they are not verified."""
        return _finished_steps(self.directory)

    def wait(self) -> None:
        """Waits until the last save is on disk; raises its error (UserError for a full disk)."""
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                with _disk_errors(self.directory):
                    pending.result()
            except Exception:
                self._current = None  # it was not saved
                raise

    def close(self) -> None:
        """Waits like `wait`, ends the thread and releases the lock. Call it before the program ends."""
        with self._lock:
            try:
                self.wait()
            finally:
                self._thread.shutdown()


def restore_or_init(
    checkpoints: Checkpoints, init: Callable[..., Any], arguments: tuple[Any, ...], shapes: Any, shardings: Any
) -> tuple[int, Any]:
    """The step and the state that training starts from: the newest checkpoint's, or 0 and a new state.

    Args:
      checkpoints: of the run.
      init: makes a new state of `arguments`; jitted here.
      arguments: of `init`.
      shapes: the state's, as by `jax.eval_shape`.
      shardings: a tree like `shapes`; says on which devices every array lands.
    """
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
    restored = checkpoints.restore(abstract)
    if restored is None:
        return 0, jax.jit(init, out_shardings=shardings)(*arguments)
    logging.info("resuming from the checkpoint of step %d", restored[0])
    return restored


def save_params(directory: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays (nested dicts) as one checkpoint, replacing an earlier one; waits until it is complete.

    Raises:
      UserError: the directory holds something else, or cannot be written.
    """
    path = storage.absolute(directory)
    with _disk_errors(path):
        # Orbax's file without checksums: an interrupted save. Neither of them: a directory of something else.
        ours = any((path / name).exists() for name in (CHECKSUMS, "_CHECKPOINT_METADATA"))
        if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and holds something other than parameters; give another directory")
        with _context():
            ocp.save(path, tree, overwrite=True)
        if jax.process_index() == 0:
            _write_checksums(path)
        hosts.barrier(f"parameters in {path}")  # so that no process reads it before its checksums are there


def holds_params(directory: str | os.PathLike) -> bool:
    """Whether `save_params` has completed in a directory."""
    return (storage.absolute(directory) / CHECKSUMS).exists()


def remove(directory: str | os.PathLike) -> None:
    """Deletes a directory of checkpoints or parameters, if there is one. For process 0."""
    storage.absolute(directory).rmtree(missing_ok=True)


def load_params(directory: str | os.PathLike) -> dict[str, Any]:
    """The tree written by `save_params`, as nested dicts of numpy arrays.

    Raises:
      UserError: there is none in the directory, or it is damaged.
    """
    path = storage.absolute(directory)
    with storage.one_line(path):
        if not (path / CHECKSUMS).exists():
            raise UserError(f"{path}: holds no parameters (no {CHECKSUMS}); give the directory they were saved to")
        if reason := hosts.broadcast_from_process_0(_damage(path) if jax.process_index() == 0 else None):
            raise UserError(f"{path}: damaged: {reason}; write it again from its source")
        return _load_numpy(path, None)


def load_latest_params(directory: str | os.PathLike) -> tuple[int, dict[str, Any]]:
    """The step and the entry `params` of the newest good checkpoint, as nested dicts of numpy arrays.

    The rest of the state (optimizer, key encoder, queue) is verified but not loaded.

    Raises:
      UserError: no checkpoint in the directory, all of them damaged, or none with an entry `params`.
    """
    path = storage.absolute(directory)
    with storage.one_line(path):
        step = _newest_good(path, set()) if path.is_dir() else None
        if step is None:
            raise UserError(f"{path}: holds no checkpoint; give the checkpoints/ directory of a run that has saved one")
        return step, _load_numpy(path / str(step), "params")["params"]


# ---- which checkpoints are complete, and undamaged ----


def _entries(directory: epath.Path) -> list[epath.Path]:
    """The entries of a directory; none if it does not exist, because a bucket has no empty directories."""
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def _finished_steps(directory: epath.Path) -> list[int]:
    steps = (int(path.name) for path in _entries(directory) if path.name.isdigit())
    return sorted(step for step in steps if (directory / str(step) / CHECKSUMS).exists())


def _remove_unfinished(directory: epath.Path) -> None:
    """Removes the leftovers of killed or failed saves; never a finished checkpoint."""
    for path in _entries(directory):
        leftover = re.fullmatch(r"\d+(\.orbax-checkpoint-tmp.*)?", path.name)
        if leftover and path.is_dir() and not (path / CHECKSUMS).exists():
            path.rmtree(missing_ok=True)


def _checksums(directory: epath.Path) -> dict[str, dict[str, Any]]:
    """Size and CRC of every file by its name in the directory."""
    if storage.in_bucket(directory):
        return {name: sums for name, sums in storage.checksums(directory).items() if name != CHECKSUMS}

    def checksum(path: Path) -> dict[str, Any]:
        crc = 0
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                crc = zlib.crc32(block, crc)
        return {"bytes": path.stat().st_size, "crc32": crc}

    paths = sorted(path for path in Path(directory).rglob("*") if path.is_file() and path.name != CHECKSUMS)
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(checksum, paths))
    return {path.relative_to(directory).as_posix(): sums for path, sums in zip(paths, found, strict=True)}


def _write_checksums(path: epath.Path) -> None:
    """Marks a checkpoint as complete."""
    text = json.dumps({"files": _checksums(path)}, indent=1)
    with atomic(path / CHECKSUMS) as unfinished:
        unfinished.write_text(text)


def _damage(path: epath.Path) -> str | None:
    """What is wrong with a checkpoint, or None. Raises the OSError of a bucket that could not be reached."""
    try:
        expected = json.loads((path / CHECKSUMS).read_text())["files"]
        found = _checksums(path)
        for name, sums in expected.items():
            if name not in found:
                return f"{name} is missing"
            # A bucket's CRCs are of another kind than ours: in a local copy of one, only the sizes are compared.
            for kind in sorted(sums.keys() & found[name].keys()):
                if sums[kind] != found[name][kind]:
                    return f"{name} does not match its checksum ({kind} {found[name][kind]} instead of {sums[kind]})"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if storage.in_bucket(path) and isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        return f"it cannot be read ({error})"
    return None


def _newest_good(directory: epath.Path, damaged: set[int]) -> int | None:
    """The newest step whose checksums match; newer damaged ones are reported and added to `damaged`.

    Process 0 decides for all. Raises UserError if all are damaged, RuntimeError if this process does not see the
    checkpoint chosen.
    """
    step, steps = None, []
    if jax.process_index() == 0:
        steps = _finished_steps(directory)
        for path in _entries(directory):
            if path.name.isdigit() and int(path.name) not in steps:
                logging.warning("checkpoint %s: not finished (no %s), ignored", path, CHECKSUMS)
    for candidate in reversed(steps):
        reason = _damage(directory / str(candidate))
        if reason is None:
            step = candidate
            break
        logging.warning("checkpoint %s: damaged, trying the one before it: %s", directory / str(candidate), reason)
        damaged.add(candidate)
    step, steps = hosts.broadcast_from_process_0((step, steps))
    if steps and step is None:
        raise UserError(
            f"{directory}: every checkpoint is damaged (steps {', '.join(map(str, steps))}); "
            "put a good copy back, or delete the directory to begin again"
        )
    if step is not None and not (directory / str(step) / CHECKSUMS).exists():
        raise RuntimeError(
            f"{directory / str(step)}: is not there, but process 0 sees it; the file system has not shown it to all "
            "processes yet; start again in a moment"
        )
    return step


# ---- reading and writing with Orbax ----


def _context(*, partial: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.array.saving.use_compression = False  # saves a tenth of the space for five times the CPU time
    context.array.saving.enable_write_sharding_file = False  # each restore specifies its own shardings
    # If a thread fails to create a directory, only a timeout after 20 minutes reports it.
    context.asynchronous.create_directories_asynchronously = False
    context.pytree.loading.partial_load = partial
    return context


def _load_numpy(path: epath.Path, entry: str | None) -> dict[str, Any]:
    """Reads the whole tree, or its top-level `entry` alone, as numpy arrays."""
    stored: Any = ocp.metadata(path).metadata
    if entry is not None:
        if not isinstance(stored, dict) or entry not in stored:
            raise UserError(f"{path}: has no entry {entry!r}; give the checkpoints of a training run")
        stored = {entry: stored[entry]}
    # A broadcast scalar tells Orbax "numpy, of this shape" without taking that much memory.
    abstract = jax.tree.map(lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), stored)
    with _context(partial=entry is not None):
        return ocp.load(path, abstract)


def _check_leaves(path: epath.Path, abstract_state: Any) -> None:
    """Raises UserError naming the first leaf that differs between the checkpoint and `abstract_state`."""

    def leaves(tree: Any) -> dict[str, str]:  # by name: dataclasses and named tuples are the dicts that Orbax stores
        found = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path, simple=True, separator="/"): _describe(leaf) for path, leaf in found}

    stored, wanted = leaves(ocp.metadata(path).metadata), leaves(abstract_state)
    for name in wanted | stored:
        held, asked = stored.get(name, "absent"), wanted.get(name, "absent")
        if held != asked:
            raise UserError(
                f"{path}: {name} is {held} in the checkpoint, {asked} in this run; "
                "set the configuration it was saved with, or give another workdir"
            )


def _describe(leaf: Any) -> str:
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as its raw data
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


# ---- errors and noise ----


def _disk_errors(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
    if storage.in_bucket(directory):
        return storage.one_line(directory)
    note = " (the checkpoints already there are untouched)"
    return disk_errors(directory, way_out="give another directory", note=note)


def _orbax_is_worth_hearing(record: LogRecord) -> bool:
    """Drops Orbax's progress messages, and its traceback of an error that `wait` raises anyway."""
    if f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname:
        return True
    return record.levelno >= WARNING and record.exc_info is None


logging.get_absl_logger().addFilter(_orbax_is_worth_hearing)
