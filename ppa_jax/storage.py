"""Buckets of Google Cloud Storage, `gs://BUCKET/NAME`: inputs that lie there, and what the way to them may say."""

from __future__ import annotations

import contextlib
import glob
import logging as standard_logging
import os
import re
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from absl import logging
from fsspec.config import conf as filesystems

from ppa_jax.errors import NO_ROOM, UserError, reason

SCHEME = "gs://"
AT_ONCE = 8  # files copied at one time
_ON_THE_WAY = ("gcsfs", "fsspec", "google", "aiohttp", "requests")  # whose exceptions tell of the way to the bucket
_PASSING = (401, 408, 410, 429)  # of a client's mistakes, by HTTP, those that another try may mend
# Of TensorStore, what tells of the way: "UNAVAILABLE: ...".
_TENSORSTORE = "(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|PERMISSION_DENIED): "

# gcsfs's class for hierarchical buckets asks for the bucket's kind at each operation where it is not allowed to know.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# A listing that is remembered lacks what TensorStore and other processes write.
filesystems.setdefault("gs", {})["use_listings_cache"] = False
standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)  # tracebacks of what it raises anyway


def cache_directory() -> str:
    """Where is kept what can be made or fetched again, unless a setting says otherwise."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ppa_jax")


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether it is an address."""
    return os.fspath(path).startswith(SCHEME)


def checked(address: str, field: str = "") -> str:
    """The address of something in a bucket, spelled in one way. Raises UserError for a whole bucket, or no address."""
    parts = address.removeprefix(SCHEME).rstrip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{field}{address}: give something in a bucket, as gs://BUCKET/NAME")
    return SCHEME + "/".join(parts)


def names(address: str) -> list[str]:
    """The objects below a directory of a bucket, by their names in it. Raises as `local` does, but not for none."""
    address = checked(address)
    with one_line(address):
        return sorted(name.removeprefix(f"{address}/") for name in _objects(address) if name != address)


def local(path: str | os.PathLike, *, beside: bool = False, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """Where an input is read: the path itself, `~` expanded, or the copy here of what is at an address.

    An address is that of an object, or of a directory; `{lang}` in it, or another name in braces, stands for anything
    but a slash. The copies are in the cache, and are fetched again when the objects have changed.

    Args:
      beside: take `train.de` and `train.en.gz`, too, for `gs://BUCKET/train`.
      wanted: which of the objects below a directory to take, by their names in it.

    Raises:
      UserError: nothing is there, or it may not be read; the address names a whole bucket; gcsfs is not installed.
      RuntimeError: the bucket was not reached.
    """
    if not in_bucket(path):
        return Path(path).expanduser()
    address = checked(os.fspath(path))
    with one_line(address):
        objects = _objects(address, beside=beside)
        if not objects:
            raise UserError(f"{address}: nothing in the bucket has this name; check the address")
        for old in _copies(address, beside=beside) - {_copy(name) for name in objects}:
            old.unlink(missing_ok=True)
        late = [facts for name, facts in objects.items() if wanted(name.removeprefix(f"{address}/"))]
        late = [facts for facts in late if not _is_copy(_copy(facts["name"]), facts)]
        if late:
            logging.info("%s: fetching %d files, %d MB", address, len(late), sum(x["size"] for x in late) >> 20)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(_fetch, late))
    return _copy(address)


def on_disk(path: str | os.PathLike, field: str = "") -> Path:
    """A path to write to, `~` expanded. Raises UserError for an address: a workdir alone may lie in a bucket."""
    if in_bucket(path):
        raise UserError(
            f"{field}{os.fspath(path)}: is in a bucket, where only a --workdir is written; give a directory here"
        )
    return Path(path).expanduser()


def _objects(address: str, *, beside: bool = False) -> dict[str, dict[str, Any]]:
    """Address -> size, generation and more, of the object itself, or of those in the directory."""
    folder, name = _fixed_part(address)
    found = fsspec.filesystem("gs").find(folder, prefix=name, detail=True)
    # Without marks of folders, and names that would lead out of the cache.
    objects = {SCHEME + key: facts for key, facts in found.items() if not {"", ".", ".."} & {*key.split("/")}}
    if address in objects:
        return {address: objects[address]}
    form = _form(address, beside=beside)
    return {key: facts for key, facts in objects.items() if form.fullmatch(key)}


