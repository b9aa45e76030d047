"""Where text comes from: the form `lang1-lang2=SOURCE`, and readers that stream pairs in bounded memory.

SOURCE is one of

    file.tsv, file.tsv.gz     text of lang1, a tab, text of lang2
    prefix                    the line-aligned files `prefix.lang1` and `prefix.lang2` (Moses), with or without `.gz`
    a.txt|b.txt               two line-aligned files, a in lang1 and b in lang2; `.gz` too
    x.csv, x.parquet, x.jsonl a table; the columns are found by their names (public_datasets.py)
    tfds:NAME[/CONFIG]        a dataset of tensorflow-datasets, or the directory of a prepared one
    hf:NAME[/CONFIG]          a dataset of the Hugging Face hub, or a directory of parquet, arrow or JSON lines files
    SOURCE[a,b]               columns a and b of a table, file.tsv or dataset
    sample[:START-STOP]       the built-in sample, all of it or the sentences START to STOP - 1

`lang1-lang2-lang3=SOURCE`, of any number of languages, is text of which each line is in all or some of them: a TSV with
a column for each, a prefix, as many files with bars between them, or the sample. A side that is empty or unusable is
left out of its line, which is used as long as two are left.

Text of one language, `lang=SOURCE`, is for masked LM only. It is read as pairs of neighbouring lines, so that it is
processed like parallel text; SOURCE is then

    file.txt, a.txt|b.txt     one text a line, `.gz` too; a line that is too long is split at spaces
    x.csv, tfds:..., hf:...   as above; the column `text`, the one named by the language, or the only one with text
    sample[:START-STOP]       the built-in sample

Unusable rows are skipped and counted by reason, never repaired by guessing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppa_jax import storage
from ppa_jax.config import entries
from ppa_jax.data import public_datasets, sample, text_files
from ppa_jax.errors import UserError

FORM = "lang1-lang2=SOURCE, as in en-de=corpus.tsv, en-de=x.csv, en-de=prefix, en-de=a.txt|b.txt or en-de=hf:NAME"
_SPEC = re.compile(r"([A-Za-z][A-Za-z0-9_]*(?:-[A-Za-z][A-Za-z0-9_]*)*)=(.+)", re.DOTALL)
# Control characters carry no meaning and upset other tools: each becomes a space. (Only ASCII: the bytes of longer
# UTF-8 sequences are all above 0x7F.)
_TO_SPACES = bytes(32 if code < 32 or code == 127 else code for code in range(256))
_NOTED = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # of these all but the tab

LAYOUT_LINES = 1000  # of a file, in which its layout is checked
LAYOUT_BYTES = 1 << 16  # of such a line; longer ones count as blank
_ENDED = object()  # for the shorter of two files
REASONS = ("not_utf8", "empty", "marker", "too_long_text")  # why a side is unusable; of a pair, the first of these

Raw = tuple[bytes | None, ...] | str  # the sides, None being too long; or the reason why there are none


@dataclass(frozen=True)
class Cleaning:
    """What a reader leaves out, for any tokenizer."""

    max_characters: int = 10_000  # of one side; longer ones are skipped as `too_long_text`
    skip_lines: tuple[str, ...] = ("<range>",)  # sides that are only a marker: this one, of a verse joined to the last


@dataclass(frozen=True)
class Source:
    """One corpus of two or more languages, or of one, as written in `data.pairs`."""

    languages: tuple[str, ...]
    kind: str  # tsv, lines, dataset, sample, text
    location: str  # what follows the "=", trimmed, without the columns
    paths: tuple[Path, ...] = ()  # tsv: one, lines: one for each language, text: one or more
    columns: tuple[str, ...] = ()  # of a dataset, one for each language; empty: found by their names

    def __str__(self) -> str:
        columns = f"[{','.join(self.columns)}]" if self.columns else ""
        return f"{'-'.join(self.languages)}={self.location}{columns}"


@dataclass
class Counts:
    """What a reader met. `read` is `kept` plus the sum of `skipped`.

    For text in one language all of them count lines, and each part of a split line.
    """

    read: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # kept, but changed: control_characters, extra_columns, ...


# ---- the setting data.pairs ----


def parse_pairs(spec: str) -> list[Source]:
    """The sources of `data.pairs`, in their order. Raises UserError for a wrong form or missing files."""
    parts = entries(spec)
    if not parts:
        raise UserError(f"data.pairs: no source given; write {FORM}")
    matches = []
    for part in parts:
        match = _SPEC.fullmatch(part)
        languages = match[1].split("-") if match else []
        if match is None or (len(languages) > 2 and any(code[0].isupper() for code in languages[1:])):  # pt-BR
            raise UserError(
                f"data.pairs: {part!r} is not of the form {FORM}; a comma separates two sources, "
                "so a path must not hold one (rename it or make a link); languages have letters, digits and _, as pt_BR"
            )
        if len(set(languages)) < len(languages):
            raise UserError(f"data.pairs: {part!r} names one language twice; the sides must differ")
        matches.append(match)
    sources = [_source(tuple(match[1].split("-")), match[2].strip()) for match in matches]
    for source, times in Counter(sources).items():
        if times > 1:
            raise UserError(f"data.pairs: {source} is given {times} times; give it once")
    return sources


@contextlib.contextmanager
def errors_name(setting: str) -> Iterator[None]:
    """Within it, errors name another setting of the same form in place of `data.pairs`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{setting}: {str(error).removeprefix('data.pairs: ')}") from error


