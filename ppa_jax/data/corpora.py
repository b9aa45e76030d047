"""The corpora of a run: a `LanguagePair` per set of languages, with random access; what is skipped is counted."""

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

FORMAT = 3  # of a selection of pairs in the cache; a new number invalidates the old ones
_FILTER_ROWS = 1 << 20  # pairs filtered at a time


@dataclass(frozen=True)
class Filters:
    """Which sides are left out of the prepared lines; a line with fewer than two sides, as a pair with one, is dropped.

    Lengths are word pieces without special tokens, before truncation.
    """

    min_pieces: int  # on each side; empty sides are always left out
    max_pair_pieces: int | None  # limit for any two sides together; the longest are left out; None: none
    drop_identical: bool  # leave out a side with the same text as an earlier one
    drop_duplicates: bool  # keep only the first of equal lines within a source


@dataclass(frozen=True)
class Part:
    """One source of a language pair."""

    source: str  # as written in data.pairs
    prepared: Prepared
    columns: tuple[int, ...]  # of the prepared texts, in the order of the pair's languages


class LanguagePair:
    """The pairs of two languages that passed the filters, from all sources of these languages, concatenated.

    Or lines in more than two languages, each present in at least two of them.

    Attributes:
      name: "en-de", in the order of the first source.
      languages: ("en", "de"), side 0 and side 1; ("en",) for text of one language.
      lengths: [n, 2] int32, memory-mapped: word pieces of each side without special tokens, at most max_length - 2. A
        column for each language if there are more; 0 where a line lacks it.
      digests: of the prepared text of each source.
      report: for each source a dict of source, read, kept, skipped {reason: n} and noted {reason: n}, which count pairs
        (lines for text of one language), and rows, the number of pairs (pairs of lines for text of one language).
      directory: of this selection in the cache.
      teacher: [n, E] memory-mapped: another model's vector of each pair, for distillation; or None.

    Threads may share it. A copy in another process, pickled or forked, opens the files again.
    """

    def __init__(
        self,
        languages: tuple[str, ...],
        parts: list[Part],
        rows: np.ndarray,
        lengths: np.ndarray,
        report: list[dict[str, Any]],
        directory: Path,
    ) -> None:
        self.name = "-".join(languages)
        self.languages = languages
        self.lengths = lengths
        self.digests = [part.prepared.digest for part in parts]
        self.report = report
        self.directory = directory
        self.teacher: np.ndarray | None = None
        self._parts = parts
        self._rows = rows  # [n] row of each pair within its source
        self._ends = np.cumsum([entry["rows"] for entry in report])  # [parts]
        self._opened: dict[tuple[int, int], RandomReader] = {}  # (process, part)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int] | np.ndarray) -> list[tuple[str, ...]]:
        """The texts of pairs `indices`, in that order; indices may repeat. Raises IndexError outside 0..n-1."""
        wanted = np.asarray(indices, np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"{self.name}: pairs are numbered 0 to {len(self) - 1}")
        part_of = np.searchsorted(self._ends, wanted, side="right")
        texts: list[tuple[str, ...]] = [()] * len(wanted)
        for number in np.unique(part_of):
            positions = np.flatnonzero(part_of == number)
            part = self._parts[number]
            records = self._open(int(number)).read(self._rows[wanted[positions]].astype(np.int64))
            for i, sides in zip(positions.tolist(), prepare.decode(records, part.prepared.columns), strict=True):
                texts[i] = tuple(sides[column] for column in part.columns)
        return texts

    def _open(self, number: int) -> RandomReader:
        key = (os.getpid(), number)
        if key not in self._opened:
            self._opened[key] = RandomReader(self._parts[number].prepared)
        return self._opened[key]

    def __getstate__(self) -> dict[str, Any]:
        # Files are not pickled: the copy opens them when it needs them.
        mapped = {name: pickled_form(getattr(self, name)) for name in ("_rows", "lengths", "teacher")}
        return {**self.__dict__, "_opened": {}, **mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows, self.lengths, self.teacher = map(unpickled, (self._rows, self.lengths, self.teacher))


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

    Sources of the same languages are merged: en-de and de-en are one pair, named like its first source.

    Args:
      spec: the value of `data.pairs`.
      tokenizer: counts the word pieces.
      cache_dir: for prepared sources and selections of pairs.
      min_pieces, max_pair_pieces, drop_identical, drop_duplicates: see `Filters`.
      max_length: maximum word pieces of a sentence, including its two special tokens.
      max_characters: see `Cleaning`.
      skip_lines: see `Cleaning`; comma-separated.

    Raises:
      UserError: a source of the wrong form; files that are missing, empty, not text or of different lengths; a source
        without usable pairs; a full disk. All sources are checked before the first one is prepared.
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
        parts = []
        for source in group:
            columns = tuple(map(source.languages.index, languages)) if len(languages) > 1 else (0, 1)
            parts.append(Part(str(source), prepare.prepare(source, cleaning, cache_dir), columns))
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
    """The pairs that pass the filters; the selection is computed once and then read from the cache."""
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
        [(part.prepared.directory.name, part.columns) for part in parts],
        [tokenizer.fingerprint, dataclasses.asdict(filters), max_length],
    ]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache_dir / f"{'-'.join(languages)[:80]}-pairs-{key}"
    if not directory.is_dir():
        cache.publish(directory, lambda work: _select(parts, tokenizer, filters, max_length, work, is_text))
    report = json.loads((directory / "report.json").read_text())
    return LanguagePair(
        languages,
        parts,
        np.load(directory / "rows.npy", mmap_mode="r"),
        np.load(directory / "lengths.npy", mmap_mode="r"),
        # The report in the cache may have been written for another path of the same file.
        [{"source": part.source, **entry} for part, entry in zip(parts, report, strict=True)],
        directory,
    )


