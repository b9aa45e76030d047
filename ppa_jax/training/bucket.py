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
from typing import Any

import fsspec
from absl import logging
from etils import epath

from ppa_jax.errors import UserError
from ppa_jax.storage import AT_ONCE, cache_directory, checked, in_bucket, one_line

FILES = "files.json"
Files = dict[str, list[int]]  # name -> [bytes, time of its last change in ns]

_open: LocalCopy | None = None


@contextlib.contextmanager
def local(workdir: str) -> Iterator[str]:
    """The directory to work in: the workdir, or a local copy of it, whose files are in the bucket in the end.

    Raises:
      UserError: the address is wrong; the bucket is not there or takes nothing; gcsfs is not installed.
      RuntimeError: the bucket was not reached.
    """
    global _open
    if not in_bucket(workdir):
        yield workdir
        return
    address = checked(workdir, "--workdir=")
    with _directory(address) as directory:
        copy = _open = LocalCopy(address, directory)
        try:
            copy.pull()
            yield str(directory)
        except BaseException:
            try:
                copy.push_again()
            except (UserError, RuntimeError) as error:  # it must not stand for the one that ended the run
                logging.warning("%s", error)
            raise
        else:
            copy.push_again()
        finally:
            _open = None
        shutil.rmtree(directory)


def lies_at(path: str | os.PathLike) -> epath.Path:
    """Where a file or directory of the workdir lies for good: in the bucket, or where it is."""
    if _open is not None and Path(path).is_relative_to(_open.directory):
        return _open.address / Path(path).relative_to(_open.directory)
    return epath.Path(path)


def addressed(text: str) -> str:
    """Text or JSON with the paths of the local copy as addresses, which are the same on every machine."""
    return text if _open is None else text.replace(json.dumps(str(_open.directory))[1:-1], os.fspath(_open.address))


def facts(path: epath.Path) -> dict[str, Any]:
    """Bytes and CRC-32C (base64) of an object, as the storage has them."""
    info = fsspec.filesystem("gs").info(os.fspath(path))
    return {"bytes": info["size"], "crc32c": info["crc32c"]}


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
        """`pull` makes `directory` what is in the bucket; what an earlier start has left need not come again."""
        self.address, self.directory = epath.Path(address), directory
        self._listed: Files = {}  # in the bucket
        self._same = self._found()  # those of them that are here, too; before the first `pull` whatever is here
        self._pushes = False
        self._lock = threading.Lock()  # a checkpoint is finished by a thread

    def pull(self) -> None:
        """Makes the local files what the bucket's list has."""
        with self._lock, one_line(self.address):
            index = self.address / FILES
            if not index.exists():
                self._begin(index)
            listed: Files = json.loads(index.read_text())
            for name in self._same.keys() - listed.keys():
                (self.directory / name).unlink(missing_ok=True)
            # Some directories say by being there that something is done; a bucket has no empty ones.
            for folder, _, _ in os.walk(self.directory, topdown=False):
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(folder)
            self.directory.mkdir(parents=True, exist_ok=True)
            changed = [name for name, facts in listed.items() if self._same.get(name) != facts]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                came = list(threads.map(lambda name: self._fetch(name, listed[name][1]), changed))
            lost = {name for name, has_come in zip(changed, came, strict=True) if not has_come}
            self._listed, self._same = listed, {name: facts for name, facts in listed.items() if name not in lost}

    def push(self) -> None:
        """Makes the bucket's files what the local ones are."""
        with self._lock, one_line(self.address):
            self._pushes = True
            found = self._found()
            changed = [name for name, facts in found.items() if self._same.get(name) != facts]
            with ThreadPoolExecutor(AT_ONCE) as threads:
                went = list(threads.map(self._send, changed))
            for name, has_gone in zip(changed, went, strict=True):
                if not has_gone:
                    del found[name]
            if found != self._listed:
                (self.address / FILES).write_text(json.dumps(found, indent=1) + "\n")
                for name in self._listed.keys() - found.keys():
                    (self.address / name).unlink(missing_ok=True)
            self._listed = self._same = found

    def push_again(self) -> None:
        """`push`, if this process is the one that does."""
        if self._pushes:
            self.push()

    def _begin(self, index: epath.Path) -> None:
        """Writes an empty list: a bucket that takes no files shows it before hours of work."""
        # Named as the directory itself: the mark of a folder that was made by hand.
        ours = (FILES, self.address.name)
        names = [path.name for path in self.address.iterdir()] if self.address.exists() else []
        if others := [name for name in names if name not in ours]:
            raise UserError(
                f"--workdir={self.address}: has no {FILES}, but {', '.join(sorted(others)[:3])}; "
                "give a directory in which nothing is, or that a run has made"
            )
        index.write_text("{}\n")

    def _found(self) -> Files:
        found: Files = {}
        for folder, _, names in os.walk(self.directory):
            for name in sorted(names):
                path = Path(folder, name)
                with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                    stat = path.stat()
                    found[path.relative_to(self.directory).as_posix()] = [stat.st_size, stat.st_mtime_ns]
        return found

    def _fetch(self, name: str, time: int) -> bool:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = (self.address / name).open("rb")
        except FileNotFoundError:
            logging.warning("%s: was deleted", self.address / name)
            return False
        with source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
        os.utime(path, ns=(time, time))
        return True

    def _send(self, name: str) -> bool:
        try:
            source = (self.directory / name).open("rb")
        except FileNotFoundError:  # renamed meanwhile: the next time finds its other name
            return False
        with source, (self.address / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        return True


@contextlib.contextmanager
def _directory(address: str) -> Iterator[Path]:
    """A directory for the local copy; of several processes of a machine each has its own."""
    name = f"{zlib.crc32(address.encode()):08x}"
    copies = Path(cache_directory(), "workdirs").expanduser()
    copies.mkdir(parents=True, exist_ok=True)
    for number in itertools.count():
        with (copies / f"{name}-{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            except OSError as error:  # a file system without locks
                logging.info("no lock on %s (%s)", lock.name, error)
                name = f"{name}-{os.getpid()}"
            yield copies / f"{name}-{number}" / epath.Path(address).name
            return
