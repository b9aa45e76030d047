"""Rows of datasets in the formats of tensorflow-datasets (tfds:) and Hugging Face datasets (hf:), and of CSV files.

For alignment a row holds the two sides as columns named by the language codes, or in a dictionary column of them
(usually `translation`), or as parallel lists `language` and `translation` (TFDS's TranslationVariableLanguages; the
first text of a language counts), or as the columns `english` and `non_english` (sentence-transformers'
parallel-sentences), or in columns that the user names. The training split is read, or the only split. Labels that a
dataset stores as numbers (ClassLabel) are replaced by their names. Rows are streamed.
"""

from __future__ import annotations

import csv
import itertools
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
_TABLES = ("csv", "tsv")
_FORMATS = ("parquet", "arrow", "json")  # of the files in a dataset's directory
_SENTENCE_TRANSFORMERS = ("english", "non_english")  # columns of its parallel-sentences datasets
_OR_BY_NUMBER = "; or by number, as [1,2], where the first row is no header"

Stream = Callable[[int], Iterator[Any]]  # longest line in bytes, for text formats -> rows, or why one is unusable


class Dataset(NamedTuple):
    """A dataset that was found."""

    identity: dict[str, Any]  # changes when its content does
    stream: Stream


def open_rows(location: str, languages: tuple[str, ...], *, columns: tuple[str, ...] = (), where: str) -> Dataset:
    """A dataset of several languages, whose stream yields the sides of every row as UTF-8, or the reason why not.

    `location`, `columns` and `where` as in `open_dataset`; without `columns` they are found by their names. Raises
    UserError if it is not found, unreadable or lacks a language.
    """
    dataset, first = _open_with_row(location, columns, where)
    names = columns or languages
    if not columns and set(_SENTENCE_TRANSFORMERS) <= first.keys() and "en" in languages and len(languages) == 2:
        names = tuple(_SENTENCE_TRANSFORMERS[language != "en"] for language in languages)
    tables = {None: first, **{key: value for key, value in first.items() if isinstance(value, Mapping)}}
    usable = [
        column
        for column, table in tables.items()
        if {"language", "translation"} <= table.keys() or all(name in table for name in names)
    ]
    if not usable:
        found = "; ".join(f"{column or 'columns'}: {', '.join(map(str, table))}" for column, table in tables.items())
        raise UserError(
            f"{where}: no columns named {' and '.join(names)} ({found}); give those of the two sides in brackets: "
            f"{location}[{','.join(_named_in(first))}]{_OR_BY_NUMBER if _format(Path(location)) in _TABLES else ''}"
        )

    column = usable[0]

    def pairs(limit: int) -> Iterator[Any]:
        for row in dataset.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            sides = tuple(side(row if column is None else row.get(column), name) for name in names)
            if len(languages) > 2:  # a row may lack some
                sides = tuple(text or b"" for text in sides)
            is_text = all(isinstance(text, bytes) for text in sides)
            yield sides if is_text else "empty" if None in sides else "not_text"

    return Dataset(dataset.identity, pairs)