def _select(
    parts: list[Part], tokenizer: Tokenizer, filters: Filters, max_length: int, work: Path, is_text: bool
) -> None:
    """Writes rows.npy [n] uint32, lengths.npy [n, sides] int32 and report.json of the pairs that pass."""
    passing, report = [], []
    for part in parts:
        facts = part.prepared.counts
        usable, dropped, noted, cut = _filter(part.prepared, tokenizer, filters, max_length)
        keep = np.any(usable, axis=1)
        rows = kept = int(keep.sum())
        if is_text:
            kept, dropped, cut = _lines(part.prepared, tokenizer, keep, max_length)
        skipped = {**facts["skipped"], **dropped}
        if not kept:
            first = prepare.decode(next(part.prepared.blocks())[:1], part.prepared.columns)[0]
            pieces = map(str, prepare.piece_lengths(part.prepared, tokenizer)[0])
            raise UserError(
                f"data.pairs: {part.source}: no usable pair; {facts['read']:,} read, skipped: "
                f"{prepare.list_reasons(skipped)} "
                f"(data.min_pieces={filters.min_pieces}, data.max_pair_pieces={filters.max_pair_pieces}); "
                f"the first has {' and '.join(pieces)} pieces: {' | '.join(repr(text[:80]) for text in first)}"
            )
        passing.append(usable)
        noted = {**facts["noted"], **noted, "cut": cut}
        report.append({"read": facts["read"], "kept": kept, "rows": rows, "skipped": skipped, "noted": noted})

    def chosen() -> Iterator[np.ndarray]:
        for usable in passing:
            for start in range(0, len(usable), _FILTER_ROWS):
                yield np.flatnonzero(usable[start : start + _FILTER_ROWS].any(axis=1)) + start

    def lengths() -> Iterator[np.ndarray]:
        for part, usable in zip(parts, passing, strict=True):
            pieces = prepare.piece_lengths(part.prepared, tokenizer)
            for start in range(0, len(usable), _FILTER_ROWS):
                block = usable[start : start + _FILTER_ROWS]
                cut = np.minimum(pieces[start : start + _FILTER_ROWS], max_length - 2) * block
                yield cut[block.any(axis=1)][:, part.columns]

    total, sides = sum(entry["rows"] for entry in report), len(parts[0].columns)
    cache.write_array(work / "rows.npy", chosen(), np.dtype(np.uint32), (total,))
    cache.write_array(work / "lengths.npy", lengths(), np.dtype(np.int32), (total, sides))
    (work / "report.json").write_text(json.dumps(report, indent=1))


