"""Checkpoints: written while training goes on, checked before they are believed, restored onto any number of devices.

Layout: `<directory>/<step>/` is one checkpoint as Orbax writes it, plus `checksums.json`, added last (checksums.py).

What holds, and why:

- *Asynchronous, and safe with donated buffers.* `save` returns once every device buffer is on the host; the files are
  written by threads. (On CPU the host view is the buffer itself: JAX then copies instead of donating it.)
- *Atomic.* A checkpoint counts only once it has its `checksums.json`, which appears by a rename after Orbax has
  committed everything else. Killed at any moment, a run leaves at most an unfinished folder, which is never restored.
- *Damage is found.* Orbax alone notices missing and truncated files and flipped bits in its indexes, but restores
  flipped bits inside an array without a word. So each file's size and CRC-32 is checked before anything is restored.
- *The older ones stay.* Old checkpoints are deleted only after a newer one is whole: there must be room for keep + 1.
- *Any devices.* Arrays are stored whole, in global coordinates; the shardings asked for at restore are all that counts.

Directories may be local, relative or not, or in a bucket (`gs://...`), as those of a workdir in one are (bucket.py).
With several processes every method must be called by all of them, and the directory must be shared.
"""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from ppa_jax.errors import UserError, disk_errors
from ppa_jax.storage import in_bucket, one_line
from ppa_jax.training import bucket
from ppa_jax.training.checksums import (
    CHECKSUMS,
    damage,
    finished_steps,
    newest_whole,
    remove_unfinished,
    write_checksums,
)
from ppa_jax.training.workdir import locked


class Checkpoints:
    """The checkpoints of one run: `save` as training goes, `restore` when it starts."""

    def __init__(self, directory: str | os.PathLike, *, every: int, keep: int) -> None:
        """Args:
        directory: created if absent.
        every: steps between two checkpoints; 0 means that only forced ones are written.
        keep: how many of the newest stay on disk, at least 1.
        """
        if every < 0 or keep < 1:
            raise UserError(f"checkpoint: every={every}, keep={keep}; every must be 0 or more, keep 1 or more")
        _quieten_orbax()
        self.directory = _absolute(directory)
        self.every, self.keep = every, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._current: int | None = None  # the step last saved or restored here: it needs no second save
        self._damaged: set[int] = set()
        with _disk_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = contextlib.ExitStack()
            if jax.process_index() == 0 and not in_bucket(self.directory):
                self._lock.enter_context(_locked(Path(self.directory)))

    def due(self, step: int) -> bool:
        """Whether `step` is one of those that `every` asks to keep."""
        return self.every > 0 and step > 0 and step % self.every == 0

    def save(self, step: int, state: Any, *, force: bool = False) -> bool:
        """Starts writing `state` as checkpoint `step` if it is due or forced; True if it did.

        `state` is a tree of jax.Arrays (typed random keys included), possibly sharded over devices and processes.
        It may be donated as soon as this returns. A save still under way is waited for first. A checkpoint of the
        same step that an earlier run left behind is replaced.

        Raises:
          UserError: the disk is full or not writable. For an earlier save this comes out here or in `wait`.
        """
        if not (force or self.due(step)) or step == self._current:
            return False
        self.wait()
        path = self.directory / str(step)
        with _disk_errors(self.directory):
            if jax.process_index() == 0:
                remove_unfinished(self.directory)
                # Here, and not by `overwrite`: Orbax has every process look whether there is something to replace while
                # the first one removes it, and those that find nothing any more wait at another barrier for ever.
                path.rmtree(missing_ok=True)
            with _context():
                response = ocp.save_async(path, state)
        self._current = step
        self._pending = self._thread.submit(self._finish, step, path, response)
        return True

    def _finish(self, step: int, path: epath.Path, response: ocp.AsyncResponse) -> None:
        """In the background: waits for the files, certifies them, deletes what is no longer wanted."""
        try:
            response.result()
            if jax.process_index() == 0:
                write_checksums(path)
        except Exception:
            if jax.process_index() == 0 and not in_bucket(path):
                remove_unfinished(self.directory)  # a full disk gets its room back
            raise
        if jax.process_index() == 0:
            # Known damage goes now that there is something better, and is not counted among those to keep.
            self._damaged.discard(step)
            good = [s for s in finished_steps(self.directory) if s not in self._damaged]
            for old in {*good[: -self.keep], *self._damaged} - {step}:
                (self.directory / str(old)).rmtree(missing_ok=True)
            self._damaged.clear()

    def restore(self, abstract_state: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that is whole: its step and the state; None if there is no checkpoint yet.

        `abstract_state` is a tree of jax.ShapeDtypeStruct with shardings (a state of arrays will do): it decides
        the tree's types and on which devices every array lands. A damaged checkpoint is reported by a warning that
        names it and what is wrong, and the one before it is used; it is deleted once another has been saved.

        Raises:
          UserError: all checkpoints are damaged, or the newest whole one holds arrays of other names, shapes or types.
        """
        self.wait()
        with one_line(self.directory):
            step = newest_whole(self.directory, self._damaged)
            if step is None:
                return None
            path = self.directory / str(step)
            _check_leaves(path, abstract_state)
            with _context():
                state = ocp.load(path, jax.tree.map(_abstract, abstract_state))
        self._current = step
        return step, state

    def latest_step(self) -> int | None:
        """The newest finished checkpoint on disk now (a save under way does not count; nothing is verified)."""
        return max(finished_steps(self.directory), default=None)

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it (UserError for a full disk)."""
        pending, self._pending = self._pending, None
        if pending is not None:
            try:
                with _disk_errors(self.directory):
                    pending.result()
            except Exception:
                self._current = None  # it was not saved after all
                raise

    def close(self) -> None:
        """Waits like `wait`, ends the thread and lets others in. To be called before the program ends."""
        with self._lock:
            try:
                self.wait()
            finally:
                self._thread.shutdown()


def save_params(directory: str | os.PathLike, tree: Any) -> None:
    """Writes a tree of arrays (nested dicts) as one checkpoint, replacing an earlier one; returns when it is whole.

    Raises:
      UserError: the directory holds something else, or cannot be written.
    """
    _quieten_orbax()
    path = _absolute(directory)
    with _disk_errors(path):
        # Without checksums a save was cut short, if Orbax's own file is there; else it is something else's directory.
        ours = any((path / name).exists() for name in (CHECKSUMS, "_CHECKPOINT_METADATA"))
        if path.exists() and not ours and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path}: exists and holds something other than parameters; give another directory")
        with _context():
            ocp.save(path, tree, overwrite=True)
        if jax.process_index() == 0:
            write_checksums(path)
        if jax.process_count() > 1:  # else those that read it at once would find it without them
            multihost_utils.sync_global_devices(f"parameters in {path}")


