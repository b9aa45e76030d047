"""Where text comes from: the form `lang1-lang2=SOURCE`, and readers that stream pairs in bounded memory.

SOURCE is one of

    file.tsv, file.tsv.gz     text of lang1, a tab, text of lang2
    prefix                    the line-aligned files `prefix.lang1` and `prefix.lang2` (Moses), with or without `.gz`
    a.txt|b.txt               two line-aligned files, a in lang1 and b in lang2; `.gz` too
    tfds:NAME[/CONFIG]        a dataset of tensorflow-datasets, or the directory of a prepared one
    hf:NAME[/CONFIG]          a dataset of the Hugging Face hub, or a directory of parquet, arrow or JSON lines files
    sample[:START-STOP]       the built-in sample, all of it or the sentences START to STOP - 1

Text of one language, `lang=SOURCE`, is for masked LM alone. It is read as pairs of neighbouring lines, so that it goes
the same way as parallel text; SOURCE is then

    file.txt, a.txt|b.txt     one text a line, `.gz` too; a line that is too long is split at spaces
    tfds:..., hf:...          as above; the column `text`, the one named by the language, or the only one with text
    sample[:START-STOP]       the built-in sample

What cannot be used is skipped and counted by reason, never guessed at.
"""

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

FORM = "lang1-lang2=SOURCE, as in en-de=corpus.tsv, en-de=prefix, en-de=a.txt|b.txt, en-de=tfds:NAME or en-de=hf:NAME"
_SPEC = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:-([A-Za-z][A-Za-z0-9_]*))?=(.+)", re.DOTALL)
# Control characters say nothing to a reader and upset tools downstream: each becomes a space. (ASCII alone: bytes of
# longer UTF-8 sequences are all above 0x7F.)
_TO_SPACES = bytes(32 if code < 32 or code == 127 else code for code in range(256))

LAYOUT_LINES = 1000  # of a file, from which its layout is told
LAYOUT_BYTES = 1 << 16  # of such a line; longer ones count as blank
_ENDED = object()  # for the shorter of two files

Raw = tuple[bytes, bytes] | str  # two sides, or the reason why there are none


@dataclass(frozen=True)
class Cleaning:
    """What a reader leaves out, whatever the tokenizer."""

    max_characters: int = 10_000  # of one side; longer ones are skipped as `too_long_text`
    skip_lines: tuple[str, ...] = ("<range>",)  # sides that are only a marker: this one, of a verse told with the last


@dataclass(frozen=True)
class Source:
    """One corpus of one language pair, or of one language, as written in `data.pairs`."""

    languages: tuple[str, ...]  # two, or one
    kind: str  # tsv, lines, tfds, hf, sample, text
    location: str  # what follows the "=", trimmed
    paths: tuple[Path, ...] = ()  # tsv: one, lines: two, text: one or more

    def __str__(self) -> str:
        return f"{'-'.join(self.languages)}={self.location}"


@dataclass
class Counts:
    """What a reader met. `read` is `kept` plus the sum of `skipped`.

    Of text in one language all are lines, the parts of a split one counted each.
    """

    read: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)  # kept, but changed: control_characters, extra_columns, ...


def parse_pairs(spec: str) -> list[Source]:
    """The sources of `data.pairs`, in their order. Raises UserError for a wrong form or files that are not there."""
    parts = entries(spec)
    matches = [_SPEC.fullmatch(part) for part in parts]
    if not parts:
        raise UserError(f"data.pairs: no source given; write {FORM}")
    for part, match in zip(parts, matches, strict=True):
        if match is None:
            raise UserError(
                f"data.pairs: {part!r} is not of the form {FORM}; a comma separates two sources, "
                "so a path must not hold one (rename it or make a link); languages have letters, digits and _, as pt_BR"
            )
        if match[1] == match[2]:
            raise UserError(f"data.pairs: {part!r} names one language twice; the two sides must differ")
    sources = [_source(tuple(filter(None, match.groups()[:2])), match[3].strip()) for match in matches if match]
    for source, times in Counter(sources).items():
        if times > 1:
            raise UserError(f"data.pairs: {source} is given {times} times; give it once")
    return sources


def languages_of(spec: str) -> tuple[str, ...]:
    """The languages of `data.pairs`, as they are first named."""
    return tuple(dict.fromkeys(language for source in parse_pairs(spec) for language in source.languages))


