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
    entry points print it after `error: ` and exit with status 2, without a traceback. What may work at the next try (a
    network that is down) is no UserError: it ends with status 1, and the launchers start the command again.
    """
