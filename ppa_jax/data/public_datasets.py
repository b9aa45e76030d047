"""Rows of datasets in the forms of tensorflow-datasets (tfds:) and Hugging Face datasets (hf:), streamed.

For alignment a row holds the two sides either as columns named by the language codes, or in a dictionary column of them
(usually `translation`), or as parallel lists `language` and `translation` (TFDS's TranslationVariableLanguages; the
first text of a language counts), and the training split is read, or the one split there is. Labels that a dataset holds
as numbers (ClassLabel) come by the names that it gives them.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppa_jax import storage
from ppa_jax.data import text_files
from ppa_jax.errors import UserError, reason

_READ_AT_ONCE = 1024  # rows
_VALIDATION = {"validation", "valid", "val", "dev", "eval"}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


Stream = Callable[[int], Iterator[Any]]  # longest line in bytes -> rows, or the reason why one is unusable


class Dataset(NamedTuple):
    """A dataset that was found."""

    identity: dict[str, Any]
    stream: Stream


@dataclass(frozen=True)
class Rows:
    """A dataset whose rows hold both languages."""

    identity: dict[str, Any]
    languages: tuple[str, ...]
    column: str | None  # the dictionary column; None: the row itself
    stream: Stream

    def read(self, limit: int) -> Iterator[tuple[bytes, bytes] | str]:
        """Yields both sides of every row, or the reason why it has none; `limit` bounds a line of a text format."""
        for row in self.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            table = row if self.column is None else row.get(self.column)
            sides = tuple(side(table, language) for language in self.languages)
            if any(side is None for side in sides):
                yield "empty"
            elif not all(isinstance(side, bytes) for side in sides):
                yield "not_text"
            else:
                yield sides  # pyright: ignore[reportReturnType]


def open_rows(location: str, languages: tuple[str, ...], *, where: str) -> Rows:
    """Finds a dataset of two languages; `location` and `where` as for `open_dataset`.

    Raises UserError if it is not there, cannot be read or lacks a language.
    """
    dataset, first = _open_with_row(location, where)
    tables = {None: first, **{key: value for key, value in first.items() if isinstance(value, Mapping)}}
    for column, table in tables.items():
        if {"language", "translation"} <= table.keys() or all(code in table for code in languages):
            return Rows(dataset.identity, languages, column, dataset.stream)
    found = "; ".join(f"{column or 'columns'}: {', '.join(map(str, table))}" for column, table in tables.items())
    raise UserError(
        f"{where}: no columns named {languages[0]} and {languages[1]} ({found}); use the dataset's own language codes"
    )


@dataclass(frozen=True)
class Texts:
    """A dataset whose rows hold text of one language."""

    identity: dict[str, Any]
    column: str
    stream: Stream

    def read(self, limit: int) -> Iterator[bytes | str]:
        """Yields the lines of every row's text, or the reason why a row has none; `limit` as in `Rows.read`."""
        for row in self.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            text = side(row, self.column)
            if isinstance(text, bytes):
                yield from text.split(b"\n")
            else:
                yield "empty" if text is None else "not_text"


def open_texts(location: str, language: str, *, where: str) -> Texts:
    """Finds a dataset of one language; `location` and `where` as for `open_dataset`.

    Raises UserError if it cannot be read or has no column of text.
    """
    dataset, first = _open_with_row(location, where)
    of_text = [name for name, value in first.items() if isinstance(value, (str, bytes))]
    named = [name for name in ("text", language) if name in first]  # whatever the first row has there
    if not named and len(of_text) != 1:
        raise UserError(
            f"{where}: no column text or {language}, and not one column of text alone "
            f"(there are {', '.join(map(str, first))}); rename one"
        )
    return Texts(dataset.identity, (named or of_text)[0], dataset.stream)


def _open_with_row(location: str, where: str) -> tuple[Dataset, Mapping[Any, Any]]:
    """The dataset, and the first row that can be read, whose columns say what there is."""
    dataset = open_dataset(location, where=where)
    first = next((row for row in dataset.stream(1 << 24) if not isinstance(row, str)), None)
    if not isinstance(first, Mapping):
        raise UserError(f"{where}: no row that can be read; check the dataset")
    return dataset, first


def open_dataset(location: str, *, where: str, split: str = "train") -> Dataset:
    """Finds a dataset that tensorflow-datasets or Hugging Face datasets wrote, here or in their catalogues.

    Args:
      location: tfds:NAME[/CONFIG] or hf:NAME[/CONFIG], or either with the directory of a prepared one.
      where: begins every message: the setting, and what it says.
      split: which; the one split of a dataset that has only one counts as any.

    Raises:
      UserError: it is not there, cannot be read, or has no such split.
    """
    scheme, _, name = location.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"{where}: write {scheme}:NAME, {scheme}:NAME/CONFIG or {scheme}:DIRECTORY")
    return (_open_tfds if scheme == "tfds" else _open_hf)(name, where, split)


