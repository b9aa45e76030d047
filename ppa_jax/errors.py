"""The exceptions a user is meant to see."""

import errno
import textwrap

# What a disk says of a path where no directory can be, and one that takes no more, or not from this user.
NO_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def reason(error: BaseException) -> str:
    """What a library's exception says, on one line; a long one ends at a word, with "..."."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


class UserError(Exception):
    """A mistake in the input: configuration, files, checkpoints.

    The message is one line: the field or file (with its line number), what is wrong, and the way out. The command-line
    entry points print it after `error: ` and exit with `status`, without a traceback.
    """

    status = 2


class NotYet(UserError):
    """The input may be right: the same command may do in a moment, and the launchers start it again."""

    status = 75  # EX_TEMPFAIL of sysexits.h
