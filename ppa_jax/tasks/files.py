"""Where a task's examples come from: LANGUAGE=FILE,..., or a path with {lang} for every language that has a file."""

from __future__ import annotations

import functools
import glob
import re
import zlib
from collections.abc import Sequence
from typing import Any

from ppa_jax import config as configs
from ppa_jax import storage
from ppa_jax.data import public_datasets
from ppa_jax.data.sample import is_source
from ppa_jax.errors import UserError
from ppa_jax.tasks import sample
from ppa_jax.tasks.task import Task

# en, zh-Hans; context/question in MLQA's grid
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]+)*(/[A-Za-z]{2,3}(-[A-Za-z0-9]+)*)?")
_ROW_LIMIT = 1 << 24  # bytes of a line in JSON lines


def read(task: Task, spec: str, *, field: str) -> dict[str, list[Any]]:
    """The examples of each language, in the order of the entries.

    Args:
      task: reads the files.
      spec: comma-separated entries: `de=FILE`, `de=FILE|FILE`, `de=hf:NAME[/CONFIG][@SPLIT]`, `de=tfds:...`,
        `de=sample:0-1000` (the built-in sample), or `dir/dev.{lang}.tsv` for every language that has such a file;
        for MLQA `de/en=FILE` (context/question), or a path with {lang} and {question}.
      field: the setting, for messages. Its last part (train, dev, test) chooses the split of a dataset if the entry
        does not name one.

    Raises:
      UserError: an entry of another form, a file that does not exist or that the task cannot read, no example at all.
    """
    examples: dict[str, list[Any]] = {}
    for language, path in language_files(spec, field):
        if is_source(path):
            found = sample.read(task, path, language=language, field=field)
        elif path.startswith(("tfds:", "hf:")):
            found = _from_dataset(task, path, language=language, field=field)
        else:
            file = storage.local(path)
            if not file.is_file():
                raise UserError(f"{field}: no such file: {path}")
            found = task.read(file, language=language, field=field)
        if not found:
            raise UserError(f"{field}: {path} has no usable example")
        examples.setdefault(language, []).extend(found)
    return examples


def checksum(examples: Sequence[Any]) -> int:
    """A checksum of the examples and their number."""
    return functools.reduce(lambda crc, example: zlib.crc32(repr(example).encode(), crc), examples, len(examples))


def _from_dataset(task: Any, location: str, *, language: str, field: str) -> list[Any]:
    if not hasattr(task, "from_rows"):
        raise UserError(f"{field}: {location}: this task only reads files: it has no from_rows")
    split = {"dev": "validation", "test": "test"}.get(field.rsplit(".", 1)[-1], "train")
    dataset = public_datasets.open_dataset(location, where=f"{field}: {location}", split=split)
    return task.from_rows(dataset.stream(_ROW_LIMIT), where=location, language=language, field=field)


def language_files(spec: str, field: str) -> list[tuple[str, str]]:
    """(language, path) of every file. Raises UserError for an entry of another form, or a pattern without a file."""
    found = []
    for entry in configs.entries(spec):
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
    """(language, path) of each file that matches; a name that appears twice in the pattern is one language."""
    parts = re.split(r"\{(lang|question)\}", str(storage.local(pattern)))
    text, names = parts[::2], parts[1::2]
    expression = re.escape(text[0])
    for i, name in enumerate(names):
        expression += f"(?P={name})" if name in names[:i] else f"(?P<{name}>[A-Za-z][A-Za-z0-9-]*)"
        expression += re.escape(text[i + 1])
    found = []
    for path in sorted(glob.glob("*".join(map(glob.escape, text)))):
        if match := re.fullmatch(expression, path):
            languages = dict.fromkeys(match.groupdict().get(name) or match["lang"] for name in ("lang", "question"))
            if all(map(_LANGUAGE.fullmatch, languages)):
                found.append(("/".join(languages), path))
    if not found:
        raise UserError(f"{field}: no file {pattern}, with a language for {{lang}}")
    return found