def side(table: Any, language: str) -> Any:
    """One language of a table {language: text}, or of the parallel lists `language` and `translation`.

    A text comes as UTF-8 bytes, any other value as it is; None where there is none.
    """
    if not isinstance(table, Mapping):
        return None
    value = table.get(language)
    if value is None and "language" in table and "translation" in table:
        codes = [code.decode() if isinstance(code, bytes) else code for code in table["language"]]
        value = table["translation"][codes.index(language)] if language in codes else None
    # A lone surrogate cannot be text: let it through as bytes that are no UTF-8, to be counted as such.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _split(splits: Iterable[str], where: str, wanted: str) -> str:
    names = list(splits)
    if wanted in names:
        return wanted
    if len(names) == 1:
        return names[0]
    raise UserError(f"{where}: no split named {wanted}, but {', '.join(names) or 'none at all'}")


def _open_tfds(name: str, where: str, wanted: str) -> Dataset:
    import tensorflow_datasets as tfds

    directory = storage.local(name)
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
            f"{where}: not a directory here, and tensorflow-datasets cannot prepare it "
            f"({type(error).__name__}: {reason(error)}); prepare it elsewhere as array_record and give tfds:DIRECTORY"
        ) from error

    def stream(limit: int) -> Iterator[Any]:
        for start in range(0, len(rows), _READ_AT_ONCE):
            numbers = list(range(start, min(start + _READ_AT_ONCE, len(rows))))
            yield from rows.__getitems__(numbers)

    info = builder.info
    identity = {"dataset": info.full_name, "directory": str(builder.data_dir), "split": split, "rows": len(rows)}
    return Dataset({**identity, "bytes": info.splits[split].num_bytes}, _named(stream, info.features))


def _prepared_directory(directory: Path, where: str) -> Path:
    found = sorted(path.parent for path in directory.rglob("dataset_info.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"{where}: no dataset_info.json below; give the directory of a prepared dataset")
    names = ", ".join(str(path) for path in found[:4])
    raise UserError(f"{where}: holds {len(found)} datasets or versions; give one of {names}")


def _open_hf(name: str, where: str, wanted: str) -> Dataset:
    path = storage.local(name)
    if not path.exists():
        return _open_hub(name, where, wanted)
    files = [path] if path.is_file() else _files(path, where, wanted)
    readers = {".parquet": _read_parquet, ".arrow": _read_arrow}

    def stream(limit: int) -> Iterator[Any]:
        for file in files:
            reader = readers.get(file.suffix)
            yield from _read_json_lines(file, limit) if reader is None else reader(file, where)

    return Dataset(
        {"files": [text_files.file_identity(file) for file in files]}, _named(stream, _features(files[0], where))
    )


def _features(path: Path, where: str) -> Mapping[str, Any]:
    """What Hugging Face datasets wrote of the columns into the schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix == ".parquet":
            schema = pq.read_schema(path)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
                schema = batches.schema
        else:
            return {}
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{where}: {path}: not a readable {path.suffix[1:]} file ({error})") from error
    told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return told.get("info", {}).get("features") or {}


def _format(path: Path) -> str:
    match = re.search(r"\.(parquet|arrow|jsonl?(?:\.gz)?)$", path.name)
    return "" if match is None else "json" if match[1].startswith("json") else match[1]


def _files(directory: Path, where: str, wanted: str) -> list[Path]:
    """The files of a split, which their names tell; those of no other split are of the training."""
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


def _words_of(name: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", name.lower()))


def _read_parquet(path: Path, where: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{where}: {path}: not a readable parquet file ({error})") from error


def _read_arrow(path: Path, where: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
            for batch in batches:
                for start in range(0, len(batch), _READ_AT_ONCE):
                    yield from batch.slice(start, _READ_AT_ONCE).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{where}: {path}: not a readable arrow stream ({error})") from error


def _read_json_lines(path: Path, limit: int) -> Iterator[Any]:
    for line in text_files.lines(path, limit):
        if line is None:
            yield "too_long_text"
            continue
        try:
            row = json.loads(line)
        except ValueError:  # also what is no UTF-8
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
    from ppa_jax.data.tokenizer import check_hub_reachable

    check_hub_reachable(where)
    # owner/name, owner/name/config, or an old name without owner and perhaps with a config
    parts = name.split("/")
    tries: list[tuple[str, str | None]] = [("/".join(parts[:2]), "/".join(parts[2:]) or None)]
    if len(parts) == 2:
        tries.append((parts[0], parts[1]))
    reasons = []
    for dataset, config in tries:
        try:
            splits = datasets.load_dataset(dataset, config)
            rows = splits[_split(map(str, splits), where, wanted)]
            break
        except UserError:
            raise
        except Exception as error:  # the hub, its cache and the builders each have their own
            reasons.append(f"{type(error).__name__}: {reason(error)}")
    else:
        raise UserError(f"{where}: no such directory, and the hub gave none ({'; '.join(reasons)})")
    identity = {"dataset": name, "version": str(rows.info.version), "rows": len(rows)}
    return Dataset(identity, _named(lambda limit: iter(rows), rows.features or {}))