def open_texts(location: str, language: str, *, columns: tuple[str, ...] = (), where: str) -> Dataset:
    """A dataset of one language, whose stream yields the lines of every row as UTF-8, or the reason why it has none.

    `location`, `columns` and `where` as in `open_dataset`. Raises UserError if it is not found, unreadable or has no
    text column.
    """
    dataset, first = _open_with_row(location, columns, where)
    named = [name for name in columns or ("text", language) if name in first]  # whatever the first row has there
    of_text = [] if columns else [name for name, value in first.items() if isinstance(value, (str, bytes))]
    if not named and len(of_text) != 1:
        wanted = columns[0] if columns else f"text or {language}, and not exactly one column of text"
        raise UserError(
            f"{where}: no column {wanted} (there are {', '.join(map(str, first))}); name it in brackets, as in "
            f"{location}[{_named_in(first)[0]}]"
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


def _open_with_row(location: str, columns: tuple[str, ...], where: str) -> tuple[Dataset, Mapping[Any, Any]]:
    """The dataset, and its first readable row, which shows the columns."""
    dataset = open_dataset(location, columns=columns, where=where)
    first = next((row for row in dataset.stream(1 << 24) if not isinstance(row, str)), None)
    if not isinstance(first, Mapping):
        raise UserError(f"{where}: no readable row; check the dataset")
    return dataset, first


def _named_in(row: Mapping[Any, Any]) -> list[str]:
    """Two columns of a row for an example in a message, of text where there are two."""
    of_text = [str(name) for name, value in row.items() if isinstance(value, (str, bytes))]
    return (of_text if len(of_text) > 1 else [*map(str, row), "A", "B"])[:2]


def is_table(location: str) -> bool:
    """Whether a path is read as a dataset by its suffix alone: a CSV, parquet, arrow or JSON lines file."""
    return _format(Path(location)) not in ("", "tsv")


def open_dataset(location: str, *, where: str, columns: tuple[str, ...] = (), split: str = "train") -> Dataset:
    """Finds a dataset that tensorflow-datasets or Hugging Face datasets wrote, on disk or in their catalogues.

    Args:
      location: tfds:NAME[/CONFIG][@SPLIT] or hf:NAME[/CONFIG][@SPLIT], or either with the directory of a prepared one;
        or a file of a table, with or without hf:.
      columns: those that will be read, where the caller knows. Numbers are columns, from 1, of a CSV or TSV file whose
        first row is no header.
      where: begins every error message: the setting and its value.
      split: the one to read if `location` names none; ignored for a dataset with only one split.

    Raises:
      UserError: it is not found, unreadable, or has no such split.
    """
    match = re.fullmatch(r"(?:(tfds|hf):)?(.*?)(?:@([\w-]+))?", location, re.DOTALL)
    assert match is not None  # any text
    scheme, name, split = match[1], match[2].strip(), match[3] or split
    if not name:
        raise UserError(f"{where}: write {scheme}:NAME, {scheme}:NAME/CONFIG or {scheme}:DIRECTORY")
    path = storage.local(name)
    if scheme == "tfds":
        return _open_tfds(name, path, where, split)
    header = not columns or not all(map(str.isdigit, columns))
    return _open_files(path, where, split, header) if path.exists() else _open_hub(name, where, split)


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


def _open_files(path: Path, where: str, wanted: str, header: bool) -> Dataset:
    files = [path] if path.is_file() else _files(path, where, wanted)

    def stream(limit: int) -> Iterator[Any]:
        for file in files:
            if file.suffix in (".parquet", ".arrow"):
                for batch in _batches(file, where):
                    yield from batch.to_pylist()
            elif _format(file) in _TABLES:
                yield from _read_table(file, limit, header, where)
            else:
                yield from _read_json_lines(file, limit)

    # Hugging Face datasets describe the columns in the metadata of the schema.
    metadata = next((batch.schema.metadata or {} for file in files for batch in _batches(file, where)), {})
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features") or {}
    return Dataset({"files": [text_files.file_identity(file) for file in files]}, _named(stream, features))


def _format(path: Path) -> str:
    match = re.search(r"\.(?:(parquet|arrow)|(?:(csv|tsv)|jsonl?)(?:\.gz)?)$", path.name)
    return "" if match is None else match[1] or match[2] or "json"


def _files(directory: Path, where: str, wanted: str) -> list[Path]:
    """The files of a split, by their names; those that name no split belong to the training split."""
    files = sorted(
        path
        for path in directory.rglob("*")
        if _format(path) in _FORMATS and path.is_file()
        if path.name not in _NOT_DATA and not path.name.startswith((".", "cache-"))
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


def _read_table(path: Path, limit: int, header: bool, where: str) -> Iterator[Any]:
    """The rows of a CSV or TSV file as {column: text}; without `header` the columns are numbered from 1.

    In a CSV file a field may be in quotes, with quotes inside it doubled, and may then hold delimiters and line feeds;
    in a TSV file a quote is text.
    """
    is_csv = _format(path) == "csv"
    unusable: list[str] = []  # why a line of the next row cannot be read

    def lines() -> Iterator[str]:
        for line in text_files.lines(path, min(limit, csv.field_size_limit())):
            try:
                text = "" if line is None else line.decode() + "\n"
            except UnicodeDecodeError:
                text = ""
            if not text:
                unusable.append("too_long_text" if line is None else "not_utf8")
            yield text

    if is_csv:
        reader = csv.reader(lines(), delimiter=_delimiter(path), strict=True)
    else:
        reader = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[str] = []
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            if reader.line_num > start:
                raise UserError(
                    f"{where}: {path}:{start}: a field in quotes begins here and is not closed ({error}); "
                    'inside quotes, write "" for a quote'
                ) from error
            yield "not_csv"
            continue
        if row is None:
            return
        if unusable:
            yield unusable[0]
            unusable.clear()
        elif not row:
            yield "empty"
        elif not names and header:
            names = [name.strip() for name in row]
        else:
            names = names or [str(i) for i in range(1, len(row) + 1)]
            yield "not_csv" if is_csv and len(row) > len(names) else dict(zip(names, row, strict=False))


def _delimiter(path: Path) -> str:
    """The one of , ; and tab that gives most of the first lines as many fields as the first has, two or more."""
    head = [line.decode(errors="replace") for line in itertools.islice(text_files.lines(path, 1 << 16), 1000) if line]

    def fitting(delimiter: str) -> int:
        widths = [len(next(csv.reader([line], delimiter=delimiter), ())) for line in head]
        return sum(width == widths[0] > 1 for width in widths)

    return max(",;\t", key=fitting)


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
