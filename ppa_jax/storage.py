"""Google Cloud Storage, `gs://BUCKET/NAME`: reading inputs from buckets, and writing directories to them.

A path that may be in a bucket is an `etils.epath.Path`. Libraries that can use only local files get a copy of an input
from `local`, and from `staged` a temporary directory that is uploaded afterwards.
"""

from __future__ import annotations

import contextlib
import logging as standard_logging
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
from absl import logging
from etils import epath
from fsspec.config import conf as filesystems

from ppa_jax.errors import NO_ROOM, UserError, reason

SCHEME = "gs://"
AT_ONCE = 8  # files copied in parallel
LAST = "config.json"  # the last file of a directory to be uploaded: if it exists, the directory is complete
_CLIENTS = ("gcsfs", "fsspec", "google", "aiohttp", "requests")  # packages whose exceptions are about the connection
_TRANSIENT = (401, 408, 410, 429)  # HTTP statuses 4xx that may pass
# How TensorStore reports a failed connection: "UNAVAILABLE: ...".
_TENSORSTORE = "(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|PERMISSION_DENIED): "

# Without the permission to see a bucket's type, gcsfs's class for hierarchical buckets asks for it at each operation.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# A cached listing would miss what TensorStore and other processes write.
filesystems.setdefault("gs", {})["use_listings_cache"] = False
standard_logging.getLogger("gcsfs").setLevel(standard_logging.CRITICAL)  # no tracebacks of errors that are raised


def cache_directory() -> str:
    """The default directory for files that can be computed or downloaded again."""
    return os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "ppa_jax")


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket. Raises UserError for other schemes (`s3://`)."""
    scheme = re.match(r"\w+://", os.fspath(path))
    if scheme and scheme[0] != SCHEME:
        raise UserError(f"{os.fspath(path)}: {scheme[0]} is not supported; give a local path or gs://BUCKET/NAME")
    return scheme is not None


def checked(address: str, field: str = "") -> str:
    """The address without a trailing slash. Raises UserError for a whole bucket, or empty path components."""
    parts = address.removeprefix(SCHEME).rstrip("/").split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"{field}{address}: give something in a bucket, as gs://BUCKET/NAME")
    return SCHEME + "/".join(parts)


def absolute(path: str | os.PathLike) -> epath.Path:
    """The absolute path, `~` expanded; an address in a bucket is returned unchanged."""
    return epath.Path(path) if in_bucket(path) else epath.Path(os.path.abspath(os.path.expanduser(path)))


def on_disk(path: str | os.PathLike, field: str = "") -> Path:
    """A local path to write to, `~` expanded. Raises UserError for an address in a bucket."""
    if in_bucket(path):
        raise UserError(f"{field}{os.fspath(path)}: this cannot be written to a bucket; give a local path")
    return Path(path).expanduser()


# ---- read ----


def names(address: str) -> list[str]:
    """Names of the objects below a directory, relative to it; may be empty. Raises like `local`."""
    address = checked(address)
    with one_line(address):
        return sorted(name.removeprefix(f"{address}/") for name in _objects(address, _form(address)) if name != address)


def local(path: str | os.PathLike, *, beside: bool = False, wanted: Callable[[str], bool] = lambda name: True) -> Path:
    """The local path of an input: the path itself, `~` expanded, or for an address in a bucket its copy in the cache.

    An address names an object or a directory; `{lang}` in it, or another name in braces, matches anything but a slash.
    Objects that have changed are copied again; the copies of deleted objects are deleted.

    Args:
      path: local, or an address.
      beside: for `gs://BUCKET/train`, also copy `train.de` and `train.en.gz`.
      wanted: selects the objects below a directory by their names relative to it.

    Raises:
      UserError: nothing is there, or it may not be read; the address names a whole bucket; gcsfs is not installed.
      RuntimeError: the bucket could not be reached.
    """
    if not in_bucket(path):
        return Path(path).expanduser()
    address = checked(os.fspath(path))
    form = _form(address, beside=beside)
    with one_line(address):
        objects = _objects(address, form)
        if not objects:
            raise UserError(f"{address}: nothing in the bucket has this name; check the address")
        for old in _copy(address.partition("{")[0]).parent.rglob("*"):
            name = SCHEME + old.relative_to(_copy("")).as_posix()
            if old.is_file() and form.fullmatch(name) and name not in objects:
                old.unlink(missing_ok=True)
        changed = [
            facts
            for name, facts in objects.items()
            if wanted(name.removeprefix(f"{address}/")) and not _is_current(_copy(name), facts)
        ]
        if changed:
            size = sum(facts["size"] for facts in changed)
            logging.info("%s: downloading %d files, %d MB", address, len(changed), size >> 20)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            list(threads.map(_download, changed))
    return _copy(address)


def _form(address: str, *, beside: bool = False) -> re.Pattern[str]:
    """Matches the object itself, or the objects below the directory; with `beside` also those with a suffix."""
    text = re.split(r"\{\w+\}", address)
    return re.compile("[^/]*".join(map(re.escape, text)) + (r"(/.*|\.[^/]*)?" if beside else "(/.*)?"))


def _objects(address: str, form: re.Pattern[str]) -> dict[str, dict[str, Any]]:
    """Address -> size, generation and more: of the object itself, or of the objects below the directory."""
    folder, _, start = address.partition("{")[0].rpartition("/")
    found = fsspec.filesystem("gs").find(folder, prefix=start, detail=True)
    # Excludes folder markers, and names that would lead out of the cache.
    objects = {SCHEME + key: facts for key, facts in found.items() if not {"", ".", ".."} & {*key.split("/")}}
    if address in objects:
        return {address: objects[address]}
    return {name: facts for name, facts in objects.items() if form.fullmatch(name)}


def _copy(address: str) -> Path:
    """Where the copy of an object is, or will be, in the cache."""
    return Path(cache_directory(), "inputs", address.removeprefix(SCHEME)).expanduser()


def _is_current(copy: Path, facts: dict[str, Any]) -> bool:
    """Whether a copy has its object's size and generation (a time in microseconds, kept as its modification time)."""
    if not copy.exists():
        return False
    return (copy.stat().st_size, copy.stat().st_mtime_ns) == (facts["size"], int(facts["generation"]) * 1000)