def _source(languages: tuple[str, ...], location: str) -> Source:
    if sample.is_source(location):
        return Source(languages, "sample", location)
    scheme = re.match(r"(tfds|hf)(:|$)", location)
    if scheme:
        return Source(languages, scheme[1], location)
    if len(languages) == 1:
        return Source(languages, "text", location, tuple(_file(name.strip()) for name in location.split("|")))
    if "|" in location:
        names = [name.strip() for name in location.split("|")]
        if len(names) != 2 or not all(names):
            raise UserError(f"data.pairs: {location!r} is not two files a.txt|b.txt with one bar between them")
        if names[0] == names[1]:
            raise UserError(f"data.pairs: {location!r} is one file twice; the second is to have the translations")
        return Source(languages, "lines", location, tuple(_file(name) for name in names))
    path = storage.local(location, beside=True)
    if path.is_file() or location.endswith((".tsv", ".tsv.gz")):
        return Source(languages, "tsv", location, (_file(path),))
    sides = tuple(_moses_side(path, language) for language in languages)
    if all(sides):
        return Source(languages, "lines", location, tuple(side for side in sides if side))
    if any(sides):
        lacking = languages[sides.index(None)]
        raise UserError(f"data.pairs: no such file: {location}.{lacking} (or .gz), though the other side is there")
    if path.is_dir():
        raise UserError(
            f"data.pairs: {location} is a directory; give a file, a prefix (dir/train for dir/train.{languages[0]}), "
            f"or tfds:{location} or hf:{location} for a dataset on disk"
        )
    raise UserError(
        f"data.pairs: no such file: {location}, nor {location}.{languages[0]} with {location}.{languages[1]}; "
        f"write {FORM}"
    )


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


def check(source: Source) -> None:
    """Looks at a source before anything is prepared. Raises UserError with the place and the way out."""
    if source.kind in ("tsv", "lines", "text"):
        for path in source.paths:
            text_files.open_text(path).close()
        if source.kind == "lines":
            _check_aligned(source.paths, *(text_files.count_lines(path) for path in source.paths))
        if len(source.languages) == 2:
            _check_layout(source)
    elif source.kind == "sample":
        _sample_range(source)
    else:
        _open_dataset(source)


def _check_layout(source: Source) -> None:
    """Refuses files that do not begin with two columns of text.

    The layouts it looks for could be read without an error: row numbers as sentences, text as a column left out.
    """
    rows = _first_rows(source)
    begins = f"data.pairs: {source}: begins with {begins_with(source)}"
    name = source.paths[0].name
    if source.kind == "tsv" and _nearly_all(len(row) == 1 and b"," in row[0] for row in rows):
        program = "import csv, sys; [print(*row[:2], sep='\\t') for row in csv.reader(sys.stdin)]"
        raise UserError(
            f"{begins}: comma-separated, where a tab is expected between the two sides; "
            f'convert it: python -c "{program}" < {name} > pairs.tsv'
        )
    body = rows[1:] or rows  # the first row may be a header
    numbers = [_nearly_all(len(row) > side and row[side].strip().isdigit() for row in body) for side in (0, 1)]
    if _nearly_all(any(row[2:]) for row in rows):
        if numbers[0]:
            raise UserError(
                f"{begins}: the first column holds row numbers; leave them out: cut -f2,3 {name} > pairs.tsv, "
                "or to_csv(..., index=False, header=False) in pandas"
            )
        raise UserError(
            f"{begins}: more than two columns in nearly every line; keep those of the two sides: "
            f"cut -f1,2 {name} > pairs.tsv"
        )
    if any(numbers):
        language = source.languages[numbers.index(True)]
        raise UserError(f"{begins}: the {language} side is a number in nearly every line; give the text of both sides")


def _first_rows(source: Source) -> list[list[bytes]]:
    """The columns of the first lines, blank ones of a TSV file left out."""
    heads = [_first_lines(path, LAYOUT_LINES) for path in source.paths]
    if source.kind == "tsv":
        return [line.split(b"\t") for line in heads[0] if line.strip()]
    return [list(row) for row in zip(*heads, strict=True)]


def _first_lines(path: Path, number: int) -> list[bytes]:
    return [line or b"" for line in itertools.islice(text_files.lines(path, LAYOUT_BYTES), number)]


def _nearly_all(flags: Iterable[bool]) -> bool:
    flags = list(flags)
    return 10 * sum(flags) >= 9 * len(flags) > 0


def begins_with(source: Source) -> str:
    """The first line of each file of a source, for messages."""
    firsts = [line for path in source.paths for line in _first_lines(path, 1)]
    return " | ".join(repr(line.decode(errors="replace")[:80]) for line in firsts)


def _open_dataset(source: Source) -> Any:
    """Its rows of two languages, or its texts of one."""
    where = f"data.pairs: {source}"
    if len(source.languages) == 1:
        return public_datasets.open_texts(source.location, source.languages[0], where=where)
    return public_datasets.open_rows(source.location, source.languages, where=where)


