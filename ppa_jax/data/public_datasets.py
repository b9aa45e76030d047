"""Rows of datasets in the forms of tensorflow-datasets (tfds:) and Hugging Face datasets (hf:), streamed as pairs.

A row holds the two sides either as columns named by the language codes, or in a dictionary column of them (usually
`translation`), or as parallel lists `language` and `translation` (TFDS's TranslationVariableLanguages; the first text
of a language counts). Only the training split is read, or the one split there is.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppa_jax.data import text_files
from ppa_jax.data.sources import Raw, Source, file_identity
from ppa_jax.errors import UserError

_READ_AT_ONCE = 1024  # rows
_HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@dataclass(frozen=True)
class Rows:
    """A dataset that was found and whose rows hold both languages."""

    identity: dict[str, Any]
    languages: tuple[str, str]
    column: str | None  # the dictionary column; None: the row itself
    stream: Callable[[int], Iterator[Any]]  # longest line in bytes -> rows, or the reason why one is unusable

    def read(self, limit: int) -> Iterator[Raw]:
        """Yields the raw sides of every row; `limit` bounds a line of a text format, in bytes."""
        for row in self.stream(limit):
            if isinstance(row, str):
                yield row
                continue
            table = row if self.column is None else row.get(self.column)
            sides = tuple(_side(table, language) for language in self.languages)
            if any(side is None for side in sides):
                yield "empty"
            elif not all(isinstance(side, bytes) for side in sides):
                yield "not_text"
            else:
                yield sides  # pyright: ignore[reportReturnType]


def open_rows(source: Source) -> Rows:
    """Finds the dataset of `source`. Raises UserError if it is not there, cannot be read or lacks a language."""
    scheme, _, name = source.location.partition(":")
    name = name.strip()
    if not name:
        raise UserError(f"data.pairs: {source}: write {scheme}:NAME, {scheme}:NAME/CONFIG or {scheme}:DIRECTORY")
    identity, stream = _open_tfds(name, source) if scheme == "tfds" else _open_hf(name, source)
    first = next((row for row in stream(1 << 24) if not isinstance(row, str)), None)
    if not isinstance(first, Mapping):
        raise UserError(f"data.pairs: {source}: no row that can be read; check the dataset")
    tables = {None: first, **{key: value for key, value in first.items() if isinstance(value, Mapping)}}
    for column, table in tables.items():
        if {"language", "translation"} <= table.keys() or all(code in table for code in source.languages):
            return Rows(identity, source.languages, column, stream)
    found = "; ".join(f"{column or 'columns'}: {', '.join(map(str, table))}" for column, table in tables.items())
    raise UserError(
        f"data.pairs: {source}: no columns named {source.languages[0]} and {source.languages[1]} ({found}); "
        "use the dataset's own language codes"
    )


def _side(table: Any, language: str) -> Any:
    """UTF-8 bytes of one language of a row, None where there is none; any other value as it is."""
    if not isinstance(table, Mapping):
        return None
    value = table.get(language)
    if value is None and "language" in table and "translation" in table:
        codes = [code.decode() if isinstance(code, bytes) else code for code in table["language"]]
        value = table["translation"][codes.index(language)] if language in codes else None
    # A lone surrogate cannot be text: let it through as bytes that are no UTF-8, to be counted as such.
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value


def _split(splits: Iterable[str], source: Source) -> str:
    names = list(splits)
    if "train" in names:
        return "train"
    if len(names) == 1:
        return names[0]
    raise UserError(f"data.pairs: {source}: no split named train, but {', '.join(names) or 'none at all'}")


def _open_tfds(name: str, source: Source) -> tuple[dict[str, Any], Callable[[int], Iterator[Any]]]:
    import tensorflow_datasets as tfds

    directory = Path(name).expanduser()
    try:
        if directory.is_dir():
            builder: Any = tfds.builder_from_directory(str(_prepared_directory(directory, source)))
        else:
            builder = tfds.builder(name, file_format="array_record")
            builder.download_and_prepare()
        split = _split(builder.info.splits, source)
        rows: Any = builder.as_data_source(split)
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"data.pairs: {source}: prepared in a format without random access (tfrecord); "
            'prepare it again with tfds.builder(NAME, file_format="array_record").download_and_prepare()'
        ) from error
    except Exception as error:  # unknown names, failed downloads, builders that need TensorFlow: each its own type
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"data.pairs: {source}: not a directory here, and tensorflow-datasets cannot prepare it "
            f"({type(error).__name__}: {reason}); prepare it elsewhere as array_record and give tfds:DIRECTORY"
        ) from error

    def stream(limit: int) -> Iterator[Any]:
        for start in range(0, len(rows), _READ_AT_ONCE):
            numbers = list(range(start, min(start + _READ_AT_ONCE, len(rows))))
            yield from rows.__getitems__(numbers)

    info = builder.info
    identity = {"dataset": info.full_name, "directory": str(builder.data_dir), "split": split, "rows": len(rows)}
    return {**identity, "bytes": info.splits[split].num_bytes}, stream


def _prepared_directory(directory: Path, source: Source) -> Path:
    found = sorted(path.parent for path in directory.rglob("dataset_info.json"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(f"data.pairs: {source}: no dataset_info.json below; give the directory of a prepared dataset")
    names = ", ".join(str(path) for path in found[:4])
    raise UserError(f"data.pairs: {source}: holds {len(found)} datasets or versions; give one of {names}")


def _open_hf(name: str, source: Source) -> tuple[dict[str, Any], Callable[[int], Iterator[Any]]]:
    path = Path(name).expanduser()
    if not path.exists():
        return _open_hub(name, source)
    files = [path] if path.is_file() else _training_files(path, source)
    readers = {".parquet": _read_parquet, ".arrow": _read_arrow}

    def stream(limit: int) -> Iterator[Any]:
        for file in files:
            reader = readers.get(file.suffix)
            yield from _read_json_lines(file, limit) if reader is None else reader(file)

    return {"files": [file_identity(file) for file in files]}, stream


def _format(path: Path) -> str:
    match = re.search(r"\.(parquet|arrow|jsonl?(?:\.gz)?)$", path.name)
    return "" if match is None else "json" if match[1].startswith("json") else match[1]


def _training_files(directory: Path, source: Source) -> list[Path]:
    files = sorted(
        path
        for path in directory.rglob("*")
        if _format(path) and path.is_file() and path.name not in _NOT_DATA and not path.name.startswith((".", "cache-"))
    )
    words = {path: set(re.split(r"[^a-z]+", str(path.relative_to(directory)).lower())) for path in files}
    chosen = [path for path in files if "train" in words[path]]
    chosen = chosen or [path for path in files if not words[path] & _HELD_OUT]
    if not chosen:
        what = "only held-out splits" if files else "no parquet, arrow or JSON lines files"
        raise UserError(f"data.pairs: {source}: {what} below; give the directory that holds the training split")
    formats = sorted({_format(path) for path in chosen})
    if len(formats) > 1:
        raise UserError(f"data.pairs: {source}: holds files as {' and as '.join(formats)}; give the directory of one")
    return chosen


def _read_parquet(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_READ_AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"data.pairs: {path}: not a readable parquet file ({error})") from error


def _read_arrow(path: Path) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as batches:
            for batch in batches:
                for start in range(0, len(batch), _READ_AT_ONCE):
                    yield from batch.slice(start, _READ_AT_ONCE).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"data.pairs: {path}: not a readable arrow stream ({error})") from error


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


def _open_hub(name: str, source: Source) -> tuple[dict[str, Any], Callable[[int], Iterator[Any]]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"data.pairs: {source}: no such directory, and the package `datasets`, which would fetch it, is not "
            "installed; pip install datasets, or give hf:DIRECTORY of its downloaded parquet files"
        ) from error
    from ppa_jax.data.tokenizer import check_hub_reachable

    check_hub_reachable(f"data.pairs: {source}")
    # owner/name, owner/name/config, or an old name without owner and perhaps with a config
    parts = name.split("/")
    tries: list[tuple[str, str | None]] = [("/".join(parts[:2]), "/".join(parts[2:]) or None)]
    if len(parts) == 2:
        tries.append((parts[0], parts[1]))
    reasons = []
    for dataset, config in tries:
        try:
            splits = datasets.load_dataset(dataset, config)
            rows = splits[_split(map(str, splits), source)]
            break
        except UserError:
            raise
        except Exception as error:  # the hub, its cache and the builders each have their own
            reasons.append(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")
    else:
        raise UserError(f"data.pairs: {source}: no such directory, and the hub gave none ({'; '.join(reasons)})")
    return {"dataset": name, "version": str(rows.info.version), "rows": len(rows)}, lambda limit: iter(rows)
