"""Prepares a source once: as a TFDS dataset in ArrayRecord format, and as arrays with one row per pair.

The writer of TFDS (GeneratorBasedBuilder) is not used: it holds up to 1 GB of examples in memory, needs TensorFlow
beyond that, and encodes 20,000 pairs a second. Here shards are written as the pairs arrive, as the same
`tf.train.Example` messages; `tfds.folder_dataset.write_metadata`, which TFDS provides for data written by other
programs, makes them a dataset that anything that reads TFDS datasets can read.

A directory in the cache is named after its source and a digest of everything that its content depends on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from ppa_jax.data import cache, sources
from ppa_jax.data.sources import Cleaning, Counts, Source
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError

MESSAGE_PAIRS = 10_000  # pairs written with one protocol buffer
FORMAT = 3  # of a directory in the cache; a new number invalidates the old ones
DATASET = "parallel_text"
SHARD_PAIRS = 1_000_000  # about 200 MB
# One record per chunk, for random access. zstd saves little on a single sentence pair: uncompressed files are a tenth
# larger, but four times as fast to write and three times as fast to read.
WRITER_OPTIONS = "group_size:1,uncompressed"
BLOCK_PAIRS = 8192  # pairs read at a time in a pass over the corpus
BATCH_BYTES = 4_000_000  # of text per call of the tokenizer; tokens take many times the memory of the text


@dataclass(frozen=True)
class Prepared:
    """A source on disk: `num_pairs` records in the order of the source, and the counts of its reader."""

    directory: Path
    num_pairs: int
    counts: dict[str, Any]  # shard_lengths, read, kept, skipped {reason: n}, noted {reason: n}: pairs, or lines
    digest: str  # SHA-256 of the texts of all records, in order
    columns: tuple[str, ...]  # of a record

    def shards(self) -> list[Path]:
        """The ArrayRecord files, in order."""
        return sorted(self.directory.glob(f"{DATASET}-train.array_record-*"))

    def blocks(self) -> Iterator[list[bytes]]:
        """All records in order, a few thousand at a time."""
        for path in self.shards():
            reader = _open_shard(path, buffer=1 << 15)
            try:
                size = reader.num_records()
                for start in range(0, size, BLOCK_PAIRS):
                    yield reader.read(start, min(start + BLOCK_PAIRS, size))
            finally:
                reader.close()


_IMPORTING = threading.Lock()


class RandomReader:
    """Random access to the records of a prepared source; may be shared between threads, not between processes.

    The dataset's own `as_data_source` reads the same records, but starts threads with memory pools of their own in
    every call, and passes lists of rows to ArrayRecord, which scans the index of the whole shard once per list: 11 ms
    and 900 MB for a million records per shard. Reading ranges of one row takes 40 us.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._shards = prepared.shards()
        self._ends = np.cumsum(prepared.counts["shard_lengths"])  # [shards]
        self._readers: dict[int, Any] = {}  # opened on first use: each holds its shard's index, 8 bytes per record
        self._lock = threading.Lock()

    def read(self, rows: np.ndarray) -> list[bytes]:
        """The records of `rows` [n], in that order."""
        shards = np.searchsorted(self._ends, rows, side="right")
        starts = rows - np.concatenate([[0], self._ends])[shards]
        for shard in np.unique(shards).tolist():
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = _open_shard(self._shards[shard], buffer=1 << 12)
        positions = zip(shards.tolist(), starts.tolist(), strict=True)
        return [self._readers[shard].read(start, start + 1)[0] for shard, start in positions]


