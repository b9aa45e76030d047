"""What a workdir holds: `config.json`, so that a run is never continued as another one."""

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath

from ppa_jax import storage
from ppa_jax.errors import UserError
from ppa_jax.training import bucket

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"  # which lie in the bucket alone, if the workdir is in one
_LEFT_BEHIND = ("export", "scores.json", "report.md")  # by every run, and after its config.json
_ABSENT = "(absent)"
_SHOWN = 8


def claim(workdir: str | os.PathLike, config: Mapping[str, Any], *, may_change: tuple[str, ...] = ()) -> None:
    """Makes a free workdir that of the run that `config` describes; raises as `check_identity` does for another's.

    When all is checked that can be: what a user then corrects would be another run.
    """
    if not check_identity(workdir, config, may_change=may_change):
        write_identity(workdir, config)


def write_identity(workdir: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Writes `config` (nested dicts of JSON values) to workdir/config.json, by process 0 alone, whole or not at all."""
    if jax.process_index() != 0:
        return
    path = epath.Path(workdir) / CONFIG
    beside = epath.Path(workdir) / f"{CONFIG}.{uuid.uuid4().hex[:8]}.tmp"  # models of one workdir may start at one time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(bucket.addressed(json.dumps(config, indent=2, sort_keys=True)) + "\n")
        beside.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"workdir: cannot write {_shown(path)}: {reason}; give a writable --workdir") from error


def check_identity(workdir: str | os.PathLike, config: Mapping[str, Any], *, may_change: tuple[str, ...] = ()) -> bool:
    """Whether workdir holds a run already; it must then be the run that `config` describes.

    `may_change` names fields, or groups of them, by their dotted prefix (`eval`, `checkpoint.every`): these may differ.

    Raises:
      UserError: another field differs (all of them are listed, old -> new); the reasons of `check_job`.
    """
    held = check_job(workdir, config.get("job"))
    if held is None:
        return False
    old = _flat(held)
    new = _flat(json.loads(bucket.addressed(json.dumps(config))))  # tuples become lists, as in the file
    differ = [
        f"{field}: {old.get(field, _ABSENT)} -> {new.get(field, _ABSENT)}"
        for field in sorted({*old, *new})
        if old.get(field, _ABSENT) != new.get(field, _ABSENT)
        and not any(field == prefix or field.startswith(f"{prefix}.") for prefix in may_change)
    ]
    if differ:
        more = f"; and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
        raise UserError(
            f"workdir: {_shown(workdir)} holds another run ({'; '.join(differ[:_SHOWN])}{more}); "
            "give another --workdir, or the settings this run began with"
        )
    return True


def check_job(workdir: str | os.PathLike, job: str | None) -> dict[str, Any] | None:
    """What config.json in workdir says, which must be of this job; None where there is none, and nothing of a run.

    Raises:
      UserError: it is of another job, of no run, or cannot be read; or it is gone from what a run has left.
    """
    path = epath.Path(workdir) / CONFIG
    # Looked for before config.json is: another process may be writing both, that one first.
    with storage.one_line(_shown(path)):
        left = [CHECKPOINTS] if bucket.lies_at(epath.Path(workdir) / CHECKPOINTS).exists() else []
        left += [name for name in _LEFT_BEHIND if (epath.Path(workdir) / name).exists()]
    if not path.exists():
        if left:
            raise UserError(f"workdir: {_shown(workdir)} has {left[0]} but no {CONFIG}; give another --workdir")
        return None
    try:
        held = json.loads(path.read_text())
        other = held.get("job")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{_shown(path)}: not a configuration ({error}); give another --workdir or delete this one"
        ) from error
    if other != job:
        whose = f"a run of the job {other}, and this is {job}" if other else f"a {CONFIG} that is not a run's"
        raise UserError(f"workdir: {_shown(workdir)} holds {whose}; give another --workdir")
    return held


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, which a process reads once as long as size and time of change stay the same."""
    facts = path.stat()
    return _file_digest(path.resolve(), facts.st_size, facts.st_mtime_ns)


@functools.cache
def _file_digest(path: Path, size: int, modified_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(path: str | os.PathLike) -> str:
    return os.fspath(bucket.lies_at(path))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`; an empty group is a field of its own."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        field = f"{prefix}{name}"
        flat.update(_flat(value, f"{field}.") if isinstance(value, Mapping) and value else {field: value})
    return flat