def _fixed_part(address: str) -> tuple[str, str]:
    """The directory, and what the names in it begin with, before the first brace."""
    folder, _, name = address.partition("{")[0].rpartition("/")
    return folder, name


def _form(address: str, *, beside: bool) -> re.Pattern[str]:
    """What the object, or those in the directory, may be named; with `beside` those with an ending, too."""
    text = re.split(r"\{\w+\}", address)
    return re.compile("[^/]*".join(map(re.escape, text)) + (r"(/.*|\.[^/]*)?" if beside else "(/.*)?"))


def _copy(address: str) -> Path:
    return Path(cache_directory(), "inputs").expanduser() / address.removeprefix(SCHEME)


def _copies(address: str, *, beside: bool) -> set[Path]:
    """Those that an earlier time has left."""
    folder, name = _fixed_part(address)
    form = _form(os.fspath(_copy(address)), beside=beside)
    tops = _copy(folder).glob(f"{glob.escape(name)}*")
    found = (path for top in tops for path in ([top] if top.is_file() else top.rglob("*")))
    return {path for path in found if path.is_file() and form.fullmatch(os.fspath(path))}


def _time(facts: dict[str, Any]) -> int:
    """A copy's time of change in ns: the number of its object's generation, which are microseconds."""
    return int(facts["generation"]) * 1000


def _is_copy(copy: Path, facts: dict[str, Any]) -> bool:
    try:
        stat = copy.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (facts["size"], _time(facts))


def _fetch(facts: dict[str, Any]) -> None:
    """Writes the copy of an object, whole or not at all: other processes may fetch or read it."""
    copy = _copy(facts["name"])
    copy.parent.mkdir(parents=True, exist_ok=True)
    beside = _copy(f"{uuid.uuid4().hex}.part")
    try:
        fsspec.filesystem("gs").get_file(facts["name"], beside)
        os.utime(beside, ns=(_time(facts), _time(facts)))
        beside.replace(copy)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def one_line(address: str | os.PathLike) -> Iterator[None]:
    """Turns what a bucket refuses into a UserError, and a bucket that is not reached into a RuntimeError."""
    try:
        yield
    except Exception as error:
        if not in_bucket(address) or not (isinstance(error, ImportError) or _is_of_the_way(error)):
            raise
        if isinstance(error, ImportError):
            raise UserError(
                f"{address}: a bucket wants another package ({error}); "
                "python -m pip install --constraint constraints.txt gcsfs"
            ) from error
        if _is_refusal(error):
            raise UserError(
                f"{address}: the bucket is not there, or may not be read and written ({reason(error)}); "
                "make it, or give this account the role Storage Object Admin"
            ) from error
        raise RuntimeError(f"{address}: the bucket was not reached ({reason(error)}); start again later") from error


def _is_of_the_way(error: Exception) -> bool:
    if isinstance(error, OSError):
        # With a file's name, or of one of these kinds, it is of the disk here; main.py has words for a full one.
        return error.errno not in NO_ROOM and (error.filename is None or in_bucket(str(error.filename)))
    if isinstance(error, ValueError):
        return re.match(_TENSORSTORE, str(error)) is not None
    return type(error).__module__.partition(".")[0] in _ON_THE_WAY


def _is_refusal(error: Any) -> bool:
    """Whether another try would be refused, too."""
    code = getattr(error, "code", None)
    if isinstance(code, int) and 400 <= code < 500 and code not in _PASSING:
        return True
    if isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ == "DefaultCredentialsError":
        return True
    # Tokens come from a server, too: 401 may be of one that did not answer, and Anonymous of nobody who asked it.
    return str(error).startswith(("Forbidden", "PERMISSION_DENIED")) or "Anonymous" in str(error)