def holds_params(directory: str | os.PathLike) -> bool:
    """Whether `save_params` has been through with a directory."""
    return (_absolute(directory) / CHECKSUMS).exists()


def remove(directory: str | os.PathLike) -> None:
    """Deletes a directory of checkpoints or parameters, if there is one. For process 0."""
    bucket.push()  # what was made of them
    _absolute(directory).rmtree(missing_ok=True)


def load_params(directory: str | os.PathLike) -> dict[str, Any]:
    """The tree written by `save_params`, as nested dicts of numpy arrays.

    Raises:
      UserError: there is none in the directory, or it is damaged.
    """
    _quieten_orbax()
    path = _absolute(directory)
    with one_line(path):
        if not (path / CHECKSUMS).exists():
            raise UserError(f"{path}: holds no parameters (no {CHECKSUMS}); give the directory they were saved to")
        if (reason := damage(path)) is not None:
            raise UserError(f"{path}: damaged: {reason}; write it again from its source")
        return _load_numpy(path, None)


def load_latest_params(directory: str | os.PathLike) -> tuple[int, dict[str, Any]]:
    """The step and the entry `params` of the newest whole checkpoint, as nested dicts of numpy arrays.

    The rest of the state (optimizer, key encoder, queue) is checked for damage but never held in memory.

    Raises:
      UserError: no checkpoint in the directory, all of them damaged, or none with an entry `params`.
    """
    _quieten_orbax()
    path = _absolute(directory)
    with one_line(path):
        step = newest_whole(path, set()) if path.is_dir() else None
        if step is None:
            raise UserError(f"{path}: holds no checkpoint; give the checkpoints/ directory of a run that has saved one")
        return step, _load_numpy(path / str(step), "params")["params"]


# ---- reading and writing with Orbax ----


def _context(*, partial: bool = False) -> ocp.Context:
    context = ocp.Context()
    context.array.saving.use_compression = False  # float32 weights shrink by a tenth, for five times the CPU time
    context.array.saving.enable_write_sharding_file = False  # every restore brings its own shardings
    # Made in a thread, a directory that cannot be made would only be noticed by a timeout after 20 minutes.
    context.asynchronous.create_directories_asynchronously = False
    context.pytree.loading.partial_load = partial
    return context


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps other processes out, which would remove what this one is writing. Raises UserError if one is at work."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(directory, wait=False))
        except filelock.Timeout:
            raise UserError(
                f"{directory}: another process is using this workdir; wait for it to finish, or give another --workdir"
            ) from None
        yield


def _absolute(directory: str | os.PathLike) -> epath.Path:
    """TensorStore wants absolute paths; epath would put the working directory before `gs://`, too."""
    path = bucket.lies_at(directory).expanduser()
    return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


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


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by name (`opt_state/1/0/mu/...`): dataclasses and named tuples as the dicts that Orbax stores."""

    def name(key: Any) -> str:
        return str(next(getattr(key, field) for field in ("key", "name", "idx") if hasattr(key, field)))

    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(name, path)): leaf for path, leaf in leaves}


def _check_leaves(path: epath.Path, abstract_state: Any) -> None:
    """Raises UserError naming the first leaf that the checkpoint holds otherwise than `abstract_state` wants it."""
    stored, wanted = _leaves(ocp.metadata(path).metadata), _leaves(abstract_state)
    for name in [*wanted, *(name for name in stored if name not in wanted)]:
        held, asked = _describe(stored.get(name)), _describe(wanted.get(name))
        if held != asked:
            raise UserError(
                f"{path}: {name} is {held} in the checkpoint, {asked} in this run; "
                "set the configuration it was saved with, or give another workdir"
            )


def _describe(leaf: Any) -> str:
    if leaf is None:
        return "absent"
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):  # stored as its raw data
        leaf = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
    return f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"


# ---- errors and noise ----


def _disk_errors(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
    if in_bucket(directory):
        return one_line(directory)
    note = " (the checkpoints already there are untouched)"
    return disk_errors(directory, way_out="give another directory", note=note)


def _orbax_is_worth_hearing(record: LogRecord) -> bool:
    """Drops Orbax's play-by-play, and the traceback its writing thread logs of an error that `wait` raises anyway."""
    if f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname:
        return True
    return record.levelno >= WARNING and record.exc_info is None


def _quieten_orbax() -> None:
    logging.get_absl_logger().addFilter(_orbax_is_worth_hearing)
