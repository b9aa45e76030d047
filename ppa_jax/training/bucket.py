"""A workdir in a bucket of Google Cloud Storage: `--workdir=gs://bucket/runs/x`.

Orbax reads and writes checkpoints in the bucket itself. A run's many other files are made in a local copy, because a
bucket can neither append to a file nor rename a directory. Process 0 copies them to the bucket before a checkpoint
counts, before the other processes read what it wrote (`loop.wait_for_hosts`), and at the end. `files.json` in the
bucket lists them and is written last: a file that it does not name has come in part, and is passed over at a start.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from etils import epath
from fsspec.config import conf as filesystems

from ppa_jax.errors import NO_ROOM, NotYet, UserError

SCHEME = "gs://"
FILES = "files.json"
COPIES = Path("~/.cache/ppa_jax/workdirs")
_AT_ONCE = 8  # files copied at one time
_ON_THE_WAY = ("gcsfs", "fsspec", "google", "aiohttp", "requests")  # whose exceptions tell of the way to the bucket
Files = dict[str, list[int]]  # name -> [bytes, time of its last change in ns]

# A listing that is remembered lacks what TensorStore and other processes write.
filesystems.setdefault("gs", {})["use_listings_cache"] = False

_open: LocalCopy | None = None


@contextlib.contextmanager
def local_copy(address: str) -> Iterator[str]:
    """The directory to work in instead of the workdir `gs://...`; what is in it in the end is in the bucket, too.

    Raises:
      UserError: the bucket is not there or may not be written, or gcsfs is not installed.
      NotYet: the bucket was not reached.
    """
    global _open
    with _directory(address) as directory:
        _open = LocalCopy(address, directory)
        _open.pull()
        try:
            yield str(directory)
        finally:
            if jax.process_index() == 0:
                _open.push()
            _open = None
        shutil.rmtree(directory)


def lies_at(path: str | os.PathLike) -> epath.Path:
    """Where a file or directory of the workdir lies for good: in the bucket, or where it is."""
    if _open is not None and Path(path).is_relative_to(_open.directory):
        return _open.address / Path(path).relative_to(_open.directory)
    return epath.Path(path)


def push() -> None:
    """Has the bucket hold what the local copy does, if the workdir is in one. For process 0."""
    if _open is not None:
        _open.push()


def pull() -> None:
    """Has the local copy hold what the bucket does, if the workdir is in one. For the other processes."""
    if _open is not None:
        _open.pull()


class LocalCopy:
    """The files of a workdir in a bucket, on the disk of this process."""

    def __init__(self, address: str, directory: Path) -> None:
        """`directory` is emptied; `pull` fills it."""
        self.address, self.directory = epath.Path(address), directory
        self._same: Files = {}  # what is the same here and in the bucket
        self._lock = threading.Lock()  # a checkpoint is finished by a thread
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)

    def pull(self) -> None:
        """Makes the local files what the bucket's list has."""
        with self._lock, _one_line(self.address):
            index = self.address / FILES
            if not index.exists():
                index.write_text("{}\n")  # a bucket that takes no files shows it before hours of work
            listed: Files = json.loads(index.read_text())
            for name in self._same.keys() - listed.keys():
                (self.directory / name).unlink(missing_ok=True)
            changed = [(name, time) for name, (size, time) in listed.items() if self._same.get(name) != [size, time]]
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._fetch, changed))
            self._same = listed

    def push(self) -> None:
        """Makes the bucket's files what the local ones are."""
        with self._lock, _one_line(self.address):
            found = self._found()
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                list(threads.map(self._send, (name for name, facts in found.items() if self._same.get(name) != facts)))
            if found != self._same:
                (self.address / FILES).write_text(json.dumps(found, indent=1) + "\n")
                for name in self._same.keys() - found.keys():
                    (self.address / name).unlink(missing_ok=True)
            self._same = found

    def _found(self) -> Files:
        found: Files = {}
        for path in sorted(self.directory.rglob("*")):
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                if path.is_file():
                    stat = path.stat()
                    found[path.relative_to(self.directory).as_posix()] = [stat.st_size, stat.st_mtime_ns]
        return found

    def _fetch(self, changed: tuple[str, int]) -> None:
        name, time = changed
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (self.address / name).open("rb") as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        os.utime(path, ns=(time, time))

    def _send(self, name: str) -> None:
        try:
            source = (self.directory / name).open("rb")
        except FileNotFoundError:  # renamed meanwhile: the next time finds its other name
            return
        with source, (self.address / name).open("wb") as target:
            shutil.copyfileobj(source, target)


@contextlib.contextmanager
def _directory(address: str) -> Iterator[Path]:
    """A directory for the local copy, the same at each start; of several processes of a machine each has its own."""
    name = f"{zlib.crc32(address.encode()):08x}"
    copies = COPIES.expanduser()
    copies.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        with (copies / f"{name}-{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield copies / f"{name}-{number}" / epath.Path(address).name
            return


@contextlib.contextmanager
def _one_line(address: epath.Path) -> Iterator[None]:
    """Turns what a bucket, or the way to it, refuses into one line for the user."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"--workdir={address}: a bucket wants another package ({error}); "
            "python -m pip install --constraint constraints.txt gcsfs"
        ) from error
    except Exception as error:
        package = type(error).__module__.partition(".")[0]
        if not (isinstance(error, OSError | TimeoutError) or package in _ON_THE_WAY):
            raise
        if isinstance(error, OSError) and error.errno in NO_ROOM:  # of the disk here; main.py has words for it
            raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        refused = isinstance(error, FileNotFoundError | PermissionError) or getattr(error, "code", None) in (401, 403)
        if refused or "Forbidden" in reason:
            raise UserError(
                f"--workdir={address}: the bucket is not there, or may not be read and written ({reason}); "
                "make it, or give this account the role Storage Object Admin"
            ) from error
        raise NotYet(f"--workdir={address}: the bucket was not reached ({reason}); start again in a moment") from error
