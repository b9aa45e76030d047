"""Lines of large text files, in bounded memory: UTF-8 with or without a byte order mark, plain or gzip, LF or CRLF.

Only a line feed ends a line. Other characters that Unicode calls line breaks (U+2028, U+0085, a lone carriage return)
stay inside, so that line i of one file remains line i of the file it is aligned with.
"""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from ppa_jax.errors import UserError

LONGEST_LINE = 1 << 24  # bytes, of files that are read as a whole
_BUFFER = 1 << 18  # bytes read at once
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def open_text(path: Path) -> io.BufferedReader:
    """The bytes of a text file, unpacked, past its byte order mark.

    Raises UserError for a file that cannot be read, is empty, is UTF-16, or is gzip in name but not in content.
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
    """Lines without their end; None for one of `limit` bytes or more, which is never held as a whole."""
    with open_text(path) as stream:
        try:
            while line := stream.readline(limit):
                if line.endswith(b"\n"):
                    yield line[: -2 if line.endswith(b"\r\n") else -1]
                elif len(line) < limit:  # the last line, without an end
                    yield line
                else:
                    while (rest := stream.readline(limit)) and not rest.endswith(b"\n"):
                        pass
                    yield None
        except _DAMAGED as error:
            raise _damaged(path) from error


def read_lines(path: Path, *, field: str) -> list[str]:
    """All lines of a file that fits in memory, as text. `field` names the setting in messages.

    Raises UserError as `open_text` does, and for text that is not UTF-8, with the line.
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


def file_identity(path: Path) -> list[Any]:
    """Path, size in bytes and time of change in nanoseconds."""
    facts = path.stat()
    return [str(path.resolve()), facts.st_size, facts.st_mtime_ns]


class Problem(NamedTuple):
    """A row, or a sentence of several, that cannot be used."""

    line: int
    reason: str


def tell_skipped(path: Path | str, problems: Sequence[Problem], used: int, *, field: str, expected: str) -> None:
    """Logs in one line what was skipped and why.

    Raises UserError, with the first problem's line, if more is skipped than used: then the format is another.
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


def count_lines(path: Path) -> int:
    """The number of lines that `lines` gives."""
    number, last = 0, b"\n"
    with open_text(path) as stream:
        try:
            while block := stream.read(1 << 20):
                number += block.count(b"\n")
                last = block[-1:]
        except _DAMAGED as error:
            raise _damaged(path) from error
    return number + (last != b"\n")


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: the gzip data is damaged or cut short; copy the file again")