def overlap(a: Source, b: Source) -> bool:
    """Whether two sources read the same text: of the sample in part, of files and datasets whole."""
    if a.kind == b.kind == "sample":
        (first, last), (start, stop) = _sample_range(a), _sample_range(b)
        return first < stop and start < last
    return a.location == b.location or bool(set(a.paths) & set(b.paths))


def languages_of(spec: str) -> tuple[str, ...]:
    """The languages of `data.pairs`, in order of first appearance."""
    return tuple(dict.fromkeys(language for source in parse_pairs(spec) for language in source.languages))


def _source(languages: tuple[str, ...], location: str) -> Source:
    if match := re.fullmatch(r"(.*[^\s/])\[([^\[\]]*)\]", location, re.DOTALL):
        columns = tuple(name.strip() for name in match[2].split(","))
        if len(columns) != len(languages) or not all(columns):
            raise UserError(f"data.pairs: {location}: give one column for each of {', '.join(languages)}")
        if not (_is_dataset(match[1]) or match[1].endswith((".tsv", ".tsv.gz"))) or "|" in match[1]:
            raise UserError(f"data.pairs: {location}: columns are of CSV, TSV, parquet, JSON lines files and datasets")
        return Source(languages, "dataset", _dataset(match[1]), columns=columns)
    if sample.is_source(location):
        return Source(languages, "sample", location)
    if _is_dataset(location):
        return Source(languages, "dataset", _dataset(location))
    if len(languages) == 1:
        return Source(languages, "text", location, tuple(_file(name.strip()) for name in location.split("|")))
    if "|" in location:
        names = [name.strip() for name in location.split("|")]
        if len(names) != len(languages) or not all(names):
            form = "two files a.txt|b.txt with one bar between them"
            if len(languages) > 2:
                form = f"{len(languages)} files with bars between them, one for each of {', '.join(languages)}"
            raise UserError(f"data.pairs: {location!r} is not {form}")
        if len(set(names)) < len(names):
            raise UserError(f"data.pairs: {location!r} is one file twice; the second must have the translations")
        return Source(languages, "lines", location, tuple(_file(name) for name in names))
    path = storage.local(location, beside=True)
    if path.is_file() or location.endswith((".tsv", ".tsv.gz")):
        return Source(languages, "tsv", location, (_file(path),))
    sides = [_moses_side(path, language) for language in languages]
    found = tuple(side for side in sides if side)
    if len(found) == len(languages):
        return Source(languages, "lines", location, found)
    if found:
        missing = languages[sides.index(None)]
        other = "the other side is" if len(languages) == 2 else "other sides are"
        raise UserError(f"data.pairs: no such file: {location}.{missing} (or .gz), though {other} there")
    if path.is_dir():
        raise UserError(
            f"data.pairs: {location} is a directory; give a file, a prefix (dir/train for dir/train.{languages[0]}), "
            f"or tfds:{location} or hf:{location} for a dataset on disk"
        )
    raise UserError(
        f"data.pairs: no such file: {location}, nor {location}.{languages[0]} with {location}.{languages[1]}; "
        f"write {FORM}"
    )


def _is_dataset(location: str) -> bool:
    return re.match(r"(tfds|hf)(:|$)", location) is not None or public_datasets.is_table(location)


def _dataset(location: str) -> str:
    if "|" in location:
        raise UserError(f"data.pairs: {location}: a bar joins plain text files; give tables apart, with a comma")
    if not re.match(r"(tfds|hf)(:|$)", location):
        _file(location)
    return location


