"""UserError, the exception a user is meant to see, and the errors of disks and libraries in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import textwrap
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT)
# A path that cannot be a directory; and a disk that is full or that this user may not write to.
NO_PLACE = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
NO_ROOM = (*FULL, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


class UserError(Exception):
    """A mistake in the input: configuration, files, checkpoints.

    The message is one line: the field or file (with its line number), what is wrong, and what to do. The command-line
    entry points print it after `error: ` and exit with status 2, without a traceback. Failures that a retry may fix (a
    network that is down) are not UserErrors: they exit with status 1, and the launchers restart the command.
    """


def reason(error: BaseException) -> str:
    """The message of a library's exception on one line, truncated at a word if it is long."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


@contextlib.contextmanager
def disk_errors(
    path: str | os.PathLike, *, size: int = 0, way_out: str = "choose another folder", note: str = ""
) -> Iterator[None]:
    """Turns a failed write into one line that names `path`. Other exceptions pass, including FileNotFoundError.

    Args:
      path: the file or directory being written.
      size: in bytes, for the message about a full disk.
      way_out: what the user can do instead.
      note: appended to the message.

    Raises:
      UserError: the disk is full or read-only, or this user cannot create or write `path`.
      RuntimeError: another disk error, which may be temporary.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _disk_error(error)
        if number is None or number == errno.ENOENT:
            raise
        if number not in NO_ROOM + NO_PLACE:
            message = f"cannot be written: {os.strerror(number)}; start again in a moment"
            raise RuntimeError(f"{os.fspath(path)}: {message}{note}") from error
        full = f"no space left on the device{f' ({size / 1e6:,.0f} MB are needed)' if size else ''}; make room or "
        message = full if number in FULL else f"cannot be written: {os.strerror(number)}; "
        raise UserError(f"{os.fspath(path)}: {message}{way_out}{note}") from error


def _disk_error(error: BaseException | None) -> int | None:
    """The system's error number, from the exception or its causes; None if there is none.

    TensorStore and safetensors put it in the text of their own exceptions; ArrayRecord's writer gives only its message.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if code := re.search(r"os(?:_error_code='| error )(\d+)", str(error)):
            return int(code[1])
        for number in NO_ROOM if isinstance(error, RuntimeError) else ():
            if os.strerror(number) in str(error):
                return number
        error = error.__cause__ or error.__context__
    return None
