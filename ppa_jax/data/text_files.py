"""Lines of large text files, in bounded memory: UTF-8 with or without a byte order mark, plain or gzip, LF or CRLF.

Only a line feed ends a line. Other Unicode line breaks (U+2028, U+0085, a lone carriage return) stay inside the line,
so that aligned files stay aligned.
"""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import logging

from ppa_jax.errors import UserError

LONGEST_LINE = 1 << 24  # bytes, in files that are read as a whole
_BUFFER = 1 << 18  # bytes read at once
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)
Record = TypeVar("Record")


def open_text(path: Path) -> io.BufferedReader:
    """Opens a text file after its byte order mark, decompressed.

    Raises UserError for a file that is missing, unreadable, empty, UTF-16, or named .gz without being gzip data.
    """
    try:
        stream: Any = path.open("rb", buffering=_BUFFER)
        packed = stream.peek(2)[:2] == b"\x1f\x8b"
        if packed:
            stream.close()
            stream = io.BufferedReader(gzip.open(path), _BUFFER)  # pyright: ignore[reportArgumentType]  # noqa: SIM115
        head = stream.peek(4096)[:4096]
    except _DAMAGED as error:
        raise _damaged(path) from error
    except FileNotFoundError as error:
        raise UserError(f"no such file: {path}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if head.startswith(b"\xef\xbb\xbf"):
            stream.read(3)
            head = head[3:] or stream.peek(1)
        if not head:
            raise UserError(f"{path} is empty; check that it was downloaded or written completely")
        if path.suffix == ".gz" and not packed:
            raise UserError(f"{path}: named .gz but not gzip data; rename it or pack it with gzip")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) * 5 > len(head):
            raise UserError(
                f"{path}: UTF-16 (or not text), where UTF-8 is expected; "
                f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > converted"
            )
    except UserError:
        stream.close()
        raise
    return stream


def lines(path: Path, limit: int) -> Iterator[bytes | None]:
    """Lines without their line end; None for a line of `limit` bytes or more, which is never held in memory whole."""
    with open_text(path) as stream:
        try:
            while line := stream.readline(limit):
                if line.endswith(b"\n"):
                    yield line[: -2 if line.endswith(b"\r\n") else -1]
                elif len(line) < limit:  # the last line, without a line feed
                    yield line
                else:
                    while (rest := stream.readline(limit)) and not rest.endswith(b"\n"):
                        pass
                    yield None
        except _DAMAGED as error:
            raise _damaged(path) from error


def read_lines(path: Path, *, field: str) -> list[str]:
    """All lines of a file that fits in memory, as text.

    Raises UserError, which begins with the setting `field`, as `open_text` does, and for a line that is too long or not
    UTF-8.
    """
    try:
        found = []
        for number, line in enumerate(lines(path, LONGEST_LINE), 1):
            if line is None:
                raise UserError(f"{path}:{number}: longer than {LONGEST_LINE:,} bytes; split the line")
            try:
                found.append(line.decode("utf-8"))
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8; convert the file (iconv -t UTF-8)") from None
        return found
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def read_aligned(paths: Sequence[Path], *, field: str) -> list[list[str]]:
    """`read_lines` of each file, where line i of one translates line i of the others.

    Raises UserError as `read_lines` does, and for files of different lengths.
    """
    texts = [read_lines(path, field=field) for path in paths]
    for path, text in zip(paths, texts, strict=True):
        if len(text) != len(texts[0]):
            raise UserError(
                f"{field}: {paths[0]} has {len(texts[0])} lines and {path.name} has {len(text)}; "
                "line i of one must translate line i of the other"
            )
    return texts


def file_identity(path: Path) -> list[Any]:
    """Path, size in bytes, and modification time in nanoseconds."""
    facts = path.stat()
    return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]


class Problem(NamedTuple):
    """A line, or the first line of a sentence, that cannot be used."""

    line: int
    reason: str


def tell_skipped(path: Path | str, problems: Sequence[Problem], used: int, *, field: str, expected: str) -> None:
    """Logs in one line what was skipped and why.

    Raises UserError, with the line of the first problem, if more is skipped than used: the format must be wrong.
    """
    total = len(problems) + used
    if len(problems) > used or not total:
        line, reason = min(problems) if problems else Problem(1, "nothing is here")
        raise UserError(f"{field}: {path}:{line}: {reason}; {len(problems)} of {total} unusable; {expected}")
    if problems:
        reasons = [
            f"{reason}: {count} (first at line {min(p.line for p in problems if p.reason == reason)})"
            for reason, count in Counter(problem.reason for problem in problems).most_common()
        ]
        logging.warning("%s: %d of %d skipped: %s", path, len(problems), total, "; ".join(reasons))


def usable(rows: Iterable[tuple[int, Record | str]], path: Path | str, *, field: str, expected: str) -> list[Record]:
    """The records of (line number, record) pairs; a string in place of a record says why the line is unusable.

    Unusable lines are counted in the log; raises UserError as `tell_skipped` does.
    """
    records: list[Record] = []
    problems = []
    for line, row in rows:
        if isinstance(row, str):
            problems.append(Problem(line, row))
        else:
            records.append(row)
    tell_skipped(path, problems, len(records), field=field, expected=expected)
    return records


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: the gzip data is damaged or cut short; copy the file again")