def _moses_side(prefix: Path, language: str) -> Path | None:
    candidates = (Path(f"{prefix}.{language}{ending}") for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _file(name: str | Path) -> Path:
    path = storage.local(name)
    if path.is_dir():
        raise UserError(f"data.pairs: {name} is a directory; give a file")
    if not path.exists():
        raise UserError(f"data.pairs: no such file: {name}; check the path (it is relative to the working directory)")
    return path


# ---- checks before anything is prepared ----


def check(source: Source) -> None:
    """Raises UserError if a source cannot be read or has a wrong layout, with the file and what to do."""
    if source.kind == "sample":
        _sample_range(source)
    elif source.kind == "dataset":
        _open_dataset(source)
    else:
        for path in source.paths:
            text_files.open_text(path).close()
        if source.kind == "lines":
            counts = [sum(1 for _ in text_files.lines(path, text_files.LONGEST_LINE)) for path in source.paths]
            _check_aligned(source.paths, counts)
        if len(source.languages) > 1:
            _check_layout(source)


def _check_layout(source: Source) -> None:
    """Refuses files that do not begin with a column of text for each language.

    They could be read without an error, with row numbers as sentences or the text in a column that is left out.
    """
    heads = [_first_lines(path, LAYOUT_LINES) for path in source.paths]
    if source.kind == "tsv":
        rows = [line.split(b"\t") for line in heads[0] if line.strip()]
    else:
        rows = [list(row) for row in zip(*heads, strict=True)]
    begins = f"data.pairs: {source}: begins with {begins_with(source)}"
    n = len(source.languages)
    if source.kind == "tsv" and _nearly_all(len(row) == 1 and b"," in row[0] for row in rows):
        raise UserError(f"{begins}: comma-separated, where a tab is expected between sides; rename it to end in .csv")
    body = rows[1:] or rows  # the first row may be a header
    numbers = [_nearly_all(len(row) > side and row[side].strip().isdigit() for row in body) for side in range(n)]
    if n > 2 and _nearly_all(len(row) < n for row in rows):
        raise UserError(f"{begins}: fewer than {n} columns in nearly every line; name the languages that it has")
    if _nearly_all(any(row[n:]) for row in rows):
        what, first = f"more than {'two' if n == 2 else n} columns in nearly every line", 1
        if numbers[0]:
            what, first = "the first column holds row numbers", 2
        columns = ",".join(map(str, range(first, first + n)))
        raise UserError(f"{begins}: {what}; give those of the sides, by number or header: {source}[{columns}]")
    if any(numbers):
        language = source.languages[numbers.index(True)]
        raise UserError(f"{begins}: the {language} side is a number in nearly every line; give the text of all sides")


def _first_lines(path: Path, number: int) -> list[bytes]:
    return [line or b"" for line in itertools.islice(text_files.lines(path, LAYOUT_BYTES), number)]


def _nearly_all(flags: Iterable[bool]) -> bool:
    flags = list(flags)
    return 10 * sum(flags) >= 9 * len(flags) > 0


def begins_with(source: Source) -> str:
    """The first line of each file of a source, for messages."""
    firsts = [line for path in source.paths for line in _first_lines(path, 1)]
    return " | ".join(repr(line.decode(errors="replace")[:80]) for line in firsts)


def identity(source: Source) -> dict[str, Any]:
    """What a prepared copy of `source` depends on: paths, sizes and modification times of files, versions."""
    if source.kind == "sample":
        start, stop = _sample_range(source)
        texts = "\n".join(text for language in source.languages for text in sample.sentences(language, start, stop))
        return {"kind": "sample", "start": start, "stop": stop, "text": hashlib.sha256(texts.encode()).hexdigest()[:16]}
    if source.kind == "dataset":
        return {"kind": source.kind, "columns": source.columns, **_open_dataset(source).identity}
    return {"kind": source.kind, "files": [text_files.file_identity(path) for path in source.paths]}


# ---- readers ----


def read_pairs(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[tuple[str, ...]]:
    """Yields the usable pairs of `source` in order, and adds what it met to `counts`.

    Of more than two languages these are lines with at least two of them, and "" for a side that is left out.
    """
    if len(source.languages) == 1:
        # Every text once, in pairs; the last of an odd number is paired with itself.
        texts = _read_texts(source, cleaning, counts)
        for first in texts:
            second = next(texts, None)
            counts.noted["odd_line"] += second is None
            yield first, first if second is None else second
        return
    markers = frozenset(cleaning.skip_lines)
    for raw in _raw_pairs(source, cleaning, counts):
        counts.read += 1
        if isinstance(raw, str):
            counts.skipped[raw] += 1
            continue
        sides = [_cleaned(side, cleaning.max_characters, markers) for side in raw]
        if reasons := [reason for _, reason in sides if reason]:
            if len(sides) - len(reasons) < 2:
                counts.skipped[min(reasons, key=REASONS.index)] += 1
                continue
            counts.noted.update(f"{why}_{code}" for code, (_, why) in zip(source.languages, sides, strict=True) if why)
        if any(_NOTED.search(side) for side in raw if side):
            counts.noted["control_characters"] += 1
        counts.kept += 1
        yield tuple(text for text, _ in sides)


def _cleaned(side: bytes | None, max_characters: int, markers: frozenset[str]) -> tuple[str, str]:
    """The text of a side, and ""; or "" and the reason why it is unusable."""
    if side is None:
        return "", "too_long_text"
    try:
        text = side.translate(_TO_SPACES).decode().strip()
    except UnicodeDecodeError:
        return "", "not_utf8"
    if not text or text in markers:
        return "", "marker" if text else "empty"
    return ("", "too_long_text") if len(text) > max_characters else (text, "")


def _read_texts(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[str]:
    """The usable lines of a text, long ones in parts; blank lines separate paragraphs and are not counted."""
    for line in _raw_lines(source):
        text, reason = "", line if isinstance(line, str) else ""
        if isinstance(line, bytes):
            try:
                text = line.translate(_TO_SPACES).decode().strip()
            except UnicodeDecodeError:
                reason = "not_utf8"
        if text in cleaning.skip_lines:
            reason = "marker"
        if reason:
            counts.read += 1
            counts.skipped[reason] += 1
            continue
        parts = [text] if text else []
        if len(text) > cleaning.max_characters:
            counts.noted["split_lines"] += 1
            parts = textwrap.wrap(text, cleaning.max_characters, break_on_hyphens=False)
        for part in parts:
            counts.read += 1
            counts.kept += 1
            yield part


def _raw_lines(source: Source) -> Iterator[bytes | str]:
    """Lines, or the reason why there is none."""
    if source.kind == "sample":
        yield from (text.encode() for text in sample.sentences(source.languages[0], *_sample_range(source)))
    if source.kind == "dataset":
        yield from _open_dataset(source).stream(text_files.LONGEST_LINE)
    for path in source.paths:
        for line in text_files.lines(path, text_files.LONGEST_LINE):
            yield "too_long_text" if line is None else line


def _raw_pairs(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[Raw]:
    # The longest useful line: sides of up to 4 bytes a character, and room for more columns.
    limit = 4 * len(source.languages) * cleaning.max_characters + 65_536
    if source.kind == "tsv":
        return _read_tsv(source.paths[0], len(source.languages), limit, counts)
    if source.kind == "lines":
        return _read_lines(source.paths, limit)
    if source.kind == "sample":
        texts = (sample.sentences(language, *_sample_range(source)) for language in source.languages)
        return (tuple(text.encode() for text in line) for line in zip(*texts, strict=True))
    return _open_dataset(source).stream(limit)


def _read_tsv(path: Path, n: int, limit: int, counts: Counts) -> Iterator[Raw]:
    for line in text_files.lines(path, limit):
        if line is None:
            yield "too_long_text"
            continue
        columns = line.split(b"\t", n)
        if len(columns) == 1:
            yield "no_tab" if line.strip() else "empty"
            continue
        if len(columns) > n:
            counts.noted["extra_columns"] += 1
        yield tuple((columns + [b""] * n)[:n])


def _read_lines(paths: tuple[Path, ...], limit: int) -> Iterator[Raw]:
    numbers = [0] * len(paths)
    line: Any
    for line in itertools.zip_longest(*(text_files.lines(path, limit) for path in paths), fillvalue=_ENDED):
        numbers = [number + (side is not _ENDED) for number, side in zip(numbers, line, strict=True)]
        if _ENDED not in line:
            yield line
    _check_aligned(paths, numbers)


def _check_aligned(paths: tuple[Path, ...], lines: list[int]) -> None:
    for path, number in zip(paths[1:], lines[1:], strict=True):
        if number != lines[0]:
            raise UserError(
                f"data.pairs: {paths[0]} has {lines[0]:,} lines but {path} has {number:,}; "
                "line i of one must be the translation of line i of the other, with an empty line where there is none"
            )


def _open_dataset(source: Source) -> public_datasets.Dataset:
    where = f"data.pairs: {source}"
    given = {"columns": source.columns, "where": where}
    if len(source.languages) == 1:
        return public_datasets.open_texts(source.location, source.languages[0], **given)
    return public_datasets.open_rows(source.location, source.languages, **given)


def _sample_range(source: Source) -> tuple[int, int]:
    for language in source.languages:
        if language not in sample.LANGUAGES:
            known = ", ".join(sample.LANGUAGES)
            raise UserError(f"data.pairs: {source}: the built-in sample has {known}, not {language}")
    return sample.parse_range(source.location, sample.size(), where=f"data.pairs: {source}")