def _open_shard(path: Path, buffer: int) -> Any:
    """A reader of one shard that reads `buffer` bytes from the file for every record."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0", file_reader_buffer_size=buffer)


def columns_of(source: Source) -> tuple[str, ...]:
    """The names of the texts of a record: the languages, if there are more than two."""
    return source.languages if len(source.languages) > 2 else ("a", "b")


def decode(records: Iterable[bytes], columns: tuple[str, ...] = ("a", "b")) -> list[tuple[str, ...]]:
    """The texts of each record, one for each column. May be called by several threads at once."""
    with _IMPORTING:
        from tensorflow_datasets.proto import tf_example_pb2

        # First use imports the lazy module: without the lock, two threads could deadlock.
        parse = tf_example_pb2.Example.FromString  # pyright: ignore[reportAttributeAccessIssue]
    features = (parse(record).features.feature for record in records)
    return [tuple(one[name].bytes_list.value[0].decode() for name in columns) for one in features]


def folder(source: Source, cleaning: Cleaning, cache_dir: Path) -> Path:
    """The directory in which `source`, with its current content, is or would be prepared."""
    facts = [FORMAT, list(source.languages), sources.identity(source), dataclasses.asdict(cleaning)]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    shown = source.paths[0].name if source.paths else source.location
    name = re.sub(r"[^A-Za-z0-9]+", "_", shown).strip("_")[-40:]
    return Path(cache_dir) / f"{'-'.join(source.languages)}-{name}-{key}"


def prepare(source: Source, cleaning: Cleaning, cache_dir: Path) -> Prepared:
    """Prepares `source` unless it is in the cache. Raises UserError if it has no usable pair, or the disk is full."""
    directory = folder(source, cleaning, cache_dir)
    if not directory.is_dir():
        logging.info("data: preparing %s in %s", source, directory)
        cache.publish(directory, lambda work: _write_dataset(source, cleaning, work))
    try:
        facts = json.loads((directory / "prepared.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: this prepared corpus is damaged ({error}); delete the folder") from error
    if (bad := _not_utf8(facts)) * 100 > facts["read"]:
        logging.warning("data.pairs: %s: %s", source, _another_encoding(bad, facts["read"]))
    return Prepared(directory, sum(facts["shard_lengths"]), facts, facts["digest"], columns_of(source))


def _not_utf8(facts: Mapping[str, Any]) -> int:
    """The number of lines that are not UTF-8; with several languages, of the language that has most."""
    sides = (number for reason, number in facts["noted"].items() if reason.startswith("not_utf8_"))
    return facts["skipped"].get("not_utf8", 0) + max(sides, default=0)


def _another_encoding(bad: int, read: int) -> str:
    return (
        f"{bad:,} of {read:,} are not UTF-8; in another encoding, all sentences with an accent are "
        "lost: convert it, for example with iconv -f ISO-8859-1 -t UTF-8 FILE > CONVERTED"
    )


def _write_dataset(source: Source, cleaning: Cleaning, work: Path) -> None:
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.proto import tf_example_pb2

    def message() -> tuple[Any, list[Any]]:
        example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
        sides = [example.features.feature[name].bytes_list.value for name in columns]
        for side in sides:
            side.append(b"")
        return example, sides

    def records() -> Iterator[bytes]:
        for number, texts in enumerate(sources.read_pairs(source, cleaning, counts)):
            # The message is reused, because building one per pair takes five times as long. Its old content is freed
            # only with the message, so it is replaced from time to time.
            if number % MESSAGE_PAIRS == 0:
                example, sides = message()
            for side, text in zip(sides, texts, strict=True):
                side[0] = text.encode()
            digest.update(_joined(texts) + b"\n")
            yield example.SerializeToString()
            if counts.kept % SHARD_PAIRS == 0:
                logging.info("data: %s: %d kept of %d", source, counts.kept, counts.read)

    counts, digest, columns = Counts(), hashlib.sha256(), columns_of(source)
    shard_lengths, num_bytes = _write_shards(records(), work)
    if 2 * (bad := _not_utf8(vars(counts))) > counts.read:
        raise UserError(f"data.pairs: {source}: {_another_encoding(bad, counts.read)}")
    if not counts.kept:
        is_lines = source.kind == "tsv" and source.paths[0].suffix.strip(".") in source.languages
        way_out = "; of two line-aligned files give the prefix, or a.txt|b.txt" if is_lines else ""
        first = ""
        if source.kind in ("tsv", "lines"):  # nothing was kept, so the first reason is that of the first line
            first = f"; the first is {next(iter(counts.skipped))}: {sources.begins_with(source)}"
        raise UserError(
            f"data.pairs: {source}: no usable pair; {counts.read:,} read, skipped: "
            f"{list_reasons(counts.skipped)}{first}{way_out}"
        )
    text = tfds.features.Text()
    tfds.folder_dataset.write_metadata(
        data_dir=str(work),
        features=tfds.features.FeaturesDict(dict.fromkeys(columns, text)),
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=shard_lengths,
                num_bytes=num_bytes,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=epath.Path(work),
                    dataset_name=DATASET,
                    split="train",
                    filetype_suffix="array_record",
                ),
            )
        ],
        description=f"Text in the languages {', '.join(source.languages)}.",
        check_data=False,  # its check reads through tf.data
    )
    facts = {"shard_lengths": shard_lengths, "digest": digest.hexdigest()[:16], **vars(counts)}
    (work / "prepared.json").write_text(json.dumps(facts, indent=1))


def _write_shards(records: Iterable[bytes], work: Path) -> tuple[list[int], int]:
    """Writes shards of SHARD_PAIRS records, named as in TFDS. Returns their lengths and the total number of bytes."""
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    lengths: list[int] = []
    num_bytes = 0
    writer: Any = None
    try:
        for record in records:
            if writer is None or lengths[-1] == SHARD_PAIRS:
                if writer is not None:
                    writer.close()
                writer = array_record_module.ArrayRecordWriter(str(work / f"shard-{len(lengths):05d}"), WRITER_OPTIONS)
                lengths.append(0)
            writer.write(record)
            lengths[-1] += 1
            num_bytes += len(record)
    except BaseException:
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # after a failed write, closing fails with the same error
                writer.close()
        raise
    if writer is not None:
        writer.close()
    for number in range(len(lengths)):
        name = f"{DATASET}-train.array_record-{number:05d}-of-{len(lengths):05d}"
        (work / f"shard-{number:05d}").rename(work / name)
    return lengths, num_bytes


def list_reasons(counts: Mapping[str, int]) -> str:
    """`no_tab 1,200, empty 3`: the most frequent first; `none` if all are 0."""
    by_number = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in by_number if number) or "none"


def piece_lengths(prepared: Prepared, tokenizer: Tokenizer) -> np.ndarray:
    """Number of word pieces of all n sides of every record, without special tokens, memory-mapped: uint16 [N, n].

    Computed once for each tokenizer. The maximum is 65,535.
    """

    def rows() -> Iterator[np.ndarray]:
        texts: list[str] = []
        size = 0
        for block in prepared.blocks():
            for record, sides in zip(block, decode(block, prepared.columns), strict=True):
                texts.extend(sides)
                size += len(record)
                if size >= BATCH_BYTES or len(texts) >= 2 * BLOCK_PAIRS:
                    yield count(texts)
                    texts, size = [], 0
        if texts:
            yield count(texts)

    def count(texts: list[str]) -> np.ndarray:
        return np.minimum(np.array(tokenizer.count(texts)), 65_535).astype(np.uint16).reshape(-1, n)

    n = len(prepared.columns)
    path = prepared.directory / f"lengths-{tokenizer.fingerprint}.npy"
    return _array(path, rows, np.dtype(np.uint16), (prepared.num_pairs, n))


def text_marks(prepared: Prepared) -> np.ndarray:
    """For the filters of equal text, memory-mapped: [N] of `hash` (64 bits, all sides) and `identical`.

    The latter has a bit for each side but the first: whether its text is that of an earlier side.
    """
    dtype = np.dtype([("hash", np.uint64), ("identical", np.bool_, (len(prepared.columns) - 1,))])

    def rows() -> Iterator[np.ndarray]:
        for block in prepared.blocks():
            marks = np.empty(len(block), dtype)
            records = decode(block, prepared.columns)
            digests = b"".join(hashlib.blake2b(record, digest_size=8).digest() for record in map(_joined, records))
            marks["hash"] = np.frombuffer(digests, np.uint64)
            marks["identical"] = [[bool(x) and x in sides[:i] for i, x in enumerate(sides)][1:] for sides in records]
            yield marks

    return _array(prepared.directory / "marks.npy", rows, dtype, (prepared.num_pairs,))


def _joined(texts: tuple[str, ...]) -> bytes:
    return "\t".join(texts).encode()  # texts contain no tabs


def _array(path: Path, rows: Callable[[], Iterable[np.ndarray]], dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        logging.info("data: computing %s", path)
        cache.write_array(path, rows(), dtype, shape)
    return np.load(path, mmap_mode="r")