def _download(facts: dict[str, Any]) -> None:
    """Copies an object, whole or not at all: other processes may download or read it, too."""
    copy = _copy(facts["name"])
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished, time = _copy(f"{uuid.uuid4().hex}.part"), int(facts["generation"]) * 1000
    try:
        fsspec.filesystem("gs").get_file(facts["name"], unfinished)
        os.utime(unfinished, ns=(time, time))
        unfinished.replace(copy)
    finally:
        unfinished.unlink(missing_ok=True)


def checksums(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Size in bytes and CRC-32C (base64) of the objects below a directory, by name, as the storage reports them."""
    address = checked(os.fspath(directory))
    objects = _objects(address, _form(address)).items()
    return {name.removeprefix(f"{address}/"): {"bytes": x["size"], "crc32c": x["crc32c"]} for name, x in objects}


# ---- write ----


@contextlib.contextmanager
def staged(directory: str | os.PathLike) -> Iterator[Path]:
    """A local directory to write to: `directory` itself, or one that is uploaded to it at the end of the block.

    Raises:
      UserError, RuntimeError: like `local`.
    """
    if not in_bucket(directory):
        yield Path(directory)
        return
    with tempfile.TemporaryDirectory(prefix="ppa_jax-") as folder:
        yield Path(folder)
        upload(Path(folder), directory)


def upload(source: Path, target: str | os.PathLike) -> None:
    """Copies a file, or the files below a directory, to an address, replacing existing ones.

    Each file appears whole, and `config.json` after all others: a directory that has it is complete.
    """
    files = {path: epath.Path(target, path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    files = files if source.is_dir() else {source: target}
    with one_line(target), ThreadPoolExecutor(AT_ONCE) as threads:
        for is_last in (False, True):
            now = {path: address for path, address in files.items() if (path.name == LAST) == is_last}
            list(threads.map(fsspec.filesystem("gs").put_file, map(str, now), map(str, now.values())))


# ---- errors ----


@contextlib.contextmanager
def one_line(address: str | os.PathLike) -> Iterator[None]:
    """Turns a refused request to a bucket into a UserError, and a failed connection into a RuntimeError."""
    try:
        yield
    except Exception as error:
        if not in_bucket(address) or not (isinstance(error, ImportError) or _is_connection_error(error)):
            raise
        if isinstance(error, ImportError):
            raise UserError(
                f"{address}: a bucket needs another package ({error}); "
                "python -m pip install --constraint constraints.txt gcsfs"
            ) from error
        if _is_refusal(error):
            raise UserError(
                f"{address}: the bucket is not there, or may not be read and written ({reason(error)}); "
                "make it, or give this account the role Storage Object Admin"
            ) from error
        message = f"{address}: the bucket could not be reached ({reason(error)}); start again later"
        raise RuntimeError(message) from error


def _is_connection_error(error: Exception) -> bool:
    if isinstance(error, OSError):
        # With one of these numbers, or a local file's name, the error is about the local disk; main.py reports it.
        return error.errno not in NO_ROOM and (error.filename is None or in_bucket(str(error.filename)))
    if isinstance(error, ValueError):
        return re.match(_TENSORSTORE, str(error)) is not None
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _is_refusal(error: Any) -> bool:
    """Whether a retry would be refused again."""
    code = getattr(error, "code", None)
    if isinstance(code, int) and 400 <= code < 500 and code not in _TRANSIENT:
        return True
    if isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ == "DefaultCredentialsError":
        return True
    # 401 may only mean that the token server did not answer. "Anonymous" means that there are no credentials.
    return str(error).startswith(("Forbidden", "PERMISSION_DENIED")) or "Anonymous" in str(error)
