"""The corpora of a run: one `LanguagePair` for each two languages, with random access; skipped pairs are counted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppa_jax import storage
from ppa_jax.config import entries
from ppa_jax.data import cache, prepare, sources
from ppa_jax.data.cache import pickled_form, unpickled
from ppa_jax.data.prepare import Prepared, RandomReader
from ppa_jax.data.sources import Cleaning
from ppa_jax.data.tokenizer import Tokenizer
from ppa_jax.errors import UserError

FORMAT = 3  # of a selection of pairs in the cache; a new number selects again
_FILTER_ROWS = 1 << 20  # pairs filtered at once


@dataclass(frozen=True)
class Filters:
    """Which prepared pairs are used. Lengths are word pieces without special tokens, before truncation."""

    min_pieces: int  # of either side; pairs with a side without pieces are always dropped
    max_pair_pieces: int | None  # of both sides together; None: no limit
    drop_identical: bool  # pairs whose two sides are the same text: untranslated
    drop_duplicates: bool  # all but the first of equal pairs within a source


@dataclass(frozen=True)
class Part:
    """One source of a language pair."""

    source: str  # as written in data.pairs
    prepared: Prepared
    swapped: bool  # prepared as b-a where the pair is a-b


class LanguagePair:
    """The pairs of two languages that passed the filters, from all their sources, concatenated.

    Attributes:
      name: "en-de", in the order in which the pair was first named.
      languages: ("en", "de"), side 0 and side 1; ("en",) for text of one language.
      lengths: [n, 2] int32, memory-mapped: word pieces of each side without special tokens, at most max_length - 2.
      digests: of the prepared text of each source.
      report: for each source a dict of source, read, kept, skipped {reason: n} and noted {reason: n}, counts of pairs
        (for one language, of lines), and rows, the number of pairs (for one language, of pairs of lines).

    Several threads may read. A copy in another process, pickled or forked, opens the files again.
    """

    def __init__(
        self,
        languages: tuple[str, ...],
        parts: list[Part],
        rows: np.ndarray,
        lengths: np.ndarray,
        report: list[dict[str, Any]],
    ) -> None:
        self.name = "-".join(languages)
        self.languages = languages
        self.lengths = lengths
        self.digests = [part.prepared.digest for part in parts]
        self.report = report
        self._parts = parts
        self._rows = rows  # [n] row of each pair within its source
        self._ends = np.cumsum([entry["rows"] for entry in report])  # [parts]
        self._opened: dict[tuple[int, int], RandomReader] = {}  # (process, part)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, str]]:
        """The texts of pairs `indices`, in that order, repetitions allowed. Raises IndexError outside 0..n-1."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.name}: pairs are numbered 0 to {len(self) - 1}")
        part_of = np.searchsorted(self._ends, wanted, side="right")
        texts: list[tuple[str, str]] = [("", "")] * len(wanted)
        for number in np.unique(part_of):
            positions = np.flatnonzero(part_of == number)
            records = self._open(int(number)).read(self._rows[wanted[positions]].astype(np.int64))
            for i, (a, b) in zip(positions.tolist(), prepare.decode(records), strict=True):
                texts[i] = (b, a) if self._parts[number].swapped else (a, b)
        return texts

    def _open(self, number: int) -> RandomReader:
        key = (os.getpid(), number)
        if key not in self._opened:
            self._opened[key] = RandomReader(self._parts[number].prepared)
        return self._opened[key]

    def __getstate__(self) -> dict[str, Any]:
        # Files are opened again where they are needed.
        mapped = {name: pickled_form(getattr(self, name)) for name in ("_rows", "lengths")}
        return {**self.__dict__, "_opened": {}, **mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows, self.lengths = unpickled(self._rows), unpickled(self.lengths)


def open_pairs(
    spec: str,
    tokenizer: Tokenizer,
    *,
    cache_dir: str | Path,
    min_pieces: int,
    max_pair_pieces: int | None,
    max_length: int,
    max_characters: int = Cleaning.max_characters,
    skip_lines: str = ",".join(Cleaning.skip_lines),
    drop_identical: bool = False,
    drop_duplicates: bool = False,
) -> list[LanguagePair]:
    """Opens the sources of `data.pairs`, and prepares those that are new or have changed.

    Sources of the same two languages are merged in either order: en-de and de-en are one pair, named as its first
    source.

    Args:
      spec: the value of `data.pairs`.
      tokenizer: counts the word pieces.
      cache_dir: for prepared sources and selections of pairs.
      min_pieces, max_pair_pieces, drop_identical, drop_duplicates: see `Filters`.
      max_length: maximum word pieces of a sentence, including its two special tokens.
      max_characters: see `Cleaning`.
      skip_lines: see `Cleaning`; comma-separated.

    Raises:
      UserError: a wrong form; files that are missing, empty, not text or of different length; a source without usable
        pairs; a full disk. All sources are checked before the first is prepared.
    """
    cleaning = Cleaning(max_characters, tuple(entries(skip_lines)))
    filters = Filters(min_pieces, max_pair_pieces, drop_identical, drop_duplicates)
    cache_dir = storage.on_disk(cache_dir, "config.data.cache=")
    given = sources.parse_pairs(spec)
    for source in given:
        if not prepare.folder(source, cleaning, cache_dir).is_dir():
            sources.check(source)
    grouped: dict[frozenset[str], list[sources.Source]] = {}
    for source in given:
        grouped.setdefault(frozenset(source.languages), []).append(source)
    pairs = []
    for group in grouped.values():
        languages = group[0].languages
        parts = [
            Part(str(source), prepare.prepare(source, cleaning, cache_dir), swapped=source.languages != languages)
            for source in group
        ]
        pairs.append(_language_pair(languages, parts, tokenizer, filters, max_length, cache_dir))
    return pairs


def _language_pair(
    languages: tuple[str, ...],
    parts: list[Part],
    tokenizer: Tokenizer,
    filters: Filters,
    max_length: int,
    cache_dir: Path,
) -> LanguagePair:
    """The pairs that pass the filters, selected once and then read from the cache."""
    is_text = len(languages) == 1
    if is_text:  # the two lines of a pair are unrelated
        if filters.drop_duplicates:
            raise UserError(
                f"config.data.drop_duplicates: works on pairs, and {languages[0]} is text of one language; "
                "remove its repeated lines first (awk '!seen[$0]++'), and leave the setting out"
            )
        filters = Filters(0, None, False, False)
    facts = [
        [prepare.FORMAT, FORMAT],
        [(part.prepared.directory.name, part.swapped) for part in parts],
        [tokenizer.fingerprint, dataclasses.asdict(filters), max_length],
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache_dir / f"{'-'.join(languages)}-pairs-{key}"
    if not directory.is_dir():
        cache.publish(directory, lambda work: _select(parts, tokenizer, filters, max_length, work, is_text))
    report = json.loads((directory / "report.json").read_text())
    return LanguagePair(
        languages,
        parts,
        np.load(directory / "rows.npy", mmap_mode="r"),
        np.load(directory / "lengths.npy", mmap_mode="r"),
        # The same file may have had another path when the pairs were selected.
        [{"source": part.source, **entry} for part, entry in zip(parts, report, strict=True)],
    )


def _select(
    parts: list[Part], tokenizer: Tokenizer, filters: Filters, max_length: int, work: Path, is_text: bool
) -> None:
    """Writes rows.npy [n] uint32, lengths.npy [n, 2] int32 and report.json of the pairs that pass."""
    passing, report = [], []
    for part in parts:
        facts = part.prepared.counts
        keep, dropped, cut = _filter(part.prepared, tokenizer, filters, max_length)
        rows = kept = int(keep.sum())
        if is_text:
            kept, dropped, cut = _lines(part.prepared, tokenizer, keep, max_length)
        skipped = {**facts["skipped"], **dropped}
        if not kept:
            first = prepare.decode(next(part.prepared.blocks())[:1])[0]
            a, b = prepare.piece_lengths(part.prepared, tokenizer)[0]
            raise UserError(
                f"data.pairs: {part.source}: no usable pair; {facts['read']:,} read, skipped: "
                f"{prepare.list_reasons(skipped)} "
                f"(data.min_pieces={filters.min_pieces}, data.max_pair_pieces={filters.max_pair_pieces}); "
                f"the first has {a} and {b} pieces: {first[0][:80]!r} | {first[1][:80]!r}"
            )
        passing.append(keep)
        noted = {**facts["noted"], "cut": cut}
        report.append({"read": facts["read"], "kept": kept, "rows": rows, "skipped": skipped, "noted": noted})

    def chosen() -> Iterator[np.ndarray]:
        for keep in passing:
            for start in range(0, len(keep), _FILTER_ROWS):
                yield np.flatnonzero(keep[start : start + _FILTER_ROWS]) + start

    def lengths() -> Iterator[np.ndarray]:
        for part, keep in zip(parts, passing, strict=True):
            pieces = prepare.piece_lengths(part.prepared, tokenizer)
            for start in range(0, len(keep), _FILTER_ROWS):
                block = pieces[start : start + _FILTER_ROWS][keep[start : start + _FILTER_ROWS]]
                yield np.minimum(block[:, ::-1] if part.swapped else block, max_length - 2)

    total = sum(entry["rows"] for entry in report)
    cache.write_array(work / "rows.npy", chosen(), np.dtype(np.uint32), (total,))
    cache.write_array(work / "lengths.npy", lengths(), np.dtype(np.int32), (total, 2))
    (work / "report.json").write_text(json.dumps(report, indent=1))


def _filter(
    prepared: Prepared, tokenizer: Tokenizer, filters: Filters, max_length: int
) -> tuple[np.ndarray, dict[str, int], int]:
    """Which pairs pass, [N] bool; how many each filter dropped (the first that applies); how many are truncated."""
    pieces = prepare.piece_lengths(prepared, tokenizer)
    keep = np.ones(len(pieces), np.bool_)
    dropped: Counter[str] = Counter()
    cut = 0

    def drop(reason: str, part: slice, failing: Any) -> None:
        failing = failing & keep[part]
        keep[part] &= ~failing
        if failing.any():
            dropped[reason] += int(failing.sum())

    everything = slice(None)
    if filters.drop_identical or filters.drop_duplicates:
        marks = prepare.text_marks(prepared)
        if filters.drop_identical:
            drop("identical", everything, np.asarray(marks["identical"]))
        if filters.drop_duplicates:
            repeated = np.ones(len(pieces), np.bool_)
            repeated[np.unique(marks["hash"], return_index=True)[1]] = False
            drop("duplicate", everything, repeated)
    for start in range(0, len(pieces), _FILTER_ROWS):
        part = slice(start, start + _FILTER_ROWS)
        block = pieces[part].astype(np.int32)
        drop("no_pieces", part, (block == 0).any(axis=1))
        drop("too_few_pieces", part, (block < filters.min_pieces).any(axis=1))
        if filters.max_pair_pieces is not None:
            drop("too_many_pieces", part, block.sum(axis=1) > filters.max_pair_pieces)
        cut += int((keep[part] & (block > max_length - 2).any(axis=1)).sum())
    return keep, dict(dropped), cut


def _lines(
    prepared: Prepared, tokenizer: Tokenizer, keep: np.ndarray, max_length: int
) -> tuple[int, dict[str, int], int]:
    """For the lines of one language: how many stay, how many are dropped for which reason, how many are truncated.

    A row is two lines, or the last of an odd number twice. A line without pieces is dropped with its neighbour.
    """
    pieces = prepare.piece_lengths(prepared, tokenizer)
    is_line = np.ones(pieces.shape, np.bool_)
    is_line[-1, 1] = not prepared.counts["noted"].get("odd_line")
    stays = is_line & keep[:, None]
    empty = is_line & (pieces == 0)
    dropped = {"no_pieces": int(empty.sum()), "beside_no_pieces": int((is_line & ~stays & ~empty).sum())}
    cut = int((stays & (pieces > max_length - 2)).sum())
    return int(stays.sum()), {reason: number for reason, number in dropped.items() if number}, cut


def sources_table(pairs: Sequence[LanguagePair]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Header and rows: how many pairs (of one language: lines) of each source were read and kept, and the reasons."""
    rows: list[tuple[Any, ...]] = []
    for pair in pairs:
        for entry in pair.report:
            source, reasons = entry["source"].partition("=")[2], (entry["skipped"], entry["noted"])
            rows.append((pair.name, source, entry["read"], entry["kept"], *map(prepare.list_reasons, reasons)))
        if len(pair.report) > 1:
            read, kept = (sum(entry[key] for entry in pair.report) for key in ("read", "kept"))
            rows.append((pair.name, "all", read, kept, "", ""))
    return ("languages", "source", "pairs or lines read", "kept", "skipped", "kept, but noted"), rows
