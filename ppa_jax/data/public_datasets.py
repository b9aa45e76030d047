"""Rows of datasets in the formats of tensorflow-datasets (tfds:) and Hugging Face datasets (hf:), streamed.

For alignment a row holds the two sides as columns named by the language codes, or in a dictionary column of them
(usually `translation`), or as parallel lists `language` and `translation` (TFDS's TranslationVariableLanguages; the
first text of a language counts). The training split is read, or the only split. Labels that a dataset stores as numbers
(ClassLabel) are replaced by their names.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import getproxies

import numpy as np

from ppa_jax import storage
from ppa_jax.data import text_files
from ppa_jax.errors import UserError, reason

_READ_AT_ONCE = 1024  # rows
_VALIDATION = {"validation", "valid", "val", "dev", "eval"}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}

Stream = Callable[[int], Iterator[Any]]  # longest line in bytes, for text formats -> rows, or why one is unusable


class Dataset(NamedTuple):
    """A dataset that was found."""

    identity: dict[str, Any]  # changes when its content does
    stream: Stream


def open_rows(location: str, languages: tuple[str, ...], *, where: str) -> Dataset:
    """A dataset of two languages, whose stream yields both sides of every row as UTF-8, or the reason why it has none.

    `location` and `where` as in `open_dataset`. Raises UserError if it is not found, unreadable or lacks a language.
    """
    dataset, first = _open_with_row(location, where)
    tables = {None: first, **{key: value for key, value in first.items() if isinstance(value, Mapping)}}
    usable = [
        column
        for column, table in tables.items()
        if {"language", "translation"} <= table.keys() or all(code in table for code in languages)
    ]
    if not usable:
        found = "; ".join(f"{column or 'columns'}: {', '.join(map(str, table))}" for column, table in tables.items())
        wanted = f"no columns named {languages[0]} and {languages[1]}"
        raise UserError(f"{where}: {wanted} ({found}); use the dataset's own language codes")

    column = usable[0]

    def pairs(limit: int) -> Iterator[Any]:
        for row in dataset.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            sides = tuple(side(row if column is None else row.get(column), language) for language in languages)
            is_text = all(isinstance(text, bytes) for text in sides)
            yield sides if is_text else "empty" if None in sides else "not_text"

    return Dataset(dataset.identity, pairs)


def open_texts(location: str, language: str, *, where: str) -> Dataset:
    """A dataset of one language, whose stream yields the lines of every row as UTF-8, or the reason why it has none.

    `location` and `where` as in `open_dataset`. Raises UserError if it is not found, unreadable or has no text column.
    """
    dataset, first = _open_with_row(location, where)
    named = [name for name in ("text", language) if name in first]  # whatever the first row has there
    of_text = [name for name, value in first.items() if isinstance(value, (str, bytes))]
    if not named and len(of_text) != 1:
        raise UserError(
            f"{where}: no column text or {language}, and not exactly one column of text "
            f"(there are {', '.join(map(str, first))}); rename one"
        )

    def lines(limit: int) -> Iterator[Any]:
        for row in dataset.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            text = side(row, (named or of_text)[0])
            if isinstance(text, bytes):
                yield from text.split(b"\n")
            else:
                yield "empty" if text is None else "not_text"

    return Dataset(dataset.identity, lines)


def _open_with_row(location: str, where: str) -> tuple[Dataset, Mapping[Any, Any]]:
    """The dataset, and its first readable row, which shows the columns."""
    dataset = open_dataset(location, where=where)
    first = next((row for row in dataset.stream(1 << 24) if not isinstance(row, str)), None)
    if not isinstance(first, Mapping):
        raise UserError(f"{where}: no readable row; check the dataset")
    return dataset, first


def open_dataset(location: str, *, where: str, split: str = "train") -> Dataset:
    """Finds a dataset that tensorflow-datasets or Hugging Face datasets wrote, on disk or in their catalogues.

    Args:
      location: tfds:NAME[/CONFIG] or hf:NAME[/CONFIG], or either with the directory of a prepared one.
      where: begins every error message: the setting and its value.
      split: its name; ignored for a dataset with only one split.

    Raises:
      UserError: it is not found, unreadable, or has no such split.
    """
    scheme, _, name = location.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"{where}: write {scheme}:NAME, {scheme}:NAME/CONFIG or {scheme}:DIRECTORY")
    path = storage.local(name)
    if scheme == "tfds":
        return _open_tfds(name, path, where, split)
    return _open_files(path, where, split) if path.exists() else _open_hub(name, where, split)


def side(table: Any, language: str) -> Any:
    """One language of a table {language: text}, or of parallel lists `language` and `translation`.

    Text is returned as UTF-8 bytes, any other value unchanged; None if there is none.
    """
    if not isinstance(table, Mapping):
        return None
    value = table.get(language)
    if value is None and "language" in table and "translation" in table:
        codes = [code.decode() if isinstance(code, bytes) else code for code in table["language"]]
        value = table["translation"][codes.index(language)] if language in codes else None
    # A lone surrogate is passed on as bytes that are not UTF-8, to be counted as such.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _split(splits: Iterable[str], where: str, wanted: str) -> str:
    names = list(splits)
    if wanted in names:
        return wanted
    if len(names) == 1:
        return names[0]
    raise UserError(f"{where}: no split named {wanted}, but {', '.join(names) or 'none at all'}")


def _open_tfds(name: str, directory: Path, where: str, wanted: str) -> Dataset:
    import tensorflow_datasets as tfds

    try:
        if directory.is_dir():
            builder: Any = tfds.builder_from_directory(str(_prepared_directory(directory, where)))
        else:
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        split = _split(builder.info.splits, where, wanted)
        rows: Any = builder.as_data_source(split)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{where}: prepared in a format without random access (tfrecord); "
            'prepare it again with tfds.builder(NAME, file_format="array_record").download_and_prepare()'
        ) from error
    except Exception as error:  # unknown names, failed downloads, builders that need TensorFlow: each its own type
        raise UserError(
            f"{where}: no such directory, and tensorflow-datasets cannot prepare it "
            f"({type(error).__name__}: {reason(error)}); prepare it elsewhere as array_record and give tfds:DIRECTORY"
        ) from error

    def stream(limit: int) -> Iterator[Any]:
        for start in range(0, len(rows), _READ_AT_ONCE):
            yield from rows.__getitems__(list(range(start, min(start + _READ_AT_ONCE, len(rows)))))

    info = builder.info
    identity = {"dataset": info.full_name, "directory": str(builder.data_dir), "split": split, "rows": len(rows)}
    return Dataset({**identity, "bytes": info.splits[split].num_bytes}, _named(stream, info.features))


def _prepared_directory(directory: Path, where: str) -> Path:
    found = sorted(path.parent for path in directory.rglob("dataset_info.json"))
    if not found:
        raise UserError(f"{where}: no dataset_info.json below; give the directory of a prepared dataset")
    if len(found) > 1:
        names = ", ".join(str(path) for path in found[:4])
        raise UserError(f"{where}: holds {len(found)} datasets or versions; give one of {names}")
    return found[0]


# ---- files of Hugging Face datasets ----


def _open_files(path: Path, where: str, wanted: str) -> Dataset:
    files = [path] if path.is_file() else _files(path, where, wanted)

    def stream(limit: int) -> Iterator[Any]:
        for file in files:
            if file.suffix in (".parquet", ".arrow"):
                for batch in _batches(file, where):
                    yield from batch.to_pylist()
            else:
                yield from _read_json_lines(file, limit)

    # Hugging Face datasets describe the columns in the metadata of the schema.
    metadata = next((batch.schema.metadata or {} for file in files for batch in _batches(file, where)), {})
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    return Dataset({"files": [text_files.file_identity(file) for file in files]}, _named(stream, features))


def _format(path: Path) -> str:
    match = re.search(r"\.(?:(parquet|arrow)|jsonl?(?:\.gz)?)$", path.name)
    return "" if match is None else match[1] or "json"


def _files(directory: Path, where: str, wanted: str) -> list[Path]:
    """The files of a split, by their names; those that name no split belong to the training split."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if _format(path) and path.is_file() and path.name not in _NOT_DATA and not path.name.startswith((".", "cache-"))
    )
    words = {path: _words_of(str(path.relative_to(directory))) for path in files}
    chosen = [path for path in files if _words_of(wanted) <= words[path]]
    if not chosen and wanted == "validation":
        chosen = [path for path in files if words[path] & _VALIDATION]
    if not chosen and wanted == "train":
        chosen = [path for path in files if not words[path] & {"test", *_VALIDATION}]
    if not chosen:
        what = f"no file of a split named {wanted}" if files else "no parquet, arrow or JSON lines files"
        raise UserError(f"{where}: {what} below; give the directory that holds the {wanted} split")
    folders = {path.relative_to(directory).parts[0] for path in chosen if path.parent != directory}
    folders = {name for name in folders if not _words_of(name) & {"data", "train", "test", *_VALIDATION}}
    if len(folders) > 1:
        listed = ", ".join(sorted(folders)[:6])
        raise UserError(f"{where}: holds several configurations ({listed}); give the directory of one")
    formats = sorted({_format(path) for path in chosen})
    if len(formats) > 1:
        raise UserError(f"{where}: holds files as {' and as '.join(formats)}; give the directory of one")
    return chosen


