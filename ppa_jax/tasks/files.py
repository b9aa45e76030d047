"""Where a task's examples come from: LANGUAGE=FILE,..., or a path with {lang} in it for every language there is."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from ppa_jax.errors import UserError
from ppa_jax.tasks import sample
from ppa_jax.tasks.task import Task

_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]+)*")


def read(task: Task, spec: str, *, field: str) -> dict[str, list[Any]]:
    """The examples of each language, in the order of the entries.

    Args:
      task: reads the files.
      spec: entries with commas between: `de=FILE`, `de=FILE|FILE`, `de=world:0-1000` (the built-in sample), or
        `dir/dev.{lang}.tsv` for every language that has such a file.
      field: the setting, for messages.

    Raises:
      UserError: an entry of another form, a file that is not there or that the task cannot read, no example at all.
    """
    examples: dict[str, list[Any]] = {}
    for language, path in entries(spec, field):
        if path.startswith("world"):
            found = sample.read(task, path, language=language, field=field)
        else:
            file = Path(path).expanduser()
            if not file.is_file():
                raise UserError(f"{field}: no such file: {path}")
            found = task.read(file, language=language, field=field)
        if not found:
            raise UserError(f"{field}: {path} has no example that can be used")
        examples.setdefault(language, []).extend(found)
    return examples


def entries(spec: str, field: str) -> list[tuple[str, str]]:
    """(language, path) of every file. Raises UserError for an entry of another form, or a pattern without a file."""
    found = []
    for entry in filter(None, map(str.strip, spec.split(","))):
        language, equals, paths = entry.partition("=")
        if equals and _LANGUAGE.fullmatch(language):
            found += [(language, path) for path in filter(None, paths.split("|"))]
        elif "{lang}" in entry:
            found += _expand(entry, field)
        else:
            raise UserError(f"{field}: {entry!r} is not of the form LANGUAGE=FILE, nor a path with {{lang}} in it")
    if not found:
        raise UserError(f"{field} is empty: give LANGUAGE=FILE,... or a path with {{lang}} in it")
    return found


def _expand(pattern: str, field: str) -> list[tuple[str, str]]:
    start, end = str(Path(pattern).expanduser()).split("{lang}", 1)
    found = []
    for path in sorted(glob.glob(f"{glob.escape(start)}*{glob.escape(end)}")):
        language = path[len(start) : len(path) - len(end)]
        if _LANGUAGE.fullmatch(language):
            found.append((language, path))
    if not found:
        raise UserError(f"{field}: no file {pattern}, with a language for {{lang}}")
    return found