def _filter(
    prepared: Prepared, tokenizer: Tokenizer, filters: Filters, max_length: int
) -> tuple[np.ndarray, dict[str, int], dict[str, int], int]:
    """The sides that pass, [N, sides] bool: none, or at least two; and the number of truncated pairs.

    In between, how many lines each filter dropped (the first one that applies), and how many sides of other lines each
    left out.
    """
    pieces = prepare.piece_lengths(prepared, tokenizer)
    usable = np.ones(pieces.shape, np.bool_)
    dropped: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    cut = 0

    def drop(reason: str, part: slice, failing: Any) -> None:
        failing = failing & usable[part]
        usable[part] &= ~failing
        was_dropped = failing.any(axis=1) & (usable[part].sum(axis=1) < 2)
        usable[part] &= ~was_dropped[:, None]
        dropped[reason] += int(was_dropped.sum())
        left_out = (failing & ~was_dropped[:, None]).sum(axis=0)
        noted.update({f"{reason}_{code}": int(n) for code, n in zip(prepared.columns, left_out, strict=True)})

    everything = slice(None)
    if filters.drop_identical or filters.drop_duplicates:
        marks = prepare.text_marks(prepared)
        if filters.drop_identical:
            identical = np.asarray(marks["identical"]).reshape(len(pieces), -1)
            drop("identical", everything, np.pad(identical, ((0, 0), (1, 0))))
        if filters.drop_duplicates:
            repeated = np.ones(len(pieces), np.bool_)
            repeated[np.unique(marks["hash"], return_index=True)[1]] = False
            drop("duplicate", everything, repeated[:, None])
    for start in range(0, len(pieces), _FILTER_ROWS):
        part = slice(start, start + _FILTER_ROWS)
        block = pieces[part].astype(np.int32)
        drop("no_pieces", part, block == 0)
        drop("too_few_pieces", part, block < filters.min_pieces)
        if filters.max_pair_pieces is not None:
            # With the next shorter side of its line: so no two that are left have more.
            order = np.argsort(block * usable[part], axis=1, kind="stable")
            rising = np.take_along_axis(block * usable[part], order, axis=1)
            failing = np.zeros_like(usable[part])
            np.put_along_axis(failing, order[:, 1:], rising[:, 1:] + rising[:, :-1] > filters.max_pair_pieces, axis=1)
            drop("too_many_pieces", part, failing)
        cut += int((usable[part] & (block > max_length - 2)).any(axis=1).sum())
    for side, code in enumerate(prepared.columns):  # what the reader left out has no pieces, and is counted already
        counted = (prepared.counts["noted"].get(f"{reason}_{code}", 0) for reason in sources.REASONS)
        if noted[f"no_pieces_{code}"]:
            noted[f"no_pieces_{code}"] = int((pieces[:, side] == 0).sum()) - sum(counted)
    return usable, dict(+dropped), dict(+noted), cut


def _lines(
    prepared: Prepared, tokenizer: Tokenizer, keep: np.ndarray, max_length: int
) -> tuple[int, dict[str, int], int]:
    """For text of one language: the number of lines kept, dropped for each reason, and truncated.

    A row is two lines, or the last of an odd number twice. A line without pieces is dropped with the other line.
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
