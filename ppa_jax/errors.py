"""The one exception a user is meant to see."""


class UserError(Exception):
    """A mistake in the input: configuration, files, checkpoints.

    The message is one line: the field or file (with its line number), what is wrong, and the way out. The command-line
    entry points print it after `error: ` and exit with status 2, without a traceback.
    """