def identity(source: Source) -> dict[str, Any]:
    """What makes a prepared copy of `source` stale when it changes: places, sizes and times of files, versions."""
    if source.kind == "sample":
        start, stop = _sample_range(source)
        texts = "\n".join(text for language in source.languages for text in sample.sentences(language, start, stop))
        return {"kind": "sample", "start": start, "stop": stop, "text": hashlib.sha256(texts.encode()).hexdigest()[:16]}
    if source.kind in ("tfds", "hf"):
        return {"kind": source.kind, **_open_dataset(source).identity}
    return {"kind": source.kind, "files": [text_files.file_identity(path) for path in source.paths]}


def read_pairs(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[tuple[str, str]]:
    """Yields the usable pairs of `source` in order, and adds what it met to `counts`."""
    if len(source.languages) == 1:
        yield from _neighbours(_read_texts(source, cleaning, counts), counts)
        return
    markers = frozenset(cleaning.skip_lines)
    for raw in _raw_pairs(source, cleaning, counts):
        counts.read += 1
        if isinstance(raw, str):
            counts.skipped[raw] += 1
            continue
        flat_a, flat_b = raw[0].translate(_TO_SPACES), raw[1].translate(_TO_SPACES)
        try:
            a, b = flat_a.decode().strip(), flat_b.decode().strip()
        except UnicodeDecodeError:
            counts.skipped["not_utf8"] += 1
            continue
        if not a or not b:
            counts.skipped["empty"] += 1
        elif a in markers or b in markers:
            counts.skipped["marker"] += 1
        elif len(a) > cleaning.max_characters or len(b) > cleaning.max_characters:
            counts.skipped["too_long_text"] += 1
        else:
            if (flat_a, flat_b) != raw and (flat_a, flat_b) != tuple(side.replace(b"\t", b" ") for side in raw):
                counts.noted["control_characters"] += 1
            counts.kept += 1
            yield a, b


def _neighbours(texts: Iterator[str], counts: Counts) -> Iterator[tuple[str, str]]:
    """Every text once, two by two; the last of an odd number stands twice, noted as `odd_line`."""
    for first in texts:
        second = next(texts, None)
        counts.noted["odd_line"] += second is None
        yield first, first if second is None else second


def _read_texts(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[str]:
    """The usable lines of a text, long ones in parts; blank lines stand between paragraphs and are not counted."""
    for line in _raw_lines(source):
        text, reason = "", ""
        if isinstance(line, str):
            reason = line
        else:
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
    if source.kind in ("tfds", "hf"):
        yield from _open_dataset(source).read(text_files.LONGEST_LINE)
    for path in source.paths:
        yield from (
            "too_long_text" if line is None else line for line in text_files.lines(path, text_files.LONGEST_LINE)
        )


def _raw_pairs(source: Source, cleaning: Cleaning, counts: Counts) -> Iterator[Raw]:
    # The longest line worth holding: two sides of up to 4 bytes a character, and room for further columns.
    limit = 8 * cleaning.max_characters + 65_536
    if source.kind == "tsv":
        return _read_tsv(source.paths[0], limit, counts)
    if source.kind == "lines":
        return _read_lines(source.paths, limit)
    if source.kind == "sample":
        first, second = source.languages
        return ((a.encode(), b.encode()) for a, b in sample.pairs(first, second, *_sample_range(source)))
    return _open_dataset(source).read(limit)


def _read_tsv(path: Path, limit: int, counts: Counts) -> Iterator[Raw]:
    for line in text_files.lines(path, limit):
        if line is None:
            yield "too_long_text"
            continue
        columns = line.split(b"\t", 2)
        if len(columns) == 1:
            yield "no_tab" if line.strip() else "empty"
            continue
        if len(columns) == 3:
            counts.noted["extra_columns"] += 1
        yield columns[0], columns[1]


def _read_lines(paths: tuple[Path, ...], limit: int) -> Iterator[Raw]:
    numbers = [0, 0]
    for a, b in itertools.zip_longest(*(text_files.lines(path, limit) for path in paths), fillvalue=_ENDED):
        numbers[0] += a is not _ENDED
        numbers[1] += b is not _ENDED
        if isinstance(a, bytes) and isinstance(b, bytes):
            yield a, b
        elif a is not _ENDED and b is not _ENDED:
            yield "too_long_text"
    _check_aligned(paths, *numbers)


def _check_aligned(paths: tuple[Path, ...], first: int, second: int) -> None:
    if first != second:
        raise UserError(
            f"data.pairs: {paths[0]} has {first:,} lines but {paths[1]} has {second:,}; "
            "line i of one must be the translation of line i of the other, with an empty line where there is none"
        )


def _sample_range(source: Source) -> tuple[int, int]:
    for language in source.languages:
        if language not in sample.LANGUAGES:
            raise UserError(
                f"data.pairs: {source}: the built-in sample has {', '.join(sample.LANGUAGES)}, not {language}"
            )
    return sample.parse_range(source.location, sample.size(), where=f"data.pairs: {source}")