def _words_of(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def _batches(path: Path, where: str) -> Iterator[Any]:
    """The record batches of a parquet file or an arrow stream; none for other formats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_READ_AT_ONCE)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
                for batch in batches:
                    yield from (batch.slice(i, _READ_AT_ONCE) for i in range(0, len(batch), _READ_AT_ONCE))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{where}: {path}: not a readable {path.suffix[1:]} file ({error})") from error


def _read_json_lines(path: Path, limit: int) -> Iterator[Any]:
    for line in text_files.lines(path, limit):
        if line is None:
            yield "too_long_text"
            continue
        try:
            row = json.loads(line)
        except ValueError:  # not UTF-8, too
            row = None
        yield row if isinstance(row, dict) else "not_json"


def _open_hub(name: str, where: str, wanted: str) -> Dataset:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"{where}: no such directory, and the package `datasets`, which would fetch it, is not "
            "installed; pip install datasets, or give hf:DIRECTORY of its downloaded parquet files"
        ) from error
    _check_hub_reachable(where)
    # owner/name, owner/name/config, or an old name without owner and perhaps with a config
    parts = name.split("/")
    tries = [("/".join(parts[:2]), "/".join(parts[2:]) or None), *([(parts[0], parts[1])] if len(parts) == 2 else [])]
    reasons = []
    for dataset, config in tries:
        try:
            splits = datasets.load_dataset(dataset, config)
            rows = splits[_split(map(str, splits), where, wanted)]
        except UserError:
            raise
        except Exception as error:  # the hub, its cache and the builders each have their own
            reasons.append(f"{type(error).__name__}: {reason(error)}")
        else:
            identity = {"dataset": name, "version": str(rows.info.version), "rows": len(rows)}
            return Dataset(identity, _named(lambda limit, rows=rows: iter(rows), rows.features or {}))
    raise UserError(f"{where}: no such directory, and the hub gave none ({'; '.join(reasons)})")


def _check_hub_reachable(where: str) -> None:
    """Raises UserError if the hub's host name cannot be resolved: its client would retry for most of a minute."""
    # A proxy resolves names itself; an offline client (HF_HUB_OFFLINE=1) reads its cache and fails at once.
    if getproxies() or os.environ.get("HF_HUB_OFFLINE"):
        return
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise UserError(
            f"{where}: no such directory, and {host} cannot be reached; give the path of a downloaded copy, "
            "or set HF_HUB_OFFLINE=1 if the local cache of the hub has it"
        ) from error


# ---- names of labels ----


def _named(stream: Stream, features: Mapping[str, Any]) -> Stream:
    """The rows with names in place of numbers, in the columns of `features` that are ClassLabels or lists of them.

    A feature is an object of either library, or Hugging Face's JSON of one; -1, no label, stays.
    """
    names = {column: found for column, feature in features.items() if (found := _label_names(feature))}
    if not names:
        return stream

    def name(value: Any, known: list[str]) -> Any:
        if isinstance(value, (list, tuple, np.ndarray)):
            return [name(one, known) for one in value]
        return known[value] if isinstance(value, (int, np.integer)) and 0 <= value < len(known) else value

    def named(limit: int) -> Iterator[Any]:
        for row in stream(limit):
            if not isinstance(row, str):
                row = {x: name(value, names[x]) if x in names else value for x, value in row.items()}
            yield row

    return named


def _label_names(feature: Any) -> list[str]:
    get = feature.get if isinstance(feature, Mapping) else lambda key: getattr(feature, key, None)
    inner = get("feature")
    return list((inner is not None and _label_names(inner)) or get("names") or [])
